"""The agents that the kill loop loads: relays of the built-in brain, components that keep things.

    relay.in > relay > split.in > split > left.in  > left
                                        > right.in > right, twin
    desk.in > desk > tally.in > counter > ledger.in > ledger
                              > diarist, crier
    spout.in > spout > cup.in > cup, whose inbox is soon full
    oracle.in > oracle, augur > omen.in > sage; the first two ask the model

`TOPOLOGY` is what the checker is told, and `install` writes the configuration that it stands for.
`TALKING` is added to it where there is a model.
"""

import tomllib
from pathlib import Path
from typing import Any, Final

import tomli_w
import wat_components as wat
from component_daemons import INBOX, write_agent, write_component
from daemons import Installation, agentd
from effects_checker import COUNT_KEY, Station
from wat_components import Import

TOPOLOGY: Final = (
    Station("relay", ("relay.in",), ("split.in",)),
    Station("split", ("split.in",), ("left.in", "right.in")),
    Station("left", ("left.in",)),
    Station("right", ("right.in",)),
    Station("twin", ("right.in",)),
    Station("desk", ("desk.in",), ("tally.in",)),
    Station("counter", ("tally.in",), ("ledger.in",), keeps="count"),
    Station("ledger", ("ledger.in",)),
    Station("diarist", ("tally.in",), keeps="memory"),
    Station("crier", ("tally.in",), keeps="health"),
    Station("spout", ("spout.in",), ("cup.in",), ordered=False),
    Station("cup", ("cup.in",), ordered=False),
)

TALKING: Final = (
    Station("oracle", ("oracle.in",), ("omen.in",), keeps="answer"),
    Station("augur", ("oracle.in",), ("omen.in",), keeps="answer"),
    Station("sage", ("omen.in",)),
)

INBOXES: Final = {"spout": 64, "cup": 12}
"""A burst of messages fills `cup`, and the completions of `spout` are parked until they are tried
again; then its own inbox holds the publisher back. All others have room for any load."""

RELAYED: Final = "relay.in"
KEPT: Final = "desk.in"
POURED: Final = "spout.in"
ASKED: Final = "oracle.in"

ANSWER_TOKENS: Final = 60
ANSWER_SCHEMA: Final = "{\\22type\\22:\\22string\\22,\\22minLength\\22:24,\\22maxLength\\22:48}"
"""Of what the model is asked, as WAT writes it: long enough to die in the middle of an answer."""

_COUNTER: Final = f"""(local.set $a (call $allocate (i32.const 20)))
    (call $state-get "{COUNT_KEY}" (local.get $a))
    (if (i32.load8_u (local.get $a)) (then (unreachable)))
    (local.set $c (i32.add (local.get $payload-length) (i32.const 8)))
    (local.set $b (call $allocate (local.get $c)))
    (i64.store (local.get $b) (i64.add (i64.const 1)
      (if (result i64) (i32.load8_u offset=4 (local.get $a))
        (then (i64.load (i32.load offset=8 (local.get $a))))
        (else (i64.const 0)))))
    (memory.copy (i32.add (local.get $b) (i32.const 8))
      (local.get $payload) (local.get $payload-length))
    (local.set $a (call $allocate (i32.const 16)))
    (call $state-put "{COUNT_KEY}" (local.get $b) (i32.const 8) (local.get $a))
    (if (i32.load8_u (local.get $a)) (then (unreachable)))
    (call $answer (global.get $topic) (global.get $topic-length) (local.get $b) (local.get $c)
      (local.get $correlation) (local.get $correlation-length))"""
"""Adds one to what its state says, and publishes that number with the payload."""

_MEMORY: Final = Import(
    "memory",
    """(import "agent-net:core/types@0.2.0" (instance $types
    (type $variant (variant (case "refused" string) (case "unavailable" string)))
    (export "error" (type (eq $variant)))
    (type $enum (enum "success" "partial" "failure"))
    (export "outcome" (type (eq $enum)))))
  (alias export $types "error" (type $error))
  (alias export $types "outcome" (type $outcome))
  (import "agent-net:core/memory@0.2.0" (instance $memory
    (alias outer 1 $error (type $outer-error))
    (export "error" (type $error (eq $outer-error)))
    (alias outer 1 $outcome (type $outer-outcome))
    (export "outcome" (type $outcome (eq $outer-outcome)))
    (type $record (record (field "id" u64) (field "text" string) (field "outcome" $outcome)
      (field "importance" f64) (field "created" u64)))
    (export "entry" (type $entry (eq $record)))
    (export "search" (func (param "query" string) (param "limit" u32)
      (result (result (list $entry) (error $error)))))
    (export "note" (func (param "text" string) (param "lesson" string)
      (param "outcome" $outcome) (param "importance" f64) (result (result (error $error)))))))""",
    {
        "search": "(param i32 i32 i32 i32)",
        "note": "(param i32 i32 i32 i32 i32 f64 i32)",
    },
)

