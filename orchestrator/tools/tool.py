"""What a tool is, what it is given, and what may come of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from ipc_protocol.work import Memory, ToolResult
from orchestrator.tools.folder import WorkFolder

Schema: TypeAlias = dict[str, Any]
Arguments = TypeVar("Arguments", bound="ToolArguments")


class Grants(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent's configuration allows it, as far as tools are concerned.

    `publishes` are topics, `delegates` agents, `host_read` exact paths and `@disk`.
    """

    agent: str
    tools: tuple[str, ...]
    publishes: tuple[str, ...] = ()
    delegates: tuple[str, ...] = ()
    host_read: tuple[str, ...] = ()


class NeedsPerson(msgspec.Struct, frozen=True):
    """The tool cannot answer, a person must: the driver parks the delivery until one has."""

    question: str


ToolOutcome: TypeAlias = ToolResult | NeedsPerson


@dataclass(frozen=True)
class ToolContext:
    """All that a tool may reach. `recall(query, limit)` finds the agent's own memories,
    `may_publish(topic)` is the bus's rule for the agent's declared topics, `unfinished_tasks()`
    are the numbers of its open tasks, `calls_in_flight()` the keys of its calls of which nobody
    knows yet what came of them."""

    grants: Grants
    folder: WorkFolder
    may_publish: Callable[[str], bool]
    recall: Callable[[str, int], Awaitable[Sequence[Memory]]]
    unfinished_tasks: Callable[[], Awaitable[Sequence[int]]]
    calls_in_flight: Callable[[], Awaitable[frozenset[str]]]
    key: str = ""
    """The idempotency key of the call, for a tool with an `Outside`: the same whenever the
    call is tried again, and no other call's."""


class ToolArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the arguments of a tool. An argument that is not known is an error: a model that
    invents one expects it to do something."""


@dataclass(frozen=True)
class Outside(Generic[Arguments]):
    """What a tool declares that changes something outside the database, where a transaction cannot
    take it back. That it may run is on disk before it does.

    `prepare` comes before that. It may be repeated, and changes nothing that anybody sees; what it
    raises is the result of the call. `recover` is asked when the tool may have run, or may be half
    done: it says what came of it, or brings it to its end; None if it cannot tell; it raises
    `Failure` only if it knows that nothing came of it. `doubt` is what an agent is told
    then, in a sentence or two: what there may be, and how to find out.
    """

    prepare: Callable[[Arguments, ToolContext], Awaitable[None]]
    recover: Callable[[Arguments, ToolContext], Awaitable[ToolResult | None]]
    doubt: str


@dataclass(frozen=True)
class Tool(Generic[Arguments]):
    """`parameters` is the JSON Schema of the arguments under an agent's grants, or None when these
    leave nothing that the tool could do; then it is not offered. `run` raises `Failure`."""

    name: str
    purpose: str
    arguments: type[Arguments]
    parameters: Callable[[Grants], Schema | None]
    run: Callable[[Arguments, ToolContext], Awaitable[ToolOutcome]]
    outward: bool = False
    """Its effect leaves the agent, so it is no way to begin: see `ToolDescription`."""
    outside: Outside[Arguments] | None = None
    """None for a tool that reads, or whose effect is part of the completion."""


# ---- Schemas that a grammar can be made of: bounded strings, known choices, no references --------


def text(characters_max: int) -> Schema:
    return {"type": "string", "maxLength": characters_max}


def prose(characters_max: int) -> Schema:
    """A text of several lines, which a model writes by itself and not inside of a JSON string."""
    return {**text(characters_max), "contentMediaType": "text/plain"}


def choice(values: Sequence[str]) -> Schema:
    return {"type": "string", "enum": list(values)}


def meanings(values: Mapping[str, str]) -> Schema:
    """A choice whose values do not speak for themselves: each with its meaning in a few words."""
    return {"anyOf": [{"const": value, "description": said} for value, said in values.items()]}


def record(properties: Mapping[str, Schema]) -> Schema:
    """An object of exactly these members, in the order in which a model fills them in."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def cut(output: str, characters_max: int) -> str:
    """At most so many characters; what is left out is counted, so that nobody takes it for all."""
    if len(output) <= characters_max:
        return output
    note = f"… [{len(output) - characters_max} more characters]"
    return output[: characters_max - len(note)] + note
