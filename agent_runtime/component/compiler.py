"""The body of a compiler: a sealed process that turns one component into native code, and ends.

What it reads may be hostile: 22 KB of Wasm can take minutes and gigabytes to compile. So it is as
confined as a worker, and may use so much memory and CPU time. When either is used up it dies on the
spot, without an answer. It holds two descriptors beside its line: the component, and the file that
the native code goes to; whoever forked it decides what that code is worth.
"""

import errno
import os
import resource
import socket
import sys
import time
import traceback
from typing import Final, NoReturn

from msgspec.structs import replace

from agent_runtime.component import contract, library, shipped, types
from agent_runtime.wire import END_OF_LINE, BlockingLine
from ipc_protocol.components import Compiled
from ipc_protocol.errors import Failure
from ipc_protocol.events import Failed, Hello, RequestReceived
from ipc_protocol.methods import COMPILER_COMPILE

HELLO: Final = Hello(name="compiler")

COMPONENT_BYTES_MAX: Final = 64 * 1024 * 1024
"""The largest component that is read. One written in Python is 18 MB with its interpreter and its
libraries. Compiling costs twenty times as much memory as the component has bytes."""

_MAXRSS_UNIT_BYTES: Final = 1024

TYPES_BYTES_MAX: Final = 256 * 1024
"""Six times that of an ordinary component of Python. Of a larger one the worker reads the types."""


class Compiler:
    """One component at the accepting end of its line."""

    def __init__(self, sock: socket.socket, component_fd: int, native_fd: int) -> None:
        self._line = BlockingLine(sock, HELLO, initiator=False)
        self._component_fd = component_fd
        self._native_fd = native_fd
        self._compiled = False

    def run(self) -> int:
        """Serve until the line ends. Returns the exit status."""
        while True:
            for event in self._line.receive():
                if isinstance(event, Failed):
                    if event.problem.code == END_OF_LINE:
                        return 0
                    print(f"compiler: {event.problem.message}", file=sys.stderr)
                    return 1
                if isinstance(event, RequestReceived):
                    self._serve(event)

    def _serve(self, received: RequestReceived) -> None:
        session = self._line.session
        try:
            answer = self._answer(received)
        except Failure as failure:
            self._line.send(session.error(received.stream, failure.problem))
        else:
            self._line.send(session.result(received.stream, answer))

    def _answer(self, received: RequestReceived) -> Compiled:
        method = received.request.method
        if method != COMPILER_COMPILE.name:
            raise Failure(
                "request.unknown-method",
                f"There is no method {method!r} on this line.",
                f"It serves {COMPILER_COMPILE.name}.",
            )
        if self._compiled:
            raise Failure("request.invalid", "This compiler has had its component.", "Fork one.")
        self._compiled = True
        try:
            return self._compile()
        except MemoryError as error:
            raise Failure(
                "component.compile",
                "The component cannot be compiled within the memory that a compiler may use.",
                "Make it smaller, or split it.",
            ) from error

    def _compile(self) -> Compiled:
        wasm = _read_component(self._component_fd)
        began = time.monotonic()
        component = library.compile_component(wasm)
        compile_us = round((time.monotonic() - began) * 1e6)
        found = library.describe(component)
        fitting = contract.fit(found, shipped.load())
        encoded = types.encode(found)
        shape = replace(
            fitting,
            functions=contract.listing(found),
            types=encoded if len(encoded) <= TYPES_BYTES_MAX else b"",
        )
        native = library.serialize(component)
        _write_native(self._native_fd, native)
        return Compiled(
            shape=shape,
            settings=library.settings_id(),
            native_bytes=len(native),
            compile_us=compile_us,
            memory_bytes_peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * _MAXRSS_UNIT_BYTES,
        )


def _read_component(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > COMPONENT_BYTES_MAX:
        raise Failure(
            "component.compile",
            f"The component has {size} bytes; {COMPONENT_BYTES_MAX} are compiled at most.",
            "Strip its debug information, or leave out libraries that it does not use.",
            size_bytes=size,
            size_bytes_max=COMPONENT_BYTES_MAX,
        )
    wasm = bytearray()
    while piece := os.pread(fd, size - len(wasm), len(wasm)):
        wasm += piece
    return bytes(wasm)


def _write_native(fd: int, native: bytes) -> None:
    written = 0
    try:
        while written < len(native):
            written += os.pwrite(fd, memoryview(native)[written:], written)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise Failure(
                "component.compile",
                f"The native code has {len(native)} bytes, more than a compiler may write.",
                "Make the component smaller, or split it.",
                native_bytes=len(native),
            ) from error
        raise Failure(
            "store.full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "store.unavailable",
            f"The native code cannot be written: {error.strerror}.",
            "Free space on the disk of the daemon's state.",
        ) from error


def compiler_main(sock: socket.socket, component_fd: int, native_fd: int) -> NoReturn:
    """The life of a compiler on its inherited descriptors. Ends the process."""
    try:
        status = Compiler(sock, component_fd, native_fd).run()
    except Exception:  # noqa: BLE001 (a defect is shown, and ends this compiler alone)
        traceback.print_exc()
        status = 1
    sys.exit(status)
