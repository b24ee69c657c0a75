"""Values on their way into a component and out of it, by plans that are made once for a function.

wasmtime-py describes the types of a function anew at each call and converts lists of bytes one by
one; this module can be dropped when it no longer does. It has the same two halves: *lowering*
writes a Python value as a `wasmtime_component_val_t`, *lifting* reads one. A plan is a tree of
closures, one for each type, built from `types.Function`.

A value in the library's memory has 32 bytes: its kind in the first, its content from the eighth on,
three words at most. What follows from that is all the layout there is:

| kind | content, in words |
|---|---|
| a number, a bool, a char | itself |
| string, enum | size, address of the text |
| list, tuple | size, address of the values |
| record | size, address of the fields: name (size, address), then the value |
| flags | size, address of the names (size, address) |
| option | address of the value, or 0 |
| result | whether it is *ok*, address of the value, or 0 |
| variant | size and address of the case's name, address of the value, or 0 |
| resource | address of what stands for it |

Memory is read and written through `_MEMORY`, an array that is the whole address space: what makes
bulk transfer possible is that Python slices it with a stride. Nothing checks these addresses, so a
plan only ever meets values of its own type: the type of a function is compared with what the
component says, for an export when it is bound, for an import when it is first called.

Who owns what: everything lowered is allocated by the library, but for lists of bytes in arguments,
which are on loan and taken back before the arguments are freed. Results of host functions belong to
the library at once. What is lifted is copied, and freed if it was a result.
"""

import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_bool, c_char, c_char_p, c_size_t, c_uint32, c_void_p
from struct import Struct
from typing import Any, Final, NoReturn, TypeAlias

from agent_runtime.component import library, types
from agent_runtime.component.types import Case
from ipc_protocol.errors import Failure

LIFTED_BYTES_MAX: Final = 8 << 20
"""Of one call's values, where what is no text and no list of bytes counts 32 bytes each. Lifting is
outside of fuel and deadline: this much takes some 50 ms."""

RESOURCE_KIND: Final = 1
"""wasmtime's number for all resources of the host. One suffices: which resource of which interface
an `own` or `borrow` is was settled when the component was validated."""

Lift: TypeAlias = Callable[[int, int, int], Any]
"""From the three words of a value."""
Lower: TypeAlias = Callable[[Any, int], None]
"""Of a value, to an address where a value of kind *bool* is."""

_MEMORY: Final[Any] = (c_char * ((1 << 47) - 1)).from_address(0)

_VALUE_BYTES: Final = 32
_FIELD_BYTES: Final = 48
_NAME_BYTES: Final = 16
_NOTHING: Final = bytes(_VALUE_BYTES)

_words_at: Final = Struct("=8xQQQ").unpack_from
_each_value: Final = Struct("=8xQQQ").iter_unpack
_each_name: Final = Struct("=QQ").iter_unpack
_address_at: Final = Struct("=8xQ").unpack_from
_put_word: Final = Struct("=Q").pack_into
_put_list: Final = Struct("=QQ").pack_into


def _kind(name: str) -> bytes:
    return bytes([getattr(library.C, f"WASMTIME_COMPONENT_{name}").value])


_U8_VALUE: Final = _kind("U8") + bytes(_VALUE_BYTES - 1)
_STRING: Final = _kind("STRING")
_LIST: Final = _kind("LIST")
_TUPLE: Final = _kind("TUPLE")
_RECORD: Final = _kind("RECORD")
_OPTION: Final = _kind("OPTION")
_RESULT: Final = _kind("RESULT")
_VARIANT: Final = _kind("VARIANT")
_ENUM: Final = _kind("ENUM")
_FLAGS: Final = _kind("FLAGS")
_RESOURCE: Final = _kind("RESOURCE")


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C interface that takes addresses as integers, which is several times as
    fast as pointers. Its own object: the library's have other types."""
    function = library.C.dll[name]
    function.restype = result
    function.argtypes = arguments
    return function


