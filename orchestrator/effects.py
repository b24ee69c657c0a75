"""Effects: what a worker asks of the world, done in its name and journaled before it sees it.

The order of every effect: find it in the journal, or check the budget, do it, write it down, then
answer. Authority lies here. The worker names what it wants; who it is, what it may and what it has
spent come from the configuration and the journal.
"""

import contextlib
from collections.abc import Callable
from typing import Final, assert_never

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.inference import Generate
from ipc_protocol.values import Priority
from ipc_protocol.work import (
    Effect,
    EffectRequest,
    EffectResult,
    Infer,
    Inferred,
    Memory,
    Note,
    Noted,
    Recall,
    Recalled,
    Refused,
    ToolResult,
    UseTool,
    Weigh,
    Weighed,
)
from orchestrator import verdict
from orchestrator.budget import Allowance, Spent, over
from orchestrator.bus.journal import Append, append_journal, read_journal
from orchestrator.bus.tasks import tasks_of
from orchestrator.config.types import AgentConfig
from orchestrator.engines import EmbeddingEngine, LanguageEngine
from orchestrator.metrics import Metrics
from orchestrator.preferences import Preferences
from orchestrator.store import memory
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store
from orchestrator.tools.catalogue import CATALOGUE
from orchestrator.tools.tool import NeedsPerson, ToolContext

REFUSALS: Final = frozenset(
    {"inference.budget", "inference.context", "inference.unavailable", "inference.schema"}
)
"""Failures that the loop is told as a result. Anything else ends the delivery's attempt."""

MEMORIES_MAX: Final = 8
"""Recalled at once, whatever the worker asks for: they all end up in a prompt."""


class NeedsAnswer(Exception):
    """The effect waits for a person: the delivery is parked, and the answer becomes its result."""

    def __init__(self, step: int, effect: UseTool, question: str) -> None:
        super().__init__(question)
        self.step = step
        self.effect = effect
        self.question = question


class Lease(msgspec.Struct):
    """A delivery in work, and what its present run has spent."""

    delivery: int
    incarnation: str
    correlation: str
    priority: Priority
    spent: Spent = Spent()


class _Done(msgspec.Struct, frozen=True):
    """What came of an effect, and what it cost. `waited_us` is not the agent's own time."""

    result: EffectResult
    tokens: int = 0
    waited_us: int = 0


