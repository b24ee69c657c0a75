"""Taking messages in, and attaching what screening found out about them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.values import Priority, Receipt, rank
from ipc_protocol.work import Evidence
from orchestrator.bus import correlations
from orchestrator.bus.inboxes import inboxes_of
from orchestrator.bus.limits import MESSAGE_ID_CHARS_MAX, MESSAGE_TTL_US, PAYLOADS_MAX
from orchestrator.bus.posting import (
    Place,
    Post,
    free_numbers,
    make_ready,
    post_all,
    receivers_of,
)
from orchestrator.bus.registration import directory_of
from orchestrator.bus.routing import (
    BUS,
    OPERATOR,
    Draft,
    Member,
    PlacesIn,
    message_rank,
    route,
)
from orchestrator.bus.rows import (
    ConversationRow,
    conversation_by_id,
    conversation_of,
    deliveries,
)
from orchestrator.bus.settlement import contribute, require_budget, settle
from orchestrator.failpoints import reach
from orchestrator.store.database import Query, Value
from orchestrator.store.transaction import Transaction, is_fatal


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of the transaction's actor, all on one topic. `message_ids` are the publisher's own,
    against doubles: one for each payload, or none.

    `screened` is for messages that nobody will screen: they can be leased at once. The operator's
    fresh `correlation` opens a conversation of class `priority` (None: normal); a known one goes
    on, at that class if it is more urgent. Without any, each payload opens a conversation. `asked`
    says that somebody waits for the reply of what is opened.
    """

    topic: str
    payloads: Sequence[bytes]
    correlation: str | None = None
    priority: Priority | None = None
    cause: int | None = None
    expires_us: int | None = None
    message_ids: Sequence[str] = ()
    screened: bool = False
    asked: bool = False


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The messages and their conversations, in the order of the payloads; `repeated` of them had
    been published before."""

    messages: list[int]
    correlations: list[str]
    subscribers: list[str]
    repeated: int = 0

    @property
    def receipt(self) -> Receipt:
        """Of the one message that it was."""
        return Receipt(
            message=self.messages[0],
            correlation=self.correlations[0],
            subscribers=self.subscribers,
        )


class Screening(msgspec.Struct, frozen=True, kw_only=True):
    """What screening found for each receiver of `message`, and who takes it if nobody does."""

    message: int
    evidence: dict[str, Evidence] = {}
    fallback: str | None = None


def publish_all(tx: Transaction, requests: Sequence[Publish]) -> list[Accepted | Failure]:
    """Publish in the actor's name what several requests bring, each whole or not at all.

    They are taken in their order, and written with few statements where they only open
    conversations.
    """
    answers: list[Accepted | Failure] = []
    openings = _Openings(tx)
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
    _require_shape(arguments)
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


def _require_shape(arguments: Publish) -> None:
    payloads, ids = arguments.payloads, arguments.message_ids
    if not 0 < len(payloads) <= PAYLOADS_MAX:
        problem = f"It has {len(payloads)} payloads; 1 to {PAYLOADS_MAX} are allowed."
    elif ids and len(ids) != len(payloads):
        problem = f"It has {len(payloads)} payloads and {len(ids)} message ids."
    elif len(set(ids)) != len(ids):
        problem = "Two of its payloads have the same message id."
    elif any(not 0 < len(each) <= MESSAGE_ID_CHARS_MAX for each in ids):
        problem = f"A message id has 1 to {MESSAGE_ID_CHARS_MAX} characters."
    else:
        return
    raise Failure("request.invalid", problem, "Give one id for each payload, or none.")


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
        openings = _Openings(tx)
        accepted = openings.add(arguments)
        openings.write()
    else:
        accepted = _continued(tx, arguments, arguments.correlation)
    posted = zip(accepted.messages, accepted.correlations, strict=True)
    return list(posted), accepted.subscribers


class _Openings:
    """Messages that each open a conversation, collected until they are written together."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._conversations: list[tuple[Value, ...]] = []
        self._posts: list[Post] = []
        self._came: Counter[str] = Counter()

    def add(self, request: Publish) -> Accepted:
        """Raises `Failure` for what cannot be published; nothing of it is written then."""
        tx, payloads = self._tx, request.payloads
        _require_shape(request)
        if tx.actor != OPERATOR:
            raise _unknown_conversation("")
        directory = directory_of(tx)
        draft = _draft(tx, request, hops=0)
        plan = route(draft, directory, places_for(tx, tx.actor, self._came), tx.now_us)
        if isinstance(plan, Failure):
            raise plan
        urgency = rank(request.priority or "normal")
        receivers = receivers_of(plan, directory, tx.actor, urgency, screened=request.screened)
        numbers = free_numbers(tx)
        message = numbers.message + len(self._posts)
        conversation = numbers.conversation + len(self._conversations)
        names = correlations.fresh(len(payloads))
        ids: Sequence[str | None] = request.message_ids or [None] * len(payloads)
        for payload, name, publisher_id in zip(payloads, names, ids, strict=True):
            self._conversations.append(
                _opening(tx, conversation, name, urgency, message, request.asked, messages=1)
            )
            self._posts.append(
                Post(
                    place=Place(conversation, name, 1),
                    topic=request.topic,
                    sender=tx.actor,
                    payload=payload,
                    rank=urgency,
                    expires_us=draft.expires_us,
                    publisher_id=publisher_id,
                    receivers=receivers,
                )
            )
            conversation += 1
            message += 1
        for name in plan.receivers:
            self._came[name] += len(payloads)
        return Accepted(
            messages=list(range(message - len(payloads), message)),
            correlations=names,
            subscribers=list(plan.receivers),
        )

    def write(self) -> None:
        if self._posts:
            _open_all(self._tx, self._conversations)
            post_all(self._tx, self._posts)
            self._conversations, self._posts = [], []
            self._came.clear()


