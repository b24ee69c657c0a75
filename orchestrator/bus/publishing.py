"""Taking messages in."""

from collections.abc import Sequence

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.values import rank
from orchestrator.bus.correlations import is_own
from orchestrator.bus.opening import (
    Accepted,
    Openings,
    Publish,
    draft_of,
    open_all,
    opening,
    places_for,
    require_shape,
    unknown_conversation,
)
from orchestrator.bus.posting import Place, Post, free_numbers, post_all, receivers_of
from orchestrator.bus.registration import directory_of
from orchestrator.bus.routing import BUS, OPERATOR, message_rank, route
from orchestrator.bus.rows import ConversationRow, conversation_by_id, conversation_of
from orchestrator.bus.settlement import contribute, require_budget, settle
from orchestrator.failpoints import reach
from orchestrator.store.transaction import Transaction, is_fatal


def publish_all(tx: Transaction, requests: Sequence[Publish]) -> list[Accepted | Failure]:
    """Publish in the actor's name what several requests bring, each whole or not at all.

    They are taken in their order, and written with few statements where they only open
    conversations.
    """
    answers: list[Accepted | Failure] = []
    openings = Openings(tx)
    for request in requests:
        try:
            if request.correlation is None and not request.message_ids:
                answers.append(openings.add(request))
                continue
            openings.write()
            with tx.nested():
                answers.append(publish(tx, request))
        except Failure as failure:
            if is_fatal(failure):
                raise
            answers.append(failure)
    openings.write()
    reach("publish.decided")
    return answers


def publish(tx: Transaction, arguments: Publish) -> Accepted:
    """Publish in the actor's name: to every subscriber, or an error and to nobody.

    Raises one of the `bus.*` failures, or `conversation.*`.
    """
    require_shape(arguments)
    earlier = _earlier(tx, arguments.message_ids)
    fresh = [each for each in range(len(arguments.payloads)) if each not in earlier]
    if not fresh:
        return _accepted(arguments, {}, earlier, _receivers_of_earlier(tx, earlier))
    if earlier:
        some = msgspec.structs.replace(
            arguments,
            payloads=[arguments.payloads[each] for each in fresh],
            message_ids=[arguments.message_ids[each] for each in fresh],
        )
    else:
        some = arguments
    posted, subscribers = _published(tx, some)
    return _accepted(arguments, dict(zip(fresh, posted, strict=True)), earlier, subscribers)


Known = dict[int, tuple[int, str]]
"""By the place of a payload: its message and its conversation's correlation."""


def _accepted(
    arguments: Publish, posted: Known, earlier: Known, subscribers: list[str]
) -> Accepted:
    known = posted | earlier
    inorder = [known[each] for each in range(len(arguments.payloads))]
    return Accepted(
        messages=[message for message, _ in inorder],
        correlations=[correlation for _, correlation in inorder],
        subscribers=subscribers,
        repeated=len(earlier),
    )


def _earlier(tx: Transaction, message_ids: Sequence[str]) -> Known:
    if not message_ids:
        return {}
    rows = tx.rows(
        "SELECT publisher_id, message.id, correlation FROM message"
        " JOIN conversation ON conversation.id = message.conversation"
        " WHERE sender = ? AND publisher_id IN (SELECT value FROM json_each(?))",
        (tx.actor, msgspec.json.encode(message_ids).decode()),
    )
    found = {row[0]: (row[1], row[2]) for row in rows}
    return {place: found[each] for place, each in enumerate(message_ids) if each in found}


def _receivers_of_earlier(tx: Transaction, earlier: Known) -> list[str]:
    # A fallback's delivery is of an agent that was among the first receivers, or came later.
    first = min(earlier.values())[0]
    rows = tx.rows("SELECT DISTINCT agent FROM delivery WHERE message = ? ORDER BY 1", (first,))
    return [row[0] for row in rows]


def _published(tx: Transaction, arguments: Publish) -> tuple[list[tuple[int, str]], list[str]]:
    if arguments.correlation is None:
        openings = Openings(tx)
        accepted = openings.add(arguments)
        openings.write()
    else:
        accepted = _continued(tx, arguments, arguments.correlation)
    posted = zip(accepted.messages, accepted.correlations, strict=True)
    return list(posted), accepted.subscribers


def _continued(tx: Transaction, arguments: Publish, correlation: str) -> Accepted:
    """Publish into the conversation of that name, which the operator may open by it."""
    sender, payloads = tx.actor, arguments.payloads
    conversation = conversation_of(tx, correlation)
    if conversation is None and (sender != OPERATOR or is_own(correlation)):
        raise unknown_conversation(correlation)
    directory = directory_of(tx)
    draft = draft_of(tx, arguments, _hops_after(tx, conversation, arguments))
    plan = route(draft, directory, places_for(tx, sender), tx.now_us)
    if isinstance(plan, Failure):
        raise plan
    entered = _entered(tx, conversation, arguments, correlation)
    member = directory.senders.get(sender)
    asked = None if arguments.priority is None else rank(arguments.priority)
    urgency = message_rank(entered.rank, None if member is None else member.rank, asked)
    receivers = receivers_of(plan, directory, sender, urgency, screened=arguments.screened)
    ids: Sequence[str | None] = arguments.message_ids or [None] * len(payloads)
    messages = post_all(
        tx,
        [
            Post(
                place=Place(entered.id, correlation, entered.round),
                topic=arguments.topic,
                sender=sender,
                payload=payload,
                rank=urgency,
                expires_us=draft.expires_us,
                hops=draft.hops,
                cause=arguments.cause,
                publisher_id=publisher_id,
                receivers=receivers,
            )
            for payload, publisher_id in zip(payloads, ids, strict=True)
        ],
    )
    if not receivers:
        settle(tx, entered)
    return Accepted(
        messages=messages,
        correlations=[correlation] * len(messages),
        subscribers=list(plan.receivers),
    )


def _hops_after(tx: Transaction, conversation: ConversationRow | None, arguments: Publish) -> int:
    if arguments.cause is None:
        return 0
    found = tx.row("SELECT hops, conversation FROM message WHERE id = ?", (arguments.cause,))
    if found is None or conversation is None or found[1] != conversation.id:
        raise unknown_conversation(arguments.correlation or "")
    hops = found[0]
    assert isinstance(hops, int)
    return hops + 1


def _entered(
    tx: Transaction,
    conversation: ConversationRow | None,
    arguments: Publish,
    correlation: str,
) -> ConversationRow:
    """The conversation, open: as it was, opened again, or a new one of the operator's."""
    urgency, count = rank(arguments.priority or "normal"), len(arguments.payloads)
    numbers = free_numbers(tx)
    if conversation is None:
        number = numbers.conversation
        row = opening(
            tx, number, correlation, urgency, numbers.message, arguments.asked, messages=count
        )
        open_all(tx, [row])
        return conversation_by_id(tx, number)
    require_budget(conversation, count)
    by_operator = tx.actor == OPERATOR
    is_raised = by_operator and arguments.priority and urgency < conversation.rank
    with tx.acting_as(BUS):
        if conversation.state == "answered" and by_operator:
            tx.execute(
                "UPDATE conversation SET question = ?, asked = ? WHERE id = ?",
                (numbers.message, arguments.asked, conversation.id),
            )
        tx.execute(
            "UPDATE conversation SET messages = messages + ?, class = ? WHERE id = ?",
            (count, urgency if is_raised else conversation.rank, conversation.id),
        )
    return contribute(tx, conversation_by_id(tx, conversation.id))
