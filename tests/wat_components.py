"""Small agents as component WAT: the canonical ABI by hand, so that a test chooses what they do.

`agent()` makes the text of a component of the world *agent*. What its functions do is core code:
folded WAT, in which a quoted string stands for the two operands (pointer, length) of a constant.

    agent(handle=ECHO)                                     # the default
    agent("0.2.0", handle='(call $refuse "not today")')
    agent(handle=trap_on(10))                              # echoes nine times
    agent("0.2.0", imports=(STATE,), handle=...)           # $state-get, $state-put, $state-delete

What code may use:

- in `init`: `$agent-id`, `$config` and each with `-length`; returns `(call $accept)` or `$refuse`
- in `handle`: `$topic`, `$sender`, `$payload`, `$correlation` and each with `-length`; returns what
  `$answer`, `$answers` or `$refuse` return
- `(call $answer TOPIC PAYLOAD CORRELATION)`: one envelope, each operand a pointer and a length
- `(call $answers (i32.const POINTER) (i32.const COUNT))`: a list of envelopes in memory
- `(call $envelope POINTER TOPIC PAYLOAD CORRELATION)`: write an envelope of 32 bytes
- `(call $refuse TEXT)`, `(call $accept)`
- `(call $allocate SIZE)`: memory until the call is over; in `init`, for good
- `(call $bus-publish TOPIC SENDER PAYLOAD CORRELATION RESULT)`: the result is 16 bytes
- `(global.get $count)`: the messages handled, this one included; `$topic` and `$topic-length`: what
  `init` was configured with, or *echo*
- `(local $a i32)`, `$b` and `$c` are declared for everybody
"""

import re
from typing import Final, NamedTuple

VERSIONS: Final = ("0.1.0", "0.2.0")


class Import(NamedTuple):
    """An instance that a component imports, and the core signatures of its functions."""

    alias: str
    """`$ALIAS` is the instance, `$ALIAS-FUNCTION` the core function."""
    declaration: str
    functions: dict[str, str]


def _interface(alias: str, name: str, body: str, functions: dict[str, str]) -> Import:
    return Import(alias, f'(import "{name}" (instance ${alias} {body}))', functions)


_ERRORS: Final = {
    "0.1.0": '(case "no-subscriber" string) (case "payload-too-large" u32) (case "backpressure")',
    "0.2.0": (
        '(case "no-subscriber" string) (case "payload-too-large" u32)'
        ' (case "backpressure" (list string)) (case "not-permitted" string) (case "expired")'
    ),
}


def bus(version: str) -> Import:
    """The one interface that every agent imports."""
    return _interface(
        "bus",
        f"agent-net:core/bus@{version}",
        f"""
    (type $record (record (field "topic" string) (field "sender" string)
      (field "payload" (list u8)) (field "correlation-id" string)))
    (export "envelope" (type $envelope (eq $record)))
    (type $variant (variant {_ERRORS[version]}))
    (export "send-error" (type $send-error (eq $variant)))
    (export "publish" (func (param "msg" $envelope) (result (result (error $send-error)))))""",
        {"publish": "(param i32 i32 i32 i32 i32 i32 i32 i32 i32)"},
    )


_TYPES: Final = """(import "agent-net:core/types@0.2.0" (instance $types
    (type $variant (variant (case "refused" string) (case "unavailable" string)))
    (export "error" (type (eq $variant)))))
  (alias export $types "error" (type $error))
  """

_STATE: Final = _interface(
    "state",
    "agent-net:core/state@0.2.0",
    """
    (alias outer 1 $error (type $outer))
    (export "error" (type $error (eq $outer)))
    (export "get" (func (param "key" string)
      (result (result (option (list u8)) (error $error)))))
    (export "put" (func (param "key" string) (param "value" (list u8))
      (result (result (error $error)))))
    (export "delete" (func (param "key" string) (result (result (error $error)))))""",
    {
        "get": "(param i32 i32 i32)",
        "put": "(param i32 i32 i32 i32 i32)",
        "delete": "(param i32 i32 i32)",
    },
)
STATE: Final = _STATE._replace(declaration=_TYPES + _STATE.declaration)
"""The result of `get` is 20 bytes: 0 at 0 for *ok*, at 4 whether there is one, at 8 and 12 the
value. That of `put` and `delete` is 16 bytes: 0 at 0 for *ok*."""

