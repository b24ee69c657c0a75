"""What the daemon notes about itself: health events and spans. The actor owns them."""

from typing import Any

import msgspec

from orchestrator.store.transaction import Transaction


class HealthEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an operator should know: `kind` is for programs, `detail` for people."""

    kind: str
    detail: str
    agent: str | None = None
    data: dict[str, Any] = {}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of work with its times. What a delivery did stands in its journal already."""

    name: str
    started_us: int
    finished_us: int
    delivery: int | None = None
    data: dict[str, Any] = {}


def report_health(tx: Transaction, event: HealthEvent) -> int:
    identity = tx.insert(
        "INSERT INTO health (owner, kind, agent, detail, data, at_us)"
        " VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
        (
            tx.actor,
            event.kind,
            event.agent,
            event.detail,
            msgspec.json.encode(event.data).decode(),
            tx.now_us,
        ),
    )
    tx.emit(
        "health.reported",
        health=identity,
        kind=event.kind,
        agent=event.agent,
        detail=event.detail,
        data=event.data,
    )
    return identity


def record_span(tx: Transaction, span: Span) -> int:
    return tx.insert(
        "INSERT INTO span (owner, delivery, name, data, started_us, finished_us)"
        " VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
        (
            tx.actor,
            span.delivery,
            span.name,
            msgspec.json.encode(span.data).decode(),
            span.started_us,
            span.finished_us,
        ),
    )
