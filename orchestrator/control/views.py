"""What the store says, in the shapes that operators see. Reads only, on a connection of its own."""

from typing import Any, Final

import msgspec

from ipc_protocol import control
from ipc_protocol.errors import Failure
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from ipc_protocol.values import PRIORITIES
from ipc_protocol.work import (
    Effect,
    EffectResult,
    EmitHealth,
    Infer,
    Inferred,
    ListTasks,
    Memory,
    Note,
    Noted,
    Offer,
    Offered,
    ReadState,
    Recall,
    Recalled,
    Refused,
    StateValue,
    TaskList,
    ToolResult,
    UseTool,
    Weigh,
    Weighed,
)
from orchestrator.bus.limits import DEATHS_MAX
from orchestrator.bus.routing import BUS
from orchestrator.bus.rows import ParkedReason
from orchestrator.bus.tasks import tasks_of
from orchestrator.bus.versions import Version, versions_of
from orchestrator.control.fitting import TEXT_BYTES_MAX, fit
from orchestrator.lane import TRAP_SPAN
from orchestrator.store.reader import Reader

LIST_ROWS_MAX: Final = 500
"""The longest list in one answer: ten screens. Older rows are reached by narrower questions."""

SUMMARY_CHARACTERS_MAX: Final = 160
"""One line of a wide terminal."""

STEPS_MAX: Final = 1000
"""Journal entries of one trace: fifty deliveries of twenty steps."""

TRAPS_MAX: Final = 64
"""Of one trace: a dozen deliveries that have killed their worker as often as they may."""

REPLY_BYTES_MAX: Final = FRAME_BODY_BYTES_MAX // 4
"""Of a reply in one answer. A composed one is far shorter; one that only joins the contributions of
many agents need not be."""

WAITS_FOR_OTHERS: Final[frozenset[ParkedReason]] = frozenset({"deferred", "attention", "job"})
"""What a parked delivery may wait for that no agent hastens."""

STEP_BYTES_MAX: Final = 1024
ROW_BYTES_MAX: Final = 512
"""Of a row of a trace without the texts that `fitting` cuts: keys, names, a topic, numbers, and for
a step its summary, at 4 bytes a character."""

_ROWS: Final = 4 * LIST_ROWS_MAX + TRAPS_MAX
assert TEXT_BYTES_MAX + STEPS_MAX * STEP_BYTES_MAX + _ROWS * ROW_BYTES_MAX <= FRAME_BODY_BYTES_MAX


