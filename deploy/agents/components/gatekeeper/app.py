"""Checks what comes in from outside, and passes on what keeps the rules.

A message is a JSON object, and its `kind` says which rule it has to keep. A rule says where the
message goes, its `topic`; what may not be missing, `required`; and of each field that there may be,
in `fields`: its `type` (string, number, integer or boolean), `minimum`, `maximum`, `longest` (of a
string, in characters) and `one_of`. What breaks the rule goes to `intake.rejected` with the reason
if anybody listens there, and is refused otherwise.
"""

import json
from math import isfinite
from typing import Any

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import bus, logging
from wit_world.imports.bus import Envelope
from wit_world.imports.logging import Level

REJECTED = "intake.rejected"

SHOWN_CHARACTERS_MAX = 1000
"""Of a message that is rejected."""

OPENED_MAX = 100
"""Brackets in one message. A parser goes down a level at each, and the stack has an end."""

RULES: dict[str, dict[str, Any]] = {}


class Broken(Exception):
    """The rule that a message breaks."""


class Lifecycle(exports.Lifecycle):
    def init(self, agent_id: str, config: bytes) -> None:
        RULES.update(json.loads(config or b"{}").get("kinds", {}))
        for kind, rule in RULES.items():
            if "topic" not in rule:
                raise Err(f"The rule for {kind} has no topic")

    def handle(self, msg: Envelope) -> list[Envelope]:
        try:
            topic, message = check(msg.payload)
        except Broken as broken:
            reject(msg, str(broken))
            return []
        return [Envelope(topic, "", encoded(message), msg.correlation_id)]

    def shutdown(self) -> None:
        pass


def reject(msg: Envelope, reason: str) -> None:
    """Tell whoever listens. `publish` says at once if that is nobody."""
    logging.log(Level.INFO, f"rejected: {reason}")
    shown = msg.payload.decode(errors="replace")[:SHOWN_CHARACTERS_MAX]
    told = encoded({"reason": reason, "message": shown})
    try:
        bus.publish(Envelope(REJECTED, "", told, msg.correlation_id))
    except Err:
        raise Err(reason) from None


def encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def check(payload: bytes) -> tuple[str, dict[str, Any]]:
    """Where a message goes, and what of it. Raises `Broken`."""
    if payload.count(b"[") + payload.count(b"{") > OPENED_MAX:
        raise Broken("it is nested too deeply")
    try:
        message = json.loads(payload, parse_constant=not_json)
    except ValueError:
        raise Broken("it is not JSON") from None
    if not isinstance(message, dict):
        raise Broken("it is not a JSON object")
    kind = message.pop("kind", None)
    rule = RULES.get(kind) if isinstance(kind, str) else None
    if rule is None:
        raise Broken("there is no rule for its kind")
    fields = rule.get("fields", {})
    for name in rule.get("required", []):
        if name not in message:
            raise Broken(f"{name} is missing")
    for name, value in message.items():
        if name not in fields:
            raise Broken(f"{printable(name)} is not known")
        check_field(name, value, fields[name])
    return rule["topic"], message


def printable(name: str) -> str:
    """As much of a name that somebody else chose as can be said."""
    return name[:100].encode(errors="replace").decode()


def not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def check_field(name: str, value: Any, rule: dict[str, Any]) -> None:
    if not has_type(value, rule.get("type")):
        raise Broken(f"{name} is not of type {rule['type']}")
    if is_number(value):
        if value < rule.get("minimum", value):
            raise Broken(f"{name} is under {rule['minimum']}")
        if value > rule.get("maximum", value):
            raise Broken(f"{name} is over {rule['maximum']}")
    if isinstance(value, str) and len(value) > rule.get("longest", len(value)):
        raise Broken(f"{name} is longer than {rule['longest']} characters")
    if "one_of" in rule and value not in rule["one_of"]:
        raise Broken(f"{name} is none of {', '.join(map(str, rule['one_of']))}")


def has_type(value: Any, kind: str | None) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "number":
            return is_number(value)
        case "integer":
            return is_number(value) and value == int(value)
        case "boolean":
            return isinstance(value, bool)
    return True


def is_number(value: Any) -> bool:
    """Whether it is one that any program can read: JSON may have 1e999."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:
        return False