class Effects:
    """Performs the effects of one agent."""

    def __init__(
        self,
        agent: AgentConfig,
        *,
        store: Store,
        reader: Reader,
        language: LanguageEngine,
        preferences: Preferences,
        preference_weight: float,
        embedding: EmbeddingEngine,
        tools: "Callable[[Effects], ToolContext]",
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        self._agent = agent
        self._store = store
        self._reader = reader
        self._language = language
        self._preferences = preferences
        self._weight = preference_weight
        self._embedding = embedding
        self._tools = tools(self)
        self._metrics = metrics
        self._clock_us = clock_us
        self._allowance = Allowance(
            steps=agent.limits.steps, tokens=agent.limits.tokens, time_us=agent.limits.time_us
        )

    async def perform(self, lease: Lease, request: EffectRequest) -> EffectResult:
        """The result of one effect, from the journal or from the world.

        Raises `journal.mismatch`, `work.unknown-delivery`, or `NeedsAnswer`.
        """
        effect, step = request.effect, request.step
        if step != lease.spent.effects + 1:
            raise Failure(
                "journal.mismatch",
                f"Step {step} was asked for, and {lease.spent.effects + 1} is next.",
                "A loop counts its effects from 1, and leaves none out.",
            )
        written = await self._reader.view(read_journal, lease.delivery, step, effect)
        if written is not None:
            self._account(lease, effect, _Done(written, tokens=_tokens(written)), 0)
            return written
        started_us = self._clock_us()
        done = await self._do(lease, step, effect)
        self._account(lease, effect, done, self._clock_us() - started_us)
        entry = Append(
            delivery=lease.delivery,
            incarnation=lease.incarnation,
            step=step,
            effect=effect,
            result=done.result,
            started_us=started_us,
            tokens=done.tokens,
        )
        # What was done cannot be undone: its entry waits for room where there is none.
        return await self._store.apply_when_room(append_journal, self._agent.name, entry)

    def _account(self, lease: Lease, effect: Effect, done: _Done, took_us: int) -> None:
        lease.spent = lease.spent.plus(
            tool=isinstance(effect, UseTool),
            tokens=done.tokens,
            time_us=max(0, took_us - done.waited_us),
        )

    async def _do(self, lease: Lease, step: int, effect: Effect) -> _Done:
        tool, infer = isinstance(effect, UseTool), isinstance(effect, Infer | Weigh)
        reason = over(lease.spent, self._allowance, tool=tool, infer=infer)
        if reason is not None:
            return _Done(Refused(code="work.budget", message=reason))
        try:
            return await self._act(lease, step, effect)
        except Failure as failure:
            if failure.code.startswith("inference."):
                self._metrics.inference_failed(lease.priority, failure.code)
            if failure.code not in REFUSALS:
                raise
            return _Done(Refused(code=failure.code, message=str(failure)))

    async def _act(self, lease: Lease, step: int, effect: Effect) -> _Done:
        match effect:
            case Infer():
                return await self._infer(lease, effect)
            case Weigh():
                return await self._weigh(lease, effect)
            case Recall():
                memories = await self.recall(effect.query, min(effect.limit, MEMORIES_MAX))
                return _Done(Recalled(memories=memories))
            case UseTool():
                return _Done(await self._use_tool(step, effect))
            case Note():
                return _Done(Noted())
        assert_never(effect)

    async def _infer(self, lease: Lease, effect: Infer) -> _Done:
        left = self._allowance.tokens - lease.spent.tokens
        generated = await self._language.generate(
            Generate(
                agent=self._agent.name,
                priority=lease.priority,
                messages=effect.messages,
                tokens_max=max(1, min(effect.tokens_max, left)),
                schema=effect.schema,
                sampling=self._agent.sampling,
            )
        )
        self._metrics.inference(self._agent.name, lease.priority, generated.usage)
        tokens = generated.usage.generated_tokens
        result = Inferred(text=generated.text, generated_tokens=tokens)
        return _Done(result, tokens=tokens, waited_us=generated.usage.queue_us)

    async def _weigh(self, lease: Lease, effect: Weigh) -> _Done:
        evidence = effect.evidence
        preferences: dict[str, float] = {}
        if self._weight > 0:
            asked = verdict.options(evidence)
            # Without the model, screening decides alone.
            with contextlib.suppress(Failure):
                preferences = await self._preferences.of(effect.message, asked, lease.priority)
        found = verdict.decide(evidence, preferences, self._weight)
        return _Done(Weighed(verdict=found, preferences=preferences))

    async def recall(self, query: str, limit: int) -> list[Memory]:
        """The agent's own memories that fit `query`, by words and by meaning."""
        vector: bytes | None = None
        with contextlib.suppress(Failure):
            # Without the engine memories are still found by their words.
            (vector,) = await self._embedding.embed([query])
        return await self._reader.view(
            memory.search, self._agent.name, query, vector, limit, self._clock_us()
        )

    async def unfinished_tasks(self) -> list[int]:
        """The numbers of the agent's tasks that are not done or dropped."""
        tasks = await self._reader.view(tasks_of, self._agent.name, unfinished=True)
        return [task.id for task in tasks]

    async def _use_tool(self, step: int, effect: UseTool) -> ToolResult:
        began_us = self._clock_us()
        outcome = await CATALOGUE.run(effect.name, effect.arguments, self._tools)
        if isinstance(outcome, NeedsPerson):
            raise NeedsAnswer(step, effect, outcome.question)
        seconds = (self._clock_us() - began_us) / 1e6
        self._metrics.tool_call(effect.name, seconds, ok=outcome.ok)
        return outcome


def _tokens(result: EffectResult) -> int:
    return result.generated_tokens if isinstance(result, Inferred) else 0
