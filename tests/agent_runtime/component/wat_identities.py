"""A component that passes values of any type on to the host, and what the host makes of them back.

`identity(type_)` imports `host.same: func(value: T) -> T` and exports `guest.same` of that type,
which calls it: a value crosses the boundary four times.
"""

from typing import Final

from agent_runtime.component import types

_CORE: Final = {"u64": "i64", "s64": "i64", "f32": "f32", "f64": "f64"}
_FLAT_MAX: Final = 16


def identity(type_: types.Type) -> str:
    definitions: list[str] = []
    spelled = _spell(type_, definitions)
    aliases = "\n  ".join(
        f'(alias export $host "t{i}" (type $t{i}))' for i in range(len(definitions))
    )
    flat = _flat(type_)
    indirect = len(flat) > _FLAT_MAX
    parameters = ["i32"] if indirect else flat
    values = " ".join(f"(local.get {i})" for i in range(len(parameters)))
    signature = f"(param {' '.join(parameters)})"
    if len(flat) == 1:
        imported = f"{signature} (result {flat[0]})"
        core = f'(func (export "same") {imported} (call $same {values}))'
    else:
        imported = f"(param {' '.join(parameters)} i32)"
        core = f"""(func (export "same") {signature} (result i32) (local $at i32)
      (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 8) (i32.const 4096)))
      (call $same {values} (local.get $at)) (local.get $at))"""
    exported = " ".join(f'(export "t{i}" (type $t{i}))' for i in range(len(definitions)))
    return f"""(component
  (import "host" (instance $host
    {" ".join(definitions)}
    (export "same" (func (param "value" {spelled}) (result {spelled})))))
  {aliases}
  (core module $libc
    (memory (export "memory") 1)
    (global $top (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
      (global.set $top (i32.add (local.get $at) (local.get 3)))
      (block $fits (loop $grow
        (br_if $fits (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
        (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (unreachable)))
        (br $grow)))
      (local.get $at))
    (func (export "forget") (param {flat[0] if len(flat) == 1 else "i32"})
      (global.set $top (i32.const 1024))))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))
  (alias core export $libc "forget" (core func $forget))
  (core func $lowered (canon lower (func $host "same") (memory $memory) (realloc $realloc)))
  (core module $main
    (import "libc" "realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
    (import "host" "same" (func $same {imported}))
    {core})
  (core instance $main (instantiate $main (with "libc" (instance $libc))
    (with "host" (instance (export "same" (func $lowered))))))
  (func $same (param "value" {spelled}) (result {spelled})
    (canon lift (core func $main "same") (memory $memory) (realloc $realloc)
      (post-return $forget)))
  (instance $guest {exported} (export "same" (func $same)))
  (export "guest" (instance $guest)))"""


def _spell(type_: types.Type, definitions: list[str]) -> str:
    """The type as WAT. Types that need a name are defined and exported as t0, t1 and so on."""

    def optional(payload: types.Type | None) -> str:
        return "" if payload is None else _spell(payload, definitions)

    match type_:
        case types.Primitive(name):
            return name
        case types.ListOf(element):
            return f"(list {_spell(element, definitions)})"
        case types.TupleOf(elements):
            return f"(tuple {' '.join(_spell(element, definitions) for element in elements)})"
        case types.OptionOf(some):
            return f"(option {_spell(some, definitions)})"
        case types.ResultOf(ok, err):
            error = "" if err is None else f"(error {optional(err)})"
            return f"(result {optional(ok)} {error})"
        case types.Record(fields):
            members = [f'(field "{name}" {_spell(field, definitions)})' for name, field in fields]
            body = f"(record {' '.join(members)})"
        case types.Variant(cases):
            members = [f'(case "{name}" {optional(payload)})' for name, payload in cases]
            body = f"(variant {' '.join(members)})"
        case types.Enum(names):
            body = f"(enum {_quoted(names)})"
        case types.Flags(names):
            body = f"(flags {_quoted(names)})"
        case _:
            raise AssertionError(f"no identity of {type_}")
    number = len(definitions)
    definitions.append(
        f'(type $d{number} {body}) (export "t{number}" (type $t{number} (eq $d{number})))'
    )
    return f"$t{number}"


def _quoted(names: tuple[str, ...]) -> str:
    return " ".join(f'"{name}"' for name in names)


def _flat(type_: types.Type) -> list[str]:
    """The core types that a value is made of, as the canonical ABI flattens it."""
    match type_:
        case types.Primitive("string") | types.ListOf():
            return ["i32", "i32"]
        case types.Primitive(name):
            return [_CORE.get(name, "i32")]
        case types.TupleOf(elements):
            return [core for element in elements for core in _flat(element)]
        case types.Record(fields):
            return [core for _, field in fields for core in _flat(field)]
        case types.OptionOf(some):
            return ["i32", *_flat(some)]
        case types.ResultOf(ok, err):
            return _flat_cases([ok, err])
        case types.Variant(cases):
            return _flat_cases([payload for _, payload in cases])
    return ["i32"]


def _flat_cases(payloads: list[types.Type | None]) -> list[str]:
    joined: list[str] = []
    for payload in payloads:
        for i, core in enumerate([] if payload is None else _flat(payload)):
            if i == len(joined):
                joined.append(core)
            elif joined[i] != core:
                joined[i] = "i32" if {joined[i], core} == {"i32", "f32"} else "i64"
    return ["i32", *joined]
