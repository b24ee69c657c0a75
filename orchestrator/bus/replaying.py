"""What becomes of dead letters by a person's word: they are sent again, or removed for good.

What is sent again is a new message in the conversation of the dead letter, which opens again where
it was answered. Its hops and its time to live begin anew, or it would end as it did before. A
delivery that died is repeated for its receiver alone: the others have had the message. An output
that never became a message goes through the routing rules in its sender's name.
"""

from typing import Any, Final

import msgspec

from ipc_protocol.errors import Failure, Problem
from ipc_protocol.work import Evidence
from orchestrator.bus.limits import MESSAGE_TTL_US
from orchestrator.bus.opening import places_for
from orchestrator.bus.posting import Place, Post, Receiver, post, receivers_of
from orchestrator.bus.registration import directory_of, unknown_agent
from orchestrator.bus.routing import BUS, Draft, Member, message_rank, route
from orchestrator.bus.rows import (
    ConversationRow,
    conversation_by_id,
    move_conversation,
)
from orchestrator.bus.settlement import contribute, require_budget, settle
from orchestrator.store.audit import Audit, record_audit
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction

LETTERS_PER_CALL_MAX: Final = 64
"""Dead letters of one reducer. Those with the largest payloads are 16 MiB, which is as much as one
commit should write while others wait for it."""