LOGGING: Final = _interface(
    "logging",
    "agent-net:core/logging@0.2.0",
    """
    (type $enum (enum "debug" "info" "warning" "error"))
    (export "level" (type $level (eq $enum)))
    (export "log" (func (param "level" $level) (param "message" string)))""",
    {"log": "(param i32 i32 i32)"},
)

HEALTH: Final = _interface(
    "health",
    "agent-net:core/health@0.2.0",
    """
    (type $enum (enum "healthy" "degraded" "overloaded"))
    (export "condition" (type $condition (eq $enum)))
    (export "emit" (func (param "condition" $condition) (param "detail" string)))""",
    {"emit": "(param i32 i32 i32)"},
)

_ATTENTION: Final = _interface(
    "attention",
    "agent-net:core/attention@0.2.0",
    """
    (alias outer 1 $error (type $outer))
    (export "error" (type $error (eq $outer)))
    (export "request" (func (param "question" string)
      (result (result string (error $error)))))""",
    {"request": "(param i32 i32 i32)"},
)
ATTENTION: Final = _ATTENTION._replace(declaration=_TYPES + _ATTENTION.declaration)
"""The result of `request` is 12 bytes: 0 at 0 for *ok*, at 4 and 8 the answer. Not to be used
together with `STATE`, which declares the same types."""

CLOCK: Final = _interface(
    "clock",
    "wasi:clocks/monotonic-clock@0.2.0",
    '(export "now" (func (result u64)))',
    {"now": "(result i64)"},
)

SOCKETS: Final = _interface(
    "sockets",
    "wasi:sockets/instance-network@0.2.0",
    '(export "network" (type $network (sub resource)))'
    ' (export "instance-network" (func (result (own $network))))',
    {"instance-network": "(result i32)"},
)

UNKNOWN: Final = _interface(
    "gears", "acme:widgets/gears@1.0.0", '(export "turn" (func))', {"turn": ""}
)

FOREIGN_VERSION: Final = _interface(
    "future", "agent-net:core/state@9.9.0", '(export "get" (func))', {"get": ""}
)

WRONG_LOGGING: Final = _interface(
    "logging",
    "agent-net:core/logging@0.2.0",
    '(export "log" (func (param "message" string)))',
    {"log": "(param i32 i32)"},
)
"""Of a name that is offered, but with other types."""


# ---- What a function may do ----------------------------------------------------------------------

ACCEPT: Final = "(call $accept)"

ECHO: Final = """(call $answer (global.get $topic) (global.get $topic-length)
      (local.get $payload) (local.get $payload-length)
      (local.get $correlation) (local.get $correlation-length))"""

TRAP: Final = "(unreachable)"

LOOP: Final = "(loop $forever (br $forever)) (unreachable)"

RECURSE: Final = "(call $recurse (i32.const 0)) (drop) (unreachable)"

GROW_MEMORY: Final = """(loop $more
      (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 1))
    (i32.store (i32.mul (memory.size) (i32.const 65536)) (i32.const 1)) (unreachable)"""
"""Takes all the memory that it is given, touches the last of it, and then what is beyond."""

GROW_MEMORY_POLITELY: Final = f"""(loop $more
      (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    {ECHO}"""
"""Takes all the memory that it is given, and goes on."""

GROW_TABLE: Final = """(loop $more
      (br_if $more (i32.ne (table.grow $table (ref.null func) (i32.const 1000)) (i32.const -1))))
    (table.set $table (table.size $table) (ref.null func)) (unreachable)"""