_DIARIST: Final = """(local.set $a (call $allocate (i32.const 16)))
    (call $memory-search "parcels on the shelf" (i32.const 2) (local.get $a))
    (call $memory-note (local.get $payload) (local.get $payload-length) "It was on the shelf."
      (i32.const 0) (f64.const 0.5) (local.get $a))
    (if (i32.load8_u (local.get $a)) (then (unreachable)))
    (call $answers (i32.const 0) (i32.const 0))"""
"""Searches its memory, an effect that is written down after it was had, and notes what came."""

_CRIER: Final = """(call $health-emit (i32.const 0)
      (local.get $payload) (local.get $payload-length))
    (call $answers (i32.const 0) (i32.const 0))"""
"""Has an effect at once, before its completion."""


_INFERENCE: Final = Import(
    "inference",
    """(import "agent-net:core/types@0.2.0" (instance $types
    (type $variant (variant (case "refused" string) (case "unavailable" string)))
    (export "error" (type (eq $variant)))))
  (alias export $types "error" (type $error))
  (import "agent-net:core/inference@0.2.0" (instance $inference
    (alias outer 1 $error (type $outer-error))
    (export "error" (type $error (eq $outer-error)))
    (type $enum (enum "system" "user" "assistant"))
    (export "role" (type $role (eq $enum)))
    (type $message (record (field "role" $role) (field "content" string)))
    (export "chat-message" (type $chat-message (eq $message)))
    (type $asked (record (field "messages" (list $chat-message)) (field "max-tokens" u32)
      (field "schema" (option string))))
    (export "request" (type $request (eq $asked)))
    (type $said (record (field "text" string) (field "tokens" u32)))
    (export "answer" (type $answer (eq $said)))
    (export "ask" (func (param "request" $request)
      (result (result $answer (error $error)))))))""",
    {"ask": "(param i32 i32 i32 i32 i32 i32 i32)"},
)

_ORACLE: Final = f"""(local.set $a (call $allocate (i32.const 12)))
    (i32.store8 (local.get $a) (i32.const 1))
    (i32.store offset=4 (local.get $a) (local.get $payload))
    (i32.store offset=8 (local.get $a) (local.get $payload-length))
    (local.set $b (call $allocate (i32.const 16)))
    (call $inference-ask (local.get $a) (i32.const 1) (i32.const {ANSWER_TOKENS})
      (i32.const 1) "{ANSWER_SCHEMA}" (local.get $b))
    (if (i32.load8_u (local.get $b)) (then (unreachable)))
    {wat.ECHO}"""
"""Asks the model about what it is told, with a schema, and passes it on when it was answered."""


def topology_of(model: Path | None) -> tuple[Station, ...]:
    return TOPOLOGY if model is None else (*TOPOLOGY, *TALKING)


def install(folder: Path, model: Path | None = None) -> Installation:
    """A fresh installation with the agents of `TOPOLOGY`; with a model those of `TALKING` too."""
    made = agentd("init", str(folder / "here"))
    assert made.status == 0, made.errors
    installation = Installation(folder / "here")
    for path in (installation.folder / "agents.d").glob("*.toml"):
        path.unlink()
    document = tomllib.loads(installation.config.read_text())
    del document["model"]
    if model is not None:
        document["model"] = {"default": {"file": str(model), "slots": 2, "context": 2048}}
    installation.config.write_text(tomli_w.dumps(document))
    components = {
        "counter": (wat.agent("0.2.0", imports=(wat.STATE,), handle=_COUNTER), ["state"]),
        "diarist": (wat.agent("0.2.0", imports=(_MEMORY,), handle=_DIARIST), ["memory"]),
        "crier": (wat.agent("0.2.0", imports=(wat.HEALTH,), handle=_CRIER), ["health"]),
        **dict.fromkeys(
            ("oracle", "augur"),
            (wat.agent("0.2.0", imports=(_INFERENCE,), handle=_ORACLE), ["inference"]),
        ),
    }
    for station in topology_of(model):
        inbox = INBOXES.get(station.name, INBOX)
        keys: dict[str, Any] = {
            "consumes": list(station.consumes),
            "publishes": list(station.publishes),
            "limits": {"inbox": inbox},
        }
        if station.name in components:
            text, imports = components[station.name]
            component = write_component(folder, station.name, text)
            keys |= {"imports": imports, "config": "".join(station.publishes)}
            write_agent(installation.folder / "agents.d", station.name, component, **keys)
        else:
            installation.add_agent(station.name, brain="echo", **keys)
    return installation
