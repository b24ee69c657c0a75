"""The types of WIT as values: what a parser reads, what a component says, what is converted.

Pure. Two types are the same if they compare equal, whichever side described them; names of records
and of interfaces do not count, those of fields and cases do.

How a value of each type looks in Python:

| type | in Python |
|---|---|
| bool, integers, floats, char, string | bool, int, float, str, str |
| list<u8> | bytes |
| list<T> | list |
| tuple<…> | tuple |
| record | dict by field, as WIT spells it |
| option<T> | the value, or None |
| result<T, E>, variant | `Case(name, payload)`; a result's are *ok* and *err* |
| enum | str |
| flags | frozenset of str |
| own<R>, borrow<R> | int, the host's number for the resource |
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from ipc_protocol.errors import Failure


class Case(NamedTuple):
    """A value of a variant or a result. `payload` is None where the case has none."""

    name: str
    payload: Any = None


OK: Final = "ok"
ERR: Final = "err"


def ok(payload: Any = None) -> Case:
    return Case(OK, payload)


def err(payload: Any = None) -> Case:
    return Case(ERR, payload)


class Primitive(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """`name` is one of *bool, u8, u16, u32, u64, s8, s16, s32, s64, f32, f64, char, string*."""

    name: str


class ListOf(msgspec.Struct, frozen=True, tag=True, array_like=True):
    element: "Type"


class TupleOf(msgspec.Struct, frozen=True, tag=True, array_like=True):
    elements: "tuple[Type, ...]"


class Record(msgspec.Struct, frozen=True, tag=True, array_like=True):
    fields: "tuple[tuple[str, Type], ...]"


class OptionOf(msgspec.Struct, frozen=True, tag=True, array_like=True):
    some: "Type"


class ResultOf(msgspec.Struct, frozen=True, tag=True, array_like=True):
    ok: "Type | None"
    err: "Type | None"


class Variant(msgspec.Struct, frozen=True, tag=True, array_like=True):
    cases: "tuple[tuple[str, Type | None], ...]"


class Enum(msgspec.Struct, frozen=True, tag=True, array_like=True):
    cases: tuple[str, ...]


class Flags(msgspec.Struct, frozen=True, tag=True, array_like=True):
    names: tuple[str, ...]


class Handle(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """An own<R> or a borrow<R>. Whose resource it is does not show in the type."""

    owned: bool


class Unsupported(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A type of a feature that is switched off, such as *stream* or *future*."""

    name: str


Type: TypeAlias = (
    Primitive
    | ListOf
    | TupleOf
    | Record
    | OptionOf
    | ResultOf
    | Variant
    | Enum
    | Flags
    | Handle
    | Unsupported
)

U8: Final = Primitive("u8")
STRING: Final = Primitive("string")
BYTES: Final = ListOf(U8)


class Function(msgspec.Struct, frozen=True, array_like=True):
    """`parameters` in their order, by name. `result` is None where nothing is returned."""

    parameters: tuple[tuple[str, Type], ...]
    result: Type | None


class Interface(msgspec.Struct, frozen=True):
    """What an import or an export of a component holds. `resources` are the names of types that are
    resources; the functions of one are named *[method]NAME.WHAT* and alike. `others` are the names
    of what is neither a function nor a type: instances, modules, components."""

    functions: Mapping[str, Function] = {}
    resources: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


class ComponentType(msgspec.Struct, frozen=True):
    """What a component imports and exports, by full name such as *wasi:io/streams@0.2.0*.

    `others` are what it imports or exports at its top level that is no interface: functions by
    themselves, modules, types.
    """

    imports: dict[str, Interface]
    exports: dict[str, Interface]
    others: tuple[str, ...] = ()


# ---- As bytes ------------------------------------------------------------------------------------


class _Encoded(msgspec.Struct, frozen=True, array_like=True):
    """An interface whose functions are encoded one by one."""

    functions: dict[str, bytes]
    resources: tuple[str, ...]
    others: tuple[str, ...]


class _EncodedComponent(msgspec.Struct, frozen=True, array_like=True):
    imports: dict[str, _Encoded]
    exports: dict[str, _Encoded]
    others: tuple[str, ...]


class _Functions(Mapping[str, Function]):
    """Decodes a function when it is asked for: of what toolchains import, most is never called."""

    def __init__(self, encoded: dict[str, bytes]) -> None:
        self._encoded = encoded

    def __getitem__(self, name: str) -> Function:
        encoded = self._encoded[name]
        try:
            return msgspec.msgpack.decode(encoded, type=Function)
        except msgspec.MsgspecError as error:
            raise Failure(
                "component.compile",
                f"What was kept of the type of {name} cannot be read: {error}",
                "Compile the component again.",
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._encoded)

    def __len__(self) -> int:
        return len(self._encoded)


def encode(component: ComponentType) -> bytes:
    """For `decode`."""

    def of(interfaces: dict[str, Interface]) -> dict[str, _Encoded]:
        return {
            name: _Encoded(
                {each: msgspec.msgpack.encode(one) for each, one in interface.functions.items()},
                interface.resources,
                interface.others,
            )
            for name, interface in interfaces.items()
        }

    return msgspec.msgpack.encode(
        _EncodedComponent(of(component.imports), of(component.exports), component.others)
    )


def decode(data: bytes) -> ComponentType:
    """What `encode` has encoded. Raises `msgspec.MsgspecError` for anything else; for a function
    that is none, asking for it raises `Failure`: *component.compile*."""

    def of(interfaces: dict[str, _Encoded]) -> dict[str, Interface]:
        return {
            name: Interface(_Functions(encoded.functions), encoded.resources, encoded.others)
            for name, encoded in interfaces.items()
        }

    encoded = msgspec.msgpack.decode(data, type=_EncodedComponent)
    return ComponentType(of(encoded.imports), of(encoded.exports), encoded.others)
