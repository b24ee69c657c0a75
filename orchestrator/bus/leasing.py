"""Leasing deliveries, and everything that ends a lease but a completion.

All of these run as the bus. A lease belongs to one incarnation of a worker: what that one held can
be told from what its successor holds.
"""

import hashlib
from typing import Final

import msgspec

from ipc_protocol.values import PRIORITIES, Envelope
from ipc_protocol.work import Beginning, Evidence, Handle
from orchestrator.budget import Spent
from orchestrator.bus.deadletters import bury_delivery
from orchestrator.bus.delivery import DeliveryState
from orchestrator.bus.journal import BEGINNING_STEP, spent
from orchestrator.bus.limits import DEATHS_MAX, RESUMED_PER_CALL_MAX, RUNS_MAX
from orchestrator.bus.routing import BUS
from orchestrator.bus.rows import (
    DeliveryRow,
    ParkedReason,
    deliveries,
    delivery_of,
    emit_ready,
    held_delivery,
    move_delivery,
    unknown_delivery,
)
from orchestrator.bus.settlement import answers_of, delivery_closed
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for the next delivery of `agent`; the rest begins it, if it has not begun before."""

    agent: str
    incarnation: str
    seed: int
    loop: int
    prompts: dict[str, str]
    component: str = ""
    """The SHA-256 of the component that the worker runs, or empty."""


class Leased(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker is handed, and what earlier attempts have spent of its budgets."""

    handle: Handle
    composing: bool
    spent: Spent


class Park(msgspec.Struct, frozen=True, kw_only=True):
    """Take a delivery off its agent's lane until `until_us`, or until somebody wakes it."""

    delivery: int
    incarnation: str
    reason: ParkedReason
    until_us: int | None = None
    on: str | None = None


class Wake(msgspec.Struct, frozen=True, kw_only=True):
    delivery: int