_call = _function(
    "wasmtime_component_func_call",
    c_void_p,
    *(c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t),
)
_delete = _function("wasmtime_component_val_delete", None, c_void_p)
_new_value = _function("wasmtime_component_val_new", c_void_p, c_void_p)
_new_text = _function("wasm_byte_vec_new", None, c_void_p, c_size_t, c_char_p)
_new_list = _function("wasmtime_component_vallist_new_uninit", None, c_void_p, c_size_t)
_new_list_of = _function("wasmtime_component_vallist_new", None, c_void_p, c_size_t, c_void_p)
_new_tuple = _function("wasmtime_component_valtuple_new_uninit", None, c_void_p, c_size_t)
_new_record = _function("wasmtime_component_valrecord_new_uninit", None, c_void_p, c_size_t)
_new_flags = _function("wasmtime_component_valflags_new_uninit", None, c_void_p, c_size_t)
_new_error = _function("wasmtime_error_new", c_void_p, c_char_p)
_new_host = _function("wasmtime_component_resource_host_new", c_void_p, c_bool, c_uint32, c_uint32)
_host_number = _function("wasmtime_component_resource_host_rep", c_uint32, c_void_p)
_delete_host = _function("wasmtime_component_resource_host_delete", None, c_void_p)
_any_to_host = _function(
    "wasmtime_component_resource_any_to_host", c_void_p, c_void_p, c_void_p, c_void_p
)
_host_to_any = _function(
    "wasmtime_component_resource_host_to_any", c_void_p, c_void_p, c_void_p, c_void_p
)


class _Crossing:
    """What the closures of a plan share for the time of one call."""

    def __init__(self, bytes_max: int) -> None:
        self.context: Any = None
        self.left = bytes_max
        self.loans: list[tuple[int, bytearray]] | None = None
        """Lists of bytes in the arguments of a component's function: where the value is, and its
        memory. None for the results of a host function, which cannot be on loan."""

    def end_loans(self) -> None:
        for at, _ in self.loans or ():
            _put_list(_MEMORY, at + 8, 0, 0)
        self.loans = []

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Failure(
                "component.output",
                "The component passed more data in one call than the host takes.",
                "Let it return less, or in several messages.",
            )


# ---- Lifting -------------------------------------------------------------------------------------

_SIGNED: Final = {"s8": 8, "s16": 16, "s32": 32, "s64": 64}
_UNSIGNED: Final = {"u8": 0xFF, "u16": 0xFFFF, "u32": 0xFFFF_FFFF, "u64": 0xFFFF_FFFF_FFFF_FFFF}


def _lift_text(size: int, data: int, _: int = 0) -> str:
    return str(_MEMORY[data : data + size], "utf-8")


def _lift_primitive(name: str, crossing: _Crossing) -> Lift:
    if name == "string":

        def lift_string(size: int, data: int, _: int) -> str:
            crossing.spend(size)
            return str(_MEMORY[data : data + size], "utf-8")

        return lift_string
    if name == "bool":
        return lambda word, _b, _c: bool(word & 1)
    if name == "char":
        return lambda word, _b, _c: chr(word & 0xFFFF_FFFF)
    if name in _SIGNED:
        half = 1 << (_SIGNED[name] - 1)
        mask = 2 * half - 1
        return lambda word, _b, _c: ((word + half) & mask) - half
    if name in _UNSIGNED:
        mask = _UNSIGNED[name]
        return lambda word, _b, _c: word & mask
    pack, unpack = Struct("=Q").pack, Struct("=f" if name == "f32" else "=d").unpack_from
    return lambda word, _b, _c: unpack(pack(word))[0]


def _lift_list(type_: types.ListOf, crossing: _Crossing) -> Lift:
    if type_.element == types.U8:

        def lift_bytes(size: int, data: int, _: int) -> bytes:
            crossing.spend(size)
            lifted: bytes = _MEMORY[data + 8 : data + size * _VALUE_BYTES : _VALUE_BYTES]
            return lifted

        return lift_bytes
    lift = _lifter(type_.element, crossing)

    def lift_list(size: int, data: int, _: int) -> list[Any]:
        size *= _VALUE_BYTES
        crossing.spend(size)
        return [lift(*words) for words in _each_value(_MEMORY[data : data + size])]

    return lift_list


def _lift_tuple(type_: types.TupleOf, crossing: _Crossing) -> Lift:
    lifts = [_lifter(element, crossing) for element in type_.elements]

    def lift_tuple(size: int, data: int, _: int) -> tuple[Any, ...]:
        values = _each_value(_MEMORY[data : data + size * _VALUE_BYTES])
        return tuple(lift(*words) for lift, words in zip(lifts, values, strict=True))

    return lift_tuple


def _lift_record(type_: types.Record, crossing: _Crossing) -> Lift:
    unpack = Struct("=" + "24xQQQ" * len(type_.fields)).unpack_from
    fields = [
        (name, _lifter(field, crossing), 3 * i) for i, (name, field) in enumerate(type_.fields)
    ]

    def lift_record(_size: int, data: int, _: int) -> dict[str, Any]:
        words = unpack(_MEMORY, data)
        return {name: lift(words[i], words[i + 1], words[i + 2]) for name, lift, i in fields}

    return lift_record


