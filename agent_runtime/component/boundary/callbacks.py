"""Functions and resources of the host, which components import."""

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_char_p, c_size_t, c_uint32, c_void_p, py_object, pythonapi
from struct import Struct
from typing import Any, Final

from agent_runtime.component import library, types
from agent_runtime.component.boundary.crossing import LIFTED_BYTES_MAX, Crossing
from agent_runtime.component.boundary.lifting import lifter
from agent_runtime.component.boundary.lowering import RESOURCE_KIND, lowerer
from agent_runtime.component.boundary.memory import MEMORY, library_function
from agent_runtime.component.boundary.raising import check, guarded
from ipc_protocol.errors import Failure

_Callback = CFUNCTYPE(
    c_size_t, *(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)
)
_Destructor = CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_uint32)
_Finalizer = CFUNCTYPE(None, c_void_p)

_add_func = library_function(
    "wasmtime_component_linker_instance_add_func",
    c_void_p,
    *(c_void_p, c_char_p, c_size_t, _Callback, c_void_p, _Finalizer),
)
_add_resource = library_function(
    "wasmtime_component_linker_instance_add_resource",
    c_void_p,
    *(c_void_p, c_char_p, c_size_t, c_void_p, _Destructor, c_void_p, _Finalizer),
)

_callbacks: Final[dict[int, Callable[..., int]]] = {}
"""What is to be called, by the number that the library hands back; kept until it lets go of it.

There is one C function for all of them, made when this module is imported: each takes executable
memory, of which a sealed worker gets no more."""


def _dispatched(number: int, *arguments: Any) -> int:
    return _callbacks[number](number, *arguments)


_called: Final = _Callback(_dispatched)
_dropped: Final = _Destructor(_dispatched)


def _forget(number: int, callbacks: dict[int, Any] = _callbacks) -> None:
    callbacks.pop(number, None)  # by default: at the end of the interpreter globals are gone


_let_go: Final = _Finalizer(_forget)

for _kept in (_called, _dropped, _let_go):
    # For good: at the end of the interpreter a linker may outlive this module, and calls them.
    pythonapi.Py_IncRef(py_object(_kept))


def _keep(callback: Callable[..., int]) -> int:
    number = id(callback)
    _callbacks[number] = callback
    return number


def add_host_function(
    linker_instance: library.LinkerInstance,
    name: str,
    function: types.Function | Callable[[], types.Function],
    implementation: Callable[..., Any],
    lifted_bytes_max: int = LIFTED_BYTES_MAX,
) -> None:
    """Let one component import a function of the host. A linker serves one component.

    `function` may be had when it is called for the first time.

    What `implementation` raises ends the guest's call, and `GuestFunction` raises the same object.
    So does an argument that is larger than is taken, and a result that is not of the type.
    """
    run: Callable[[int, int, int], None] | None = None

    def called(
        _data: int, context: int, type_at: int, arguments_at: int, _n: int, results_at: int, _m: int
    ) -> int:
        def body() -> None:
            nonlocal run
            if run is None:  # most of what toolchains import is never called
                declared = function if isinstance(function, types.Function) else function()
                run = _planned(name, type_at, declared, implementation, lifted_bytes_max)
            run(context, arguments_at, results_at)

        return guarded(body)

    text = name.encode()
    check(_add_func(linker_instance.ptr(), text, len(text), _called, _keep(called), _let_go))


def _planned(
    name: str,
    type_at: int,
    function: types.Function,
    implementation: Callable[..., Any],
    lifted_bytes_max: int,
) -> Callable[[int, int, int], None]:
    """The way of a call from the guest to `implementation`, and back."""
    _check_import(name, type_at, function)
    crossing = Crossing(lifted_bytes_max)
    lifts = [lifter(type_, crossing) for _, type_ in function.parameters]
    lower = None if function.result is None else lowerer(function.result, crossing)
    unpack = Struct("=" + "8xQQQ" * len(lifts)).unpack_from
    numbered = [(lift, 3 * i) for i, lift in enumerate(lifts)]

    def run(context: int, arguments_at: int, results_at: int) -> None:
        crossing.context = context
        crossing.left = lifted_bytes_max
        words = unpack(MEMORY, arguments_at) if numbered else ()
        result = implementation(
            *[lift(words[i], words[i + 1], words[i + 2]) for lift, i in numbered]
        )
        if lower is not None:
            crossing.context = context
            lower(result, results_at)
        elif result is not None:
            raise TypeError(f"{name} returns nothing, and its implementation {result!r}")

    return run


def _check_import(name: str, type_at: int, function: types.Function) -> None:
    found = library.imported_type(type_at)
    if found != function:
        raise Failure("component.import", f"{name} is imported with another type: {found}.")


def add_host_resource(
    linker_instance: library.LinkerInstance, name: str, drop: Callable[[int], None]
) -> None:
    """Let a component import a resource of the host. `drop` is told its number when the component
    gives up one that it owns. Numbers are unique across all resources of a store."""

    def dropped(_data: int, _context: int, number: int) -> int:
        return guarded(lambda: drop(number))

    text = name.encode()
    resource = library.host_resource(RESOURCE_KIND)
    check(
        _add_resource(
            *(linker_instance.ptr(), text, len(text), resource.ptr()),
            *(_dropped, _keep(dropped), _let_go),
        )
    )
