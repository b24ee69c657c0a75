"""What follows when a delivery closes: the fallback owner's turn, the composing, the answer."""

import msgspec

from ipc_protocol.work import Answer, Evidence
from orchestrator.bus.conversation import joined, round_after
from orchestrator.bus.limits import MESSAGE_TTL_US
from orchestrator.bus.posting import Post, Receiver, deliver, post
from orchestrator.bus.registration import directory_of
from orchestrator.bus.routing import BUS, delivery_rank
from orchestrator.bus.rows import (
    ConversationRow,
    DeliveryRow,
    conversation_by_id,
    move_conversation,
)
from orchestrator.bus.topics import USER_REPLY, agent_topic
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction


def contribute(tx: Transaction, row: ConversationRow) -> ConversationRow:
    """New work or an answer comes into a conversation: it is open, perhaps again."""
    if row.state == "open":
        return row
    number = round_after(row.state, "contribute", row.round)
    with tx.acting_as(BUS):
        move_conversation(tx, row, "contribute", round=number, composer=None)
    tx.emit(
        "conversation.reopened",
        conversation=row.id,
        correlation=row.correlation,
        round=number,
    )
    return conversation_by_id(tx, row.id)


def delivery_closed(tx: Transaction, row: DeliveryRow) -> None:
    """`row` is done or dead, and what it published is written: settle what depended on it."""
    conversation = conversation_by_id(tx, row.conversation)
    if row.composing:
        if conversation.state == "composing" and conversation.composer == row.id:
            answer(tx, conversation, joined_answers(tx, conversation))
    elif not _fall_back(tx, row):
        settle(tx, conversation)


def _fall_back(tx: Transaction, row: DeliveryRow) -> bool:
    """If nobody took the message, its fallback owner has to. True if it is asked now."""
    owner = directory_of(tx).members.get(row.fallback or "")
    if owner is None:
        return False
    found = tx.rows(
        "SELECT agent, state, outcome, must_take, evidence FROM delivery WHERE message = ?",
        (row.message,),
    )
    evidence: Evidence | None = None
    for agent, state, outcome, must_take, screening in found:
        ignored = outcome == "ignored" or (state == "dead" and agent != owner.name)
        if must_take or not ignored:
            return False
        if agent == owner.name and screening is not None:
            evidence = msgspec.json.decode(screening, type=Evidence)
    message = tx.row("SELECT class FROM message WHERE id = ?", (row.message,))
    assert message is not None
    # No inbox is asked for room: the message was accepted, and this is its last way.
    receiver = Receiver(
        agent=owner.name,
        rank=delivery_rank(message[0], owner),
        screened=True,
        must_take=True,
        evidence=evidence,
    )
    deliver(tx, row.conversation, row.message, receiver)
    return True


def settle(tx: Transaction, conversation: ConversationRow) -> None:
    """If nothing of an open conversation is under way any more, have its reply composed."""
    unsettled = tx.row(
        "SELECT 1 FROM delivery WHERE conversation = ?"
        " AND state IN ('queued', 'leased', 'parked') AND composing = 0 LIMIT 1",
        (conversation.id,),
    )
    if conversation.state != "open" or unsettled is not None:
        return
    directory = directory_of(tx)
    conductor = directory.conductor
    if conductor is None:
        answer(tx, conversation, joined_answers(tx, conversation))
        return
    # Sent by the bus itself, so neither hops nor an inbox can keep the answer from its caller.
    receiver = Receiver(
        agent=conductor,
        rank=delivery_rank(conversation.rank, directory.members[conductor]),
        screened=True,
        must_take=True,
        composing=True,
    )
    message = post(
        tx,
        conversation,
        Post(
            topic=agent_topic(conductor),
            sender=BUS,
            payload=b"",
            rank=conversation.rank,
            expires_us=tx.now_us + MESSAGE_TTL_US,
            cause=conversation.question,
            receivers=[receiver],
        ),
    )
    composer = tx.row("SELECT id FROM delivery WHERE message = ?", (message,))
    assert composer is not None
    with tx.acting_as(BUS):
        move_conversation(tx, conversation, "compose", composer=composer[0])
    tx.emit(
        "conversation.composing",
        conversation=conversation.id,
        correlation=conversation.correlation,
        round=conversation.round,
        delivery=composer[0],
    )


def answer(tx: Transaction, conversation: ConversationRow, reply: str) -> None:
    """The conversation has its reply."""
    with tx.acting_as(BUS):
        move_conversation(
            tx, conversation, "answer", reply=reply, answered_us=tx.now_us, composer=None
        )
    found = tx.row("SELECT opened_us FROM conversation WHERE id = ?", (conversation.id,))
    tx.emit(
        "conversation.answered",
        conversation=conversation.id,
        correlation=conversation.correlation,
        round=conversation.round,
        opened_us=found[0] if found else tx.now_us,
        reply=reply,
    )


def answers_of(
    query: Query, conversation: int, number: int, before: int | None = None
) -> list[Answer]:
    """What agents replied in round `number`, in order; only what came before message `before`."""
    rows = query.rows(
        "SELECT sender, payload FROM message WHERE conversation = ? AND round = ?"
        " AND topic = ? AND composed = 0 AND (?4 IS NULL OR id < ?4) ORDER BY id",
        (conversation, number, USER_REPLY, before),
    )
    return [Answer(agent=sender, text=payload.decode(errors="replace")) for sender, payload in rows]


def joined_answers(query: Query, conversation: ConversationRow) -> str:
    answers = answers_of(query, conversation.id, conversation.round)
    return joined([(each.agent, each.text) for each in answers])
