"""Taking a message in, and attaching what screening found out about it."""

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.values import Priority, Receipt, rank
from ipc_protocol.work import Evidence
from orchestrator.bus.limits import MESSAGE_TTL_US
from orchestrator.bus.posting import Post, post, receivers_of
from orchestrator.bus.registration import directory_of
from orchestrator.bus.routing import BUS, OPERATOR, Draft, message_rank, route
from orchestrator.bus.rows import (
    ConversationRow,
    conversation_by_id,
    conversation_of,
    deliveries,
    emit_ready,
    inbox_depth,
)
from orchestrator.bus.settlement import contribute, settle
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the transaction's actor. `message_id` is the publisher's own, against doubles.

    `screened` is for messages that nobody will screen: they can be leased at once. The operator's
    fresh `correlation` opens a conversation of class `priority` (None: normal); a known one goes
    on, at that class if it is more urgent.
    """

    topic: str
    payload: bytes
    correlation: str
    priority: Priority | None = None
    cause: int | None = None
    expires_us: int | None = None
    message_id: str | None = None
    screened: bool = False


class Screening(msgspec.Struct, frozen=True, kw_only=True):
    """What screening found for each receiver of `message`, and who takes it if nobody does."""

    message: int
    evidence: dict[str, Evidence] = {}
    fallback: str | None = None


def publish(tx: Transaction, arguments: Publish) -> Receipt:
    """Publish in the actor's name: to every subscriber, or an error and to nobody.

    Raises one of the `bus.*` failures, or `conversation.unknown`.
    """
    sender = tx.actor
    if (repeated := _earlier_receipt(tx, sender, arguments.message_id)) is not None:
        return repeated
    conversation = conversation_of(tx, arguments.correlation)
    if conversation is None and sender != OPERATOR:
        raise _unknown_conversation(arguments.correlation)
    expires_us = arguments.expires_us or tx.now_us + MESSAGE_TTL_US
    hops = _hops_after(tx, conversation, arguments)
    directory = directory_of(tx)
    draft = Draft(
        topic=arguments.topic,
        sender=sender,
        payload_bytes=len(arguments.payload),
        hops=hops,
        expires_us=expires_us,
    )
    plan = route(draft, directory, lambda agent: inbox_depth(tx, agent), tx.now_us)
    if isinstance(plan, Failure):
        raise plan
    fresh = conversation is None or (conversation.state == "answered" and sender == OPERATOR)
    conversation = _entered(tx, conversation, arguments)
    member = directory.senders.get(sender)
    asked = None if arguments.priority is None else rank(arguments.priority)
    urgency = message_rank(conversation.rank, None if member is None else member.rank, asked)
    receivers = receivers_of(plan, directory, sender, urgency, screened=arguments.screened)
    message = post(
        tx,
        conversation,
        Post(
            topic=arguments.topic,
            sender=sender,
            payload=arguments.payload,
            rank=urgency,
            expires_us=expires_us,
            hops=hops,
            cause=arguments.cause,
            publisher_id=arguments.message_id,
            receivers=receivers,
        ),
    )
    if fresh:
        with tx.acting_as(BUS):
            tx.execute(
                "UPDATE conversation SET question = ? WHERE id = ?", (message, conversation.id)
            )
    if not receivers:
        settle(tx, conversation)
    return Receipt(
        message=message, correlation=arguments.correlation, subscribers=list(plan.receivers)
    )


def _earlier_receipt(tx: Transaction, sender: str, message_id: str | None) -> Receipt | None:
    if message_id is None:
        return None
    found = tx.row(
        "SELECT message.id, correlation FROM message"
        " JOIN conversation ON conversation.id = message.conversation"
        " WHERE sender = ? AND publisher_id = ?",
        (sender, message_id),
    )
    if found is None:
        return None
    # A fallback's delivery is of an agent that was among the first receivers, or came later.
    rows = tx.rows("SELECT DISTINCT agent FROM delivery WHERE message = ? ORDER BY 1", (found[0],))
    return Receipt(message=found[0], correlation=found[1], subscribers=[row[0] for row in rows])


def _unknown_conversation(correlation: str) -> Failure:
    return Failure(
        "conversation.unknown",
        f"There is no conversation {correlation!r}.",
        "Publish into the conversation that the message belongs to.",
        correlation=correlation,
    )


def _hops_after(tx: Transaction, conversation: ConversationRow | None, arguments: Publish) -> int:
    if arguments.cause is None:
        return 0
    found = tx.row("SELECT hops, conversation FROM message WHERE id = ?", (arguments.cause,))
    if found is None or conversation is None or found[1] != conversation.id:
        raise _unknown_conversation(arguments.correlation)
    hops = found[0]
    assert isinstance(hops, int)
    return hops + 1


def _entered(
    tx: Transaction, conversation: ConversationRow | None, arguments: Publish
) -> ConversationRow:
    """The conversation, open: as it was, opened again, or a new one of the operator's."""
    urgency = rank(arguments.priority or "normal")
    if conversation is None:
        return _opened(tx, arguments.correlation, urgency)
    if tx.actor == OPERATOR and arguments.priority and urgency < conversation.rank:
        with tx.acting_as(BUS):
            tx.execute("UPDATE conversation SET class = ? WHERE id = ?", (urgency, conversation.id))
        conversation = conversation_by_id(tx, conversation.id)
    return contribute(tx, conversation)


def _opened(tx: Transaction, correlation: str, urgency: int) -> ConversationRow:
    sender = tx.actor
    with tx.acting_as(BUS):
        conversation = tx.insert(
            "INSERT INTO conversation (correlation, state, class, round, opened_by, opened_us)"
            " VALUES (?, 'open', ?, 1, ?, ?) RETURNING id",
            (correlation, urgency, sender, tx.now_us),
        )
    tx.emit(
        "conversation.opened", conversation=conversation, correlation=correlation, sender=sender
    )
    return conversation_by_id(tx, conversation)


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
        emit_ready(tx, row, "screened")
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
        " WHERE d.state = 'queued' AND d.screened = 0 GROUP BY m.id ORDER BY m.id"
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
