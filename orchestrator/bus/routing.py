"""Who receives a message, or why nobody does. Pure: all or nothing, one typed error.

An agent never receives by a pattern what it published itself; that would be a loop of one.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from orchestrator.bus import topics
from orchestrator.bus.limits import HOPS_MAX

BUS: Final = "bus"
OPERATOR: Final = "operator"
SUPERVISOR: Final = "supervisor"
RESERVED_NAMES: Final = frozenset({BUS, OPERATOR, SUPERVISOR})
"""Actors that are no agents, so no agent may have their names."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as the bus knows it. `rank` is that of its priority, 0 the most urgent."""

    name: str
    role: Literal["agent", "conductor"]
    rank: int
    publishes: tuple[str, ...]
    delegates: frozenset[str]
    inbox_max: int
    screened: bool = True
    """What it receives is compared with the duties of all agents before it is leased."""
    state_max: int = 0
    """Bytes that its state may hold."""


class Directory:
    """Who is on the bus and what they subscribe to; immutable.

    `leaving` receive nothing more. They publish what follows from the deliveries that they have.
    """

    def __init__(
        self,
        members: Iterable[Member],
        subscriptions: Iterable[tuple[str, str]],
        leaving: Iterable[Member] = (),
    ) -> None:
        pairs = tuple(subscriptions)
        self.members: Mapping[str, Member] = {member.name: member for member in members}
        self.senders: Mapping[str, Member] = {
            **{member.name: member for member in leaving},
            **self.members,
        }
        self.patterns = sorted({pattern for _, pattern in pairs})
        self.router = topics.Router(pairs)

    @property
    def conductor(self) -> str | None:
        for member in self.members.values():
            if member.role == "conductor":
                return member.name
        return None


PlacesIn = Callable[[Member], int]
"""How many more messages of the sender the inbox of this agent takes."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A message before it is one."""

    topic: str
    sender: str
    payload_bytes: int
    hops: int
    expires_us: int
    count: int = 1
    """So many of them, which go the same way; `payload_bytes` are those of the largest."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A message that may be published. `direct` addresses one agent by name; the receiver of a
    `sink` is the conversation itself."""

    receivers: tuple[str, ...] = ()
    direct: bool = False
    sink: bool = False


def route(draft: Draft, directory: Directory, places_in: PlacesIn, now_us: int) -> Plan | Failure:
    """Decide where `draft` goes."""
    fault = (
        _fault_of_topic(draft) or _fault_of_size_or_time(draft, now_us) or _denial(draft, directory)
    )
    if fault is not None:
        return fault
    plan = _resolved(draft, directory)
    if not plan.receivers and not plan.sink:
        return _nobody(draft, directory)
    full = [name for name in plan.receivers if places_in(directory.members[name]) < draft.count]
    return _backpressure(full, draft) if full else plan


def _backpressure(full: list[str], draft: Draft) -> Failure:
    """Somebody has no room for it, or has given this sender as much room as one may take."""
    what = "the message" if draft.count == 1 else f"any of the {draft.count} messages"
    return Failure(
        "bus.backpressure",
        f"The inbox of {_listed(full)} has no room for that from {draft.sender!r}, so nobody was "
        f"given {what}.",
        "Try again later, send fewer at once, or raise `limits.inbox` of that agent.",
        agents=full,
    )


def _fault_of_topic(draft: Draft) -> Failure | None:
    fault = topics.fault_of_topic(draft.topic)
    if fault is None:
        return None
    return Failure(
        "bus.invalid-topic",
        f"The topic {draft.topic!r} {fault}.",
        "A topic is words of a-z, 0-9, _ and - with dots between them.",
        topic=draft.topic,
    )


def _fault_of_size_or_time(draft: Draft, now_us: int) -> Failure | None:
    if draft.payload_bytes > PAYLOAD_BYTES_MAX:
        return Failure(
            "bus.payload-too-large",
            f"The payload has {draft.payload_bytes} bytes; {PAYLOAD_BYTES_MAX} are allowed.",
            "Put the content into a file and send its name.",
            bytes=draft.payload_bytes,
        )
    if draft.hops > HOPS_MAX:
        return Failure(
            "bus.expired",
            f"The message on {draft.topic!r} would be hop {draft.hops} of its chain; "
            f"{HOPS_MAX} are allowed.",
            "Look for agents that hand the same work round in a circle.",
            hops=draft.hops,
        )
    if draft.expires_us <= now_us:
        return Failure(
            "bus.expired",
            f"The message on {draft.topic!r} is past its time to live.",
            "Send it again with a later time.",
            expires_us=draft.expires_us,
        )
    return None


def _denial(draft: Draft, directory: Directory) -> Failure | None:
    member = directory.senders.get(draft.sender)
    addressed = topics.addressed_agent(draft.topic)
    if member is None:
        allowed = draft.sender == OPERATOR and draft.topic != topics.USER_REPLY
        cure = "The operator may publish on every topic but `user.reply`."
    elif addressed is not None:
        allowed = addressed in member.delegates
        cure = f"Add {addressed!r} to `delegate` of {draft.sender}."
    else:
        allowed = any(topics.matches(pattern, draft.topic) for pattern in member.publishes)
        cure = f"Add {draft.topic!r} to `publishes` of {draft.sender}."
    if allowed:
        return None
    return Failure(
        "bus.not-permitted",
        f"{draft.sender!r} may not publish on {draft.topic!r}.",
        cure,
        topic=draft.topic,
        sender=draft.sender,
    )


def _resolved(draft: Draft, directory: Directory) -> Plan:
    addressed = topics.addressed_agent(draft.topic)
    if addressed is not None:
        receivers = (addressed,) if addressed in directory.members else ()
        return Plan(receivers=receivers, direct=True)
    if draft.topic == topics.USER_REPLY:
        return Plan(sink=True)
    found = directory.router.subscribers(draft.topic)
    return Plan(receivers=tuple(name for name in found if name != draft.sender))


def _nobody(draft: Draft, directory: Directory) -> Failure:
    known = directory.patterns + [topics.agent_topic(name) for name in directory.members]
    near = difflib.get_close_matches(draft.topic, known, n=1)
    cure = f"Did you mean {near[0]!r}?" if near else "Add the topic to `consumes` of an agent."
    return Failure(
        "bus.no-subscriber",
        f"Nobody subscribes to {draft.topic!r}.",
        cure,
        topic=draft.topic,
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def message_rank(conversation: int, inherited: int | None, asked: int | None) -> int:
    """The class of a message: its conversation's, or the more urgent one that its cause had.

    What a sender asks for may lower it towards the conversation's, never raise it.
    """
    if inherited is None:
        return conversation
    wanted = inherited if asked is None else max(asked, inherited)
    return min(conversation, wanted)


def delivery_rank(message: int, receiver: Member) -> int:
    """The class of a delivery: the more urgent of its message's and its agent's."""
    return min(message, receiver.rank)
