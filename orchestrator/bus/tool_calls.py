"""Calls of tools with effects outside the database: on disk before the tool runs.

A result is in the journal. A call that is here and not there was in flight when something died, and
what came of it only the tool can tell. Its key says which call it is to whoever can tell two from
one, and is the same however often it is asked for.
"""

import hashlib
from typing import Final

import msgspec

from ipc_protocol.work import UseTool
from orchestrator.bus.journal import diverged, key_hash
from orchestrator.bus.routing import BUS
from orchestrator.bus.rows import held_delivery, unknown_delivery
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction

KEY_CHARS: Final = 32
"""Of the hexadecimal digits of a SHA-256: 128 bits, as in a UUID. It becomes part of names."""


class ToolCall(msgspec.Struct, frozen=True):
    """One call in the present run of a delivery, and whether its tool may have run already."""

    key: str
    begun: bool


class BeginToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool is about to run. The actor is the agent."""

    delivery: int
    incarnation: str
    step: int
    effect: UseTool


def find_tool_call(query: Query, delivery: int, step: int, effect: UseTool) -> ToolCall:
    """The call that the present run of `delivery` makes at `step`.

    Raises `work.unknown-delivery`, or `journal.mismatch` if another call was begun there.
    """
    found = query.row(
        "SELECT d.run, c.correlation, m.sent_us, t.idempotency_key FROM delivery d"
        " JOIN message m ON m.id = d.message JOIN conversation c ON c.id = d.conversation"
        " LEFT JOIN tool_call t ON t.delivery = d.id AND t.run = d.run AND t.step = ?2"
        " WHERE d.id = ?1",
        (delivery, step),
    )
    if found is None:
        raise unknown_delivery(delivery)
    run, correlation, sent_us, begun = found
    key = idempotency_key(correlation, sent_us, delivery, run, step, effect)
    if begun is not None and begun != key:
        raise diverged(delivery, step)
    return ToolCall(key=key, begun=begun is not None)


def idempotency_key(
    correlation: str, sent_us: int, delivery: int, run: int, step: int, effect: UseTool
) -> str:
    """The name of one call in all the world.

    The conversation and the time of the message tell apart two stores, and two messages of one
    number where a store was restored from a backup. What is asked has a part in it, so that a key
    never stands for another request.
    """
    which = [correlation, sent_us, delivery, run, step, key_hash(effect).hex()]
    return hashlib.sha256(msgspec.json.encode(which)).hexdigest()[:KEY_CHARS]


def begin_tool_call(tx: Transaction, arguments: BeginToolCall) -> ToolCall:
    """Write down that the tool may run from now on; returns the call as it was before.

    Raises `work.unknown-delivery` if the worker does not hold the delivery, `journal.mismatch`.
    """
    row = held_delivery(tx, arguments.delivery, arguments.incarnation, tx.actor)
    call = find_tool_call(tx, row.id, arguments.step, arguments.effect)
    if not call.begun:
        with tx.acting_as(BUS):
            tx.execute(
                "INSERT INTO tool_call (delivery, run, step, name, idempotency_key, began_us)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (row.id, row.run, arguments.step, arguments.effect.name, call.key, tx.now_us),
            )
    return call


def calls_in_flight(query: Query, agent: str) -> frozenset[str]:
    """The keys of the agent's calls of which nobody knows yet what came of them."""
    rows = query.rows(
        "SELECT t.idempotency_key FROM delivery d"
        " JOIN tool_call t ON t.delivery = d.id AND t.run = d.run"
        " WHERE d.agent = ? AND d.finished_us IS NULL AND NOT EXISTS (SELECT 1 FROM journal j"
        "  WHERE j.delivery = t.delivery AND j.run = t.run AND j.step = t.step)",
        (agent,),
    )
    return frozenset(key for (key,) in rows)