LEFT_OUT: Final = "work.left-out"
"""The code of a dead letter that stands for outputs of which nothing was kept."""


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """Send dead letters again, in this order. With `again` those too that were sent before."""

    letters: list[int]
    again: bool = False


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The message that a dead letter has become, or why it has become none."""

    letter: int
    message: int | None = None
    correlation: str = ""
    problem: Problem | None = None


class Purge(msgspec.Struct, frozen=True, kw_only=True):
    """Remove dead letters. Without `missing_ok` all of them, or none and an error."""

    letters: list[int]
    missing_ok: bool = False


class Letter(msgspec.Struct, frozen=True):
    """A dead letter with what is needed to send it again. `message` and `delivery` may have been
    cleaned away since."""

    id: int
    conversation: int
    message: int | None
    delivery: int | None
    sender: str
    receiver: str | None
    topic: str
    payload: bytes
    rank: int
    code: str
    replayed_as: int | None


class _Original(msgspec.Struct, frozen=True):
    """What a delivery that died was. A new one without evidence is screened like any other."""

    composing: bool = False
    must_take: bool = False
    screened: bool = False
    evidence: Evidence | None = None
    round: int = 0
    cause: int | None = None


def replay_letters(tx: Transaction, arguments: Replay) -> list[Replayed]:
    """Send each again that can be, mark it, and write down who said so. The actor is that person.

    One that cannot be sent again says why and keeps none of the others from it.
    """
    assert len(arguments.letters) <= LETTERS_PER_CALL_MAX
    return [_tried(tx, letter, arguments.again) for letter in arguments.letters]


def _tried(tx: Transaction, number: int, again: bool) -> Replayed:
    try:
        with tx.nested():
            return _replayed(tx, number, again)
    except Failure as failure:
        if failure.code.startswith("store."):
            raise
        return Replayed(letter=number, problem=failure.problem)


def _replayed(tx: Transaction, number: int, again: bool) -> Replayed:
    letter = letter_of(tx, number)
    if letter.replayed_as is not None and not again:
        raise Failure(
            "deadletter.replayed",
            f"Dead letter {number} was sent again before, as message {letter.replayed_as}.",
            "Look at what became of that one, or say --again.",
            number=number,
            replayed_as=letter.replayed_as,
        )
    conversation = _conversation(tx, letter)
    if letter.receiver is None:
        message = _republished(tx, letter, conversation)
    else:
        message = _redelivered(tx, letter, letter.receiver, conversation)
    with tx.acting_as(BUS):
        tx.execute(
            "UPDATE dead_letter SET replayed_as = ?, replayed_us = ? WHERE id = ?",
            (message, tx.now_us, number),
        )
    data = {"message": message, "topic": letter.topic, "correlation": conversation.correlation}
    record_audit(tx, Audit(action="deadletter.replay", subject=str(number), data=data))
    tx.emit(
        "deadletter.replayed",
        dead_letter=number,
        message=message,
        agent=letter.receiver or letter.sender,
        correlation=conversation.correlation,
        topic=letter.topic,
    )
    return Replayed(letter=number, message=message, correlation=conversation.correlation)


def letter_of(query: Query, number: int) -> Letter:
    """Raises `deadletter.unknown`."""
    found = query.row(
        "SELECT id, conversation, message, delivery, sender, receiver, topic, payload, class, code,"
        " replayed_as FROM dead_letter WHERE id = ?",
        (number,),
    )
    if found is None:
        raise unknown_letter(number)
    return Letter(*found)


def unknown_letter(number: int) -> Failure:
    return Failure(
        "deadletter.unknown",
        f"There is no dead letter {number}.",
        "`agentd ctl bus dead list` lists them.",
        number=number,
    )


def _conversation(tx: Transaction, letter: Letter) -> ConversationRow:
    if tx.row("SELECT 1 FROM conversation WHERE id = ?", (letter.conversation,)) is None:
        raise Failure(
            "conversation.unknown",
            f"The conversation of dead letter {letter.id} has been cleaned away.",
            "Show the dead letter, and send its payload yourself with `agentd ctl send`.",
            number=letter.id,
        )
    return conversation_by_id(tx, letter.conversation)


# ---- A delivery that died -----------------------------------------------------------------------


def _redelivered(tx: Transaction, letter: Letter, agent: str, conversation: ConversationRow) -> int:
    member = directory_of(tx).members.get(agent)
    if member is None:
        raise unknown_agent(agent)
    original = _original(tx, letter)
    if original.composing:
        return _recomposed(tx, letter, original, conversation)
    _require_room(tx, letter, member)
    receiver = Receiver(
        agent=agent,
        rank=letter.rank,
        screened=original.screened or not member.screened,
        must_take=original.must_take,
        evidence=original.evidence,
    )
    place = _place(_entered(tx, conversation))
    return post(tx, _again(tx, letter, place, original.cause, [receiver]))


def _original(query: Query, letter: Letter) -> _Original:
    found = query.row(
        "SELECT d.composing, d.must_take, d.screened, d.evidence, m.round, m.cause"
        " FROM delivery d JOIN message m ON m.id = d.message WHERE d.id = ?",
        (letter.delivery,),
    )
    if found is None:
        return _Original()
    composing, must_take, screened, evidence, number, cause = found
    return _Original(
        composing=bool(composing),
        must_take=bool(must_take),
        screened=bool(screened),
        evidence=None if evidence is None else msgspec.json.decode(evidence, type=Evidence),
        round=number,
        cause=cause,
    )


def _require_room(tx: Transaction, letter: Letter, member: Member) -> None:
    if places_for(tx, letter.sender)(member):
        return
    raise Failure(
        "bus.backpressure",
        f"The inbox of {member.name} is full, so dead letter {letter.id} was not sent again.",
        "Try again when it has handled some, or raise `limits.inbox` of that agent.",
        agents=[member.name],
    )


def _recomposed(
    tx: Transaction, letter: Letter, original: _Original, conversation: ConversationRow
) -> int:
    """Have the reply to a round composed once more, from the answers that it had."""
    if conversation.state != "answered" or conversation.round != original.round:
        raise Failure(
            "deadletter.unsendable",
            f"What dead letter {letter.id} was to compose is out of date: its conversation has "
            "gone on since.",
            f"`agentd ctl answer {conversation.correlation}` waits for its reply.",
            number=letter.id,
        )
    assert letter.receiver is not None
    receiver = Receiver(
        agent=letter.receiver, rank=letter.rank, screened=True, must_take=True, composing=True
    )
    opened = _entered(tx, conversation)
    place = Place(opened.id, opened.correlation, original.round)
    message = post(tx, _again(tx, letter, place, original.cause, [receiver]))
    found = tx.row("SELECT id FROM delivery WHERE message = ?", (message,))
    assert found is not None
    with tx.acting_as(BUS):
        move_conversation(tx, opened, "compose", composer=found[0])
    tx.emit(
        "conversation.composing",
        conversation=opened.id,
        correlation=opened.correlation,
        round=opened.round,
        delivery=found[0],
    )
    return message


# ---- An output that never became a message ------------------------------------------------------


def _republished(tx: Transaction, letter: Letter, conversation: ConversationRow) -> int:
    if letter.code == LEFT_OUT:
        raise Failure(
            "deadletter.unsendable",
            f"Dead letter {letter.id} stands for outputs that were too many to be kept.",
            "Have its sender do the work again in smaller parts.",
            number=letter.id,
        )
    directory = directory_of(tx)
    if letter.sender not in directory.senders:
        raise unknown_agent(letter.sender)
    draft = Draft(
        topic=letter.topic,
        sender=letter.sender,
        payload_bytes=len(letter.payload),
        hops=0,
        expires_us=tx.now_us + MESSAGE_TTL_US,
    )
    plan = route(draft, directory, places_for(tx, letter.sender), tx.now_us)
    if isinstance(plan, Failure):
        raise plan
    urgency = message_rank(conversation.rank, letter.rank, None)
    receivers = receivers_of(plan, directory, letter.sender, urgency, screened=False)
    handled = tx.row("SELECT message FROM delivery WHERE id = ?", (letter.delivery,))
    cause = None if handled is None else handled[0]
    conversation = _entered(tx, conversation)
    again = _again(tx, letter, _place(conversation), cause, receivers)
    message = post(tx, msgspec.structs.replace(again, rank=urgency))
    if not receivers:
        settle(tx, conversation)
    return message


def _again(
    tx: Transaction, letter: Letter, place: Place, cause: int | None, receivers: list[Receiver]
) -> Post:
    return Post(
        place=place,
        topic=letter.topic,
        sender=letter.sender,
        payload=letter.payload,
        rank=letter.rank,
        expires_us=tx.now_us + MESSAGE_TTL_US,
        cause=cause,
        receivers=receivers,
    )


def _entered(tx: Transaction, conversation: ConversationRow) -> ConversationRow:
    """The conversation, open for one more message. Raises `bus.conversation-full`."""
    require_budget(conversation, 1)
    with tx.acting_as(BUS):
        tx.execute(
            "UPDATE conversation SET messages = messages + 1 WHERE id = ?", (conversation.id,)
        )
    return contribute(tx, conversation)


def _place(conversation: ConversationRow) -> Place:
    return Place(conversation.id, conversation.correlation, conversation.round)


# ---- Removing -----------------------------------------------------------------------------------


def purge_letters(tx: Transaction, arguments: Purge) -> int:
    """Remove dead letters and write down who said so. The actor is that person. Returns how many.

    Raises `deadletter.unknown`.
    """
    assert len(arguments.letters) <= LETTERS_PER_CALL_MAX
    chosen = msgspec.json.encode(arguments.letters).decode()
    rows = tx.rows(
        "SELECT id FROM dead_letter WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
        (chosen,),
    )
    found: list[Any] = [row[0] for row in rows]
    missing = sorted(set(arguments.letters) - set(found))
    if missing and not arguments.missing_ok:
        raise unknown_letter(missing[0])
    if not found:
        return 0
    with tx.acting_as(BUS):
        tx.execute(
            "DELETE FROM dead_letter WHERE id IN (SELECT value FROM json_each(?))", (chosen,)
        )
    subject = f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
    record_audit(tx, Audit(action="deadletter.purge", subject=subject, data={"numbers": found}))
    tx.emit("deadletter.purged", dead_letters=found)
    return len(found)
