"""The one module that imports wasmtime: its settings, compiling, loading, describing, traps.

The engine is made once, in the zygote; it starts no thread, and workers inherit it by forking.
Everything of WebAssembly that agents do not need is switched off: what is off cannot have a bug
that a component could use, and it is refused when the component is compiled. Some switches are not
among the properties of wasmtime-py's `Config`, so all are set through its C interface, by name.
"""

import functools
import hashlib
import platform
import re
from collections.abc import Iterator
from ctypes import CDLL, POINTER, addressof, c_size_t, cast
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime import component as wasm

from agent_runtime.component import types
from ipc_protocol.errors import Failure

Component: TypeAlias = wasm.Component
Instance: TypeAlias = wasm.Instance
Linker: TypeAlias = wasm.Linker
LinkerInstance: TypeAlias = wasm.LinkerInstance
Func: TypeAlias = wasm.Func
Record: TypeAlias = wasm.Record
Engine: TypeAlias = wasmtime.Engine
Store: TypeAlias = wasmtime.Store
WasiConfig: TypeAlias = wasmtime.WasiConfig
WasmtimeError: TypeAlias = wasmtime.WasmtimeError
"""What wasmtime raises; `trap_of` says what it means."""

C: Final = ffi
"""The C interface, for what carries values across."""

# ---- Settings ------------------------------------------------------------------------------------

MIB: Final = 1 << 20

MEMORY_RESERVED_BYTES: Final = 64 * MIB
"""Address space that each linear memory gets at first. Within it a memory grows in place and keeps
sharing the pages that it was initialised with; beyond it, it is copied to a larger place. The
address space of a worker is limited, so this cannot be the 4 GiB that wasmtime would take."""

MEMORY_GROWTH_BYTES: Final = 16 * MIB
"""Address space beyond the need, when a memory is copied to a larger place."""

MEMORY_GUARD_BYTES: Final = 64 << 10
"""Unmapped space behind a memory. It spares the check of an access with a small offset."""

STACK_BYTES_MAX: Final = 1 * MIB
"""Of WebAssembly code. A worker's own stack is 8 MiB, and the host functions need some of it."""

SETTINGS: Final[tuple[tuple[str, bool | int, str], ...]] = (
    ("consume_fuel", True, "a call has a budget of instructions"),
    ("epoch_interruption", True, "a call has a deadline"),
    ("parallel_compilation", False, "a forked compiler has one thread, and would wait for more"),
    ("max_wasm_stack", STACK_BYTES_MAX, "unbounded recursion is a trap, not a fault"),
    ("memory_reservation", MEMORY_RESERVED_BYTES, "a worker's address space is limited"),
    ("memory_reservation_for_growth", MEMORY_GROWTH_BYTES, "likewise"),
    ("memory_guard_size", MEMORY_GUARD_BYTES, "likewise"),
    ("memory_init_cow", True, "agents share the pages that none of them has written"),
    ("debug_info", False, "a backtrace has the names of functions without it"),
    ("native_unwind_info", False, "nobody but wasmtime unwinds, and it has its own tables"),
    ("wasm_component_model", True, "agents are components"),
    ("wasm_bulk_memory", True, "toolchains use it"),
    ("wasm_multi_value", True, "toolchains use it"),
    ("wasm_reference_types", True, "toolchains use it, and components are made of it"),
    ("wasm_simd", True, "toolchains use it where they are told to"),
    ("wasm_relaxed_simd", False, "its results differ between machines"),
    ("wasm_threads", False, "an agent is one thread"),
    ("shared_memory", False, "likewise"),
    ("wasm_memory64", False, "4 GiB are more than an agent gets"),
    ("wasm_multi_memory", False, "no toolchain needs it"),
    ("wasm_custom_page_sizes", False, "no toolchain needs it"),
    ("wasm_wide_arithmetic", False, "no toolchain needs it"),
    ("wasm_tail_call", False, "no toolchain needs it"),
    ("wasm_branch_hinting", False, "no toolchain needs it"),
    ("wasm_compact_imports", False, "no toolchain needs it"),
    ("wasm_exceptions", False, "no toolchain needs it"),
    ("wasm_function_references", False, "no toolchain needs it"),
    ("wasm_gc", False, "no toolchain of components needs it, and it is large"),
    ("gc_support", False, "likewise"),
    ("wasm_stack_switching", False, "no toolchain needs it"),
    ("wasm_component_model_async", False, "a call returns before the next one"),
    ("wasm_component_model_async_stackful", False, "likewise"),
    ("wasm_component_model_more_async_builtins", False, "likewise"),
    ("concurrency_support", False, "likewise"),
    ("wasm_component_model_map", False, "no contract uses it"),
    ("wasm_component_model_implements", False, "no contract uses it"),
    ("wasm_component_model_accessors", False, "no contract uses it"),
    ("wasm_component_model_canonical_names", False, "no contract uses it"),
)
"""The settings of the engine by their name in the C interface, each with its reason."""


