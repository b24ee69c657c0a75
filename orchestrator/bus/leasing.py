"""Leasing deliveries, and everything that ends a lease but a completion.

All of these run as the bus. A lease belongs to one incarnation of a worker: what that one held can
be told from what its successor holds.
"""

from typing import Final

import msgspec

from ipc_protocol.work import Handle, Setting
from orchestrator.bus.credit import Credit, credits_of
from orchestrator.bus.deadletters import bury_delivery
from orchestrator.bus.delivery import DeliveryState
from orchestrator.bus.handing import GivenBack, begin_anew, keep_setting, load_leased, refill
from orchestrator.bus.limits import DEATHS_MAX, RESUMED_PER_CALL_MAX, RUNS_MAX
from orchestrator.bus.posting import make_ready
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
from orchestrator.bus.settlement import delivery_closed
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Let `incarnation`, a worker of `agent`, hold `window` deliveries at once from now on.

    `setting` begins those that have not begun before.
    """

    agent: str
    incarnation: str
    window: int
    setting: Setting


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


class GiveWay(msgspec.Struct, frozen=True, kw_only=True):
    incarnation: str
    delivery: int


class Release(msgspec.Struct, frozen=True, kw_only=True):
    incarnation: str


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
    code: str = "work.refused"
    """Of the dead letter, if it is final."""
    anew: bool = False
    rest: bool = False
    """Its worker is taken from it, and what that one has not begun is queued again."""


_NEVER_BEGUN: Final = (
    "d.state = 'queued' AND d.finished_us IS NULL AND d.deferred = 0 AND d.begun_us IS NULL"
    " AND d.run = 0"
)


def grant(tx: Transaction, arguments: Grant) -> None:
    """Give credit to a worker, and lease to it what is queued.

    What is leased now and later is handed over to the receiver of the incarnation's name.
    """
    credits, agent = credits_of(tx), arguments.agent
    credit = credits.holder(agent, arguments.incarnation)
    credits.grant(
        tx,
        agent,
        Credit(
            incarnation=arguments.incarnation,
            window=arguments.window,
            setting_id=keep_setting(tx, arguments.setting),
            setting=arguments.setting,
            held={} if credit is None else credit.held,
        ),
    )
    refill(tx, agent)


def handle_of(query: Query, row: DeliveryRow) -> Handle | None:
    """What the worker of the present run was handed; None where nobody has begun."""
    leased = load_leased(query, row.id)
    return None if leased is None else leased.handle


def _bury_late(tx: Transaction, row: DeliveryRow) -> None:
    reason = f"Nobody began to handle it before {row.expires_us} µs."
    bury_delivery(tx, row, "bus.expired", reason, row.deaths)
    delivery_closed(tx, row)


def park(tx: Transaction, arguments: Park) -> None:
    """Park a delivery that `incarnation` holds. Raises `work.unknown-delivery` if it does not."""
    row = held_delivery(tx, arguments.delivery, arguments.incarnation)
    park_delivery(tx, row, arguments.reason, arguments.until_us, arguments.on, rest=True)


def park_delivery(
    tx: Transaction,
    row: DeliveryRow,
    reason: ParkedReason,
    until_us: int | None,
    on: str | None,
    *,
    rest: bool,
) -> None:
    """Park `row`. With `rest`, its worker is taken from it, and what it has not begun is queued
    again."""
    with tx.acting_as(BUS):
        move_delivery(tx, row, "park", parked_reason=reason, parked_until_us=until_us, parked_on=on)
    _emit_parked(tx, row, reason, until_us, on)
    if rest:
        assert row.incarnation is not None
        give_back_rest(tx, row.incarnation)
    refill(tx, row.agent)


def _emit_parked(
    tx: Transaction, row: DeliveryRow, reason: ParkedReason, until_us: int | None, on: str | None
) -> None:
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
    make_ready(tx, row.id, row.agent, row.rank, f"was parked: {row.parked_reason}")


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
    """Give leases back without counting an attempt: no worker died of them. Returns how many.

    The credit of that worker is gone too.
    """
    incarnation = arguments.incarnation
    rows = deliveries(
        tx,
        "WHERE d.state = 'leased' AND d.finished_us IS NULL AND (?1 IS NULL OR d.incarnation = ?1)",
        (incarnation,),
    )
    if incarnation is not None:
        credits_of(tx).revoke(tx, incarnation)
    for row in rows:
        move_delivery(tx, row, "release")
    for row in rows:
        make_ready(tx, row.id, row.agent, row.rank, "released")
    return len(rows)


def release(tx: Transaction, arguments: Release) -> None:
    """Queue again what `incarnation` holds, none of which it has begun. It is handed the first of
    the queue in its place."""
    for agent in give_back_rest(tx, arguments.incarnation):
        refill(tx, agent)


def give_back_rest(tx: Transaction, incarnation: str) -> set[str]:
    """Queue again what `incarnation` holds. Whose deliveries they are; nothing is leased to them
    yet, so that what was first is first again."""
    rows = deliveries(
        tx,
        "WHERE d.state = 'leased' AND d.finished_us IS NULL AND d.incarnation = ?",
        (incarnation,),
    )
    with tx.acting_as(BUS):
        for row in rows:
            move_delivery(tx, row, "release")
            emit_ready(tx, row, "released")
    tx.hand_over(incarnation, GivenBack())
    return {row.agent for row in rows}


def give_way(tx: Transaction, arguments: GiveWay) -> None:
    """Let something more urgent go before the delivery that `incarnation` works on.

    It waits for nothing else, so it is queued again at once and keeps its place, and so do those
    that were not begun. Raises `work.unknown-delivery`.
    """
    row = held_delivery(tx, arguments.delivery, arguments.incarnation)
    move_delivery(tx, row, "park", parked_reason="preempted", parked_until_us=tx.now_us)
    _emit_parked(tx, row, "preempted", tx.now_us, None)
    parked = msgspec.structs.replace(row, state="parked", incarnation=None)
    move_delivery(tx, parked, "wake", parked_reason=None, parked_until_us=None)
    emit_ready(tx, row, "was parked: preempted")
    give_back_rest(tx, arguments.incarnation)
    refill(tx, row.agent)


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
    begins_anew = arguments.anew and may_begin_anew(tx, row)
    state: DeliveryState = "dead"
    if (arguments.final and not begins_anew) or deaths >= DEATHS_MAX:
        code = arguments.code if arguments.final else "work.deaths"
        bury_delivery(tx, row, code, arguments.error, deaths)
        delivery_closed(tx, row)
    else:
        state = move_delivery(tx, row, "release", deaths=deaths, last_error=arguments.error)
        if begins_anew:
            begin_anew(tx, row.id)
        emit_ready(tx, row, "failed")
    if arguments.rest:
        give_back_rest(tx, arguments.incarnation)
    refill(tx, row.agent)
    return state


def may_begin_anew(query: Query, row: DeliveryRow) -> bool:
    """What the present run has asked for may be asked again: no tool has done anything for it."""
    used = query.row(
        "SELECT 1 FROM journal WHERE delivery = ?1 AND run = ?2 AND kind = 'tool' UNION ALL"
        " SELECT 1 FROM tool_call WHERE delivery = ?1 AND run = ?2 LIMIT 1",
        (row.id, row.run),
    )
    return used is None and row.run + 1 < RUNS_MAX
