"""Lowering: plans that write a value of Python as one of the library.

Everything lowered is allocated by the library, but for lists of bytes in arguments, which are on
loan and taken back before the arguments are freed. Results of host functions belong to the library
at once.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_char, c_char_p, c_size_t, c_uint32, c_void_p
from struct import Struct
from typing import Any, Final

from agent_runtime.component import library, types
from agent_runtime.component.boundary.crossing import Crossing, Lower
from agent_runtime.component.boundary.memory import (
    FIELD_BYTES,
    MEMORY,
    NAME_BYTES,
    VALUE_BYTES,
    delete_host,
    library_function,
    put_list,
)
from agent_runtime.component.boundary.raising import check, unsupported
from agent_runtime.component.types import Case

RESOURCE_KIND: Final = 1
"""wasmtime's number for all resources of the host. One suffices: which resource of which interface
an `own` or `borrow` is was settled when the component was validated."""

_NOTHING: Final = bytes(VALUE_BYTES)

_address_at: Final = Struct("=8xQ").unpack_from
_put_word: Final = Struct("=Q").pack_into


def _kind(name: str) -> bytes:
    return bytes([getattr(library.C, f"WASMTIME_COMPONENT_{name}").value])


_U8_VALUE: Final = _kind("U8") + bytes(VALUE_BYTES - 1)
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

_new_value = library_function("wasmtime_component_val_new", c_void_p, c_void_p)
_new_text = library_function("wasm_byte_vec_new", None, c_void_p, c_size_t, c_char_p)
_new_list = library_function("wasmtime_component_vallist_new_uninit", None, c_void_p, c_size_t)
_new_list_of = library_function(
    "wasmtime_component_vallist_new", None, c_void_p, c_size_t, c_void_p
)
_new_tuple = library_function("wasmtime_component_valtuple_new_uninit", None, c_void_p, c_size_t)
_new_record = library_function("wasmtime_component_valrecord_new_uninit", None, c_void_p, c_size_t)
_new_flags = library_function("wasmtime_component_valflags_new_uninit", None, c_void_p, c_size_t)
_new_host = library_function(
    "wasmtime_component_resource_host_new", c_void_p, c_bool, c_uint32, c_uint32
)
_host_to_any = library_function(
    "wasmtime_component_resource_host_to_any", c_void_p, c_void_p, c_void_p, c_void_p
)

_NUMBERS: Final = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64", "f32", "f64")
_FORMATS: Final = dict(zip(_NUMBERS, "bBhHiIqQfd", strict=True))


def _lower_primitive(name: str) -> Lower:
    if name == "string":
        return _lower_string
    kind = _kind(name.upper())[0]
    if name in _FORMATS:
        pack_into = Struct(f"=B7x{_FORMATS[name]}").pack_into
        return lambda value, at: pack_into(MEMORY, at, kind, value)
    if name == "bool":
        pack_bool = Struct("=B7x?").pack_into

        def lower_bool(value: bool, at: int) -> None:
            if not isinstance(value, bool):
                raise TypeError(f"expected a bool, not {value!r}")
            pack_bool(MEMORY, at, kind, value)

        return lower_bool
    pack_char = Struct("=B7xI").pack_into
    return lambda value, at: pack_char(MEMORY, at, kind, ord(value))


def _lower_string(value: str, at: int) -> None:
    text = value.encode()
    _new_text(at + 8, len(text), text)
    MEMORY[at] = _STRING


def _lower_bytes(crossing: Crossing) -> Lower:
    def lower_bytes(value: bytes, at: int) -> None:
        size = len(value)
        values = bytearray(_U8_VALUE) * size
        values[8::VALUE_BYTES] = value
        start = ctypes.addressof(c_char.from_buffer(values)) if size else 0
        if crossing.loans is None:
            _new_list_of(at + 8, size, start)
        else:
            put_list(MEMORY, at + 8, size, start)
            crossing.loans.append((at, values))
        MEMORY[at] = _LIST

    return lower_bytes


def _lower_list(type_: types.ListOf, crossing: Crossing) -> Lower:
    if type_.element == types.U8:
        return _lower_bytes(crossing)
    lower = lowerer(type_.element, crossing)

    def lower_list(value: list[Any], at: int) -> None:
        _new_list(at + 8, len(value))
        MEMORY[at] = _LIST
        (data,) = _address_at(MEMORY, at + 8)
        for element in value:
            lower(element, data)
            data += VALUE_BYTES

    return lower_list


def _lower_tuple(type_: types.TupleOf, crossing: Crossing) -> Lower:
    lowers = [lowerer(element, crossing) for element in type_.elements]

    def lower_tuple(value: tuple[Any, ...], at: int) -> None:
        _new_tuple(at + 8, len(lowers))
        MEMORY[at] = _TUPLE
        (data,) = _address_at(MEMORY, at + 8)
        for lower, element in zip(lowers, value, strict=True):
            lower(element, data)
            data += VALUE_BYTES

    return lower_tuple


def _lower_record(type_: types.Record, crossing: Crossing) -> Lower:
    fields = [
        (name, name.encode(), len(name), lowerer(field, crossing)) for name, field in type_.fields
    ]

    def lower_record(value: dict[str, Any], at: int) -> None:
        _new_record(at + 8, len(fields))
        MEMORY[at] = _RECORD
        (data,) = _address_at(MEMORY, at + 8)
        for name, text, size, lower in fields:
            _new_text(data, size, text)
            lower(value[name], data + NAME_BYTES)
            data += FIELD_BYTES

    return lower_record


def _lower_boxed(type_: types.Type | None, crossing: Crossing) -> Callable[[Any, int], None]:
    """Of a value, to where its address goes."""
    if type_ is None:

        def lower_nothing(value: None, at: int) -> None:
            if value is not None:
                raise TypeError(f"expected None, not {value!r}")
            _put_word(MEMORY, at, 0)

        return lower_nothing
    lower = lowerer(type_, crossing)

    def lower_boxed(value: Any, at: int) -> None:
        address = _new_value(_NOTHING)
        _put_word(MEMORY, at, address)
        lower(value, address)

    return lower_boxed


def _lower_option(type_: types.OptionOf, crossing: Crossing) -> Lower:
    lower = _lower_boxed(type_.some, crossing)

    def lower_option(value: Any, at: int) -> None:
        _put_word(MEMORY, at + 8, 0)
        MEMORY[at] = _OPTION
        if value is not None:
            lower(value, at + 8)

    return lower_option


def _lower_result(type_: types.ResultOf, crossing: Crossing) -> Lower:
    cases = {
        types.OK: (1, _lower_boxed(type_.ok, crossing)),
        types.ERR: (0, _lower_boxed(type_.err, crossing)),
    }

    def lower_result(value: Case, at: int) -> None:
        is_ok, lower = cases[value.name]
        _put_word(MEMORY, at + 8, is_ok)
        _put_word(MEMORY, at + 16, 0)
        MEMORY[at] = _RESULT
        lower(value.payload, at + 16)

    return lower_result


def _lower_variant(type_: types.Variant, crossing: Crossing) -> Lower:
    cases = {name: (name.encode(), _lower_boxed(case, crossing)) for name, case in type_.cases}

    def lower_variant(value: Case, at: int) -> None:
        text, lower = cases[value.name]
        _new_text(at + 8, len(text), text)
        _put_word(MEMORY, at + 24, 0)
        MEMORY[at] = _VARIANT
        lower(value.payload, at + 24)

    return lower_variant


def _lower_enum(type_: types.Enum) -> Lower:
    cases = {name: name.encode() for name in type_.cases}

    def lower_enum(value: str, at: int) -> None:
        text = cases[value]
        _new_text(at + 8, len(text), text)
        MEMORY[at] = _ENUM

    return lower_enum


def _lower_flags(type_: types.Flags) -> Lower:
    names = {name: name.encode() for name in type_.names}

    def lower_flags(value: frozenset[str], at: int) -> None:
        texts = [names[name] for name in value]
        _new_flags(at + 8, len(texts))
        MEMORY[at] = _FLAGS
        (data,) = _address_at(MEMORY, at + 8)
        for text in texts:
            _new_text(data, len(text), text)
            data += NAME_BYTES

    return lower_flags


def _lower_handle(type_: types.Handle, crossing: Crossing) -> Lower:
    def lower_handle(value: int, at: int) -> None:
        host = _new_host(type_.owned, value, RESOURCE_KIND)
        try:
            check(_host_to_any(crossing.context, host, at + 8))
        finally:
            delete_host(host)
        MEMORY[at] = _RESOURCE

    return lower_handle


def lowerer(type_: types.Type, crossing: Crossing) -> Lower:
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
            raise unsupported(type_)
