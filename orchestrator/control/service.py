"""Serves the methods of the control socket. Thin: reads views, applies reducers, asks."""

import asyncio
import hashlib
from collections.abc import Callable
from difflib import get_close_matches
from typing import Final, Protocol

from ipc_protocol import control
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import (
    AGENTS,
    ANSWER,
    ASK,
    ATTENTION_ANSWER,
    ATTENTION_LIST,
    MEMORY,
    PUBLISH,
    SEND,
    SLOTS,
    STATUS,
    TASKS,
    TRACE,
    WATCH,
)
from ipc_protocol.values import Receipt
from orchestrator.bus import topics
from orchestrator.bus.attention import AnswerAttention, answer_attention
from orchestrator.bus.opening import Publish
from orchestrator.bus.routing import OPERATOR
from orchestrator.control.happenings import happening
from orchestrator.control.views import Views
from orchestrator.intake import Intake
from orchestrator.store.store import Store
from orchestrator.supervision.restart import RELEASE_WORDS, releases

WATCH_CHANGES_MAX: Final = 4096
"""Changes held for one slow watcher; what it misses beyond that is counted and shown."""

RETRY_HASH_DIGITS: Final = 32
"""128 bits: no two questions of one conversation have the same."""


class Running(Protocol):
    """The part of the daemon that operators ask about."""

    async def status(self) -> control.Status: ...

    async def agents(self) -> control.Agents: ...

    async def engines(self) -> list[control.EngineSummary]: ...

    async def recall(self, agent: str, query: str, limit: int) -> list[control.OwnedMemory]: ...

    @property
    def agent_names(self) -> list[str]: ...


