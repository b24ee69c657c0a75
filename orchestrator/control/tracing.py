"""Everything that happened in one conversation, read from one snapshot of the store."""

from typing import Any, Final

import msgspec

from ipc_protocol import control
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from ipc_protocol.values import PRIORITIES
from ipc_protocol.work import Memory
from orchestrator.bus.limits import DEATHS_MAX
from orchestrator.control.effect_lines import summary
from orchestrator.control.fitting import TEXT_BYTES_MAX, fit
from orchestrator.lane import TRAP_SPAN
from orchestrator.store.database import Query

ROWS_MAX: Final = 500
"""Messages, deliveries, memories and dead letters of one trace, each: ten screens."""

STEPS_MAX: Final = 1000
"""Journal entries of one trace: fifty deliveries of twenty steps."""

TRAPS_MAX: Final = 64
"""Of one trace: a dozen deliveries that have killed their worker as often as they may."""

STEP_BYTES_MAX: Final = 1024
ROW_BYTES_MAX: Final = 512
"""Of a row of a trace without the texts that `fitting` cuts: keys, names, a topic, numbers, and for
a step its summary, at 4 bytes a character."""

_ROWS: Final = 4 * ROWS_MAX + TRAPS_MAX
assert TEXT_BYTES_MAX + STEPS_MAX * STEP_BYTES_MAX + _ROWS * ROW_BYTES_MAX <= FRAME_BODY_BYTES_MAX


def read_trace(query: Query, conversation: control.Conversation) -> control.Trace:
    """Everything that happened in one conversation."""
    found = query.row(
        "SELECT id FROM conversation WHERE correlation = ?", (conversation.correlation,)
    )
    assert found is not None
    id_: int = found[0]
    messages = _messages(query, id_)
    deliveries = _deliveries(query, id_)
    dead_letters = _dead_letters(query, id_)
    steps = sum(len(delivery.steps) for delivery in deliveries)
    memories = sum(len(delivery.memories) for delivery in deliveries)
    full = [
        f"{maximum} {what}"
        for what, number, maximum in (
            ("messages", len(messages), ROWS_MAX),
            ("deliveries", len(deliveries), ROWS_MAX),
            ("journal entries", steps, STEPS_MAX),
            ("memories", memories, ROWS_MAX),
            ("dead letters", len(dead_letters), ROWS_MAX),
        )
        if number >= maximum
    ]
    return fit(
        control.Trace(
            conversation=conversation,
            messages=messages,
            deliveries=deliveries,
            dead_letters=dead_letters,
            cut=f"Only the first {', '.join(full)} are shown." if full else "",
        )
    )


def _messages(query: Query, conversation: int) -> list[control.TracedMessage]:
    rows = query.rows(
        "SELECT id, topic, sender, payload, sent_us, cause, produced_by, class, hops FROM message "
        "WHERE conversation = ? ORDER BY id LIMIT ?",
        (conversation, ROWS_MAX),
    )
    return [
        control.TracedMessage(
            message=id_,
            topic=topic,
            sender=sender,
            text=payload.decode(errors="replace"),
            sent_us=sent_us,
            cause=cause,
            produced_by=produced_by,
            priority=PRIORITIES[rank],
            hops=hops,
        )
        for id_, topic, sender, payload, sent_us, cause, produced_by, rank, hops in rows
    ]


def _deliveries(query: Query, conversation: int) -> list[control.TracedDelivery]:
    rows = query.rows(
        "SELECT d.id, d.message, d.agent, m.topic, m.sender, d.state, "
        "coalesce(d.outcome, ''), "
        "coalesce(d.outcome_reason, d.last_error, d.parked_reason, ''), "
        "d.queued_us, d.finished_us, d.composing, d.run, d.begun_us, d.deaths, "
        "coalesce(d.last_error, ''), coalesce(d.parked_reason, ''), d.parked_until_us, "
        "coalesce(d.parked_on, '') FROM delivery d JOIN message m ON m.id = d.message "
        "WHERE d.conversation = ? ORDER BY d.id LIMIT ?",
        (conversation, ROWS_MAX),
    )
    steps = _steps(query, conversation)
    traps = _traps(query, conversation)
    memories = _memories_by_delivery(query, conversation)
    return [
        control.TracedDelivery(
            delivery=id_,
            message=message,
            agent=agent,
            topic=topic,
            sender=sender,
            state=state,
            outcome=outcome,
            reason=reason,
            attempts=_attempts(state, deaths),
            queued_us=queued_us,
            done_us=done_us,
            steps=steps.get(id_, []),
            memories=memories.get(id_, []),
            traps=traps.get(id_, []),
            composing=bool(composing),
            run=run,
            begun_us=begun_us,
            deaths=deaths,
            last_error=last_error,
            parked_reason=parked_reason,
            parked_until_us=parked_until_us,
            parked_on=parked_on,
        )
        for (
            id_,
            message,
            agent,
            topic,
            sender,
            state,
            outcome,
            reason,
            queued_us,
            done_us,
            composing,
            run,
            begun_us,
            deaths,
            last_error,
            parked_reason,
            parked_until_us,
            parked_on,
        ) in rows
    ]


