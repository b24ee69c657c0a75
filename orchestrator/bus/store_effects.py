"""Effects that the store alone performs: one transaction does them and writes the journal.

So they happen once whatever dies meanwhile, and what is answered is true in the moment in which it
is written down.
"""

from typing import Final, assert_never

import msgspec

from ipc_protocol.errors import Failure, Problem
from ipc_protocol.work import (
    EffectResult,
    EmitHealth,
    ListTasks,
    Noted,
    Offer,
    Offered,
    ReadState,
    StateValue,
    Task,
    TaskList,
)
from orchestrator.bus.journal import read_journal, write_entry
from orchestrator.bus.limits import HEALTH_CHARS_MAX, MESSAGE_TTL_US, TASKS_LISTED_MAX
from orchestrator.bus.observations import HealthEvent, report_health
from orchestrator.bus.opening import places_for
from orchestrator.bus.registration import directory_of
from orchestrator.bus.routing import Draft, route
from orchestrator.bus.rows import DeliveryRow, held_delivery
from orchestrator.bus.tasks import tasks_of
from orchestrator.store.state import read_state
from orchestrator.store.transaction import Transaction

StoreEffect = Offer | ReadState | ListTasks | EmitHealth

AGENT_HEALTH: Final = "agent"
"""The kind of a health event that an agent itself reports."""


class PerformInStore(msgspec.Struct, frozen=True, kw_only=True):
    """An effect that a worker asked for. The actor is the agent."""

    delivery: int
    incarnation: str
    step: int
    effect: StoreEffect
    started_us: int


def perform_in_store(tx: Transaction, arguments: PerformInStore) -> EffectResult:
    """Perform and write down; what is already written at its step wins and is returned.

    Raises `work.unknown-delivery` if the worker does not hold the delivery, `journal.mismatch`.
    """
    row = held_delivery(tx, arguments.delivery, arguments.incarnation, tx.actor)
    written = read_journal(tx, row.id, arguments.step, arguments.effect)
    if written is not None:
        return written
    result = _performed(tx, row, arguments.effect)
    write_entry(tx, row, row.run, arguments.step, arguments.effect, result, arguments.started_us)
    return result


def _performed(tx: Transaction, row: DeliveryRow, effect: StoreEffect) -> EffectResult:
    match effect:
        case Offer():
            return Offered(problem=_obstacle(tx, row, effect))
        case ReadState():
            return StateValue(value=read_state(tx, row.agent, effect.key))
        case ListTasks():
            return _unfinished(tx, row.agent)
        case EmitHealth():
            return _reported(tx, row, effect)
    assert_never(effect)


def _obstacle(tx: Transaction, row: DeliveryRow, offer: Offer) -> Problem | None:
    """Why a completion of `row` could not publish this now."""
    if offer.correlation not in ("", row.correlation):
        return Problem(
            code="bus.not-permitted",
            message=f"The message on {offer.topic!r} would go into another conversation.",
            cure="Leave its correlation empty.",
            details={"topic": offer.topic, "sender": row.agent},
        )
    draft = Draft(
        topic=offer.topic,
        sender=row.agent,
        payload_bytes=offer.payload_bytes,
        hops=row.hops + 1,
        expires_us=tx.now_us + MESSAGE_TTL_US,
    )
    plan = route(draft, directory_of(tx), places_for(tx, row.agent), tx.now_us)
    return plan.problem if isinstance(plan, Failure) else None


def _unfinished(tx: Transaction, agent: str) -> TaskList:
    found = tasks_of(tx, agent, unfinished=True)[:TASKS_LISTED_MAX]
    return TaskList(
        tasks=[
            Task(id=task.id, title=task.title, state=task.state, note=task.note) for task in found
        ]
    )


def _reported(tx: Transaction, row: DeliveryRow, effect: EmitHealth) -> Noted:
    event = HealthEvent(
        kind=AGENT_HEALTH,
        detail=effect.detail[:HEALTH_CHARS_MAX],
        agent=row.agent,
        data={"condition": effect.condition, "delivery": row.id},
    )
    report_health(tx, event)
    return Noted()