class Service:
    def __init__(
        self,
        running: Running,
        store: Store,
        intake: Intake,
        views: Views,
        time_to_live_us: int,
        clock_us: Callable[[], int],
    ) -> None:
        self._clock_us = clock_us
        self._running = running
        self._store = store
        self._views = views
        self._intake = intake
        self._time_to_live_us = time_to_live_us

    def handlers(self) -> Handlers:
        return (
            Handlers()
            .add(STATUS, self._status)
            .add(AGENTS, self._agents)
            .add(ASK, self._ask)
            .add(ANSWER, self._answer)
            .add(SEND, self._send)
            .add(PUBLISH, self._publish)
            .add(WATCH, self._watch)
            .add(TRACE, self._trace)
            .add(SLOTS, self._slots)
            .add(MEMORY, self._memory)
            .add(TASKS, self._tasks)
            .add(ATTENTION_LIST, self._attention)
            .add(ATTENTION_ANSWER, self._answer_attention)
        )

    async def _status(self, _: Nothing, __: Call) -> control.Status:
        return await self._running.status()

    async def _agents(self, _: Nothing, __: Call) -> control.Agents:
        return await self._running.agents()

    async def _slots(self, _: Nothing, __: Call) -> control.Engines:
        return control.Engines(engines=await self._running.engines())

    # -- talking to agents

    async def _ask(self, ask: control.Ask, call: Call) -> Receipt:
        if not ask.text.strip():
            raise Failure("request.invalid", "The question is empty.", "Say what you want.")
        if ask.to is not None:
            self._require_agent(ask.to)
        topic = topics.USER_REQUEST if ask.to is None else topics.agent_topic(ask.to)
        payload = ask.text.encode()
        retry = _retry_id(ask.correlation, topic, payload)
        message = Publish(
            topic=topic,
            payloads=[payload],
            correlation=ask.correlation,
            priority=ask.priority,
            expires_us=self._expires_us(),
            message_ids=[] if retry is None else [retry],
            asked=True,
        )
        return (await self._intake.publish(call.connection, message)).receipt

    async def _send(self, send: control.Send, call: Call) -> Receipt:
        message = Publish(
            topic=send.topic,
            payloads=[send.payload],
            correlation=send.correlation,
            priority=send.priority,
            expires_us=self._expires_us(),
        )
        return (await self._intake.publish(call.connection, message)).receipt

    async def _publish(self, publish: control.Publish, call: Call) -> control.Published:
        message = Publish(
            topic=publish.topic,
            payloads=publish.payloads,
            correlation=publish.correlation,
            priority=publish.priority,
            expires_us=self._expires_us(),
            message_ids=publish.message_ids,
        )
        handled = publish.wait == "handled"
        accepted = await self._intake.publish(call.connection, message, handled=handled)
        return control.Published(
            messages=accepted.messages,
            correlations=accepted.correlations,
            subscribers=accepted.subscribers,
            repeated=accepted.repeated,
        )

    def _expires_us(self) -> int:
        return self._clock_us() + self._time_to_live_us

    async def _answer(self, wait: control.AwaitAnswer, _: Call) -> control.Conversation:
        kinds = {"conversation.answered"}
        with self._store.changes.subscribe(kinds, WATCH_CHANGES_MAX) as changes:
            await self._store.settle()
            conversation = await self._views.conversation(wait.correlation)
            while conversation.state != "answered":
                await anext(changes)
                conversation = await self._views.conversation(wait.correlation)
        return conversation

    async def _watch(self, watch: control.Watch, call: Call) -> Nothing:
        kinds = set(watch.kinds) or None
        with self._store.changes.subscribe(kinds, WATCH_CHANGES_MAX) as changes:
            async for change in changes:
                told = happening(change)
                if watch.correlation is None or told.lost or told.correlation == watch.correlation:
                    await call.send_item(told)
        return Nothing()

    # -- looking

    async def _trace(self, of: control.OfConversation, _: Call) -> control.Trace:
        return await self._views.trace(of.correlation)

    async def _memory(self, query: control.MemoryQuery, _: Call) -> control.Memories:
        if query.agent is not None:
            self._require_agent(query.agent)
        if query.query is None:
            memories = await self._views.newest_memories(query.agent, query.limit)
            return control.Memories(memories=memories)
        agents = self._running.agent_names if query.agent is None else [query.agent]
        # At once: each of them waits for a vector where the engine is away.
        by_agent = await asyncio.gather(
            *(self._running.recall(agent, query.query, query.limit) for agent in agents)
        )
        found = [memory for memories in by_agent for memory in memories]
        return control.Memories(memories=found[: query.limit] if query.agent else found)

    async def _tasks(self, of: control.OfAgent, _: Call) -> control.Tasks:
        if of.agent is not None:
            self._require_agent(of.agent)
        return control.Tasks(tasks=await self._views.tasks(of.agent))

    async def _attention(self, query: control.AttentionQuery, _: Call) -> control.AttentionRequests:
        requests = await self._views.attention(answered_too=query.all)
        return control.AttentionRequests(requests=requests)

    async def _answer_attention(self, answer: control.AttentionAnswer, _: Call) -> Nothing:
        agent = await self._views.quarantined_by(answer.id)
        if agent in self._running.agent_names and not releases(answer.text):
            raise Failure(
                "request.invalid",
                f"{agent} stays in quarantine and the question open, because the answer does not "
                "say that it is to be restarted.",
                f"To restart it, begin the answer with one of: {', '.join(RELEASE_WORDS)}.",
            )
        await self._store.apply(
            answer_attention, OPERATOR, AnswerAttention(attention=answer.id, text=answer.text)
        )
        return Nothing()

    def _require_agent(self, name: str) -> None:
        names = self._running.agent_names
        if name in names:
            return
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        cure = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(names)}."
        raise Failure("agent.unknown", f"There is no agent {name!r}.", cure)


def _retry_id(named: str | None, topic: str, payload: bytes) -> str | None:
    """The same question under the same name is the retry of a caller that lost its receipt.

    Another question, or one to somebody else, goes on with the conversation.
    """
    if named is None:
        return None
    asked = hashlib.sha256(topic.encode() + b"\0" + payload).hexdigest()[:RETRY_HASH_DIGITS]
    return f"ask:{named}:{asked}"