def configuration() -> Any:
    config = wasmtime.Config()
    for name, value, _ in SETTINGS:
        getattr(ffi, f"wasmtime_config_{name}_set")(config.ptr(), value)
    return config


@functools.cache
def engine() -> Engine:
    """The engine of this process and of those forked from it."""
    return wasmtime.Engine(configuration())


@functools.cache
def settings_id() -> str:
    """What native code is good for: library, settings, and the features of this processor."""
    features = "".join(
        sorted(
            line
            for line in set(Path("/proc/cpuinfo").read_text().splitlines())
            if line.startswith(("flags", "Features"))
        )
    )
    settings = repr([(name, value) for name, value, _ in SETTINGS])
    digest = hashlib.sha256(f"{settings}\n{features}".encode()).hexdigest()
    return f"wasmtime-{metadata.version('wasmtime')}-{platform.machine()}-{digest[:16]}"


# ---- Compiling and loading -----------------------------------------------------------------------

_MAGIC: Final = b"\0asm"
_LAYER_MODULE: Final = 0
_LAYER_COMPONENT: Final = 1

_FEATURES: Final[tuple[tuple[str, str], ...]] = (
    ("64-bit memories", r"memory64|64-bit mem|64-bit table"),
    ("threads and shared memory", r"\bthreads\b|shared mem|shared-everything|atomic"),
    ("more than one memory", r"multi-memory|multiple memories"),
    ("garbage-collected references, such as `externref`", r"gc types are disallowed"),
    ("garbage collection", r"\bgc\b|array indexed types|heap types|abstract heap|rec group"),
    ("exceptions", r"exceptions? proposal|exception|legacy_exceptions"),
    ("tail calls", r"tail calls?"),
    ("typed function references", r"function[- ]references"),
    ("relaxed SIMD", r"relaxed[ _]simd"),
    ("custom page sizes", r"custom page sizes"),
    ("wide arithmetic", r"wide[ _]arithmetic"),
    ("stack switching", r"stack[- ]switching|continuation"),
    ("asynchronous components", r"async"),
    ("fixed-length lists", r"fixed-length lists"),
    ("maps", r"component model map"),
    ("component-model extensions", r"component model|component-model|`cm-"),
)
"""A feature, and how the validator's message names it, in the order in which they are tried."""

_SWITCHED_OFF: Final = re.compile(
    r"not enabled|support is not|to be enabled|must be enabled|is disabled|is not active|disallowed"
    r"|required (?:the|for)|requires? the|not supported|multiple memories"
)


def compile_component(wasm_bytes: bytes) -> Component:
    """Compile a component. Takes seconds and hundreds of megabytes, and more for hostile input.

    Raises:
        Failure: `component.malformed`, `component.feature` or `component.compile`.
    """
    _check_header(wasm_bytes)
    try:
        return wasm.Component(engine(), wasm_bytes)
    except WasmtimeError as error:
        raise _refusal(str(error)) from None


def _check_header(wasm_bytes: bytes) -> None:
    if wasm_bytes[:4] != _MAGIC or len(wasm_bytes) < 8:
        raise Failure(
            "component.malformed",
            "The file is not WebAssembly: it does not begin with the four bytes of one.",
            "Give a .wasm file that holds a component.",
        )
    layer = int.from_bytes(wasm_bytes[6:8], "little")
    if layer == _LAYER_MODULE:
        raise Failure(
            "component.malformed",
            "The file is a core module, not a component.",
            "Build it as a component, for example with `componentize-py`, with `jco componentize`,"
            " for the target wasm32-wasip2, or with `wasm-tools component new`.",
        )
    if layer != _LAYER_COMPONENT:
        raise Failure(
            "component.malformed",
            f"The file says that it is WebAssembly of layer {layer}, which is unknown.",
            "Build it with a released toolchain.",
        )