def _steps(query: Query, conversation: int) -> dict[int, list[control.JournalStep]]:
    rows = query.rows(
        "SELECT j.delivery, j.step, j.kind, coalesce(j.phase, ''), j.request, j.result, "
        "j.tokens, j.started_us, j.finished_us, j.run FROM journal j JOIN delivery d "
        "ON d.id = j.delivery WHERE d.conversation = ? AND j.kind <> 'beginning' "
        "ORDER BY j.delivery, j.run, j.step LIMIT ?",
        (conversation, STEPS_MAX),
    )
    steps: dict[int, list[control.JournalStep]] = {}
    for delivery, step, kind, phase, request, result, tokens, started_us, finished_us, run in rows:
        steps.setdefault(delivery, []).append(
            control.JournalStep(
                step=step,
                kind=kind,
                phase=phase,
                summary=summary(request, result),
                at_us=started_us,
                took_us=finished_us - started_us,
                generated_tokens=tokens,
                request=msgspec.json.decode(request),
                result=msgspec.json.decode(result),
                run=run,
            )
        )
    return steps


def _traps(query: Query, conversation: int) -> dict[int, list[control.Trap]]:
    rows = query.rows(
        "SELECT s.delivery, s.data, s.finished_us FROM span s JOIN delivery d "
        "ON d.id = s.delivery WHERE d.conversation = ? AND s.name = ? ORDER BY s.id LIMIT ?",
        (conversation, TRAP_SPAN, TRAPS_MAX),
    )
    traps: dict[int, list[control.Trap]] = {}
    for delivery, data, at_us in rows:
        told = msgspec.convert({**msgspec.json.decode(data), "at_us": at_us}, control.Trap)
        traps.setdefault(delivery, []).append(told)
    return traps


def _memories_by_delivery(query: Query, conversation: int) -> dict[int, list[Memory]]:
    rows = query.rows(
        "SELECT m.delivery, m.id, m.text, m.lesson, m.outcome, m.importance, "
        "m.created_us FROM memory m JOIN delivery d ON d.id = m.delivery "
        "WHERE d.conversation = ? ORDER BY m.id LIMIT ?",
        (conversation, ROWS_MAX),
    )
    memories: dict[int, list[Memory]] = {}
    for delivery, *columns in rows:
        memories.setdefault(delivery, []).append(memory_of(columns))
    return memories


def _dead_letters(query: Query, conversation: int) -> list[control.DeadLetter]:
    rows = query.rows(
        "SELECT id, message, delivery, coalesce(receiver, sender), topic, code, reason, "
        "attempts, last_error, replayed_as, died_us FROM dead_letter "
        "WHERE conversation = ? ORDER BY id LIMIT ?",
        (conversation, ROWS_MAX),
    )
    return [
        control.DeadLetter(
            number=number,
            message=message,
            delivery=delivery,
            agent=agent,
            topic=topic,
            code=code,
            reason=reason,
            attempts=attempts,
            last_error=last_error,
            replayed_as=replayed_as,
            at_us=died_us,
        )
        for (
            number,
            message,
            delivery,
            agent,
            topic,
            code,
            reason,
            attempts,
            last_error,
            replayed_as,
            died_us,
        ) in rows
    ]


def _attempts(state: str, deaths: int) -> int:
    """Workers that began with it: the last of them did not die of it, but where it was given up."""
    return deaths if state == "dead" and deaths >= DEATHS_MAX else deaths + 1


def memory_of(row: "list[Any] | tuple[Any, ...]") -> Memory:
    """Of the columns id, text, lesson, outcome, importance, created_us."""
    id_, text, lesson, outcome, importance, created_us = row
    return Memory(
        id=id_,
        text=f"{text} {lesson}".strip(),
        outcome=outcome,
        importance=importance,
        created_us=created_us,
    )