INVALID_UTF8: Final = '(call $answer "\\ff\\fe" "payload" "")'

PUBLISH: Final = f"""(local.set $a (call $allocate (i32.const 16)))
    (call $bus-publish (global.get $topic) (global.get $topic-length)
      (local.get $sender) (local.get $sender-length)
      (local.get $payload) (local.get $payload-length)
      (local.get $correlation) (local.get $correlation-length) (local.get $a))
    (if (result i32) (i32.eqz (i32.load8_u (local.get $a)))
      (then {ECHO})
      (else (call $answer "failed"
        (i32.add (local.get $a) (i32.const 4)) (i32.const 1) ;; the case of the error
        (local.get $correlation) (local.get $correlation-length))))"""
"""Publishes the message, then echoes it; if that failed, answers on *failed* with one byte: the
number of the case."""


def refuse(reason: str) -> str:
    return f'(call $refuse "{reason}")'


def trap_on(nth: int, otherwise: str = ECHO) -> str:
    """Trap on the `nth` message, counted from 1, and do `otherwise` with the others."""
    return f"(if (i32.eq (global.get $count) (i32.const {nth})) (then (unreachable))) {otherwise}"


def answers(count: int, payload: str = "x") -> str:
    """Return `count` envelopes, all alike."""
    return f"""(local.set $a (call $allocate (i32.const {count * 32})))
    (local.set $b (local.get $a))
    (local.set $c (i32.const {count}))
    (block $done (loop $next
      (br_if $done (i32.eqz (local.get $c)))
      (call $envelope (local.get $b) (global.get $topic) (global.get $topic-length)
        "{payload}" (local.get $correlation) (local.get $correlation-length))
      (local.set $b (i32.add (local.get $b) (i32.const 32)))
      (local.set $c (i32.sub (local.get $c) (i32.const 1)))
      (br $next)))
    (call $answers (local.get $a) (i32.const {count}))"""


def payload_of(size_bytes: int) -> str:
    """Return one envelope with a payload of that many zeros."""
    return f"""(local.set $a (call $allocate (i32.const {size_bytes})))
    (call $answer (global.get $topic) (global.get $topic-length)
      (local.get $a) (i32.const {size_bytes})
      (local.get $correlation) (local.get $correlation-length))"""


# ---- The component around it ---------------------------------------------------------------------

_LIBC: Final = """(core module $libc
    (memory (export "memory") {pages})
    (global $top (mut i32) (i32.const {free}))
    (global $mark (mut i32) (i32.const {free}))
    (func $allocate (export "realloc")
      (param $old i32) (param $old-size i32) (param $align i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
      (global.set $top (i32.add (local.get $at) (local.get $size)))
      (block $fits (loop $grow
        (br_if $fits (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
        (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (unreachable)))
        (br $grow)))
      (local.get $at))
    (func (export "keep") (param i32) (global.set $mark (global.get $top)))
    (func (export "forget") (param i32) (global.set $top (global.get $mark)))
    {data})"""

