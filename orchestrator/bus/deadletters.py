"""What could not be delivered or handled, with its reason and the chain of messages behind it."""

from typing import Any

import msgspec

from ipc_protocol.errors import Problem
from ipc_protocol.work import Outgoing
from orchestrator.bus.limits import HOPS_MAX
from orchestrator.bus.routing import BUS
from orchestrator.bus.rows import DeliveryRow, move_delivery, summary_of
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    message: int
    topic: str
    sender: str


def bury_delivery(tx: Transaction, row: DeliveryRow, code: str, reason: str, attempts: int) -> int:
    """Give a delivery up. The caller settles its conversation. Returns the dead letter's id."""
    found = tx.row("SELECT payload FROM message WHERE id = ?", (row.message,))
    assert found is not None
    last_error = _last_error(tx, row)
    with tx.acting_as(BUS):
        move_delivery(
            tx,
            row,
            "die",
            finished_us=tx.now_us,
            last_error=reason,
            deaths=attempts,
            parked_reason=None,
            parked_until_us=None,
            parked_on=None,
        )
    return _bury(
        tx,
        row,
        message=row.message,
        sender=row.sender,
        receiver=row.agent,
        topic=row.topic,
        payload=found[0],
        code=code,
        reason=reason,
        attempts=attempts,
        last_error=last_error,
    )


def bury_output(tx: Transaction, row: DeliveryRow, output: Outgoing, problem: Problem) -> int:
    """Keep an output of `row` that can never arrive. Returns the dead letter's id."""
    return _bury(
        tx,
        row,
        message=None,
        sender=row.agent,
        receiver=None,
        topic=output.topic,
        payload=output.payload,
        code=problem.code,
        reason=problem.message,
        attempts=0,
        last_error=_last_error(tx, row),
    )


def _last_error(query: Query, row: DeliveryRow) -> str:
    """What went wrong with a delivery before it came to its end; empty if nothing did."""
    found = query.row("SELECT last_error FROM delivery WHERE id = ?", (row.id,))
    assert found is not None
    return found[0] or ""


def _bury(tx: Transaction, row: DeliveryRow, **columns: Any) -> int:
    causes = msgspec.json.encode(cause_chain(tx, row.message)).decode()
    with tx.acting_as(BUS):
        letter = tx.insert(
            "INSERT INTO dead_letter (conversation, message, delivery, sender, receiver, topic,"
            " payload, class, code, reason, attempts, last_error, causes, died_us)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (
                row.conversation,
                columns["message"],
                row.id,
                columns["sender"],
                columns["receiver"],
                columns["topic"],
                columns["payload"],
                row.rank,
                columns["code"],
                columns["reason"],
                columns["attempts"],
                columns["last_error"],
                causes,
                tx.now_us,
            ),
        )
    tx.emit(
        "deadletter",
        dead_letter=letter,
        delivery=row.id,
        message=columns["message"],
        agent=row.agent,
        correlation=row.correlation,
        topic=columns["topic"],
        code=columns["code"],
        reason=columns["reason"],
        summary=summary_of(columns["payload"]),
    )
    return letter


def cause_chain(query: Query, message: int) -> list[Cause]:
    """`message` and what caused it, back to the first, at most as long as hops allow."""
    rows = query.rows(
        "WITH RECURSIVE chain (id, depth) AS (SELECT ?, 0 UNION ALL"
        " SELECT message.cause, depth + 1 FROM chain JOIN message ON message.id = chain.id"
        " WHERE message.cause IS NOT NULL AND depth < ?)"
        " SELECT message.id, topic, sender FROM chain JOIN message USING (id) ORDER BY depth",
        (message, HOPS_MAX),
    )
    return [Cause(message=row[0], topic=row[1], sender=row[2]) for row in rows]