class Views:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def conversation(self, correlation: str) -> control.Conversation:
        """Raises `conversation.unknown`."""
        rows = await self._reader.fetch(
            "SELECT c.correlation, c.state, coalesce(m.payload, x''), c.reply, c.opened_us, "
            "c.answered_us FROM conversation c LEFT JOIN message m ON m.id = c.question "
            "WHERE c.correlation = ?",
            (correlation,),
        )
        if not rows:
            raise Failure(
                "conversation.unknown",
                f"There is no conversation {correlation!r}.",
                "`agentd ctl watch` shows the names of those that go on.",
            )
        ((correlation, state, question, reply, opened_us, answered_us),) = rows
        return control.Conversation(
            correlation=correlation,
            state=state,
            question=_text(question),
            reply=None if reply is None else _whole_or_cut(reply),
            opened_us=opened_us,
            answered_us=answered_us,
        )

    async def trace(self, correlation: str) -> control.Trace:
        """Everything that happened in one conversation. Raises `conversation.unknown`."""
        conversation = await self.conversation(correlation)
        ((id_,),) = await self._reader.fetch(
            "SELECT id FROM conversation WHERE correlation = ?", (correlation,)
        )
        messages = await self._messages(id_)
        deliveries = await self._deliveries(id_)
        dead_letters = await self._dead_letters(id_)
        steps = sum(len(delivery.steps) for delivery in deliveries)
        memories = sum(len(delivery.memories) for delivery in deliveries)
        full = [
            f"{maximum} {what}"
            for what, number, maximum in (
                ("messages", len(messages), LIST_ROWS_MAX),
                ("deliveries", len(deliveries), LIST_ROWS_MAX),
                ("journal entries", steps, STEPS_MAX),
                ("memories", memories, LIST_ROWS_MAX),
                ("dead letters", len(dead_letters), LIST_ROWS_MAX),
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

    async def _messages(self, conversation: int) -> list[control.TracedMessage]:
        rows = await self._reader.fetch(
            "SELECT id, topic, sender, payload, sent_us, cause FROM message "
            "WHERE conversation = ? ORDER BY id LIMIT ?",
            (conversation, LIST_ROWS_MAX),
        )
        return [
            control.TracedMessage(
                message=id_,
                topic=topic,
                sender=sender,
                text=_text(payload),
                sent_us=sent_us,
                cause=cause,
            )
            for id_, topic, sender, payload, sent_us, cause in rows
        ]

    async def _deliveries(self, conversation: int) -> list[control.TracedDelivery]:
        rows = await self._reader.fetch(
            "SELECT d.id, d.message, d.agent, m.topic, m.sender, d.state, d.outcome, "
            "coalesce(d.outcome_reason, d.last_error, d.parked_reason, ''), d.deaths, "
            "d.queued_us, d.finished_us FROM delivery d JOIN message m ON m.id = d.message "
            "WHERE d.conversation = ? ORDER BY d.id LIMIT ?",
            (conversation, LIST_ROWS_MAX),
        )
        steps = await self._steps(conversation)
        traps = await self._traps(conversation)
        memories = await self._memories_by_delivery(conversation)
        return [
            control.TracedDelivery(
                delivery=id_,
                message=message,
                agent=agent,
                topic=topic,
                sender=sender,
                state=state,
                outcome=outcome or "",
                reason=reason,
                attempts=_attempts(state, deaths),
                queued_us=queued_us,
                done_us=done_us,
                steps=steps.get(id_, []),
                memories=memories.get(id_, []),
                traps=traps.get(id_, []),
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
                deaths,
                queued_us,
                done_us,
            ) in rows
        ]

    async def _steps(self, conversation: int) -> dict[int, list[control.JournalStep]]:
        rows = await self._reader.fetch(
            "SELECT j.delivery, j.step, j.kind, coalesce(j.phase, ''), j.request, j.result, "
            "j.tokens, j.started_us, j.finished_us FROM journal j JOIN delivery d "
            "ON d.id = j.delivery WHERE d.conversation = ? AND j.kind <> 'beginning' "
            "ORDER BY j.delivery, j.run, j.step LIMIT ?",
            (conversation, STEPS_MAX),
        )
        steps: dict[int, list[control.JournalStep]] = {}
        for delivery, step, kind, phase, request, result, tokens, started_us, finished_us in rows:
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
                )
            )
        return steps

    async def _traps(self, conversation: int) -> dict[int, list[control.Trap]]:
        rows = await self._reader.fetch(
            "SELECT s.delivery, s.data, s.finished_us FROM span s JOIN delivery d "
            "ON d.id = s.delivery WHERE d.conversation = ? AND s.name = ? ORDER BY s.id LIMIT ?",
            (conversation, TRAP_SPAN, TRAPS_MAX),
        )
        traps: dict[int, list[control.Trap]] = {}
        for delivery, data, at_us in rows:
            told = msgspec.convert({**msgspec.json.decode(data), "at_us": at_us}, control.Trap)
            traps.setdefault(delivery, []).append(told)
        return traps

    async def _memories_by_delivery(self, conversation: int) -> dict[int, list[Memory]]:
        rows = await self._reader.fetch(
            "SELECT m.delivery, m.owner, m.id, m.text, m.lesson, m.outcome, m.importance, "
            "m.created_us FROM memory m JOIN delivery d ON d.id = m.delivery "
            "WHERE d.conversation = ? ORDER BY m.id LIMIT ?",
            (conversation, LIST_ROWS_MAX),
        )
        memories: dict[int, list[Memory]] = {}
        for delivery, *columns in rows:
            memories.setdefault(delivery, []).append(_owned(columns).memory)
        return memories

    async def _dead_letters(self, conversation: int) -> list[control.DeadLetter]:
        rows = await self._reader.fetch(
            "SELECT message, coalesce(receiver, sender), reason, died_us FROM dead_letter "
            "WHERE conversation = ? ORDER BY id LIMIT ?",
            (conversation, LIST_ROWS_MAX),
        )
        return [
            control.DeadLetter(message=message, agent=agent, reason=reason, at_us=died_us)
            for message, agent, reason, died_us in rows
        ]

    async def newest_memories(self, agent: str | None, limit: int) -> list[control.OwnedMemory]:
        rows = await self._reader.fetch(
            "SELECT owner, id, text, lesson, outcome, importance, created_us FROM memory "
            "WHERE ?1 IS NULL OR owner = ?1 ORDER BY id DESC LIMIT ?2",
            (agent, min(limit, LIST_ROWS_MAX)),
        )
        return [_owned(row) for row in rows]

    async def tasks(self, agent: str | None) -> list[control.Task]:
        tasks = await self._reader.view(tasks_of, agent)
        return [
            control.Task(
                id=task.id,
                agent=task.owner,
                title=task.title,
                state=task.state,
                note=task.note,
                updated_us=task.changed_us,
            )
            for task in tasks[-LIST_ROWS_MAX:]
        ]

    async def attention(self, *, answered_too: bool) -> list[control.AttentionRequest]:
        rows = await self._reader.fetch(
            "SELECT a.id, a.agent, a.question, a.raised_us, coalesce(c.correlation, ''), "
            "a.answer, a.answered_us FROM attention a LEFT JOIN delivery d ON d.id = a.delivery "
            "LEFT JOIN conversation c ON c.id = d.conversation "
            "WHERE ? OR a.state = 'open' ORDER BY a.id DESC LIMIT ?",
            (answered_too, LIST_ROWS_MAX),
        )
        return [
            control.AttentionRequest(
                id=id_,
                agent=agent,
                question=question,
                raised_us=raised_us,
                correlation=correlation,
                answer=answer,
                answered_us=answered_us,
            )
            for id_, agent, question, raised_us, correlation, answer, answered_us in rows
        ]

    async def quarantines(self) -> dict[str, str | None]:
        """The agents whose quarantine a person was asked about, and the answer to the last such
        question; None while it is open."""
        rows = await self._reader.fetch(
            "SELECT agent, answer, max(id) FROM attention "
            "WHERE delivery IS NULL AND owner = ? GROUP BY agent",
            (BUS,),
        )
        return {agent: answer for agent, answer, _ in rows}

    async def quarantined_by(self, attention: int) -> str | None:
        """The agent that an open question of this number keeps in quarantine."""
        rows = await self._reader.fetch(
            "SELECT agent FROM attention "
            "WHERE id = ? AND state = 'open' AND delivery IS NULL AND owner = ?",
            (attention, BUS),
        )
        return rows[0][0] if rows else None

    async def open_quarantine(self, agent: str) -> int | None:
        """The number of the open question whether an agent may leave its quarantine."""
        rows = await self._reader.fetch(
            "SELECT max(id) FROM attention "
            "WHERE agent = ? AND state = 'open' AND delivery IS NULL AND owner = ?",
            (agent, BUS),
        )
        found: int | None = rows[0][0]
        return found

    async def versions(self, agent: str | None = None) -> list[Version]:
        """The components of an agent, or of all, the oldest first."""
        return await self._reader.view(versions_of, agent)

    async def undone(self, agent: str) -> "Undone":
        """What an agent has still to finish."""
        rows = await self._reader.fetch(
            "SELECT state, parked_reason, count(*) FROM delivery "
            "WHERE agent = ? AND state IN ('queued', 'leased', 'parked') GROUP BY 1, 2",
            (agent,),
        )
        waiting = sum(count for state, reason, count in rows if reason in WAITS_FOR_OTHERS)
        return Undone(pending=sum(row[2] for row in rows) - waiting, waiting=waiting)

    async def counts(self) -> "Counts":
        """How many of everything; one pass over the indexes."""
        deliveries = await self._reader.fetch("SELECT state, count(*) FROM delivery GROUP BY state")
        conversations = await self._reader.fetch(
            "SELECT state, count(*) FROM conversation GROUP BY state"
        )
        agents = await self._reader.fetch(
            "SELECT agent, sum(state IN ('queued', 'leased')), sum(state = 'parked'), "
            "sum(state = 'done') FROM delivery GROUP BY agent"
        )
        queued = await self._reader.fetch(
            "SELECT class, count(*) FROM delivery WHERE state = 'queued' GROUP BY class"
        )
        parked = await self._reader.fetch(
            "SELECT parked_reason, count(*) FROM delivery WHERE state = 'parked' GROUP BY 1"
        )
        memories = await self._reader.fetch("SELECT owner, count(*) FROM memory GROUP BY owner")
        ((attention, dead),) = await self._reader.fetch(
            "SELECT (SELECT count(*) FROM attention WHERE state = 'open'), "
            "(SELECT count(*) FROM dead_letter)"
        )
        return Counts(
            deliveries=dict(deliveries),
            conversations=dict(conversations),
            agents={agent: (pending, parked, done) for agent, pending, parked, done in agents},
            queued={PRIORITIES[class_]: number for class_, number in queued},
            parked=dict(parked),
            memories=dict(memories),
            attention_open=attention,
            dead_letters=dead,
        )


