"""Exceptions across the boundary: what a host function raises ends the call of the guest."""

from collections.abc import Callable
from ctypes import c_char_p, c_void_p
from typing import Final, NoReturn

from agent_runtime.component import library, types
from agent_runtime.component.boundary.memory import library_function
from ipc_protocol.errors import Failure

_new_error: Final = library_function("wasmtime_error_new", c_void_p, c_char_p)

raised: Final[list[BaseException]] = []
"""What host functions raised, until the guest's call that they were called from has ended."""


def unsupported(type_: types.Unsupported) -> Failure:
    return Failure("component.feature", f"Values of the type {type_.name} cannot be passed.")


def fail(error: int) -> NoReturn:
    """Raise what a call of the library ended with."""
    wasmtime_error = library.error_of(error)
    if raised:
        raise raised.pop()
    raise wasmtime_error


def check(error: int | None) -> None:
    if error:
        fail(error)


def guarded(body: Callable[[], None]) -> int:
    """Run the body of a callback: what it raises ends the guest's call. Gives the error, or 0."""
    try:
        body()
    except BaseException as error:  # noqa: BLE001  it is raised again where the guest was called
        raised.append(error)
        failed: int = _new_error(b"a host function raised")
        return failed
    return 0
