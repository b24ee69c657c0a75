"""The typed decisions of an agent, and the JSON Schemas that hold its model to them.

Each decision is a struct. Its schema, narrowed to what is allowed at the moment, constrains what
the model can say; the struct then validates what it said. Nothing here knows when one is due.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from ipc_protocol.inference import schema_of
from ipc_protocol.values import Priority
from ipc_protocol.work import ToolDescription

REASON_CHARS_MAX: Final = 60
LESSON_CHARS_MIN: Final = 20
LESSON_CHARS_MAX: Final = 100
"""A reason is about 15 tokens, a lesson 25: a fifth and a third of a second on one slow core."""

FINISH: Final = "finish"
"""Stands beside the tools in the schema of a call. No tool has this name."""

Schema = dict[str, Any]
Success = Literal["success", "partial", "failure"]
Action = Literal["act", "delegate", "defer", "ignore"]
Deferral = Literal["10m", "1h", "4h", "1d"]
DEFERRAL_US: Final[dict[Deferral, int]] = {
    "10m": 600_000_000,
    "1h": 3_600_000_000,
    "4h": 14_400_000_000,
    "1d": 86_400_000_000,
}


class TriageDecision(msgspec.Struct, frozen=True):
    """What an agent does with a delivery. `to` belongs to delegate, `until` to defer."""

    action: Action
    to: str | None = None
    until: Deferral | None = None
    priority: Priority | None = None
    reason: Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)] = ""


class ToolCall(msgspec.Struct, frozen=True):
    """The next tool and its arguments, or `FINISH` without any."""

    tool: str
    arguments: dict[str, Any] = {}


class Quote(msgspec.Struct, frozen=True):
    """An answer in words that are there already."""

    answer: str


class Reflection(msgspec.Struct, frozen=True):
    """What came out of a delivery. `importance` is from 1 to 5: a grammar cannot bound a number."""

    lesson: Annotated[str, msgspec.Meta(min_length=LESSON_CHARS_MIN, max_length=LESSON_CHARS_MAX)]
    outcome: Success
    importance: Literal[1, 2, 3, 4, 5]


D = TypeVar("D", bound=msgspec.Struct)


def parse(text: str, decision: type[D]) -> D | None:
    """The decision that a model's answer spells out, or None if it is none."""
    try:
        return msgspec.json.decode(text, type=decision)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


# ---- Schemas ------------------------------------------------------------------------------------

_TRIAGE: Final = schema_of(TriageDecision)["properties"]
_REFLECTION: Final = schema_of(Reflection)["properties"]


def triage_schema(
    action: Action,
    to: str | None,
    *,
    priorities: Sequence[Priority],
    may_defer: bool,
    with_reason: bool = True,
) -> Schema:
    """The decision that the weighing allows, beside it a deferral if that is allowed too."""
    allowed: Schema = {"action": {"const": action}}
    if to is not None:
        allowed["to"] = {"const": to}
    if action != "ignore":
        allowed["priority"] = {"enum": list(priorities)}
    if with_reason:
        allowed["reason"] = _plain(_TRIAGE["reason"])
    if not may_defer:
        return _object(allowed)
    deferral: Schema = {
        "action": {"const": "defer"},
        "until": {"enum": list(DEFERRAL_US)},
        "reason": _plain(_TRIAGE["reason"]),
    }
    return {"anyOf": [_object(allowed), _object(deferral)]}


def call_schema(
    tools: list[ToolDescription], *, may_finish: bool, argument_chars_max: int
) -> Schema:
    """One call of one of `tools`; their texts are asked for later, each on its own."""
    calls = [
        _object(
            {
                "tool": {"const": tool.name},
                "arguments": _capped(_without_text(tool), argument_chars_max),
            }
        )
        for tool in tools
    ]
    if may_finish:
        calls.append(_object({"tool": {"const": FINISH}}))
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def quote_schema(texts: Sequence[str]) -> Schema:
    """An answer that is one of these texts."""
    return _object({"answer": {"enum": list(dict.fromkeys(texts))}})


def reflection_schema(outcomes: list[Success], lessons: Sequence[str] = ()) -> Schema:
    """A reflection whose outcome is one of those that the facts leave open.

    The lesson is one of `lessons`, or whatever the model makes of it where there are none.
    """
    schema = {**_REFLECTION, "outcome": {"enum": outcomes}}
    if lessons:
        schema["lesson"] = {"enum": list(lessons)}
    return _object(schema)


def text_parameter(tool: ToolDescription) -> str | None:
    """The parameter that is a text rather than a value, if the tool has one."""
    for name, schema in _properties(tool).items():
        if isinstance(schema, dict) and "contentMediaType" in schema:
            return name
    return None


def _without_text(tool: ToolDescription) -> Schema:
    text = text_parameter(tool)
    if text is None:
        return tool.parameters
    properties = {name: schema for name, schema in _properties(tool).items() if name != text}
    required = [name for name in tool.parameters.get("required", ()) if name != text]
    return {**tool.parameters, "properties": properties, "required": required}


def _capped(node: Any, chars_max: int) -> Any:
    """The schema with no free string longer than `chars_max`."""
    if isinstance(node, list):
        return [_capped(item, chars_max) for item in node]
    if not isinstance(node, dict):
        return node
    capped = {key: _capped(value, chars_max) for key, value in node.items()}
    if node.get("type") == "string" and not node.keys() & {"enum", "const", "pattern", "format"}:
        longest = node.get("maxLength", chars_max)
        capped["maxLength"] = min(longest, chars_max)
    return capped


def _properties(tool: ToolDescription) -> Schema:
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, dict) else {}


def _object(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _plain(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "default"}
