"""Writes a message and its deliveries, all in the transaction at hand."""

from collections.abc import Sequence

import msgspec

from ipc_protocol.values import PRIORITIES
from ipc_protocol.work import Evidence
from orchestrator.bus.routing import BUS, OPERATOR, Directory, Plan, delivery_rank
from orchestrator.bus.rows import ConversationRow, delivery_of, emit_ready, summary_of
from orchestrator.store.transaction import Transaction


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    rank: int
    screened: bool = False
    must_take: bool = False
    composing: bool = False
    evidence: Evidence | None = None


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """A message that routing has let through, or that the bus itself sends."""

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


def post(tx: Transaction, conversation: ConversationRow, message: Post) -> int:
    """Write `message` and a delivery for each receiver. Returns the message's id."""
    with tx.acting_as(BUS):
        identity = tx.insert(
            "INSERT INTO message (conversation, round, topic, sender, class, payload, cause,"
            " produced_by, hops, composed, publisher_id, sent_us, expires_us)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (
                conversation.id,
                conversation.round,
                message.topic,
                message.sender,
                message.rank,
                message.payload,
                message.cause,
                message.produced_by,
                message.hops,
                message.composed,
                message.publisher_id,
                tx.now_us,
                message.expires_us,
            ),
        )
    tx.emit(
        "message.published",
        message=identity,
        conversation=conversation.id,
        correlation=conversation.correlation,
        topic=message.topic,
        sender=message.sender,
        priority=PRIORITIES[message.rank],
        cause=message.cause,
        hops=message.hops,
        agents=[receiver.agent for receiver in message.receivers],
        unscreened=any(not receiver.screened for receiver in message.receivers),
        summary=summary_of(message.payload),
    )
    for receiver in message.receivers:
        deliver(tx, conversation.id, identity, receiver)
    return identity


def deliver(tx: Transaction, conversation: int, message: int, receiver: Receiver) -> int:
    """Write one delivery of a message that is already there. Returns its id."""
    evidence = receiver.evidence
    with tx.acting_as(BUS):
        delivery = tx.insert(
            "INSERT INTO delivery (message, conversation, agent, class, state, composing,"
            " screened, must_take, evidence, queued_us)"
            " VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?) RETURNING id",
            (
                message,
                conversation,
                receiver.agent,
                receiver.rank,
                receiver.composing,
                receiver.screened,
                receiver.must_take,
                None if evidence is None else msgspec.json.encode(evidence).decode(),
                tx.now_us,
            ),
        )
    if receiver.screened:
        row = delivery_of(tx, delivery)
        assert row is not None
        emit_ready(tx, row, "published")
    return delivery
