"""Writes messages and their deliveries, many with few statements, all in the transaction at hand.

A delivery that can be leased is leased by the statement that inserts it, where its agent's worker
has room for it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from ipc_protocol.values import PRIORITIES
from ipc_protocol.work import Delivery, Evidence
from orchestrator.bus.credit import Credit, Held, credits_of
from orchestrator.bus.handing import Leased, hand, refill, tell_waiting
from orchestrator.bus.inboxes import inboxes_of
from orchestrator.bus.routing import BUS, OPERATOR, Directory, Plan, delivery_rank
from orchestrator.bus.rows import delivery_of, emit_ready, summary_of
from orchestrator.store.database import Value
from orchestrator.store.transaction import Transaction


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    rank: int
    screened: bool = False
    must_take: bool = False
    composing: bool = False
    evidence: Evidence | None = None


class Place(msgspec.Struct, frozen=True):
    """Where in which conversation a message belongs."""

    conversation: int
    correlation: str
    round: int


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """A message that routing has let through, or that the bus itself sends."""

    place: Place
    topic: str
    sender: str
    payload: bytes
    rank: int
    expires_us: int
    hops: int = 0
    cause: int | None = None
    produced_by: int | None = None
    publisher_id: str | None = None
    composed: bool = False
    receivers: Sequence[Receiver] = ()


def receivers_of(
    plan: Plan, directory: Directory, sender: str, rank: int, *, screened: bool
) -> list[Receiver]:
    """Who receives a routed message. What an agent delegates has to be taken.

    A person may pick the wrong agent: what the operator addresses is screened like the rest, so
    that its receiver can pass it on. An agent that is not screened takes its share without
    evidence, and waits for no comparison; the others settle it among themselves.
    """
    delegated = plan.direct and sender != OPERATOR
    receivers = [(name, directory.members[name]) for name in plan.receivers]
    return [
        Receiver(
            agent=name,
            rank=delivery_rank(rank, member),
            screened=screened or delegated or not member.screened,
            must_take=delegated,
        )
        for name, member in receivers
    ]


class Numbers(msgspec.Struct):
    """The next free ids. Those of rows that are taken back are never used."""

    conversation: int
    message: int
    delivery: int


def free_numbers(tx: Transaction) -> Numbers:
    return tx.cached("bus.numbers", lambda: _first_free(tx))


def _first_free(tx: Transaction) -> Numbers:
    found = tx.row(
        "SELECT coalesce((SELECT max(id) FROM conversation), 0) + 1,"
        " coalesce((SELECT max(id) FROM message), 0) + 1,"
        " coalesce((SELECT max(id) FROM delivery), 0) + 1"
    )
    assert found is not None
    return Numbers(*found)


_MESSAGE: Final = (
    "id, conversation, round, topic, sender, class, payload, cause, produced_by, hops, composed,"
    " publisher_id, sent_us, expires_us"
)
_DELIVERY: Final = (
    "id, message, conversation, agent, class, state, composing, screened, must_take, evidence,"
    " incarnation, begun_us, seed, setting, queued_us, leased_us"
)


def _evidence(receiver: Receiver) -> str | None:
    evidence = receiver.evidence
    return None if evidence is None else msgspec.json.encode(evidence).decode()


class _Leasing:
    """What is leased to the worker of one agent."""

    __slots__ = ("credit", "handed", "held", "room")

    def __init__(self, credit: Credit | None) -> None:
        self.credit = credit
        # What is queued goes first.
        self.room = credit.room if credit is not None and credit.dry else 0
        self.held: dict[int, Held] = {}
        self.handed: list[Leased] = []


class _Batch:
    """Rows on their way into the tables, and what follows once they are there."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.credits = credits_of(tx)
        self.messages: list[tuple[Value, ...]] = []
        self.deliveries: list[tuple[Value, ...]] = []
        self.came: Counter[tuple[str, str]] = Counter()
        self.leasings: dict[str, _Leasing] = {}
        self.queued: list[tuple[int, Receiver]] = []

    def add_message(self, number: int, message: Post) -> None:
        place = message.place
        self.messages.append(
            (
                number,
                place.conversation,
                place.round,
                message.topic,
                message.sender,
                message.rank,
                message.payload,
                message.cause,
                message.produced_by,
                message.hops,
                message.composed,
                message.publisher_id,
                self.tx.now_us,
                message.expires_us,
            )
        )

    def add_delivery(self, number: int, message_id: int, message: Post, receiver: Receiver) -> None:
        agent = receiver.agent
        if not receiver.composing:
            self.came[agent, message.sender] += 1
        leasing = self.leasings.get(agent)
        if leasing is None:
            leasing = self.leasings[agent] = _Leasing(self.credits.of(agent))
        # A composing delivery is handed over with what was said before, which is read later.
        if leasing.room and receiver.screened and not receiver.composing:
            self._lease(leasing, number, message_id, message, receiver)
            return
        conversation = message.place.conversation
        self.deliveries.append(_queued(number, message_id, conversation, receiver, self.tx.now_us))
        if receiver.screened:
            self.queued.append((number, receiver))

    def _lease(
        self, leasing: _Leasing, number: int, message_id: int, message: Post, receiver: Receiver
    ) -> None:
        credit, now_us, place = leasing.credit, self.tx.now_us, message.place
        assert credit is not None
        seed, rank = self.credits.seed(number), receiver.rank
        leasing.room -= 1
        # Screening that is still to come may name a fallback owner.
        plain = all(receiver.screened for receiver in message.receivers)
        leasing.held[number] = Held(message_id, place.conversation, message.sender, rank, plain)
        delivery = Delivery(
            number,
            1,
            message_id,
            message.topic,
            message.sender,
            message.payload,
            place.correlation,
            rank,
            now_us,
            message.expires_us,
            message.cause,
            message.hops,
            now_us,
            seed,
            receiver.must_take,
            False,
            receiver.evidence,
        )
        leasing.handed.append(Leased(delivery, credit.setting))
        self.deliveries.append(
            (
                number,
                message_id,
                place.conversation,
                receiver.agent,
                rank,
                "leased",
                False,
                True,
                receiver.must_take,
                _evidence(receiver),
                credit.incarnation,
                now_us,
                seed,
                credit.setting_id,
                now_us,
                now_us,
            )
        )

    def write(self) -> None:
        tx = self.tx
        inboxes_of(tx).change(tx, self.came)
        with tx.acting_as(BUS):
            tx.insert_many("message", _MESSAGE, self.messages)
            tx.insert_many("delivery", _DELIVERY, self.deliveries)
        for agent, leasing in self.leasings.items():
            if leasing.credit is not None and leasing.handed:
                hand(tx, agent, leasing.credit, leasing.held, leasing.handed)
        for number, receiver in self._first_queued():
            make_ready(tx, number, receiver.agent, receiver.rank, "published")

    def _first_queued(self) -> list[tuple[int, Receiver]]:
        """The most urgent one for each agent; all, where somebody wants to hear of each."""
        if self.tx.follows("delivery.ready"):
            return self.queued
        ordered = sorted(self.queued, key=lambda each: each[1].rank, reverse=True)
        return list({receiver.agent: (number, receiver) for number, receiver in ordered}.values())


