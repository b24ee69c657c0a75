"""Attaching what screening found out about a message, and which messages wait for it."""

import msgspec

from ipc_protocol.work import Evidence
from orchestrator.bus.posting import make_ready
from orchestrator.bus.rows import deliveries
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction


class Screening(msgspec.Struct, frozen=True, kw_only=True):
    """What screening found for each receiver of `message`, and who takes it if nobody does."""

    message: int
    evidence: dict[str, Evidence] = {}
    fallback: str | None = None


def attach_screening(tx: Transaction, arguments: Screening) -> int:
    """Let the deliveries of a message be leased, each with its evidence. Returns how many.

    Runs as the bus. Repeating it changes nothing.
    """
    waiting = deliveries(
        tx, "WHERE d.message = ? AND d.state = 'queued' AND d.screened = 0", (arguments.message,)
    )
    if not waiting:
        return 0
    if arguments.fallback is not None:
        tx.execute(
            "UPDATE message SET fallback = ? WHERE id = ?", (arguments.fallback, arguments.message)
        )
    for row in waiting:
        found = arguments.evidence.get(row.agent)
        tx.execute(
            "UPDATE delivery SET screened = 1, evidence = ? WHERE id = ?",
            (None if found is None else msgspec.json.encode(found).decode(), row.id),
        )
    for row in waiting:
        make_ready(tx, row.id, row.agent, row.rank, "screened")
    tx.emit(
        "message.screened",
        message=arguments.message,
        correlation=waiting[0].correlation,
        agents={row.agent: _score(arguments.evidence.get(row.agent)) for row in waiting},
        fallback=arguments.fallback,
    )
    return len(waiting)


def _score(evidence: Evidence | None) -> float | None:
    return None if evidence is None else evidence.score


class Unscreened(msgspec.Struct, frozen=True, kw_only=True):
    message: int
    topic: str
    sender: str
    payload: bytes
    agents: list[str]


def unscreened_messages(query: Query) -> list[Unscreened]:
    """Messages that wait for screening, oldest first: what a daemon takes up when it starts."""
    rows = query.rows(
        "SELECT m.id, m.topic, m.sender, m.payload, json_group_array(d.agent)"
        " FROM delivery d JOIN message m ON m.id = d.message"
        " WHERE d.screened = 0 AND d.state = 'queued' GROUP BY m.id ORDER BY m.id"
    )
    return [
        Unscreened(
            message=message,
            topic=topic,
            sender=sender,
            payload=payload,
            agents=msgspec.json.decode(agents),
        )
        for message, topic, sender, payload, agents in rows
    ]