def _refusal(message: str) -> Failure:
    """What the library said about a component that it does not compile."""
    message = " ".join(message.split())
    if _SWITCHED_OFF.search(message):
        for feature, pattern in _FEATURES:
            if re.search(pattern, message, re.I):
                return Failure(
                    "component.feature",
                    f"The component needs {feature}, which are switched off for agents.",
                    "Build it without, for a 32-bit target of WebAssembly 2.0.",
                    feature=feature,
                    reason=message,
                )
    if "offset 0x" in message or "parse" in message:
        return Failure(
            "component.malformed",
            f"The component is not valid: {message}.",
            "Build it again with a released toolchain.",
            reason=message,
        )
    return Failure(
        "component.compile", f"The component cannot be compiled: {message}.", reason=message
    )


def serialize(component: Component) -> bytes:
    """The native code of a component. Whoever loads it executes it: trust where it was."""
    return bytes(component.serialize())


def load_component(fd: int) -> Component:
    """Map native code by descriptor, shared with everybody who maps the same file.

    `/proc` has to be mounted. Native code of another library or of other settings is refused.
    """
    try:
        return wasm.Component.deserialize_file(engine(), f"/proc/self/fd/{fd}")
    except WasmtimeError as error:
        raise Failure(
            "component.compile",
            f"The native code of the component cannot be loaded: {' '.join(str(error).split())}.",
            "Compile the component again.",
        ) from None


# ---- Describing ----------------------------------------------------------------------------------

_PRIMITIVES: Final = {
    getattr(wasm, name): types.Primitive(name.lower())
    for name in (
        *("Bool", "U8", "U16", "U32", "U64", "S8", "S16", "S32", "S64", "F32", "F64"),
        *("Char", "String"),
    )
}


def describe(component: Component) -> types.ComponentType:
    """What a component imports and exports, in our own types."""
    found = component.type
    imports, strange_imports = _interfaces(found.imports(engine()))
    exports, strange_exports = _interfaces(found.exports(engine()))
    return types.ComponentType(imports, exports, (*strange_imports, *strange_exports))


def _interfaces(items: dict[str, Any]) -> tuple[dict[str, types.Interface], list[str]]:
    interfaces, others = {}, []
    for name, extern in items.items():
        item = extern.ty
        if isinstance(item, wasm.ComponentInstanceType):
            interfaces[name] = _interface(item)
        else:
            others.append(name)
    return interfaces, others


def _interface(instance: Any) -> types.Interface:
    functions, resources, others = {}, [], []
    for name, extern in instance.exports(engine()).items():
        item = extern.ty
        if isinstance(item, wasm.FuncType):
            functions[name] = describe_function(item)
        elif isinstance(item, wasm.ResourceType):
            resources.append(name)
        elif not isinstance(item, wasm.ValType):
            others.append(name)
    return types.Interface(functions, tuple(resources), tuple(others))


def describe_function(function: Any) -> types.Function:
    result = function.result
    return types.Function(
        tuple((name, _type(parameter)) for name, parameter in function.params),
        None if result is None else _type(result),
    )


def _type(found: Any) -> types.Type:
    match found:
        case wasm.ListType():
            return types.ListOf(_type(found.element))
        case wasm.TupleType():
            return types.TupleOf(tuple(_type(element) for element in found.elements))
        case wasm.RecordType():
            return types.Record(tuple((name, _type(field)) for name, field in found.fields))
        case wasm.OptionType():
            return types.OptionOf(_type(found.payload))
        case wasm.ResultType():
            return types.ResultOf(_optional(found.ok), _optional(found.err))
        case wasm.VariantType():
            return types.Variant(tuple((name, _optional(case)) for name, case in found.cases))
        case wasm.EnumType():
            return types.Enum(tuple(found.names))
        case wasm.FlagsType():
            return types.Flags(tuple(found.names))
        case wasm.OwnType():
            return types.Handle(owned=True)
        case wasm.BorrowType():
            return types.Handle(owned=False)
    primitive = _PRIMITIVES.get(type(found))
    return types.Unsupported(type(found).__name__) if primitive is None else primitive


def _optional(found: Any) -> types.Type | None:
    return None if found is None else _type(found)


# ---- Traps ---------------------------------------------------------------------------------------


class Trap(NamedTuple):
    """Why a call ended early."""

    kind: str
    """A key of `TRAP_CODES`."""
    message: str
    """One line: what wasmtime says."""
    backtrace: str
    """The WebAssembly frames, innermost first, a line each; empty if none was running."""

    @property
    def code(self) -> str:
        """The code of the error that this is."""
        return TRAP_CODES[self.kind]


