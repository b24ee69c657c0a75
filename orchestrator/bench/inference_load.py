"""What a run asks of a server, and what came of it: the same for all that are measured. Pure.

A `Plan` says nothing of HTTP nor of the engine's protocol. Times are microseconds from the start of
a run; arrivals are those of text, so a first piece without any is none.
"""

from typing import Any, Literal

import msgspec

from ipc_protocol.values import Priority


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, greedy and streamed: go on with `text` for `tokens_max` tokens.

    With a `schema` it is a chat instead: `identity` is the message of the system, `text` that of
    the user, and the answer is JSON.
    """

    text: str
    tokens_max: int
    identity: str = ""
    schema: dict[str, Any] | None = None
    delay_s: float = 0.0
    """Before it, from when its turn comes: so the order of many is that of their delays."""


class Actor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One agent. It asks one thing after another, the next when it has the answer.

    With `every_s` it asks by that schedule instead, whatever the answers do. With `until_s` it
    begins again with its first request until that time, and then leaves what has not begun to be
    answered.
    """

    name: str
    kind: str
    """What its answers are counted under."""
    asks: list[Ask]
    priority: Priority = "normal"
    begin_s: float = 0.0
    every_s: float = 0.0
    until_s: float = 0.0


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run. With `rounds` nobody asks again until all have their answers."""

    actors: list[Actor]
    limit_s: float
    """Then the run has failed."""
    rounds: bool = False


class Said(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer as its server puts it. Tokens are those that the server has counted."""

    text: str = ""
    finish: Literal["stop", "length"] = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    """Of those generated: appended without being decoded. 0 where the server does not say."""


Outcome = Literal["answered", "left", "failed"]
"""*left*: the time was over before its first token. *failed*: `error` says how."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one request."""

    actor: str
    kind: str
    number: int
    """Of its request among those of its actor."""
    asked_us: int
    """When it was sent, or should have been by its schedule."""
    ended_us: int
    outcome: Outcome = "answered"
    arrivals_us: list[int] = []
    said: Said = Said()
    error: str = ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server with OpenAI's interface, as the load generator is told of it."""

    url: str
    """Without the path of a method: `http://127.0.0.1:8080/v1`."""
    model: str
    keys: dict[str, str] = {}
    """By actor; none where the server takes none."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the program of the load generator reads from its file."""

    target: Target
    plan: Plan
    patience_s: float = 0.0
    """How long it asks a server again that does not listen yet, or has not loaded its model."""
