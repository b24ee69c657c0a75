"""The journal of a delivery: what it learned from outside, so that a retry learns the same.

An entry's key is the step and the hash of the request. A worker that asks something else at a step
that is already written has diverged, and is told so. Steps count from 0 within a run; a run ends
with a deferral. The journal is also the trace: phase, times and tokens of every effect.
"""

import hashlib
from typing import Final

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.work import Effect, EffectResult, UseTool, effect_key
from orchestrator.budget import Spent
from orchestrator.bus.routing import BUS
from orchestrator.bus.rows import DeliveryRow, held_delivery, summary_of
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction

BEGINNING_STEP: Final = -1
"""The first entry of every run, before the first effect."""


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an effect that a worker asked for. The actor is the agent."""

    delivery: int
    incarnation: str
    step: int
    effect: Effect
    result: EffectResult
    started_us: int
    tokens: int = 0
    charged_us: int = 0
    """Time that counts against the agent's budget: what it waited for does not."""


def key_hash(effect: Effect) -> bytes:
    return hashlib.sha256(effect_key(effect)).digest()


def read_journal(query: Query, delivery: int, step: int, effect: Effect) -> EffectResult | None:
    """What the present run of `delivery` learned at `step`, or None if it has not been there.

    Raises `journal.mismatch` if the entry answers another request.
    """
    found = query.row(
        "SELECT key_hash, result FROM journal WHERE delivery = ?1 AND step = ?2"
        " AND run = (SELECT run FROM delivery WHERE id = ?1)",
        (delivery, step),
    )
    if found is None:
        return None
    if found[0] != key_hash(effect):
        raise diverged(delivery, step)
    result: EffectResult = msgspec.json.decode(found[1], type=EffectResult)
    return result


def diverged(delivery: int, step: int) -> Failure:
    """The request is not the one that was made at this step before."""
    return Failure(
        "journal.mismatch",
        f"Step {step} of delivery {delivery} asks something else than its journal answers.",
        "The loop is not deterministic, or its version changed: see the trace.",
        delivery=delivery,
        step=step,
    )


def append_journal(tx: Transaction, arguments: Append) -> EffectResult:
    """Write an entry; what is already written at its step wins and is returned.

    Raises `work.unknown-delivery` if the worker does not hold the delivery, `journal.mismatch`.
    """
    row = held_delivery(tx, arguments.delivery, arguments.incarnation, tx.actor)
    written = read_journal(tx, row.id, arguments.step, arguments.effect)
    if written is not None:
        return written
    write_entry(
        tx,
        row,
        row.run,
        arguments.step,
        arguments.effect,
        arguments.result,
        arguments.started_us,
        arguments.tokens,
        arguments.charged_us,
    )
    return arguments.result


def write_entry(
    tx: Transaction,
    row: DeliveryRow,
    run: int,
    step: int,
    effect: Effect,
    result: EffectResult,
    started_us: int,
    tokens: int = 0,
    charged_us: int = 0,
) -> None:
    request = effect_key(effect)
    kind: str = effect.__struct_config__.tag  # type: ignore[assignment]
    phase = "act" if isinstance(effect, UseTool) else getattr(effect, "phase", None)
    with tx.acting_as(BUS):
        tx.execute(
            "INSERT INTO journal (delivery, run, step, kind, phase, key_hash, request, result,"
            " tokens, charged_us, started_us, finished_us)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.id,
                run,
                step,
                kind,
                phase,
                hashlib.sha256(request).digest(),
                request.decode(),
                msgspec.json.encode(result).decode(),
                tokens,
                charged_us,
                started_us,
                tx.now_us,
            ),
        )
    tx.emit(
        "journal.appended",
        delivery=row.id,
        agent=row.agent,
        correlation=row.correlation,
        step=step,
        kind=kind,
        phase=phase,
        tokens=tokens,
        duration_us=max(0, tx.now_us - started_us),
        tool=effect.name if isinstance(effect, UseTool) else None,
        summary=_summary(effect, result),
    )


def _summary(effect: Effect, result: EffectResult) -> str:
    for thing in (effect, result):
        for field in ("summary", "message", "output", "text", "topic", "key", "detail"):
            text = getattr(thing, field, None)
            if isinstance(text, str):
                return summary_of(text.encode(errors="replace"))
    return ""


def spent(query: Query, delivery: int, component: str = "") -> Spent:
    """What all runs and attempts of a delivery have spent of its budgets.

    What another component than `component`, which has it now, spent of it does not count: this one
    did not choose to. The beginnings of earlier runs say which had it then.
    """
    found = query.row(
        "SELECT count(*), count(*) FILTER (WHERE kind = 'tool'), coalesce(sum(tokens), 0),"
        " coalesce(sum(charged_us), 0),"
        " coalesce(sum(octet_length(request) + octet_length(result)), 0)"
        " FROM journal WHERE delivery = ?1 AND kind <> 'beginning'"
        " AND run > (SELECT coalesce(max(run), -1) FROM journal"
        "  WHERE delivery = ?1 AND kind = 'beginning'"
        "  AND coalesce(json_extract(result, '$.component'), '') <> ?2)",
        (delivery, component),
    )
    assert found is not None
    return Spent(*found)
