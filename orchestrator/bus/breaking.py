"""Breaks a ring of agents that wait for room with each other: one conversation is given up.

Whoever found the ring has seen it without holding the store up, so it may have gone since: it is
broken only while its inboxes hold what they held then. The youngest conversation is given up, since
least has been done for it.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from orchestrator.bus.deadletters import bury_delivery
from orchestrator.bus.limits import BACKPRESSURE_RETRY_US
from orchestrator.bus.observations import HealthEvent, report_health
from orchestrator.bus.rings import Attempt, Held, Ring
from orchestrator.bus.rows import deliveries
from orchestrator.bus.settlement import delivery_closed
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction

FULL_SEPARATOR: Final = ", "
"""Between the agents in `parked_on` of a delivery that is parked by backpressure."""

_PARKED: Final = "d.state = 'parked' AND d.parked_reason = 'backpressure'"


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """What was given up of `conversation`, and a sentence about it."""

    conversation: int
    correlation: str
    dead_letters: list[int]
    detail: str


def break_ring(tx: Transaction, ring: Ring) -> Broken | None:
    """Give up the youngest conversation of the ring, and report it. None if it has moved since.

    Runs as the bus.
    """
    if any(_inbox(tx, agent) != held for agent, held in ring.inboxes.items()):
        return None
    parked = [
        row
        for agent in ring.agents
        for row in deliveries(
            tx,
            f"WHERE d.agent = ? AND d.finished_us IS NULL AND d.composing = 0 AND {_PARKED}",
            (agent,),
        )
    ]
    if not parked:
        return None  # All of them are being tried again at this moment.
    youngest = max(row.conversation for row in parked)
    rows = [row for row in parked if row.conversation == youngest]
    named = _named(ring.agents)
    reason = f"{named}; no inbox of theirs could ever empty, and this conversation was the youngest"
    letters = [bury_delivery(tx, row, "bus.ring", f"{reason}.", row.deaths) for row in rows]
    for row in rows:
        delivery_closed(tx, row)
    correlation = rows[0].correlation
    detail = f"{named}. Conversation {correlation} was given up so that the others go on."
    data = {
        "agents": list(ring.agents),
        "conversation": youngest,
        "correlation": correlation,
        "dead_letters": letters,
    }
    report_health(tx, HealthEvent(kind="ring", detail=detail, data=data))
    return Broken(
        conversation=youngest, correlation=correlation, dead_letters=letters, detail=detail
    )


def _named(agents: Sequence[str]) -> str:
    """A ring in words, in its order."""
    if len(agents) == 1:
        return f"{agents[0]} waits for room in its own inbox"
    first, second, *rest = [*agents, agents[0]]
    others = (f", {agent} with {following}" for agent, following in pairwise([second, *rest]))
    return f"{first} waits for room with {second}{''.join(others)}"


def _inbox(query: Query, agent: str) -> tuple[int, ...]:
    rows = query.rows(
        "SELECT id FROM delivery WHERE agent = ? AND finished_us IS NULL AND composing = 0"
        " ORDER BY id",
        (agent,),
    )
    return tuple(row[0] for row in rows)


def held_up(query: Query, known: Collection[str]) -> list[Held]:
    """What is in the inboxes of whoever has a delivery that is parked by backpressure, of those it
    is parked for, and of `known`. Empty if there is no such delivery."""
    parked = query.rows(
        "SELECT d.agent, d.parked_on FROM agent a CROSS JOIN delivery d ON d.agent = a.name"
        f" WHERE d.finished_us IS NULL AND d.composing = 0 AND {_PARKED}"
    )
    if not parked:
        return []
    agents = {*known, *(agent for agent, _ in parked)}
    agents.update(*(_full(parked_on) for _, parked_on in parked))
    rows = query.rows(
        "SELECT d.id, d.agent, d.state, d.parked_reason, d.parked_on, d.parked_until_us"
        " FROM json_each(?) a CROSS JOIN delivery d ON d.agent = a.value"
        " WHERE d.finished_us IS NULL AND d.composing = 0",
        (msgspec.json.encode(sorted(agents)).decode(),),
    )
    return [_held(*row) for row in rows]


def _held(
    delivery: int,
    agent: str,
    state: str,
    reason: str | None,
    parked_on: str | None,
    until_us: int | None,
) -> Held:
    if reason == "backpressure" and until_us is not None:
        attempt = Attempt(at_us=until_us - BACKPRESSURE_RETRY_US, full=_full(parked_on))
        return Held(delivery=delivery, agent=agent, attempt=attempt)
    return Held(delivery=delivery, agent=agent, resting=state == "parked")


def _full(parked_on: str | None) -> tuple[str, ...]:
    return tuple((parked_on or "").split(FULL_SEPARATOR))
