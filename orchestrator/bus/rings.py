"""Agents that wait for room in each other's inboxes, in a ring: none of them ever gets it. Pure.

A completion that finds an inbox full is parked and tried again; its delivery keeps its place in its
own agent's inbox meanwhile. An agent is stuck if every delivery in its inbox waits for an agent
that is stuck. A delivery needs room with all its receivers at once, so one of them is enough to
hold it; an inbox has room as soon as any one delivery leaves it. So the largest set of agents of
which that is true, each by others of the set, is what cannot move any more, and only that.

Within it the agents wait for each other. A *knot* is a part of that graph that no way leads out of:
what waits for a knot from outside goes on when the knot does, so nothing outside it is given up.

What shows that a delivery waits is not that an inbox looks full: an inbox may refuse one sender and
not another, or have room for one message where a completion has two. It is that it was tried and
refused, and that nobody has left the inbox that refused it since. That also holds for a delivery
that is being tried again at this moment, so that retries do not hide a ring.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

RING_STABLE_US: Final = 1_000_000
"""Between the two looks that have to find the same ring, without a delivery more or less, before it
is broken. A passing jam moves within milliseconds; each delivery is tried once a second."""

Waits = Mapping[str, Collection[Collection[str]]]
"""For each agent, the agents that each of its deliveries waits for: nobody, if it can go on."""


class Attempt(msgspec.Struct, frozen=True):
    """A completion that was tried at `at_us` and found the inboxes of `full` without room."""

    at_us: int
    full: tuple[str, ...]


class Held(msgspec.Struct, frozen=True):
    """A delivery that has a place in the inbox of `agent`.

    `attempt` is what it is parked for. Without one it is `resting` where it is parked for another
    reason, else it is under way: handled for the first time, or tried again.
    """

    delivery: int
    agent: str
    attempt: Attempt | None = None
    resting: bool = False


class Ring(msgspec.Struct, frozen=True):
    """Each of `agents` waits for the next, and the last for the first. `inboxes` are the deliveries
    of the whole knot: while they are the same ones, nothing has moved."""

    agents: tuple[str, ...]
    inboxes: dict[str, tuple[int, ...]]


class Watch:
    """What is known from earlier looks at the inboxes."""

    def __init__(self) -> None:
        self._inboxes: dict[str, frozenset[int]] = {}
        self._complete_since_us: dict[str, int] = {}
        """From when on nobody has left an inbox."""
        self._attempts: dict[int, Attempt] = {}
        self._agents: frozenset[str] = frozenset()
        self._seen_us = 0
        self._suspect: Ring | None = None
        self._suspected_us = 0

    @property
    def agents(self) -> frozenset[str]:
        """Whose inboxes have to be looked at again, even if nothing in them is parked just then."""
        return self._agents

    def look(self, held: Iterable[Held], seen_us: int) -> Ring | None:
        """Take in what the inboxes hold now. Returns a ring that is there for certain.

        `held` are all deliveries of the inboxes that matter: those with a parked delivery, those it
        is parked for, and those of `agents`. `seen_us` is a time after they were read.
        """
        if seen_us < self._seen_us:  # The clock was set back: what is known has no order any more.
            self._inboxes, self._attempts, self._suspect = {}, {}, None
        self._seen_us = seen_us
        inboxes = self._taken_in(held)
        found = self._found(inboxes)
        if found is None or found != self._suspect:
            self._suspect, self._suspected_us = found, seen_us
            return None
        return found if seen_us - self._suspected_us >= RING_STABLE_US else None

    def _taken_in(self, held: Iterable[Held]) -> dict[str, list[int]]:
        inboxes: dict[str, list[int]] = {}
        attempts: dict[int, Attempt] = {}
        agents: set[str] = set()
        for each in held:
            inboxes.setdefault(each.agent, []).append(each.delivery)
            attempt = each.attempt
            if attempt is None and not each.resting:
                attempt = self._attempts.get(each.delivery)
            if attempt is not None:
                attempts[each.delivery] = attempt
                agents.update((each.agent, *attempt.full))
        self._attempts, self._agents = attempts, frozenset(agents)
        before, since = self._inboxes, self._complete_since_us
        self._inboxes = {agent: frozenset(deliveries) for agent, deliveries in inboxes.items()}
        self._complete_since_us = {
            agent: since[agent]
            if agent in before and before[agent] <= deliveries
            else self._seen_us
            for agent, deliveries in self._inboxes.items()
        }
        return inboxes

    def _found(self, inboxes: Mapping[str, Collection[int]]) -> Ring | None:
        waits = {
            agent: [self._refused_by(delivery) for delivery in deliveries]
            for agent, deliveries in inboxes.items()
        }
        knot = knot_in(waits)
        if not knot:
            return None
        return Ring(
            agents=ring_in(waits, knot),
            inboxes={agent: tuple(sorted(inboxes[agent])) for agent in sorted(knot)},
        )

    def _refused_by(self, delivery: int) -> list[str]:
        """Who would refuse it again: nobody has left their inboxes since they did."""
        attempt = self._attempts.get(delivery)
        if attempt is None:
            return []
        since = self._complete_since_us
        return [
            agent
            for agent in attempt.full
            if agent in since and since[agent] < attempt.at_us <= self._seen_us
        ]


def stuck_in(waits: Waits) -> set[str]:
    """The agents that can never move again, unless one of their deliveries is given up."""
    stuck = {agent for agent, deliveries in waits.items() if deliveries}
    while True:
        moving = {
            agent
            for agent in stuck
            if any(stuck.isdisjoint(refused_by) for refused_by in waits[agent])
        }
        if not moving:
            return stuck
        stuck -= moving


def knot_in(waits: Waits) -> set[str]:
    """Stuck agents that wait for each other and for nobody else; empty where nobody is stuck."""
    stuck = stuck_in(waits)
    after = _graph(waits, stuck)
    # Whatever can be reached from an agent holds a knot, and the least that can be reached is one.
    return min((_reached(after, agent) for agent in sorted(stuck)), key=len, default=set())


def ring_in(waits: Waits, knot: Collection[str]) -> tuple[str, ...]:
    """The shortest ring through the first agent of a knot by name, beginning with it."""
    after = _graph(waits, knot)
    first = min(knot)
    ways: dict[str, tuple[str, ...]] = {}
    coming: deque[tuple[str, ...]] = deque([(first,)], maxlen=len(knot) + 1)
    while first not in ways:
        way = coming.popleft()
        for following in after[way[-1]]:
            if following not in ways:
                ways[following] = way
                coming.append((*way, following))
    return ways[first]


def _graph(waits: Waits, among: Collection[str]) -> dict[str, list[str]]:
    """Whom each waits for, among them."""
    return {
        agent: sorted({name for refused_by in waits[agent] for name in refused_by if name in among})
        for agent in among
    }


def _reached(after: Mapping[str, Collection[str]], first: str) -> set[str]:
    reached: set[str] = set()
    following = [first]
    while following:
        for agent in after[following.pop()]:
            if agent not in reached:
                reached.add(agent)
                following.append(agent)
    return reached
