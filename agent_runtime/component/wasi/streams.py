"""wasi:io/streams and wasi:io/error: bytes in and out, of whatever has them.

No stream here makes anybody wait, so what may block and what may not are the same.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol, runtime_checkable

from agent_runtime.component import limits
from agent_runtime.component.types import Case, err, ok
from agent_runtime.component.wasi.polling import Pollable
from agent_runtime.component.wasi.surroundings import Functions, Surroundings
from agent_runtime.component.wasi.trap import HostTrap

CLOSED: Final = Case("closed")


class StreamEnded(Exception):
    """There is nothing more to read, and never will be."""


@runtime_checkable
class InputStream(Protocol):
    def read(self, length: int) -> bytes:
        """The next bytes, at least one unless `length` is 0. Raises `StreamEnded`, `OSError`."""


@runtime_checkable
class OutputStream(Protocol):
    def write(self, data: bytes) -> None:
        """Write all of it. Raises `OSError`."""

    def flush(self) -> None:
        """Raises `OSError`."""


class NoInput:
    """The standard input of a component."""

    def read(self, _length: int) -> bytes:
        raise StreamEnded


class Discarded:
    """The standard output of a component: it has nobody to speak to."""

    def write(self, data: bytes) -> None:
        pass

    def flush(self) -> None:
        pass


class StandardError:
    def __init__(self, around: Surroundings) -> None:
        self._log = around.log

    def write(self, data: bytes) -> None:
        self._log.write_stderr(data)

    def flush(self) -> None:
        pass


def error_functions(around: Surroundings) -> Functions:
    def to_debug_string(number: int) -> str:
        return str(around.handles.get(number, OSError))

    return {"[method]error.to-debug-string": to_debug_string}


def input_functions(around: Surroundings) -> Functions:
    def source(number: int) -> InputStream:
        return around.handles.get(number, InputStream)  # type: ignore[type-abstract]

    def read(number: int, length: int) -> Case:
        stream = source(number)
        return _attempt(around, lambda: stream.read(_at_once(length)))

    def skip(number: int, length: int) -> Case:
        stream = source(number)
        return _attempt(around, lambda: len(stream.read(_at_once(length))))

    return {
        "[method]input-stream.read": read,
        "[method]input-stream.blocking-read": read,
        "[method]input-stream.skip": skip,
        "[method]input-stream.blocking-skip": skip,
        "[method]input-stream.subscribe": lambda _: around.handles.add(Pollable()),
    }


def output_functions(around: Surroundings) -> Functions:
    def sink(number: int) -> OutputStream:
        return around.handles.get(number, OutputStream)  # type: ignore[type-abstract]

    def check_write(number: int) -> Case:
        sink(number)
        return ok(limits.TRANSFER_BYTES_MAX)

    def write(number: int, contents: bytes) -> Case:
        stream = sink(number)
        return _attempt(around, lambda: stream.write(contents))

    def write_zeroes(number: int, length: int) -> Case:
        if length > limits.TRANSFER_BYTES_MAX:
            raise HostTrap(f"it writes {length} zeroes; {limits.TRANSFER_BYTES_MAX} were permitted")
        return write(number, bytes(length))

    def flush(number: int) -> Case:
        return _attempt(around, sink(number).flush)

    def splice(number: int, other: int, length: int) -> Case:
        to = sink(number)
        origin = around.handles.get(other, InputStream)  # type: ignore[type-abstract]

        def pass_on() -> int:
            data = origin.read(_at_once(length))
            to.write(data)
            return len(data)

        return _attempt(around, pass_on)

    return {
        "[method]output-stream.check-write": check_write,
        "[method]output-stream.write": write,
        "[method]output-stream.blocking-write-and-flush": write,
        "[method]output-stream.flush": flush,
        "[method]output-stream.blocking-flush": flush,
        "[method]output-stream.subscribe": lambda _: around.handles.add(Pollable()),
        "[method]output-stream.write-zeroes": write_zeroes,
        "[method]output-stream.blocking-write-zeroes-and-flush": write_zeroes,
        "[method]output-stream.splice": splice,
        "[method]output-stream.blocking-splice": splice,
    }


def _at_once(length: int) -> int:
    return min(length, limits.TRANSFER_BYTES_MAX)


def _attempt(around: Surroundings, operation: Callable[[], Any]) -> Case:
    try:
        return ok(operation())
    except StreamEnded:
        return err(CLOSED)
    except OSError as error:
        return err(Case("last-operation-failed", around.handles.add(error)))
