"""Lifting: plans that read a value of the library as one of Python."""

import ctypes
from collections.abc import Callable
from ctypes import c_uint32, c_void_p
from struct import Struct
from typing import Any, Final

from agent_runtime.component import types
from agent_runtime.component.boundary.crossing import Crossing, Lift
from agent_runtime.component.boundary.memory import (
    MEMORY,
    NAME_BYTES,
    VALUE_BYTES,
    delete_host,
    library_function,
    words_at,
)
from agent_runtime.component.boundary.raising import check, unsupported
from agent_runtime.component.types import Case

_each_value: Final = Struct("=8xQQQ").iter_unpack
_each_name: Final = Struct("=QQ").iter_unpack

_host_number: Final = library_function("wasmtime_component_resource_host_rep", c_uint32, c_void_p)
_any_to_host: Final = library_function(
    "wasmtime_component_resource_any_to_host", c_void_p, c_void_p, c_void_p, c_void_p
)

_SIGNED: Final = {"s8": 8, "s16": 16, "s32": 32, "s64": 64}
_UNSIGNED: Final = {"u8": 0xFF, "u16": 0xFFFF, "u32": 0xFFFF_FFFF, "u64": 0xFFFF_FFFF_FFFF_FFFF}


def _lift_text(size: int, data: int, _: int = 0) -> str:
    return str(MEMORY[data : data + size], "utf-8")


def _lift_primitive(name: str, crossing: Crossing) -> Lift:
    if name == "string":

        def lift_string(size: int, data: int, _: int) -> str:
            crossing.spend(size)
            return str(MEMORY[data : data + size], "utf-8")

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


def _lift_list(type_: types.ListOf, crossing: Crossing) -> Lift:
    if type_.element == types.U8:

        def lift_bytes(size: int, data: int, _: int) -> bytes:
            crossing.spend(size)
            lifted: bytes = MEMORY[data + 8 : data + size * VALUE_BYTES : VALUE_BYTES]
            return lifted

        return lift_bytes
    lift = lifter(type_.element, crossing)

    def lift_list(size: int, data: int, _: int) -> list[Any]:
        size *= VALUE_BYTES
        crossing.spend(size)
        return [lift(*words) for words in _each_value(MEMORY[data : data + size])]

    return lift_list


def _lift_tuple(type_: types.TupleOf, crossing: Crossing) -> Lift:
    unpack = Struct("=" + "8xQQQ" * len(type_.elements)).unpack_from
    elements = [(lifter(element, crossing), 3 * i) for i, element in enumerate(type_.elements)]
    spent = (1 + len(elements)) * VALUE_BYTES

    def lift_tuple(_size: int, data: int, _: int) -> tuple[Any, ...]:
        crossing.spend(spent)
        words = unpack(MEMORY, data)
        return tuple([lift(words[i], words[i + 1], words[i + 2]) for lift, i in elements])

    return lift_tuple


def _lift_record(type_: types.Record, crossing: Crossing) -> Lift:
    unpack = Struct("=" + "24xQQQ" * len(type_.fields)).unpack_from
    fields = [
        (name, lifter(field, crossing), 3 * i) for i, (name, field) in enumerate(type_.fields)
    ]
    spent = (1 + len(fields)) * VALUE_BYTES

    def lift_record(_size: int, data: int, _: int) -> dict[str, Any]:
        crossing.spend(spent)
        words = unpack(MEMORY, data)
        return {name: lift(words[i], words[i + 1], words[i + 2]) for name, lift, i in fields}

    return lift_record


def _lift_boxed(type_: types.Type | None, crossing: Crossing) -> Callable[[int], Any]:
    """Of the address of a value, or 0."""
    if type_ is None:
        return lambda _address: None
    lift = lifter(type_, crossing)

    def lift_boxed(address: int) -> Any:
        crossing.spend(VALUE_BYTES)
        return lift(*words_at(MEMORY, address))

    return lift_boxed


def _lift_option(type_: types.OptionOf, crossing: Crossing) -> Lift:
    lift = _lift_boxed(type_.some, crossing)
    return lambda address, _b, _c: lift(address) if address else None


def _lift_result(type_: types.ResultOf, crossing: Crossing) -> Lift:
    ok, err = _lift_boxed(type_.ok, crossing), _lift_boxed(type_.err, crossing)

    def lift_result(is_ok: int, address: int, _: int) -> Case:
        return Case(types.OK, ok(address)) if is_ok & 1 else Case(types.ERR, err(address))

    return lift_result


def _lift_variant(type_: types.Variant, crossing: Crossing) -> Lift:
    lifts = {name: _lift_boxed(case, crossing) for name, case in type_.cases}

    def lift_variant(size: int, data: int, address: int) -> Case:
        name = _lift_text(size, data)
        return Case(name, lifts[name](address))

    return lift_variant


def _lift_flags(crossing: Crossing) -> Lift:
    def lift_flags(size: int, data: int, _: int) -> frozenset[str]:
        crossing.spend(size * VALUE_BYTES)
        names = _each_name(MEMORY[data : data + size * NAME_BYTES])
        return frozenset([_lift_text(*name) for name in names])

    return lift_flags


def _lift_handle(crossing: Crossing) -> Lift:
    host = c_void_p()
    host_at = ctypes.addressof(host)

    def lift_handle(address: int, _b: int, _c: int) -> int:
        check(_any_to_host(crossing.context, address, host_at))
        number: int = _host_number(host)
        delete_host(host)
        return number

    return lift_handle


def lifter(type_: types.Type, crossing: Crossing) -> Lift:
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
            return _lift_flags(crossing)
        case types.Handle():
            return _lift_handle(crossing)
        case types.Unsupported():
            raise unsupported(type_)
