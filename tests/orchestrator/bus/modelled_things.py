"""What the model of the bus is made of: agents, conversations, messages, deliveries, dead letters.

They refer to each other, not by number: numbers are what the real bus gives, and are learned from
its tables (`number`, 0 until then).
"""

import re
from dataclasses import dataclass, field
from typing import Any

from ipc_protocol.values import Priority

URGENCIES: tuple[Priority, ...] = ("urgent", "high", "normal", "low", "background")
"""Classes by their number."""


@dataclass(eq=False)
class Agent:
    name: str
    rank: int
    inbox: int
    consumes: tuple[str, ...]
    publishes: tuple[str, ...]
    delegates: tuple[str, ...] = ()
    conductor: bool = False
    screened: bool = True
    state_max: int = 0
    active: bool = True
    retired: bool = False
    """By the operator: what it still has to do may be published."""


@dataclass(eq=False)
class Conversation:
    rank: int
    asked: bool
    name: str = ""
    number: int = 0
    state: str = "open"
    round: int = 1
    messages: int = 0
    question: "Message | None" = None
    composer: "Delivery | None" = None
    reply: str | None = None
    answered_us: int | None = None


@dataclass(eq=False)
class Message:
    conversation: Conversation
    round: int
    topic: str
    sender: str
    rank: int
    payload: bytes
    expires_us: int
    hops: int = 0
    cause: "Message | None" = None
    cause_number: int | None = None
    """That of a cause that has been cleaned away, or None."""
    made_by: "Delivery | None" = None
    composed: bool = False
    fallback: str | None = None
    publisher_id: str | None = None
    number: int = 0
    receipt: tuple[str, ...] = ()
    """Who was named in the first receipt."""


@dataclass(eq=False)
class Delivery:
    message: Message
    agent: str
    rank: int
    screened: bool
    must_take: bool = False
    composing: bool = False
    evidence: Any = None
    number: int = 0
    state: str = "queued"
    holder: str | None = None
    """The worker that has it, or had it last."""
    reason: str | None = None
    until_us: int | None = None
    waits_for: "Question | None" = None
    deferred: bool = False
    deaths: int = 0
    run: int = 0
    begun: tuple[int, int, str] | None = None
    """When, the seed and the component of the present run."""
    ever_begun: bool = False
    steps: int = 0
    tool_used: bool = False
    read: dict[str, bytes | None] = field(default_factory=dict)
    outcome: str | None = None
    ready_since: int = 0
    """The step of the test in which it could be leased last."""
    displaced: bool = False
    """It was parked, or screened late, or given back by a dead worker: it has lost its place."""

    @property
    def finished(self) -> bool:
        return self.state in ("done", "dead")

    @property
    def place(self) -> tuple[int, int]:
        return self.rank, self.number

    def begin_anew(self) -> None:
        self.run += 1
        self.begun = None
        self.steps, self.tool_used, self.read = 0, False, {}


@dataclass(eq=False)
class Letter:
    delivery: Delivery
    code: str
    topic: str
    payload: bytes
    message: Message | None = None
    """None for an output that never became one."""
    number: int = 0
    replayed_as: Message | None = None

    @property
    def sender(self) -> str:
        return self.delivery.agent if self.message is None else self.message.sender


@dataclass(eq=False)
class Question:
    """One to a person."""

    delivery: Delivery
    run: int
    step: int
    number: int = 0
    answered: bool = False


@dataclass(eq=False)
class Worker:
    """The credit of an agent's worker."""

    name: str
    window: int
    component: str


@dataclass
class Route:
    error: str = ""
    full: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()
    direct: bool = False
    sink: bool = False


def fits(pattern: str, topic: str) -> bool:
    """A pattern of topics as a regular expression: `*` is one word, `>` one or more at the end."""
    words = re.escape(pattern).replace(r"\*", r"[^.]+").replace(">", ".+")
    return re.fullmatch(words, topic) is not None
