"""Effects: what a worker asks of the world, done in its name and journaled before it sees it.

The order of every effect: find it in the journal, or check the budget, do it, write it down, then
answer. Authority lies here. The worker names what it wants; who it is, what it may and what it has
spent come from the configuration and the journal."""

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
    EmitHealth,
    Evidence,
    Infer,
    Inferred,
    ListTasks,
    Memory,
    Note,
    Noted,
    ReadState,
    Recall,
    Recalled,
    Refused,
    UseTool,
    Weigh,
    Weighed,
    effect_key,
)
from orchestrator import verdict
from orchestrator.budget import Allowance, Spent, over
from orchestrator.bus.journal import Append, append_journal, read_journal
from orchestrator.bus.store_effects import PerformInStore, StoreEffect, perform_in_store
from orchestrator.bus.tasks import tasks_of
from orchestrator.bus.tool_calls import calls_in_flight
from orchestrator.config.types import AgentConfig, Interface
from orchestrator.engines import EmbeddingEngine, LanguageEngine
from orchestrator.failpoints import reach
from orchestrator.metrics import Metrics
from orchestrator.preferences import Preferences
from orchestrator.store import memory
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store
from orchestrator.tool_calling import ToolCaller
from orchestrator.tools.tool import NeedsPerson, ToolContext

REFUSALS: Final = frozenset(
    {
        "egress.failed",
        "egress.refused",
        "inference.budget",
        "inference.context",
        "inference.culprit",
        "inference.deadline",
        "inference.schema",
        "inference.unavailable",
        "model.invalid",
    }
)
"""Failures that the loop is told as a result. Anything else ends the delivery's attempt."""

RECALLED_MAX: Final = 8
"""Memories of one recall, whatever the worker asks for: they all end up in a prompt."""

EFFECT_BYTES_MAX: Final = 256 * 1024
"""One request in the journal: a prompt of 64,000 tokens, or the largest file that can be written
four times over."""

JOURNAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""Requests and results of one delivery: a state of 16 MiB read twice over, at 4 bytes for 3 in
JSON. A loop without a component writes a tenth of it."""


INTERFACES: Final[dict[type[StoreEffect], Interface]] = {
    ReadState: "state",
    ListTasks: "tasks",
    EmitHealth: "health",
}
"""The interface of `agent-net:core` that an effect belongs to."""

OutsideEffect = Infer | Weigh | Recall | UseTool | Note
"""What the store does not perform itself."""


class NeedsAnswer(Exception):
    """The effect waits for a person: the delivery is parked, and the answer becomes its result."""

    def __init__(self, step: int, effect: UseTool, question: str) -> None:
        super().__init__(question)
        self.step = step
        self.effect = effect
        self.question = question


class Attempt(msgspec.Struct):
    """One attempt at a delivery: what it works on, how far it is, and what all have spent."""

    delivery: int
    incarnation: str
    priority: Priority
    message: str
    evidence: Evidence | None = None
    spent: Spent = Spent()
    """By all runs and attempts so far. What is replayed was spent before."""
    steps: int = 0
    """Effects that this attempt has seen."""


class _Done(msgspec.Struct, frozen=True):
    """What came of an effect, and what it cost the agent: tokens, and time that was not waiting."""

    result: EffectResult
    tokens: int = 0
    time_us: int = 0


class Effects:
    """Performs the effects of one agent."""

    def __init__(
        self,
        agent: AgentConfig,
        *,
        store: Store,
        reader: Reader,
        language: LanguageEngine | None,
        preferences: Preferences | None,
        preference_weight: float,
        embedding: EmbeddingEngine,
        tools: "Callable[[Effects], ToolContext]",
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        """`language` and `preferences` are None for an agent that needs no model."""
        self._agent = agent
        self._store = store
        self._reader = reader
        self._language = language
        self._preferences = preferences
        self._weight = preference_weight
        self._embedding = embedding
        self._caller = ToolCaller(agent.name, store, reader, tools(self))
        self._metrics = metrics
        self._clock_us = clock_us
        self._allowance = Allowance(
            steps=agent.limits.steps,
            tokens=agent.limits.tokens,
            time_us=agent.limits.time_us,
            component=agent.component is not None,
        )

    async def perform(self, attempt: Attempt, request: EffectRequest) -> EffectResult:
        """The result of one effect, from the journal or from the world.

        Raises `journal.mismatch`, `work.budget` for an effect beyond all of them,
        `work.unknown-delivery`, or `NeedsAnswer`.
        """
        effect, step = request.effect, request.step
        if step != attempt.steps + 1:
            raise Failure(
                "journal.mismatch",
                f"Step {step} was asked for, and {attempt.steps + 1} is next.",
                "A loop counts its effects from 1, and leaves none out.",
            )
        written = await self._reader.view(read_journal, attempt.delivery, step, effect)
        if written is None:
            written = await self._perform_anew(attempt, step, effect)
        attempt.steps = step
        return written

    async def _perform_anew(self, attempt: Attempt, step: int, effect: Effect) -> EffectResult:
        request_bytes = self._require_bounds(attempt, effect)
        if isinstance(effect, StoreEffect):
            self._require_grant(effect)
            done = await self._perform_in_store(attempt, step, effect)
        else:
            done = await self._perform_outside(attempt, step, effect)
        reach("effect.journaled")
        attempt.spent = attempt.spent.plus(
            tool=isinstance(effect, UseTool),
            tokens=done.tokens,
            time_us=done.time_us,
            journal_bytes=request_bytes + len(msgspec.json.encode(done.result)),
        )
        return done.result

    async def _perform_outside(self, attempt: Attempt, step: int, effect: OutsideEffect) -> _Done:
        started_us = self._clock_us()
        done = await self._do(attempt, step, effect)
        reach("effect.performed")
        entry = Append(
            delivery=attempt.delivery,
            incarnation=attempt.incarnation,
            step=step,
            effect=effect,
            result=done.result,
            started_us=started_us,
            tokens=done.tokens,
            charged_us=done.time_us,
        )
        # What is done has to be written down, however long that takes: else it is done again.
        result = await self._store.apply_when_room(append_journal, self._agent.name, entry)
        return msgspec.structs.replace(done, result=result)

    async def _perform_in_store(self, attempt: Attempt, step: int, effect: StoreEffect) -> _Done:
        asked = PerformInStore(
            delivery=attempt.delivery,
            incarnation=attempt.incarnation,
            step=step,
            effect=effect,
            started_us=self._clock_us(),
        )
        return _Done(await self._store.apply_when_room(perform_in_store, self._agent.name, asked))

    def _require_grant(self, effect: StoreEffect) -> None:
        """A component that imports what it was not granted is not started, so this is its worker's
        doing. The bus is everybody's."""
        interface = INTERFACES.get(type(effect))
        if interface is not None and interface not in self._agent.imports:
            raise Failure(
                "component.grant",
                f"{self._agent.name} was not granted {interface}.",
                f"Add {interface!r} to its `imports`.",
            )

    def _require_bounds(self, attempt: Attempt, effect: Effect) -> int:
        """What is refused is journaled too, so there is an end to refusals and to their size.

        Returns the size of the request.
        """
        if attempt.spent.effects >= self._allowance.effects:
            raise Failure(
                "work.budget",
                f"The delivery has used its {self._allowance.effects} effects.",
                "Its loop does not end; see the trace.",
            )
        size = len(effect_key(effect))
        if size > EFFECT_BYTES_MAX:
            raise Failure(
                "request.invalid",
                f"An effect of {size} bytes is over the limit of {EFFECT_BYTES_MAX}.",
            )
        if attempt.spent.journal_bytes + size > JOURNAL_BYTES_MAX:
            raise Failure(
                "work.budget",
                f"The journal of the delivery has reached its {JOURNAL_BYTES_MAX} bytes.",
                "Read and ask for less in one delivery; see the trace.",
            )
        return size

    async def _do(self, attempt: Attempt, step: int, effect: OutsideEffect) -> _Done:
        tool, infer = isinstance(effect, UseTool), isinstance(effect, Infer)
        reason = over(attempt.spent, self._allowance, tool=tool, infer=infer)
        # No budget changes what has begun already, and the agent has to know of it.
        begun = isinstance(effect, UseTool) and await self._caller.has_begun(
            attempt.delivery, step, effect
        )
        if reason is not None and not begun:
            return _Done(Refused(code="work.budget", message=reason))
        try:
            return await self._act(attempt, step, effect)
        except Failure as failure:
            if failure.code.startswith("inference."):
                self._metrics.inference_failed(attempt.priority, failure.code)
            if failure.code not in REFUSALS:
                raise
            return _Done(Refused(code=failure.code, message=str(failure)))

    async def _act(self, attempt: Attempt, step: int, effect: OutsideEffect) -> _Done:
        match effect:
            case Infer():
                return await self._infer(attempt, effect)
            case Weigh():
                return await self._weigh(attempt)
            case Recall():
                memories = await self.recall(effect.query, min(effect.limit, RECALLED_MAX))
                return _Done(Recalled(memories=memories))
            case UseTool():
                return await self._use_tool(attempt, step, effect)
            case Note():
                return _Done(Noted())
        assert_never(effect)

    async def _infer(self, attempt: Attempt, effect: Infer) -> _Done:
        if self._language is None:
            raise Failure(
                "inference.unavailable",
                f"{self._agent.name} has no model.",
                "Configure the `[model.NAME]` that the agent names.",
            )
        left = self._allowance.tokens - attempt.spent.tokens
        generated = await self._language.generate(
            Generate(
                agent=self._agent.name,
                priority=attempt.priority,
                messages=effect.messages,
                tokens_max=max(1, min(effect.tokens_max, left)),
                schema=effect.schema,
                sampling=self._agent.sampling,
                share=self._agent.limits.share,
            )
        )
        usage = generated.usage
        self._metrics.inference(self._agent.name, attempt.priority, usage)
        result = Inferred(text=generated.text, generated_tokens=usage.generated_tokens)
        return _Done(
            result,
            tokens=usage.generated_tokens,
            time_us=max(0, usage.total_us - usage.queue_us),
        )

    async def _weigh(self, attempt: Attempt) -> _Done:
        """The verdict on the delivery's own evidence. What the model is asked is shared by all that
        have the message, so nobody is charged for it."""
        evidence = attempt.evidence
        if evidence is None:
            raise Failure("request.invalid", "The delivery has no evidence to weigh.")
        preferences: dict[str, float] = {}
        if self._weight > 0 and self._preferences is not None:
            asked = verdict.options(evidence)
            # Without the model, screening decides alone.
            with contextlib.suppress(Failure):
                preferences = await self._preferences.of(attempt.message, asked, attempt.priority)
        found = verdict.decide(evidence, preferences, self._weight)
        return _Done(Weighed(verdict=found, preferences=preferences))

    async def recall(self, query: str, limit: int) -> list[Memory]:
        """The agent's own memories that fit `query`, by words and by meaning."""
        vector: bytes | None = None
        with contextlib.suppress(Failure):
            # Without the engine memories are still found by their words.
            (vector,) = (await self._embedding.embed([query])).vectors
        return await self._reader.view(
            memory.search, self._agent.name, query, vector, limit, self._clock_us()
        )

    async def unfinished_tasks(self) -> list[int]:
        """The numbers of the agent's tasks that are not done or dropped."""
        tasks = await self._reader.view(tasks_of, self._agent.name, unfinished=True)
        return [task.id for task in tasks]

    async def calls_in_flight(self) -> frozenset[str]:
        """The keys of the agent's tool calls of which nobody knows yet what came of them."""
        return await self._reader.view(calls_in_flight, self._agent.name)

    async def _use_tool(self, attempt: Attempt, step: int, effect: UseTool) -> _Done:
        began_us = self._clock_us()
        outcome = await self._caller.call(attempt.delivery, attempt.incarnation, step, effect)
        if isinstance(outcome, NeedsPerson):
            raise NeedsAnswer(step, effect, outcome.question)
        took_us = max(0, self._clock_us() - began_us)
        self._metrics.tool_call(effect.name, took_us / 1e6, ok=outcome.ok)
        return _Done(outcome, time_us=took_us)