def _lift_boxed(type_: types.Type | None, crossing: _Crossing) -> Callable[[int], Any]:
    """Of the address of a value, or 0."""
    if type_ is None:
        return lambda _address: None
    lift = _lifter(type_, crossing)
    return lambda address: lift(*_words_at(_MEMORY, address))


def _lift_option(type_: types.OptionOf, crossing: _Crossing) -> Lift:
    lift = _lift_boxed(type_.some, crossing)
    return lambda address, _b, _c: lift(address) if address else None


def _lift_result(type_: types.ResultOf, crossing: _Crossing) -> Lift:
    ok, err = _lift_boxed(type_.ok, crossing), _lift_boxed(type_.err, crossing)

    def lift_result(is_ok: int, address: int, _: int) -> Case:
        return Case(types.OK, ok(address)) if is_ok & 1 else Case(types.ERR, err(address))

    return lift_result


def _lift_variant(type_: types.Variant, crossing: _Crossing) -> Lift:
    lifts = {name: _lift_boxed(case, crossing) for name, case in type_.cases}

    def lift_variant(size: int, data: int, address: int) -> Case:
        name = _lift_text(size, data)
        return Case(name, lifts[name](address))

    return lift_variant


def _lift_flags(size: int, data: int, _: int) -> frozenset[str]:
    names = _each_name(_MEMORY[data : data + size * _NAME_BYTES])
    return frozenset(_lift_text(*name) for name in names)


def _lift_handle(crossing: _Crossing) -> Lift:
    host = c_void_p()
    host_at = ctypes.addressof(host)

    def lift_handle(address: int, _b: int, _c: int) -> int:
        _check(_any_to_host(crossing.context, address, host_at))
        number: int = _host_number(host)
        _delete_host(host)
        return number

    return lift_handle


def _lifter(type_: types.Type, crossing: _Crossing) -> Lift:
    match type_:
        case types.Primitive(name):
            return _lift_primitive(name, crossing)
        case types.ListOf():
            return _lift_list(type_, crossing)
        case types.TupleOf():
            return _lift_tuple(type_, crossing)
        case types.Record():
            return _lift_record(type_, crossing)
        case types.OptionOf():
            return _lift_option(type_, crossing)
        case types.ResultOf():
            return _lift_result(type_, crossing)
        case types.Variant():
            return _lift_variant(type_, crossing)
        case types.Enum():
            return _lift_text
        case types.Flags():
            return _lift_flags
        case types.Handle():
            return _lift_handle(crossing)
        case types.Unsupported():
            raise _unsupported(type_)


# ---- Lowering ------------------------------------------------------------------------------------

_NUMBERS: Final = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64", "f32", "f64")
_FORMATS: Final = dict(zip(_NUMBERS, "bBhHiIqQfd", strict=True))


def _lower_primitive(name: str) -> Lower:
    if name == "string":
        return _lower_string
    kind = _kind(name.upper())[0]
    if name in _FORMATS:
        pack_into = Struct(f"=B7x{_FORMATS[name]}").pack_into
        return lambda value, at: pack_into(_MEMORY, at, kind, value)
    if name == "bool":
        pack_bool = Struct("=B7x?").pack_into

        def lower_bool(value: bool, at: int) -> None:
            if not isinstance(value, bool):
                raise TypeError(f"expected a bool, not {value!r}")
            pack_bool(_MEMORY, at, kind, value)

        return lower_bool
    pack_char = Struct("=B7xI").pack_into
    return lambda value, at: pack_char(_MEMORY, at, kind, ord(value))


def _lower_string(value: str, at: int) -> None:
    text = value.encode()
    _new_text(at + 8, len(text), text)
    _MEMORY[at] = _STRING


def _lower_bytes(crossing: _Crossing) -> Lower:
    def lower_bytes(value: bytes, at: int) -> None:
        size = len(value)
        values = bytearray(_U8_VALUE) * size
        values[8::_VALUE_BYTES] = value
        start = ctypes.addressof(c_char.from_buffer(values)) if size else 0
        if crossing.loans is None:
            _new_list_of(at + 8, size, start)
        else:
            _put_list(_MEMORY, at + 8, size, start)
            crossing.loans.append((at, values))
        _MEMORY[at] = _LIST

    return lower_bytes


