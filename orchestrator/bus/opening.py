"""Requests to publish, and those that open a conversation with each message: most of them do."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.values import Priority, Receipt, rank
from orchestrator.bus.correlations import OWN_PATTERN, Names
from orchestrator.bus.inboxes import inboxes_of
from orchestrator.bus.limits import MESSAGE_ID_CHARS_MAX, MESSAGE_TTL_US, PAYLOADS_MAX
from orchestrator.bus.posting import Place, Post, free_numbers, post_all, receivers_of
from orchestrator.bus.registration import directory_of
from orchestrator.bus.routing import BUS, OPERATOR, Draft, Member, PlacesIn, route
from orchestrator.store.database import Value
from orchestrator.store.transaction import Transaction


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


def require_shape(arguments: Publish) -> None:
    payloads, ids = arguments.payloads, arguments.message_ids
    if not 0 < len(payloads) <= PAYLOADS_MAX:
        problem = f"It has {len(payloads)} payloads; 1 to {PAYLOADS_MAX} are allowed."
    elif ids and len(ids) != len(payloads):
        problem = f"It has {len(payloads)} payloads and {len(ids)} message ids."
    elif arguments.correlation == "":
        problem = "The name of its conversation is empty."
    elif len(set(ids)) != len(ids):
        problem = "Two of its payloads have the same message id."
    elif any(not 0 < len(each) <= MESSAGE_ID_CHARS_MAX for each in ids):
        problem = f"A message id has 1 to {MESSAGE_ID_CHARS_MAX} characters."
    else:
        return
    raise Failure("request.invalid", problem, "Give one id for each payload, or none.")


def draft_of(tx: Transaction, arguments: Publish, hops: int) -> Draft:
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


def unknown_conversation(correlation: str) -> Failure:
    return Failure(
        "conversation.unknown",
        f"There is no conversation {correlation!r}.",
        "Publish into the conversation that the message belongs to.",
        correlation=correlation,
    )


_NAMES: Final = "bus.names"


def _names(tx: Transaction) -> Names:
    found = tx.row(
        "SELECT correlation FROM conversation WHERE correlation GLOB ?"
        " ORDER BY correlation DESC LIMIT 1",
        (OWN_PATTERN,),
    )
    return Names("" if found is None else found[0])


class Openings:
    """Messages that each open a conversation, collected until they are written together."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._conversations: list[tuple[Value, ...]] = []
        self._posts: list[Post] = []
        self._came: Counter[str] = Counter()

    def add(self, request: Publish) -> Accepted:
        """Raises `Failure` for what cannot be published; nothing of it is written then."""
        tx, payloads = self._tx, request.payloads
        require_shape(request)
        if tx.actor != OPERATOR:
            raise unknown_conversation("")
        directory = directory_of(tx)
        draft = draft_of(tx, request, hops=0)
        plan = route(draft, directory, places_for(tx, tx.actor, self._came), tx.now_us)
        if isinstance(plan, Failure):
            raise plan
        urgency = rank(request.priority or "normal")
        receivers = receivers_of(plan, directory, tx.actor, urgency, screened=request.screened)
        numbers = free_numbers(tx)
        message = numbers.message + len(self._posts)
        conversation = numbers.conversation + len(self._conversations)
        names = tx.cached(_NAMES, lambda: _names(tx)).next(tx.now_us, len(payloads))
        ids: Sequence[str | None] = request.message_ids or [None] * len(payloads)
        for payload, name, publisher_id in zip(payloads, names, ids, strict=True):
            self._conversations.append(
                opening(tx, conversation, name, urgency, message, request.asked, messages=1)
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
            open_all(self._tx, self._conversations)
            post_all(self._tx, self._posts)
            self._conversations, self._posts = [], []
            self._came.clear()


_CONVERSATION: Final = (
    "id, correlation, state, class, round, opened_by, question, opened_us, asked, messages"
)


def opening(
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


def open_all(tx: Transaction, rows: Sequence[tuple[Value, ...]]) -> None:
    free_numbers(tx).conversation += len(rows)
    sender = tx.actor
    with tx.acting_as(BUS):
        tx.insert_many("conversation", _CONVERSATION, rows)
    if tx.follows("conversation.opened"):
        for row in rows:
            tx.emit("conversation.opened", conversation=row[0], correlation=row[1], sender=sender)