class ResumeDue(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """`next_due_us` may lie in the past: then there is more to resume at once."""

    count: int
    next_due_us: int | None


class ReleaseLeases(msgspec.Struct, frozen=True, kw_only=True):
    """Give back what `incarnation` held, or all leases there are (None)."""

    incarnation: str | None = None


class Fail(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery ended without a completion.

    Only the death of the worker that held it counts as an attempt (`worker_died`). `final` is for
    what can never succeed, such as a completion that the bus refuses. With `anew` it is tried again
    all the same, with a journal of its own, if it has not had a tool do anything yet.
    """

    delivery: int
    incarnation: str
    error: str
    worker_died: bool
    final: bool = False
    anew: bool = False


_NEVER_BEGUN: Final = (
    "d.state = 'queued' AND d.deferred = 0"
    " AND NOT EXISTS (SELECT 1 FROM journal WHERE journal.delivery = d.id)"
)


def lease_next(tx: Transaction, arguments: Lease) -> Leased | None:
    """The most urgent, then oldest delivery that can be leased; None if none, or one is held."""
    held = tx.row("SELECT 1 FROM delivery WHERE agent = ? AND state = 'leased'", (arguments.agent,))
    if held is not None:
        return None
    while (row := _next(tx, arguments.agent)) is not None:
        if _is_late(tx, row):
            _bury_late(tx, row)
            continue
        return _leased(tx, row, arguments)
    return None


def _next(tx: Transaction, agent: str) -> DeliveryRow | None:
    rows = deliveries(
        tx,
        "WHERE d.agent = ? AND d.state = 'queued' AND d.screened = 1"
        " ORDER BY d.class, d.id LIMIT 1",
        (agent,),
    )
    return rows[0] if rows else None


def _is_late(tx: Transaction, row: DeliveryRow) -> bool:
    """Past its time to live. What was once begun is finished, however long it was parked."""
    return row.expires_us <= tx.now_us and not row.deferred and _beginning(tx, row) is None


def _bury_late(tx: Transaction, row: DeliveryRow) -> None:
    reason = f"Nobody began to handle it before {row.expires_us} µs."
    bury_delivery(tx, row, "bus.expired", reason, row.deaths)
    delivery_closed(tx, row)


def _leased(tx: Transaction, row: DeliveryRow, arguments: Lease) -> Leased:
    move_delivery(tx, row, "lease", incarnation=arguments.incarnation, leased_us=tx.now_us)
    beginning = _beginning(tx, row)
    if beginning is not None and (beginning.loop, beginning.component) != (
        arguments.loop,
        arguments.component,
    ):
        # Another loop or component would ask something else at the same step: it begins anew.
        row = msgspec.structs.replace(row, run=row.run + 1)
        tx.execute("UPDATE delivery SET run = ? WHERE id = ?", (row.run, row.id))
        beginning = None
    if beginning is None:
        beginning = _begun(tx, row, arguments)
    handle = _handle(tx, row, beginning)
    tx.emit(
        "delivery.leased",
        delivery=row.id,
        message=row.message,
        agent=row.agent,
        correlation=row.correlation,
        priority=row.priority,
        attempt=handle.attempt,
        composing=row.composing,
    )
    return Leased(handle=handle, composing=row.composing, spent=spent(tx, row.id))


def handle_of(query: Query, row: DeliveryRow) -> Handle | None:
    """What the worker of the present run was handed; None where nobody has begun."""
    beginning = _beginning(query, row)
    return None if beginning is None else _handle(query, row, beginning)


def _handle(query: Query, row: DeliveryRow, beginning: Beginning) -> Handle:
    envelope, number, question = _envelope(query, row)
    return Handle(
        delivery=row.id,
        attempt=row.deaths + 1,
        envelope=envelope,
        beginning=beginning,
        question=question if row.composing else "",
        answers=answers_of(query, row.conversation, number, row.message) if row.composing else [],
    )


def _beginning(query: Query, row: DeliveryRow) -> Beginning | None:
    found = query.row(
        "SELECT result, prompts FROM journal JOIN prompt_set ON prompt_set.hash = prompt_set"
        " WHERE delivery = ? AND run = ? AND step = ?",
        (row.id, row.run, BEGINNING_STEP),
    )
    if found is None:
        return None
    beginning = msgspec.json.decode(found[0], type=Beginning)
    prompts = msgspec.json.decode(found[1], type=dict[str, str])
    return msgspec.structs.replace(beginning, prompts=prompts)


def _begun(tx: Transaction, row: DeliveryRow, arguments: Lease) -> Beginning:
    """Write the first journal entry of this run. The prompts' texts are kept once for all."""
    found = tx.row("SELECT evidence FROM delivery WHERE id = ?", (row.id,))
    assert found is not None
    evidence = None if found[0] is None else msgspec.json.decode(found[0], type=Evidence)
    beginning = Beginning(
        now_us=tx.now_us,
        seed=arguments.seed,
        loop=arguments.loop,
        component=arguments.component,
        prompts={},
        evidence=evidence,
        must_take=row.must_take,
        deferred=row.deferred,
    )
    prompts = msgspec.json.encode(arguments.prompts, order="sorted")
    prompts_hash = hashlib.sha256(prompts).hexdigest()
    tx.execute(
        "INSERT INTO prompt_set (hash, prompts, first_us) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (prompts_hash, prompts.decode(), tx.now_us),
    )
    entry = msgspec.json.encode(beginning)
    tx.execute(
        "INSERT INTO journal (delivery, run, step, kind, key_hash, request, result, prompt_set,"
        " started_us, finished_us) VALUES (?, ?, ?, 'beginning', ?, 'null', ?, ?, ?, ?)",
        (
            row.id,
            row.run,
            BEGINNING_STEP,
            hashlib.sha256(entry).digest(),
            entry.decode(),
            prompts_hash,
            tx.now_us,
            tx.now_us,
        ),
    )
    return msgspec.structs.replace(beginning, prompts=arguments.prompts)


def _envelope(query: Query, row: DeliveryRow) -> tuple[Envelope, int, str]:
    """The envelope, the round of its message, and what opened that round."""
    found = query.row(
        "SELECT m.payload, m.sent_us, m.cause, m.round, q.payload FROM message m"
        " JOIN conversation c ON c.id = m.conversation LEFT JOIN message q ON q.id = c.question"
        " WHERE m.id = ?",
        (row.message,),
    )
    assert found is not None
    payload, sent_us, cause, number, question = found
    envelope = Envelope(
        id=row.message,
        topic=row.topic,
        sender=row.sender,
        payload=payload,
        correlation=row.correlation,
        priority=PRIORITIES[row.rank],
        sent_us=sent_us,
        expires_us=row.expires_us,
        cause=cause,
        hops=row.hops,
    )
    return envelope, number, (question or b"").decode(errors="replace")


def park(tx: Transaction, arguments: Park) -> None:
    """Park a delivery that `incarnation` holds. Raises `work.unknown-delivery` if it does not."""
    row = held_delivery(tx, arguments.delivery, arguments.incarnation)
    park_delivery(tx, row, arguments.reason, arguments.until_us, arguments.on)


def park_delivery(
    tx: Transaction, row: DeliveryRow, reason: ParkedReason, until_us: int | None, on: str | None
) -> None:
    with tx.acting_as(BUS):
        move_delivery(tx, row, "park", parked_reason=reason, parked_until_us=until_us, parked_on=on)
    tx.emit(
        "delivery.parked",
        delivery=row.id,
        agent=row.agent,
        correlation=row.correlation,
        reason=reason,
        until_us=until_us,
        on=on,
    )


def wake(tx: Transaction, arguments: Wake) -> bool:
    """Queue a parked delivery again. False if it is not parked."""
    row = delivery_of(tx, arguments.delivery)
    if row is None:
        raise unknown_delivery(arguments.delivery)
    if row.state != "parked":
        return False
    wake_delivery(tx, row)
    return True


def wake_delivery(tx: Transaction, row: DeliveryRow) -> None:
    with tx.acting_as(BUS):
        move_delivery(tx, row, "wake", parked_reason=None, parked_until_us=None, parked_on=None)
    emit_ready(tx, row, f"was parked: {row.parked_reason}")


def resume_due(tx: Transaction, arguments: ResumeDue) -> Resumed:
    """Queue the parked deliveries whose time has come, give up those that nobody has begun within
    their time to live, and say when to call again."""
    for row in deliveries(
        tx, f"WHERE {_NEVER_BEGUN} AND m.expires_us <= ? LIMIT ?", (tx.now_us, RESUMED_PER_CALL_MAX)
    ):
        _bury_late(tx, row)
    due = deliveries(
        tx,
        "WHERE d.state = 'parked' AND d.parked_until_us IS NOT NULL AND d.parked_until_us <= ?"
        " ORDER BY d.parked_until_us LIMIT ?",
        (tx.now_us, RESUMED_PER_CALL_MAX),
    )
    for row in due:
        wake_delivery(tx, row)
    return Resumed(count=len(due), next_due_us=next_due(tx))


def next_due(query: Query) -> int | None:
    """When the next parked delivery is due, or the next one that nobody has begun is too late."""
    found = query.row(
        "SELECT min(at_us) FROM ("
        "SELECT min(parked_until_us) AS at_us FROM delivery"
        " WHERE state = 'parked' AND parked_until_us IS NOT NULL"
        " UNION ALL SELECT min(m.expires_us) FROM delivery d JOIN message m ON m.id = d.message"
        f" WHERE {_NEVER_BEGUN})"
    )
    due: int | None = None if found is None else found[0]
    return due


def release_leases(tx: Transaction, arguments: ReleaseLeases) -> int:
    """Give leases back without counting an attempt: no worker died of them. Returns how many."""
    rows = deliveries(
        tx,
        "WHERE d.state = 'leased' AND (?1 IS NULL OR d.incarnation = ?1)",
        (arguments.incarnation,),
    )
    for row in rows:
        move_delivery(tx, row, "release")
        emit_ready(tx, row, "released")
    return len(rows)


def fail(tx: Transaction, arguments: Fail) -> DeliveryState:
    """Queue a failed delivery again in its place, or give it up. Returns its state.

    If `incarnation` does not hold it (its completion was faster), nothing changes.
    """
    row = delivery_of(tx, arguments.delivery)
    if row is None:
        raise unknown_delivery(arguments.delivery)
    if row.state != "leased" or row.incarnation != arguments.incarnation:
        return row.state
    deaths = row.deaths + arguments.worker_died
    tx.emit(
        "delivery.failed",
        delivery=row.id,
        agent=row.agent,
        correlation=row.correlation,
        error=arguments.error,
        worker_died=arguments.worker_died,
        deaths=deaths,
    )
    begins_anew = arguments.anew and _may_begin_anew(tx, row)
    if (arguments.final and not begins_anew) or deaths >= DEATHS_MAX:
        code = "work.refused" if arguments.final else "work.deaths"
        bury_delivery(tx, row, code, arguments.error, deaths)
        delivery_closed(tx, row)
        return "dead"
    run = row.run + begins_anew
    state = move_delivery(tx, row, "release", deaths=deaths, run=run, last_error=arguments.error)
    emit_ready(tx, row, "failed")
    return state


def _may_begin_anew(query: Query, row: DeliveryRow) -> bool:
    """What the present run has asked for may be asked again: no tool has done anything for it."""
    used = query.row(
        "SELECT 1 FROM journal WHERE delivery = ? AND run = ? AND kind = 'tool' LIMIT 1",
        (row.id, row.run),
    )
    return used is None and row.run + 1 < RUNS_MAX