TRAP_CODES: Final = {
    "link": "component.import",
    "unreachable": "component.trapped",
    "fuel": "component.fuel",
    "deadline": "component.deadline",
    "stack": "component.memory",
    "memory": "component.memory",
    "table": "component.memory",
    "instances": "component.memory",
    "bounds": "component.trapped",
    "indirect-call": "component.trapped",
    "arithmetic": "component.trapped",
    "encoding": "component.output",
    "output": "component.output",
    "reentry": "component.trapped",
    "other": "component.trapped",
}
"""Kinds of trap, each with the code of its error. *link* is an import that nothing is linked to, so
that nothing was instantiated. *memory*, *table* and *instances* are limits of
the store, *bounds* is an access outside of a memory or a table, *encoding* a value that is none of
its type, *output* more data than the library copies, *reentry* a call after a trap."""

_NOT_LINKED: Final = "not found in the linker"

_KINDS: Final[tuple[tuple[str, str], ...]] = (
    ("link", _NOT_LINKED),
    ("unreachable", "wasm `unreachable` instruction executed"),
    ("fuel", "all fuel consumed"),
    ("deadline", "wasm trap: interrupt"),
    ("stack", "call stack exhausted"),
    ("memory", "exceeds memory limits"),
    ("table", "exceeds table limits"),
    ("instances", "count too high"),
    ("bounds", "out of bounds memory access|out of bounds table access"),
    ("indirect-call", "uninitialized element|indirect call type mismatch|null reference"),
    ("arithmetic", "integer divide by zero|integer overflow|invalid conversion to integer"),
    (
        "encoding",
        "utf-8|utf-16|invalid `char`|content out-of-bounds|invalid variant discriminant"
        "|unaligned pointer|out of bounds of memory|discriminant|not aligned",
    ),
    ("output", "fuel allocated for hostcalls|hostcall"),
    ("reentry", "cannot enter component instance"),
)

_FRAMES: Final = re.compile(r"^\s*\d+:\s+(?:0x[0-9a-f]+ - )?\S+!.*$", re.MULTILINE)


def trap_of(error: WasmtimeError) -> Trap:
    """What an error of a call or of an instantiation means. The library has only its text."""
    text = str(error)
    head, _, cause = text.rpartition("Caused by:")
    if not head or _NOT_LINKED in head:
        cause = text
    message = " ".join(cause.split())
    kind = next((kind for kind, said in _KINDS if re.search(said, message)), "other")
    return Trap(kind, message, "\n".join(frame.strip() for frame in _frames(head)))


def _frames(text: str) -> Iterator[str]:
    return (found.group() for found in _FRAMES.finditer(text))


def error_of(address: int) -> WasmtimeError:
    """The exception for an error that the C interface returned; it owns the error from now on."""
    return WasmtimeError._from_ptr(cast(address, POINTER(ffi.wasmtime_error_t)))


# ---- Memory of a process that carries large values -----------------------------------------------

FREED_BYTES_HELD: Final = 64 * MIB
"""More than a call with the largest payload takes for the copies of its values."""

HELD_ALLOCATION_BYTES_MAX: Final = 32 * MIB
"""The largest that the allocator lets one be that it keeps."""

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_libc: Final = CDLL(None)


def hold_freed_memory() -> None:
    """From now on keep what is freed, for the next call.

    The library makes about five copies of a list of bytes, each of 32 times its size. When each
    comes fresh from the kernel and goes back at once, half of a call with 256 KiB is page faults.
    A process that is going to be idle calls `release_freed_memory`.
    """
    _libc.mallopt(_TRIM_THRESHOLD, FREED_BYTES_HELD)
    _libc.mallopt(_MMAP_THRESHOLD, HELD_ALLOCATION_BYTES_MAX)


def release_freed_memory() -> None:
    _libc.malloc_trim(c_size_t(0))


# ---- What the boundary needs of the library's objects --------------------------------------------


def exported_type(store: Store, function: Func) -> types.Function:
    """The type of an exported function, as the component has it."""
    return describe_function(function.type(store))


def imported_type(address: int) -> types.Function:
    """The type that a callback is given by its address. It stays the library's."""
    pointer = cast(address, POINTER(ffi.wasmtime_component_func_type_t))
    return describe_function(wasm.FuncType._from_ptr(pointer, owner=ffi))


def host_resource(kind: int) -> Any:
    return wasm.ResourceType.host(kind)


def address_of(function: Func) -> int:
    """Of the structure that the C interface knows a function by. It lives as long as `function`."""
    return addressof(function._func)
