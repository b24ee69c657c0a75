"""Who can reach whom over which topic, and what of it leads nowhere. Pure.

A row of the routing table is a topic or pattern that an agent declares, an agent that is addressed
by name, or nothing of the two and still in use. Where two patterns meet, a message may go from the
one to the other: what each agent does publish within its pattern is its own affair.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from ipc_protocol.bus import Topic, TopicSubscriber
from orchestrator.bus import topics
from orchestrator.bus.routing import Member

ONLY_OPERATORS: Final = frozenset({topics.USER_REQUEST})
"""Topics that are there for people: no agent has to publish on them."""

NEAR_RATIO_MIN: Final = 0.8
"""How alike two names are that may be meant for one: a slip of the pen in a dozen letters is 0.9,
and two topics of one family (`disk.full`, `disk.slow`) are under 0.8."""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What the agents have declared. `subscriptions` are pairs of agent and pattern."""

    members: tuple[Member, ...]
    subscriptions: tuple[tuple[str, str], ...]


class Lag(msgspec.Struct, frozen=True):
    """Deliveries of one topic that one agent has not settled."""

    agent: str
    topic: str
    pending: int
    oldest_us: int


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What goes over the bus. `stored` are the topics of messages that the store has."""

    messages: Mapping[str, int] = {}
    rates: Mapping[str, float] = {}
    lags: Sequence[Lag] = ()
    stored: frozenset[str] = frozenset()


def overlaps(one: str, other: str) -> bool:
    """Is there a topic that both valid patterns match? A topic is a pattern of itself."""
    words, others = one.split("."), other.split(".")
    for word, its in zip(words, others, strict=False):
        if ">" in (word, its):
            return True
        if word != its and "*" not in (word, its):
            return False
    return len(words) == len(others)


def topology(declared: Declared, use: Use) -> list[Topic]:
    """The routing table, in the order of its names."""
    met = use.stored.union(use.messages, (lag.topic for lag in use.lags))
    names = _names(declared)
    matched = _matched(names, met)
    reached = set().union(*matched.values())
    for topic in met - use.stored - reached:
        matched[topic] = [topic]
    return [_row(name, declared, use, matched[name]) for name in sorted(matched)]


def _names(declared: Declared) -> set[str]:
    published = {pattern for member in declared.members for pattern in member.publishes}
    received = {pattern for _, pattern in declared.subscriptions}
    delegated = {name for member in declared.members for name in member.delegates}
    return published | received | {topics.agent_topic(name) for name in delegated}


def _matched(names: Iterable[str], met: Iterable[str]) -> dict[str, list[str]]:
    """Which of the topics `met` belong to each row. Who is addressed by name has one alone."""
    matched: dict[str, list[str]] = {name: [] for name in names}
    router = topics.Router((name, name) for name in matched)
    for topic in met:
        if topics.addressed_agent(topic) is None:
            for name in router.subscribers(topic):
                matched[name].append(topic)
        elif topic in matched:
            matched[topic].append(topic)
    return matched


def _row(name: str, declared: Declared, use: Use, matched: Sequence[str]) -> Topic:
    addressed = topics.addressed_agent(name)
    if addressed is None:
        publishers, receivers = _publishers(declared, name), _receivers(declared, name)
    else:
        publishers = [each.name for each in declared.members if addressed in each.delegates]
        receivers = [each.name for each in declared.members if each.name == addressed]
    row = Topic(
        name=name,
        publishers=publishers,
        subscribers=_subscribers(receivers, [lag for lag in use.lags if lag.topic in matched]),
        per_second=sum(use.rates.get(topic, 0.0) for topic in matched),
        messages=sum(use.messages.get(topic, 0) for topic in matched),
        leads_nowhere=_stranded(name, declared, receivers),
        unfed=_unfed(name, declared, publishers),
        unused_by=[] if matched else _declared_by(declared, name),
    )
    return msgspec.structs.replace(row, near=_near(row, declared))


def _publishers(declared: Declared, name: str) -> list[str]:
    return [
        member.name
        for member in declared.members
        if any(overlaps(pattern, name) for pattern in member.publishes)
    ]


def _receivers(declared: Declared, name: str) -> list[str]:
    return sorted({agent for agent, pattern in declared.subscriptions if overlaps(pattern, name)})


def _declared_by(declared: Declared, name: str) -> list[str]:
    """Who names exactly this, to publish on or to receive from."""
    publishers = {member.name for member in declared.members if name in member.publishes}
    return sorted(publishers | {agent for agent, each in declared.subscriptions if each == name})


def _subscribers(receivers: Sequence[str], lags: Iterable[Lag]) -> list[TopicSubscriber]:
    """With those who have something from there and receive nothing more."""
    late: dict[str, list[Lag]] = {agent: [] for agent in receivers}
    for lag in lags:
        late.setdefault(lag.agent, []).append(lag)
    return [
        TopicSubscriber(
            agent=agent,
            pending=sum(lag.pending for lag in its),
            oldest_us=min((lag.oldest_us for lag in its), default=None),
        )
        for agent, its in sorted(late.items())
    ]


def _stranded(name: str, declared: Declared, receivers: Sequence[str]) -> list[str]:
    """Who may publish on exactly this, so that nobody else gets it.

    What an agent publishes does not come back to itself, and a reply goes to the conversation.
    """
    addressed = topics.addressed_agent(name)
    if overlaps(name, topics.USER_REPLY):
        return []
    return [
        member.name
        for member in declared.members
        if (name in member.publishes or addressed in member.delegates)
        and not set(receivers) - {member.name}
    ]


def _unfed(name: str, declared: Declared, publishers: Sequence[str]) -> list[str]:
    """Who receives from exactly this, and no other agent can send anything there."""
    if any(overlaps(name, topic) for topic in ONLY_OPERATORS):
        return []
    return sorted(
        agent
        for agent, pattern in declared.subscriptions
        if pattern == name and not set(publishers) - {agent}
    )


def _near(row: Topic, declared: Declared) -> str:
    """The most similar name at the other end, for one that has nobody there. What only people send
    to is no mistake as long as they do."""
    known: set[str] = set()
    if row.leads_nowhere:
        known |= {pattern for _, pattern in declared.subscriptions}
        known |= {topics.agent_topic(member.name) for member in declared.members}
    if row.unfed and row.unused_by:
        known |= {pattern for member in declared.members for pattern in member.publishes}
    near = difflib.get_close_matches(row.name, sorted(known - {row.name}), 1, NEAR_RATIO_MIN)
    return near[0] if near else ""


def lines(table: Iterable[Topic]) -> list[str]:
    """A line for each row: who may publish there, and who receives it."""
    return [
        f"{row.name}: {', '.join(row.publishers) or 'only the operator'} → "
        f"{', '.join(each.agent for each in row.subscribers) or _end(row.name)}"
        for row in table
    ]


def _end(name: str) -> str:
    return "the conversation" if overlaps(name, topics.USER_REPLY) else "nobody"


def warnings(table: Iterable[Topic]) -> list[str]:
    """A sentence for each topic that leads nowhere, or that no agent feeds while there is one that
    may have been meant: else it is there for people."""
    return [sentence for row in table for sentence in _warnings(row)]


def _warnings(row: Topic) -> Iterable[str]:
    hint = f" Is {row.near!r} meant?" if row.near else ""
    if row.leads_nowhere:
        who = _listed(row.leads_nowhere)
        yield f"{who} may publish on {row.name!r}, and nobody else receives it.{hint}"
    if row.unfed and row.near:
        who = _listed(row.unfed)
        yield f"{who} may receive from {row.name!r}, and no other agent publishes there.{hint}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