_SUPPORT: Final = """
    (table $table 1 funcref)
    (global $count (mut i32) (i32.const 0))
    (global $topic (mut i32) (i32.const 0))
    (global $topic-length (mut i32) (i32.const 0))
    (func $allocate (param $size i32) (result i32)
      (call $realloc (i32.const 0) (i32.const 0) (i32.const 8) (local.get $size)))
    (func $recurse (param $n i32) (result i32)
      (i32.add (local.get $n) (call $recurse (i32.add (local.get $n) (i32.const 1)))))
    (func $result (param $case i32) (param $a i32) (param $b i32) (result i32) (local $at i32)
      (local.set $at (call $allocate (i32.const 12)))
      (i32.store8 (local.get $at) (local.get $case))
      (i32.store offset=4 (local.get $at) (local.get $a))
      (i32.store offset=8 (local.get $at) (local.get $b))
      (local.get $at))
    (func $accept (result i32) (call $result (i32.const 0) (i32.const 0) (i32.const 0)))
    (func $refuse (param $text i32) (param $length i32) (result i32)
      (call $result (i32.const 1) (local.get $text) (local.get $length)))
    (func $answers (param $at i32) (param $count i32) (result i32)
      (call $result (i32.const 0) (local.get $at) (local.get $count)))
    (func $envelope (param $at i32) (param $topic i32) (param $topic-length i32)
      (param $payload i32) (param $payload-length i32)
      (param $correlation i32) (param $correlation-length i32)
      (i32.store (local.get $at) (local.get $topic))
      (i32.store offset=4 (local.get $at) (local.get $topic-length))
      (i64.store offset=8 (local.get $at) (i64.const 0))
      (i32.store offset=16 (local.get $at) (local.get $payload))
      (i32.store offset=20 (local.get $at) (local.get $payload-length))
      (i32.store offset=24 (local.get $at) (local.get $correlation))
      (i32.store offset=28 (local.get $at) (local.get $correlation-length)))
    (func $answer (param $topic i32) (param $topic-length i32)
      (param $payload i32) (param $payload-length i32)
      (param $correlation i32) (param $correlation-length i32) (result i32)
      (local $at i32)
      (local.set $at (call $allocate (i32.const 32)))
      (call $envelope (local.get $at) (local.get $topic) (local.get $topic-length)
        (local.get $payload) (local.get $payload-length)
        (local.get $correlation) (local.get $correlation-length))
      (call $answers (local.get $at) (i32.const 1)))"""

_CONSTANTS_AT: Final = 1024


class _Constants:
    """Quoted strings in code become data segments and the operands that point at them."""

    def __init__(self) -> None:
        self.data = ""
        self.end = _CONSTANTS_AT

    def place(self, code: str) -> str:
        return re.sub(r'"([^"]*)"', self._one, code)

    def _one(self, quoted: re.Match[str]) -> str:
        text = quoted[1]
        length = len(re.sub(r"\\[0-9a-fA-F]{2}", "x", text).encode())
        at = self.end
        self.end += length
        self.data += f'\n    (data (i32.const {at}) "{text}")'
        return f"(i32.const {at}) (i32.const {length})"


