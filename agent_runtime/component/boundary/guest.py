"""Functions of a component, called with Python values.

What is lifted is copied; arguments and result are freed when the call is over.
"""

import ctypes
from ctypes import c_size_t, c_void_p
from typing import Any, Final

from agent_runtime.component import library, types
from agent_runtime.component.boundary.crossing import LIFTED_BYTES_MAX, Crossing
from agent_runtime.component.boundary.lifting import lifter
from agent_runtime.component.boundary.lowering import lowerer
from agent_runtime.component.boundary.memory import (
    MEMORY,
    VALUE_BYTES,
    delete_value,
    library_function,
    words_at,
)
from agent_runtime.component.boundary.raising import fail, raised
from ipc_protocol.errors import Failure

_call: Final = library_function(
    "wasmtime_component_func_call",
    c_void_p,
    *(c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t),
)


class GuestFunction:
    """A function that a component exports, called with Python values.

    Args:
        store: Where the component lives.
        func: The exported function.
        function: The type that it should have.
        lifted_bytes_max: What one result may hold; see `LIFTED_BYTES_MAX`.
    """

    def __init__(
        self,
        store: library.Store,
        func: library.Func,
        function: types.Function,
        lifted_bytes_max: int = LIFTED_BYTES_MAX,
    ) -> None:
        found = library.exported_type(store, func)
        if found != function:
            raise Failure("component.world", f"The function has another type: {found}.")
        self._store = store
        self._func = func
        self._func_at = library.address_of(func)
        self._bytes_max = lifted_bytes_max
        self._crossing = Crossing(lifted_bytes_max)
        count = len(function.parameters)
        self._values = ctypes.create_string_buffer((count + 1) * VALUE_BYTES)
        start = ctypes.addressof(self._values)
        self._arguments_at = start
        self._arguments = [
            (lowerer(type_, self._crossing), start + i * VALUE_BYTES)
            for i, (_, type_) in enumerate(function.parameters)
        ]
        self._result_at = start + count * VALUE_BYTES
        self._lift = None if function.result is None else lifter(function.result, self._crossing)
        self._entered = False

    def __call__(self, *arguments: Any) -> Any:
        """Call the function.

        Raises:
            library.WasmtimeError: It trapped; see `library.trap_of`.
            Failure: `component.output`: the result is larger than is taken.
            BaseException: What a host function raised, the same object.
            TypeError: The arguments are not of the function's type; also others, such as
                `struct.error` for a number out of range.
        """
        if self._entered:
            raise RuntimeError("a component cannot be entered while it runs")
        crossing, lift, result_at = self._crossing, self._lift, self._result_at
        context = crossing.context = self._store._context()
        crossing.left = self._bytes_max
        crossing.loans = []
        self._entered = True
        try:
            for (lower, at), value in zip(self._arguments, arguments, strict=True):
                lower(value, at)
            error = _call(
                self._func_at,
                context,
                self._arguments_at,
                len(arguments),
                result_at,
                0 if lift is None else 1,
            )
            if error:
                fail(error)
            return None if lift is None else lift(*words_at(MEMORY, result_at))
        finally:
            crossing.end_loans()
            for _, at in self._arguments:
                delete_value(at)
            delete_value(result_at)
            ctypes.memset(self._arguments_at, 0, len(self._values))
            self._entered = False


def instantiate(
    linker: library.Linker, store: library.Store, component: library.Component
) -> library.Instance:
    """Instantiate a component, whose start functions may call host functions.

    Raises:
        library.WasmtimeError: It trapped, or is over a limit, or something is not linked.
        BaseException: What a host function raised, the same object.
    """
    try:
        return linker.instantiate(store, component)
    except library.WasmtimeError:
        if raised:
            raise raised.pop() from None
        raise