def _lower_list(type_: types.ListOf, crossing: _Crossing) -> Lower:
    if type_.element == types.U8:
        return _lower_bytes(crossing)
    lower = _lowerer(type_.element, crossing)

    def lower_list(value: list[Any], at: int) -> None:
        _new_list(at + 8, len(value))
        _MEMORY[at] = _LIST
        (data,) = _address_at(_MEMORY, at + 8)
        for element in value:
            lower(element, data)
            data += _VALUE_BYTES

    return lower_list


def _lower_tuple(type_: types.TupleOf, crossing: _Crossing) -> Lower:
    lowers = [_lowerer(element, crossing) for element in type_.elements]

    def lower_tuple(value: tuple[Any, ...], at: int) -> None:
        _new_tuple(at + 8, len(lowers))
        _MEMORY[at] = _TUPLE
        (data,) = _address_at(_MEMORY, at + 8)
        for lower, element in zip(lowers, value, strict=True):
            lower(element, data)
            data += _VALUE_BYTES

    return lower_tuple


def _lower_record(type_: types.Record, crossing: _Crossing) -> Lower:
    fields = [
        (name, name.encode(), len(name), _lowerer(field, crossing)) for name, field in type_.fields
    ]

    def lower_record(value: dict[str, Any], at: int) -> None:
        _new_record(at + 8, len(fields))
        _MEMORY[at] = _RECORD
        (data,) = _address_at(_MEMORY, at + 8)
        for name, text, size, lower in fields:
            _new_text(data, size, text)
            lower(value[name], data + _NAME_BYTES)
            data += _FIELD_BYTES

    return lower_record


def _lower_boxed(type_: types.Type | None, crossing: _Crossing) -> Callable[[Any, int], None]:
    """Of a value, to where its address goes."""
    if type_ is None:

        def lower_nothing(value: None, at: int) -> None:
            if value is not None:
                raise TypeError(f"expected None, not {value!r}")
            _put_word(_MEMORY, at, 0)

        return lower_nothing
    lower = _lowerer(type_, crossing)

    def lower_boxed(value: Any, at: int) -> None:
        address = _new_value(_NOTHING)
        _put_word(_MEMORY, at, address)
        lower(value, address)

    return lower_boxed


def _lower_option(type_: types.OptionOf, crossing: _Crossing) -> Lower:
    lower = _lower_boxed(type_.some, crossing)

    def lower_option(value: Any, at: int) -> None:
        _put_word(_MEMORY, at + 8, 0)
        _MEMORY[at] = _OPTION
        if value is not None:
            lower(value, at + 8)

    return lower_option


def _lower_result(type_: types.ResultOf, crossing: _Crossing) -> Lower:
    cases = {
        types.OK: (1, _lower_boxed(type_.ok, crossing)),
        types.ERR: (0, _lower_boxed(type_.err, crossing)),
    }

    def lower_result(value: Case, at: int) -> None:
        is_ok, lower = cases[value.name]
        _put_word(_MEMORY, at + 8, is_ok)
        _put_word(_MEMORY, at + 16, 0)
        _MEMORY[at] = _RESULT
        lower(value.payload, at + 16)

    return lower_result


def _lower_variant(type_: types.Variant, crossing: _Crossing) -> Lower:
    cases = {name: (name.encode(), _lower_boxed(case, crossing)) for name, case in type_.cases}

    def lower_variant(value: Case, at: int) -> None:
        text, lower = cases[value.name]
        _new_text(at + 8, len(text), text)
        _put_word(_MEMORY, at + 24, 0)
        _MEMORY[at] = _VARIANT
        lower(value.payload, at + 24)

    return lower_variant


def _lower_enum(type_: types.Enum) -> Lower:
    cases = {name: name.encode() for name in type_.cases}

    def lower_enum(value: str, at: int) -> None:
        text = cases[value]
        _new_text(at + 8, len(text), text)
        _MEMORY[at] = _ENUM

    return lower_enum


def _lower_flags(type_: types.Flags) -> Lower:
    names = {name: name.encode() for name in type_.names}

    def lower_flags(value: frozenset[str], at: int) -> None:
        texts = [names[name] for name in value]
        _new_flags(at + 8, len(texts))
        _MEMORY[at] = _FLAGS
        (data,) = _address_at(_MEMORY, at + 8)
        for text in texts:
            _new_text(data, len(text), text)
            data += _NAME_BYTES

    return lower_flags


def _lower_handle(type_: types.Handle, crossing: _Crossing) -> Lower:
    def lower_handle(value: int, at: int) -> None:
        host = _new_host(type_.owned, value, RESOURCE_KIND)
        try:
            _check(_host_to_any(crossing.context, host, at + 8))
        finally:
            _delete_host(host)
        _MEMORY[at] = _RESOURCE

    return lower_handle


