"""A delivery or a conversation as it stands, and its way through its table of states."""

from typing import Final, Literal

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.values import PRIORITIES, Priority
from orchestrator.bus.conversation import CONVERSATION, ConversationEvent, ConversationState
from orchestrator.bus.credit import credits_of
from orchestrator.bus.delivery import DELIVERY, DeliveryEvent, DeliveryState
from orchestrator.bus.inboxes import inboxes_of
from orchestrator.bus.limits import SUMMARY_CHARS_MAX
from orchestrator.store.database import Query, Row, Value
from orchestrator.store.transaction import Transaction

ParkedReason = Literal["deferred", "attention", "backpressure", "retry", "job", "preempted"]


class DeliveryRow(msgspec.Struct, frozen=True):
    """A delivery with what its message and conversation say about it."""

    id: int
    message: int
    conversation: int
    agent: str
    rank: int
    state: DeliveryState
    composing: bool
    must_take: bool
    deferred: bool
    deaths: int
    run: int
    incarnation: str | None
    parked_reason: ParkedReason | None
    parked_on: str | None
    correlation: str
    topic: str
    sender: str
    hops: int
    expires_us: int
    fallback: str | None

    @property
    def priority(self) -> Priority:
        return PRIORITIES[self.rank]


SELECT_DELIVERY: Final = (
    "SELECT d.id, d.message, d.conversation, d.agent, d.class, d.state, d.composing, d.must_take,"
    " d.deferred, d.deaths, d.run, d.incarnation, d.parked_reason, d.parked_on, c.correlation,"
    " m.topic, m.sender, m.hops, m.expires_us, m.fallback"
    " FROM delivery d JOIN message m ON m.id = d.message"
    " JOIN conversation c ON c.id = d.conversation "
)


class ConversationRow(msgspec.Struct, frozen=True):
    id: int
    correlation: str
    state: ConversationState
    rank: int
    round: int
    question: int | None
    composer: int | None
    asked: bool
    messages: int


SELECT_CONVERSATION: Final = (
    "SELECT id, correlation, state, class, round, question, composer, asked, messages"
    " FROM conversation "
)


def delivery_of(query: Query, delivery: int) -> DeliveryRow | None:
    rows = deliveries(query, "WHERE d.id = ?", (delivery,))
    return rows[0] if rows else None


def deliveries(query: Query, where: str, bindings: tuple[Value, ...] = ()) -> list[DeliveryRow]:
    found = query.rows(SELECT_DELIVERY + where, bindings)
    return [DeliveryRow(*row[:6], *map(bool, row[6:9]), *row[9:]) for row in found]


def held_delivery(
    tx: Transaction, delivery: int, incarnation: str, agent: str | None = None
) -> DeliveryRow:
    """The delivery that `incarnation` holds now (as a worker of `agent`); else a `Failure`."""
    row = delivery_of(tx, delivery)
    if (
        row is None
        or row.state != "leased"
        or row.incarnation != incarnation
        or (agent is not None and row.agent != agent)
    ):
        raise unknown_delivery(delivery)
    return row


def unknown_delivery(delivery: int) -> Failure:
    return Failure(
        "work.unknown-delivery",
        f"Delivery {delivery} is not held by this worker.",
        "Drop it: it was given to another one, or is finished.",
        delivery=delivery,
    )


def move_delivery(
    tx: Transaction, row: DeliveryRow, event: DeliveryEvent, **columns: Value
) -> DeliveryState:
    """Take `row` through its table of states and set further columns. Runs as the bus.

    A worker that held it does not any more; what is finished has left its agent's inbox.
    """
    state = DELIVERY.after(row.state, event)
    if row.incarnation is not None:
        credit = credits_of(tx).holder(row.agent, row.incarnation)
        if credit is not None:
            credits_of(tx).give_back(tx, credit, [row.id])
    if state == "queued":
        credits_of(tx).note_queued(row.agent)
    elif state in ("done", "dead") and not row.composing:
        inboxes_of(tx).change(tx, {(row.agent, row.sender): -1})
    assignments = "".join(f", {column} = ?" for column in columns)
    tx.execute(
        f"UPDATE delivery SET state = ?{assignments} WHERE id = ?",
        (state, *columns.values(), row.id),
    )
    return state


def emit_ready(tx: Transaction, row: DeliveryRow, why: str) -> None:
    """Tell the agent's driver that this delivery can be leased."""
    tx.emit(
        "delivery.ready",
        delivery=row.id,
        message=row.message,
        agent=row.agent,
        correlation=row.correlation,
        priority=row.priority,
        why=why,
    )


def conversation_of(query: Query, correlation: str) -> ConversationRow | None:
    found = query.row(SELECT_CONVERSATION + "WHERE correlation = ?", (correlation,))
    return None if found is None else _conversation(found)


def conversation_by_id(query: Query, conversation: int) -> ConversationRow:
    found = query.row(SELECT_CONVERSATION + "WHERE id = ?", (conversation,))
    assert found is not None, "a delivery without its conversation"
    return _conversation(found)


def _conversation(found: Row) -> ConversationRow:
    *fields, asked, messages = found
    return ConversationRow(*[*fields, bool(asked), messages])


def move_conversation(
    tx: Transaction, row: ConversationRow, event: ConversationEvent, **columns: Value
) -> ConversationState:
    """Take `row` through its table of states and set further columns. Runs as the bus."""
    state = CONVERSATION.after(row.state, event)
    assignments = "".join(f", {column} = ?" for column in columns)
    tx.execute(
        f"UPDATE conversation SET state = ?{assignments} WHERE id = ?",
        (state, *columns.values(), row.id),
    )
    return state


def summary_of(payload: bytes) -> str:
    """The beginning of a payload as one line of text."""
    text = payload[: 4 * SUMMARY_CHARS_MAX].decode(errors="replace")
    return " ".join(text.split())[:SUMMARY_CHARS_MAX]
