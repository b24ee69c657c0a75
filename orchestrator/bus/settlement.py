"""What follows when a delivery closes: the fallback owner's turn, the composing, the answer."""

from collections.abc import Iterable

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.work import Evidence
from orchestrator.bus.conversation import joined, round_after
from orchestrator.bus.handing import answers_of
from orchestrator.bus.limits import CONVERSATION_MESSAGES_MAX, MESSAGE_TTL_US
from orchestrator.bus.posting import Place, Post, Receiver, deliver, post
from orchestrator.bus.registration import directory_of
from orchestrator.bus.routing import BUS, delivery_rank
from orchestrator.bus.rows import (
    ConversationRow,
    DeliveryRow,
    conversation_by_id,
    move_conversation,
)
from orchestrator.bus.topics import USER_REPLY, agent_topic
from orchestrator.store.database import Query, Row
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
            # Its own round, which is over where it is composed once more.
            found = tx.row("SELECT round FROM message WHERE id = ?", (row.message,))
            assert found is not None
            answer(tx, conversation, joined_answers(tx, conversation, found[0]))
    elif _fall_back(tx, row):
        return
    else:
        settle(tx, conversation)
    tx.emit("deliveries.closed", messages=[row.message])


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
    deliver(tx, row.message, row.conversation, row.sender, receiver)
    return True


def settle(tx: Transaction, conversation: ConversationRow) -> None:
    """If nothing of an open conversation is under way any more, have its reply composed."""
    unsettled = tx.row(
        "SELECT 1 FROM delivery WHERE conversation = ? AND finished_us IS NULL AND composing = 0"
        " LIMIT 1",
        (conversation.id,),
    )
    if conversation.state != "open" or unsettled is not None:
        return
    directory = directory_of(tx)
    conductor = directory.conductor
    if conductor is None or not (conversation.asked or _has_answers(tx, conversation)):
        answer(tx, conversation, joined_answers(tx, conversation, conversation.round))
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
        Post(
            place=Place(conversation.id, conversation.correlation, conversation.round),
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


def _has_answers(query: Query, conversation: ConversationRow) -> bool:
    return bool(answers_of(query, conversation.id, conversation.round))


def close_all(tx: Transaction, conversations: Iterable[int]) -> None:
    """Settle conversations in which a delivery closed that published nothing.

    Those in which nobody has said anything, and which nobody waits for, are closed together.
    """
    conductor = directory_of(tx).conductor
    rows = tx.rows(
        "SELECT c.id, c.correlation, c.round, c.opened_us, c.asked, EXISTS (SELECT 1 FROM message m"
        "  WHERE m.conversation = c.id AND m.round = c.round AND m.topic = ? AND m.composed = 0)"
        " FROM conversation c"
        " WHERE c.id IN (SELECT value FROM json_each(?)) AND c.state = 'open'"
        " AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.conversation = c.id"
        "  AND d.finished_us IS NULL AND d.composing = 0)",
        (USER_REPLY, msgspec.json.encode(list(conversations)).decode()),
    )
    quiet: list[Row] = []
    for row in rows:
        asked, has_answers = row[4], row[5]
        if has_answers or (asked and conductor is not None):
            settle(tx, conversation_by_id(tx, row[0]))
        else:
            quiet.append(row)
    if not quiet:
        return
    with tx.acting_as(BUS):
        # The table of states says so: what is open may be answered.
        tx.execute(
            "UPDATE conversation SET state = 'answered', reply = '', answered_us = ?,"
            " composer = NULL WHERE id IN (SELECT value FROM json_each(?))",
            (tx.now_us, msgspec.json.encode([row[0] for row in quiet]).decode()),
        )
    tx.emit("conversations.answered", opened_us=[row[3] for row in quiet])
    if tx.follows("conversation.answered"):
        for identity, correlation, number, opened_us, *_ in quiet:
            _emit_answered(tx, identity, correlation, number, opened_us, "")


def require_budget(conversation: ConversationRow, count: int) -> None:
    """Raises `bus.conversation-full`."""
    if conversation.messages + count > CONVERSATION_MESSAGES_MAX:
        raise conversation_full(conversation)


def conversation_full(conversation: ConversationRow) -> Failure:
    return Failure(
        "bus.conversation-full",
        f"Conversation {conversation.correlation} has had {conversation.messages} messages; "
        f"{CONVERSATION_MESSAGES_MAX} are allowed.",
        "Look at `agentd ctl trace` for who talks with whom, or begin another conversation.",
        correlation=conversation.correlation,
    )


def answer(tx: Transaction, conversation: ConversationRow, reply: str) -> None:
    """The conversation has its reply."""
    with tx.acting_as(BUS):
        move_conversation(
            tx, conversation, "answer", reply=reply, answered_us=tx.now_us, composer=None
        )
    found = tx.row("SELECT opened_us FROM conversation WHERE id = ?", (conversation.id,))
    opened_us = found[0] if found else tx.now_us
    tx.emit("conversations.answered", opened_us=[opened_us])
    _emit_answered(
        tx, conversation.id, conversation.correlation, conversation.round, opened_us, reply
    )


def _emit_answered(
    tx: Transaction, identity: int, correlation: str, number: int, opened_us: int, reply: str
) -> None:
    tx.emit(
        "conversation.answered",
        conversation=identity,
        correlation=correlation,
        round=number,
        opened_us=opened_us,
        reply=reply,
    )


def joined_answers(query: Query, conversation: ConversationRow, number: int) -> str:
    answers = answers_of(query, conversation.id, number)
    return joined([(each.agent, each.text) for each in answers])