def agent(
    version: str = "0.1.0",
    *,
    init: str = ACCEPT,
    handle: str = ECHO,
    shutdown: str = "",
    imports: tuple[Import, ...] = (),
    pages: int = 1,
    extra: str = "",
    handle_result: str = "(result (list $envelope) (error string))",
    lifecycle_version: str = "",
) -> str:
    """The text of a component of the world *agent*.

    Args:
        version: Of the package, for what it imports and what it exports.
        init: Core code of `init`; it comes after the configured topic has been kept.
        handle: Core code of `handle`.
        shutdown: Core code of `shutdown`.
        imports: What it imports beside the bus.
        pages: The size of its memory at first, in 64 KiB.
        extra: More of the component, such as a core module that needs a feature.
        handle_result: The result type of `handle`, if it is to be the wrong one.
        lifecycle_version: That of the export, if it is to be another one.
    """
    constants = _Constants()
    locals_ = "(local $a i32) (local $b i32) (local $c i32)"
    functions = f"""
    (func $init (export "init") (param $agent-id i32) (param $agent-id-length i32)
      (param $config i32) (param $config-length i32) (result i32) {locals_}
      (global.set $topic (local.get $config))
      (global.set $topic-length (local.get $config-length))
      (if (i32.eqz (local.get $config-length))
        (then {constants.place('"echo" (global.set $topic-length) (global.set $topic)')}))
      {constants.place(init)})
    (func $handle (export "handle") (param $topic i32) (param $topic-length i32)
      (param $sender i32) (param $sender-length i32)
      (param $payload i32) (param $payload-length i32)
      (param $correlation i32) (param $correlation-length i32) (result i32) {locals_}
      (global.set $count (i32.add (global.get $count) (i32.const 1)))
      {constants.place(handle)})
    (func $shutdown (export "shutdown") {locals_} {constants.place(shutdown)})"""
    everything = (bus(version), *imports)
    lowered, core_imports, instances = [], [], []
    for item in everything:
        exports = []
        for name, signature in item.functions.items():
            lowered.append(
                f'(core func ${item.alias}-{name} (canon lower (func ${item.alias} "{name}")'
                " (memory $memory) (realloc $realloc)))"
            )
            core_imports.append(
                f'(import "{item.alias}" "{name}" (func ${item.alias}-{name} {signature}))'
            )
            exports.append(f'(export "{name}" (func ${item.alias}-{name}))')
        instances.append(f'(with "{item.alias}" (instance {" ".join(exports)}))')
    declarations = "\n  ".join(item.declaration for item in everything)
    lines = "\n    "
    free = (constants.end + 15) & ~15
    return f"""(component
  {declarations}
  (alias export $bus "envelope" (type $envelope))
  {extra}
  {_LIBC.format(pages=pages, free=free, data=constants.data)}
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))
  (alias core export $libc "keep" (core func $keep))
  (alias core export $libc "forget" (core func $forget))
  {lines.join(lowered)}
  (core module $main
    (import "libc" "memory" (memory 0))
    (import "libc" "realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
    {lines.join(core_imports)}
    {_SUPPORT}
    {functions})
  (core instance $main (instantiate $main (with "libc" (instance $libc))
    {lines.join(instances)}))
  (func $init (param "agent-id" string) (param "config" (list u8)) (result (result (error string)))
    (canon lift (core func $main "init") (memory $memory) (realloc $realloc) (post-return $keep)))
  (func $handle (param "msg" $envelope) (result {handle_result})
    (canon lift (core func $main "handle") (memory $memory) (realloc $realloc)
      (post-return $forget)))
  (func $shutdown (canon lift (core func $main "shutdown")))
  (instance $lifecycle (export "envelope" (type $envelope))
    (export "init" (func $init)) (export "handle" (func $handle))
    (export "shutdown" (func $shutdown)))
  (export "agent-net:core/lifecycle@{lifecycle_version or version}" (instance $lifecycle)))"""


# ---- What is refused before it runs --------------------------------------------------------------

CORE_MODULE: Final = '(module (func (export "handle")))'

EMPTY: Final = "(component)"

MEMORY64: Final = agent(extra="(core module $big (memory i64 1))")

WRONG_RESULT: Final = agent(handle_result="(result (list string) (error string))")
"""`handle` returns strings for envelopes."""

WRONG_VERSION: Final = agent(lifecycle_version="0.9.0")

FEATURES: Final[dict[str, str]] = {
    "64-bit memories": "(core module (memory i64 1))",
    "threads and shared memory": "(core module (memory 1 1 shared))",
    "more than one memory": "(core module (memory 1) (memory 1))",
    "garbage collection": "(core module (type (struct (field i32))))",
    "exceptions": "(core module (tag))",
    "tail calls": "(core module (func $f (return_call $f)))",
    "typed function references": "(core module (type $t (func)) (func (param (ref $t))))",
    "relaxed SIMD": (
        "(core module (func (param v128 v128) (result v128)"
        " (i8x16.relaxed_swizzle (local.get 0) (local.get 1))))"
    ),
    "custom page sizes": "(core module (memory 1 (pagesize 1)))",
    "wide arithmetic": (
        "(core module (func (param i64 i64 i64 i64) (result i64 i64)"
        " (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3))))"
    ),
    "stack switching": "(core module (type $f (func)) (type (cont $f)))",
    "asynchronous components": "(type (future u8))",
    "garbage-collected references, such as `externref`": "(core module (table 1 externref))",
    "fixed-length lists": "(type (list u8 4))",
    "maps": "(type (map string u32))",
    "component-model extensions": "(type error-context)",
}
"""By the name that the error gives it, the `extra` of a component that needs a feature which is
switched off."""