def post_all(tx: Transaction, posts: Sequence[Post]) -> list[int]:
    """Write messages and a delivery of each for its receivers. Returns the messages' ids."""
    numbers = free_numbers(tx)
    first = numbers.message
    batch = _Batch(tx)
    for message in posts:
        batch.add_message(numbers.message, message)
        for receiver in message.receivers:
            batch.add_delivery(numbers.delivery, numbers.message, message, receiver)
            numbers.delivery += 1
        numbers.message += 1
    batch.write()
    _tell(tx, first, posts)
    return list(range(first, numbers.message))


def post(tx: Transaction, message: Post) -> int:
    """Write one message. Returns its id."""
    return post_all(tx, [message])[0]


def deliver(
    tx: Transaction, message_id: int, conversation: int, sender: str, receiver: Receiver
) -> int:
    """Write one more delivery of a message that is already there. Returns its id."""
    numbers = free_numbers(tx)
    number = numbers.delivery
    numbers.delivery += 1
    inboxes_of(tx).change(tx, {(receiver.agent, sender): 0 if receiver.composing else 1})
    with tx.acting_as(BUS):
        row = _queued(number, message_id, conversation, receiver, tx.now_us)
        tx.insert_many("delivery", _DELIVERY, [row])
    make_ready(tx, number, receiver.agent, receiver.rank, "published")
    return number


def make_ready(tx: Transaction, number: int, agent: str, rank: int, why: str) -> None:
    """A delivery is queued and can be leased: it is, where there is room for it."""
    credits_of(tx).note_queued(agent)
    if tx.follows("delivery.ready"):
        row = delivery_of(tx, number)
        assert row is not None
        emit_ready(tx, row, why)
    refill(tx, agent)
    tell_waiting(tx, agent, number, rank)


def _queued(
    number: int, message_id: int, conversation: int, receiver: Receiver, now_us: int
) -> tuple[Value, ...]:
    return (
        number,
        message_id,
        conversation,
        receiver.agent,
        receiver.rank,
        "queued",
        receiver.composing,
        receiver.screened,
        receiver.must_take,
        _evidence(receiver),
        None,
        None,
        None,
        None,
        now_us,
        None,
    )


def _tell(tx: Transaction, first: int, posts: Sequence[Post]) -> None:
    counts = Counter((message.topic, message.rank) for message in posts)
    for (topic, rank), count in counts.items():
        tx.emit("messages.published", topic=topic, priority=PRIORITIES[rank], count=count)
    if any(not receiver.screened for message in posts for receiver in message.receivers):
        tx.emit("messages.unscreened")
    if not tx.follows("message.published"):
        return
    for number, message in enumerate(posts, start=first):
        tx.emit(
            "message.published",
            message=number,
            conversation=message.place.conversation,
            correlation=message.place.correlation,
            topic=message.topic,
            sender=message.sender,
            priority=PRIORITIES[message.rank],
            cause=message.cause,
            hops=message.hops,
            agents=[receiver.agent for receiver in message.receivers],
            unscreened=any(not receiver.screened for receiver in message.receivers),
            summary=summary_of(message.payload),
        )