_CONVERSATION: Final = (
    "id, correlation, state, class, round, opened_by, question, opened_us, asked, messages"
)


def _opening(
    tx: Transaction,
    number: int,
    correlation: str,
    urgency: int,
    question: int,
    asked: bool,
    messages: int,
) -> tuple[Value, ...]:
    return (
        number,
        correlation,
        "open",
        urgency,
        1,
        tx.actor,
        question,
        tx.now_us,
        asked,
        messages,
    )


def _open_all(tx: Transaction, rows: Sequence[tuple[Value, ...]]) -> None:
    free_numbers(tx).conversation += len(rows)
    sender = tx.actor
    with tx.acting_as(BUS):
        tx.insert_many("conversation", _CONVERSATION, rows)
    if tx.follows("conversation.opened"):
        for row in rows:
            tx.emit("conversation.opened", conversation=row[0], correlation=row[1], sender=sender)


def _continued(tx: Transaction, arguments: Publish, correlation: str) -> Accepted:
    """Publish into the conversation of that name, which the operator may open by it."""
    sender, payloads = tx.actor, arguments.payloads
    conversation = conversation_of(tx, correlation)
    if conversation is None and sender != OPERATOR:
        raise _unknown_conversation(correlation)
    directory = directory_of(tx)
    draft = _draft(tx, arguments, _hops_after(tx, conversation, arguments))
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


def _draft(tx: Transaction, arguments: Publish, hops: int) -> Draft:
    return Draft(
        topic=arguments.topic,
        sender=tx.actor,
        payload_bytes=max(map(len, arguments.payloads)),
        hops=hops,
        expires_us=arguments.expires_us or tx.now_us + MESSAGE_TTL_US,
        count=len(arguments.payloads),
    )


def places_for(
    tx: Transaction, sender: str, coming: Mapping[str, int] = MappingProxyType({})
) -> PlacesIn:
    """How many more messages of `sender` an inbox takes, with those of its that are `coming`."""
    inboxes = inboxes_of(tx)

    def places_in(member: Member) -> int:
        more = coming.get(member.name, 0)
        return inboxes.places(tx, member.name, sender, member.inbox_max, more)

    return places_in


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
        raise _unknown_conversation(arguments.correlation or "")
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
        row = _opening(
            tx, number, correlation, urgency, numbers.message, arguments.asked, messages=count
        )
        _open_all(tx, [row])
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