class Undone(msgspec.Struct, frozen=True):
    """Deliveries that an agent has to handle, and those that wait for something else first."""

    pending: int
    waiting: int


NOTHING_UNDONE: Final = Undone(pending=0, waiting=0)


class Counts(msgspec.Struct, frozen=True):
    """`agents` has pending, parked and done deliveries of each; `queued` counts by class, `parked`
    by what is waited for."""

    deliveries: dict[str, int]
    conversations: dict[str, int]
    agents: dict[str, tuple[int, int, int]]
    queued: dict[str, int]
    parked: dict[str, int]
    memories: dict[str, int]
    attention_open: int
    dead_letters: int


def _attempts(state: str, deaths: int) -> int:
    """Workers that began with it: the last of them did not die of it, but where it was given up."""
    return deaths if state == "dead" and deaths >= DEATHS_MAX else deaths + 1


def summary(request: str, result: str) -> str:
    """One line about a journal entry, for people."""
    asked: Any = msgspec.json.decode(request, type=Effect)
    got: Any = msgspec.json.decode(result, type=EffectResult)
    return summarise(asked, got)


def summarise(asked: Effect, got: EffectResult) -> str:
    """The same for decoded values: what was asked, what came of it."""
    return _cut(_question(asked) + _outcome(got))


def _question(asked: Effect) -> str:
    match asked:
        case Infer() | Weigh() | ListTasks():
            return ""
        case Recall(query=query):
            return repr(query)
        case UseTool(name=name, arguments=arguments):
            return f"{name}({_arguments(arguments)})"
        case Note(summary=told):
            return told
        case Offer(topic=topic, payload_bytes=size):
            return f"{topic}, {size} bytes"
        case ReadState(key=key):
            return repr(key)
        case EmitHealth(condition=condition, detail=detail):
            return f"{condition}: {detail}"


