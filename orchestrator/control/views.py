"""What the store says, in the shapes that operators see. Reads only, on a connection of its own."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from ipc_protocol import control
from ipc_protocol.errors import Failure
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from ipc_protocol.values import PRIORITIES
from orchestrator.bus.routing import BUS
from orchestrator.bus.rows import ParkedReason
from orchestrator.bus.tasks import tasks_of
from orchestrator.bus.versions import Version, versions_of
from orchestrator.control.tracing import memory_of, read_trace
from orchestrator.store.reader import Reader

LIST_ROWS_MAX: Final = 500
"""The longest list in one answer: ten screens. Older rows are reached by narrower questions."""

REPLY_BYTES_MAX: Final = FRAME_BODY_BYTES_MAX // 4
"""Of a reply in one answer. A composed one is far shorter; one that only joins the contributions of
many agents need not be."""

WAITS_FOR_OTHERS: Final[frozenset[ParkedReason]] = frozenset({"deferred", "attention", "job"})
"""What a parked delivery may wait for that no agent hastens."""


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
        return await self._reader.view(read_trace, conversation)

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

    async def most_urgent(self) -> dict[str, int]:
        """The class of the most urgent delivery that waits for each agent, as its rank."""
        rows = await self._reader.fetch(
            "SELECT agent, min(class) FROM delivery"
            " WHERE state = 'queued' AND finished_us IS NULL AND screened = 1 GROUP BY agent"
        )
        return dict(rows)

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
            "WHERE agent = ? AND finished_us IS NULL GROUP BY 1, 2",
            (agent,),
        )
        waiting = sum(count for state, reason, count in rows if reason in WAITS_FOR_OTHERS)
        return Undone(pending=sum(row[2] for row in rows) - waiting, waiting=waiting)

    async def counts(self) -> "Counts":
        """How many of everything: an index has what is unfinished, one pass counts the rest."""
        finished = await self._reader.fetch(
            "SELECT agent, sum(state = 'done'), sum(state = 'dead') FROM delivery "
            "WHERE finished_us IS NOT NULL GROUP BY agent"
        )
        unfinished = await self._reader.fetch(
            "SELECT agent, state, class, parked_reason, count(*) FROM delivery "
            "WHERE finished_us IS NULL GROUP BY 1, 2, 3, 4"
        )
        conversations = await self._reader.fetch(
            "SELECT state, count(*) FROM conversation GROUP BY state"
        )
        memories = await self._reader.fetch("SELECT owner, count(*) FROM memory GROUP BY owner")
        ((attention, dead),) = await self._reader.fetch(
            "SELECT (SELECT count(*) FROM attention WHERE state = 'open'), "
            "(SELECT count(*) FROM dead_letter)"
        )
        return Counts(
            **_delivery_counts(finished, unfinished),
            conversations=dict(conversations),
            memories=dict(memories),
            attention_open=attention,
            dead_letters=dead,
        )


def _delivery_counts(
    finished: Iterable[tuple[Any, ...]], unfinished: Iterable[tuple[Any, ...]]
) -> dict[str, Any]:
    """Those fields of `Counts` that are about deliveries."""
    deliveries: Counter[str] = Counter()
    queued: Counter[str] = Counter()
    parked: Counter[str] = Counter()
    agents: dict[str, list[int]] = {}
    for agent, done, dead in finished:
        deliveries.update(done=done, dead=dead)
        agents[agent] = [0, 0, done]
    for agent, state, rank, reason, count in unfinished:
        deliveries[state] += count
        agents.setdefault(agent, [0, 0, 0])[state == "parked"] += count
        if state == "queued":
            queued[PRIORITIES[rank]] += count
        if state == "parked":
            parked[reason] += count
    return {
        "deliveries": dict(+deliveries),
        "agents": {agent: tuple(counts) for agent, counts in agents.items()},
        "queued": dict(queued),
        "parked": dict(parked),
    }


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


def _owned(row: tuple[Any, ...]) -> control.OwnedMemory:
    return control.OwnedMemory(agent=row[0], memory=memory_of(row[1:]))


def _text(payload: bytes) -> str:
    return payload.decode("utf-8", "replace")


def _whole_or_cut(reply: str) -> str:
    encoded = reply.encode()
    if len(encoded) <= REPLY_BYTES_MAX:
        return reply
    return encoded[:REPLY_BYTES_MAX].decode(errors="ignore") + "…"