def _lowerer(type_: types.Type, crossing: _Crossing) -> Lower:
    match type_:
        case types.Primitive(name):
            return _lower_primitive(name)
        case types.ListOf():
            return _lower_list(type_, crossing)
        case types.TupleOf():
            return _lower_tuple(type_, crossing)
        case types.Record():
            return _lower_record(type_, crossing)
        case types.OptionOf():
            return _lower_option(type_, crossing)
        case types.ResultOf():
            return _lower_result(type_, crossing)
        case types.Variant():
            return _lower_variant(type_, crossing)
        case types.Enum():
            return _lower_enum(type_)
        case types.Flags():
            return _lower_flags(type_)
        case types.Handle():
            return _lower_handle(type_, crossing)
        case types.Unsupported():
            raise _unsupported(type_)


# ---- Errors --------------------------------------------------------------------------------------

_raised: Final[list[BaseException]] = []
"""What host functions raised, until the guest's call that they were called from has ended."""


def _unsupported(type_: types.Unsupported) -> Failure:
    return Failure("component.feature", f"Values of the type {type_.name} cannot be passed.")


def _fail(error: int) -> NoReturn:
    """Raise what a call of the library ended with."""
    wasmtime_error = library.error_of(error)
    if _raised:
        raise _raised.pop()
    raise wasmtime_error


def _check(error: int | None) -> None:
    if error:
        _fail(error)


def _guarded(body: Callable[[], None]) -> int:
    """Run the body of a callback: what it raises ends the guest's call. Gives the error, or 0."""
    try:
        body()
    except BaseException as error:  # noqa: BLE001  it is raised again where the guest was called
        _raised.append(error)
        failed: int = _new_error(b"a host function raised")
        return failed
    return 0


# ---- Functions of a component --------------------------------------------------------------------


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
        self._crossing = _Crossing(lifted_bytes_max)
        count = len(function.parameters)
        self._values = ctypes.create_string_buffer((count + 1) * _VALUE_BYTES)
        start = ctypes.addressof(self._values)
        self._arguments_at = start
        self._arguments = [
            (_lowerer(type_, self._crossing), start + i * _VALUE_BYTES)
            for i, (_, type_) in enumerate(function.parameters)
        ]
        self._result_at = start + count * _VALUE_BYTES
        self._lift = None if function.result is None else _lifter(function.result, self._crossing)
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
                _fail(error)
            return None if lift is None else lift(*_words_at(_MEMORY, result_at))
        finally:
            crossing.end_loans()
            for _, at in self._arguments:
                _delete(at)
            _delete(result_at)
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
        if _raised:
            raise _raised.pop() from None
        raise


# ---- Functions of the host -----------------------------------------------------------------------

_Callback = CFUNCTYPE(
    c_size_t, *(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)
)
_Destructor = CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_uint32)
_Finalizer = CFUNCTYPE(None, c_void_p)

_add_func = _function(
    "wasmtime_component_linker_instance_add_func",
    c_void_p,
    *(c_void_p, c_char_p, c_size_t, _Callback, c_void_p, _Finalizer),
)
_add_resource = _function(
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

        return _guarded(body)

    text = name.encode()
    _check(_add_func(linker_instance.ptr(), text, len(text), _called, _keep(called), _let_go))


def _planned(
    name: str,
    type_at: int,
    function: types.Function,
    implementation: Callable[..., Any],
    lifted_bytes_max: int,
) -> Callable[[int, int, int], None]:
    """The way of a call from the guest to `implementation`, and back."""
    _check_import(name, type_at, function)
    crossing = _Crossing(lifted_bytes_max)
    lifts = [_lifter(type_, crossing) for _, type_ in function.parameters]
    lower = None if function.result is None else _lowerer(function.result, crossing)
    unpack = Struct("=" + "8xQQQ" * len(lifts)).unpack_from
    numbered = [(lift, 3 * i) for i, lift in enumerate(lifts)]

    def run(context: int, arguments_at: int, results_at: int) -> None:
        crossing.context = context
        crossing.left = lifted_bytes_max
        words = unpack(_MEMORY, arguments_at) if numbered else ()
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
        return _guarded(lambda: drop(number))

    text = name.encode()
    resource = library.host_resource(RESOURCE_KIND)
    _check(
        _add_resource(
            *(linker_instance.ptr(), text, len(text), resource.ptr()),
            *(_dropped, _keep(dropped), _let_go),
        )
    )