def _outcome(got: EffectResult) -> str:
    match got:
        case Inferred(text=text):
            return text
        case Weighed(verdict=verdict, preferences=preferences):
            nats = ", ".join(f"{option} {value:.1f}" for option, value in preferences.items())
            return f"{verdict.action}: {verdict.reason}" + (f" ({nats})" if nats else "")
        case Recalled(memories=memories):
            return f" → {len(memories)} memories"
        case ToolResult(ok=ok, output=output):
            return f" {'→' if ok else '✗'} {output}"
        case Noted():
            return ""
        case Offered(problem=problem):
            return " → yes" if problem is None else f" ✗ {problem.code}: {problem.message}"
        case StateValue(value=value):
            return " → nothing" if value is None else f" → {len(value)} bytes"
        case TaskList(tasks=tasks):
            return f" → {len(tasks)} tasks"
        case Refused(code=code, message=message):
            return f" ✗ {code}: {message}"


def _arguments(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_cut(str(value), 40)}" for name, value in arguments.items())


def _cut(text: str, limit: int = SUMMARY_CHARACTERS_MAX) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _owned(row: "list[Any] | tuple[Any, ...]") -> control.OwnedMemory:
    owner, id_, text, lesson, outcome, importance, created_us = row
    return control.OwnedMemory(
        agent=owner,
        memory=Memory(
            id=id_,
            text=f"{text} {lesson}".strip(),
            outcome=outcome,
            importance=importance,
            created_us=created_us,
        ),
    )


def _text(payload: bytes) -> str:
    return payload.decode("utf-8", "replace")


def _whole_or_cut(reply: str) -> str:
    encoded = reply.encode()
    if len(encoded) <= REPLY_BYTES_MAX:
        return reply
    return encoded[:REPLY_BYTES_MAX].decode(errors="ignore") + "…"
