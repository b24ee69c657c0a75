"""The lane of one agent: one delivery at a time, from the lease to what becomes of it.

A delivery in the worker's hands ends in exactly one of five ways: its completion is applied; an
effect parks it; the worker dies of it, or hangs; something that passes is in the way, and it is
tried again; or it is refused for good, as is whatever a worker sends that cannot be applied.

A component that traps, or uses up what one call may have, is the death of its worker: the worker
says so, and is then of no more use. What it said is kept for the trace.

A worker on probation is on trial, and not what it is given: what it dies of, or uses up a budget
with, goes back to the queue as it came.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from ipc_protocol.aio import Call
from ipc_protocol.errors import Failure
from ipc_protocol.methods import WORKER_HANDLE
from ipc_protocol.work import (
    Completion,
    Effect,
    EffectRequest,
    EffectResult,
    EmitHealth,
    Infer,
    Note,
    Phase,
    Recall,
    Refused,
    UseTool,
    Weigh,
)
from orchestrator.bus.attention import RequestAttention, request_attention
from orchestrator.bus.completion import Complete, complete, require_limits
from orchestrator.bus.leasing import Fail, Leased, Park, fail, park
from orchestrator.bus.observations import Span, record_span
from orchestrator.bus.routing import BUS
from orchestrator.deaths import TRAPS, Trap, cause_of_death
from orchestrator.effects import Attempt, Effects, NeedsAnswer
from orchestrator.engines import EmbeddingEngine
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store
from orchestrator.supervision.hang import WORKER_PATIENCE_US
from orchestrator.turn import TURN, Turn
from orchestrator.workers import Worker

log = logging.getLogger(__name__)

PASSING: Final = frozenset({"store.full", "inference.busy"})
"""Failures of the daemon's own side that are nobody's fault and pass."""

RETRY_US: Final = 1_000_000
"""Until a delivery is tried again that such a failure has stopped."""

TOOL_SECONDS_MAX: Final = 10.0
"""A tool that has not come to its end by then hangs, as one on a dead network mount may."""

DIVERGED: Final = "journal.mismatch"

OVER_BUDGET: Final = "work.budget"

TRAP_SPAN: Final = "trap"
"""The name of the span that keeps such an answer beside its delivery."""

Interruption = Literal["parked", "hung", "withdrawn"]
"""What ends an attempt before the worker has: an effect that waits for a person, a worker that does
nothing, or one that takes an effect back, which only its own death excuses."""


EndingKind = Literal["completed", "parked", "retried", "refused"]

LINE_CODES: Final = "protocol."
"""How the failures of the line itself begin: they are no answer."""


class Ending(msgspec.Struct, frozen=True):
    """How a delivery left the hands of a worker that lives."""

    kind: EndingKind
    condition: EmitHealth | None = None
    """What the agent said of itself meanwhile, if that was not good."""

    left: bool = False
    """The worker was left in the middle of it: what it waited for failed, or will be long."""

    exceeded: str = ""
    """Which of its budgets the delivery has used up, in words."""


class _Work(msgspec.Struct):
    """The delivery in the worker's hands."""

    worker: Worker
    leased: Leased
    attempt: Attempt
    interrupted: "asyncio.Future[Interruption]"
    over: asyncio.Event
    """Nobody waits for its effects any more."""
    began_us: int
    phase_us: int
    trial: bool = False
    """The worker is on probation: what it fails at is not held against the delivery."""
    answered: bool = False
    """The worker itself has said how it ended."""
    condition: EmitHealth | None = None
    phase: Phase | None = None
    turn: Turn = "working"
    obstacle: Failure | None = None
    """What an effect met that is not the worker's doing."""
    exceeded: str = ""
    """What it was refused for having used up a budget."""
    tool: "asyncio.Task[EffectResult] | None" = None
    """A tool call under way. It goes on when the worker dies, until it is written down."""
    timer: asyncio.TimerHandle | None = None

    def interrupt(self, why: Interruption) -> None:
        if not self.interrupted.done():
            self.interrupted.set_result(why)
        self.turn = TURN.after(self.turn, "end")

    @property
    def hung(self) -> bool:
        return self.interrupted.done() and self.interrupted.result() == "hung"


_REASONS: Final[dict[Interruption, str]] = {
    "hung": f"The worker did nothing for {WORKER_PATIENCE_US / 1e6:g} s.",
    "withdrawn": "The worker took back an effect that it had asked for.",
}


class Lane:
    """Handles the deliveries of one agent, one at a time."""

    def __init__(
        self,
        agent: str,
        *,
        store: Store,
        effects: Effects,
        embedding: EmbeddingEngine,
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        self._agent = agent
        self._store = store
        self._effects = effects
        self._embedding = embedding
        self._metrics = metrics
        self._clock_us = clock_us
        self._work: _Work | None = None

    # -- for reading

    @property
    def delivery(self) -> int | None:
        return None if self._work is None else self._work.attempt.delivery

    @property
    def phase(self) -> str:
        return "" if self._work is None else self._work.phase or ""

    # -- one delivery

    async def handle(
        self, worker: Worker, incarnation: str, leased: Leased, *, trial: bool = False
    ) -> Ending:
        """See one delivery to its end. Raises `Failure` when the worker is of no more use.

        With `trial`, its death and its spending are not held against the delivery.
        """
        handle, envelope = leased.handle, leased.handle.envelope
        attempt = Attempt(
            delivery=handle.delivery,
            incarnation=incarnation,
            priority=envelope.priority,
            message=envelope.payload.decode(errors="replace"),
            evidence=handle.beginning.evidence,
            spent=leased.spent,
        )
        interrupted: asyncio.Future[Interruption] = asyncio.get_running_loop().create_future()
        now_us = self._clock_us()
        work = self._work = _Work(
            worker,
            leased,
            attempt,
            interrupted,
            asyncio.Event(),
            began_us=now_us,
            phase_us=now_us,
            trial=trial,
        )
        self._expect_progress(work)
        try:
            kind = await self._see_through(work)
            left = kind == "parked" or work.obstacle is not None
            return Ending(kind, work.condition, left, work.exceeded)
        finally:
            await self._end_turn(work)
            work.over.set()
            self._work = None

    async def _see_through(self, work: _Work) -> EndingKind:
        try:
            completion = await self._completion(work)
        except Failure as failure:
            await self._end_turn(work)
            met = work.obstacle
            if met is None and work.answered and failure.code in TRAPS:
                await self._trapped(work, failure)
                raise
            if not work.answered and (work.worker.connection.closed or work.hung):
                await self._died(work)
                raise
            return await self._refuse_or_retry(work, met or failure, own=met is not None)
        await self._end_turn(work)
        if completion is None:
            return "parked"
        try:
            await self._apply(work, completion)
        except Failure as failure:
            return await self._refuse_or_retry(work, failure, own=True)
        except Exception as error:
            # Whatever a worker sends must not end more than its own delivery.
            log.exception("a completion of %s could not be applied", self._agent)
            refused = Failure("work.refused", f"{type(error).__name__}: {error}.")
            return await self._refuse_or_retry(work, refused, own=True)
        return "completed"

    async def _completion(self, work: _Work) -> Completion | None:
        """What the worker makes of it; None when it was parked. Raises `Failure`."""
        line = work.worker.connection
        call = asyncio.ensure_future(line.call(WORKER_HANDLE, work.leased.handle))
        try:
            await asyncio.wait((call, work.interrupted), return_when=asyncio.FIRST_COMPLETED)
            if not work.interrupted.done():
                return _answer(work, call)
            why = work.interrupted.result()
            if why == "parked":
                return None
            raise Failure("work.refused", _REASONS[why])
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def _end_turn(self, work: _Work) -> None:
        """Take nothing more from the worker, and wait for a tool that has begun: a retry has to
        find it done."""
        work.turn = TURN.after(work.turn, "end")
        self._stop_expecting(work)
        if work.tool is not None and not work.tool.done():
            await asyncio.wait((work.tool,), timeout=TOOL_SECONDS_MAX)
            work.tool.cancel()
            await asyncio.gather(work.tool, return_exceptions=True)

    async def _apply(self, work: _Work, completion: Completion) -> None:
        require_limits(completion)
        memories = [f"{entry.text} {entry.lesson}" for entry in completion.memories]
        vectors: list[bytes | None] = []
        if memories:
            # A memory without a vector is still found by its words.
            with contextlib.suppress(Failure):
                vectors.extend(await self._embedding.embed(memories))
        attempt = work.attempt
        request = Complete(
            delivery=attempt.delivery,
            incarnation=attempt.incarnation,
            completion=completion,
            vectors=vectors,
        )
        completed = await self._store.apply(complete, self._agent, request)
        self._enter_phase(work, None)
        if completed.state == "done":
            seconds = (self._clock_us() - work.leased.handle.envelope.sent_us) / 1e6
            self._metrics.delivery_done(self._agent, attempt.priority, completion.outcome, seconds)

    # -- when it does not come to a completion

    async def _died(self, work: _Work) -> None:
        """Count the death, if it was the worker's own, and queue the delivery in its place."""
        component = bool(work.leased.handle.beginning.component)
        own, reason = await cause_of_death(work.worker, hung=work.hung, component=component)
        await self._end(work, reason, worker_died=own and not work.trial, final=False)

    async def _trapped(self, work: _Work, failure: Failure) -> None:
        """The same for a death that the worker explains, with all that it says."""
        trap = Trap.of(failure)
        log.warning("worker/%s: %s %s\n%s", self._agent, trap.code, trap.message, trap.backtrace)
        self._metrics.component_trapped(self._agent, trap.code)
        span = Span(
            name=TRAP_SPAN,
            delivery=work.attempt.delivery,
            started_us=work.began_us,
            finished_us=max(work.began_us, self._clock_us()),
            data={
                **msgspec.structs.asdict(trap),
                "component": work.leased.handle.beginning.component,
            },
        )
        await self._store.apply_when_room(record_span, BUS, span)
        await self._end(work, trap.message, worker_died=not work.trial, final=False)

    async def _refuse_or_retry(self, work: _Work, failure: Failure, *, own: bool) -> EndingKind:
        """Park what met an obstacle that passes; give up what can never be, unless another version
        may do it with less."""
        if work.trial and work.exceeded:
            await self._end(work, str(failure), worker_died=False, final=False)
            return "retried"
        if not (own and failure.code in PASSING):
            # A component may depend on memory of its own, which its worker's death has taken.
            anew = failure.code == DIVERGED and bool(work.leased.handle.beginning.component)
            await self._end(work, str(failure), worker_died=False, final=True, anew=anew)
            return "refused"
        again = Park(
            delivery=work.attempt.delivery,
            incarnation=work.attempt.incarnation,
            reason="retry",
            until_us=self._clock_us() + RETRY_US,
            on=str(failure),
        )
        self._metrics.delivery_retried(self._agent)
        await self._store.apply_when_room(park, BUS, again)
        return "retried"

    async def _end(
        self, work: _Work, error: str, *, worker_died: bool, final: bool, anew: bool = False
    ) -> None:
        ended = Fail(
            delivery=work.attempt.delivery,
            incarnation=work.attempt.incarnation,
            error=error,
            worker_died=worker_died,
            final=final,
            anew=anew,
        )
        state = await self._store.apply_when_room(fail, BUS, ended)
        if state == "dead":
            seconds = (self._clock_us() - work.leased.handle.envelope.sent_us) / 1e6
            self._metrics.delivery_done(self._agent, work.attempt.priority, "dead", seconds)
        else:
            self._metrics.delivery_retried(self._agent)

    # -- effects

    async def on_effect(self, request: EffectRequest, call: Call) -> EffectResult:
        """Serve `work.effect` on the worker's line: one at a time, while it is its turn."""
        work = self._work
        if (
            work is None
            or call.connection is not work.worker.connection
            or work.attempt.delivery != request.delivery
            or work.turn == "ended"
        ):
            raise Failure(
                "work.unknown-delivery", f"Delivery {request.delivery} is not in your hands."
            )
        if work.turn == "performing":
            raise Failure("request.invalid", "An effect is under way.", "Ask one at a time.")
        work.turn = TURN.after(work.turn, "ask")
        self._stop_expecting(work)
        self._enter_phase(work, _phase_of(request.effect, work.phase))
        try:
            result = await self._perform(work, request)
            self._listen(work, request.effect, result)
            return result
        except asyncio.CancelledError:
            work.interrupt("withdrawn")
            raise
        finally:
            work.turn = TURN.after(work.turn, "answer")
            self._expect_progress(work)

    async def _perform(self, work: _Work, request: EffectRequest) -> EffectResult:
        try:
            performing = self._effects.perform(work.attempt, request)
            if not isinstance(request.effect, UseTool):
                return await performing
            work.tool = asyncio.create_task(performing)
            return await asyncio.shield(work.tool)
        except NeedsAnswer as question:
            await self._ask_person(work, question)
            # The worker is told to let go of the delivery, not that its effect has failed.
            await work.over.wait()
            raise Failure("request.cancelled", "The delivery waits for a person.") from question
        except Failure as failure:
            work.obstacle = failure
            if failure.code == OVER_BUDGET:
                work.exceeded = failure.problem.message
            raise

    def _listen(self, work: _Work, effect: Effect, result: EffectResult) -> None:
        """Remember what an agent says of itself that is not good, and what it wants too much of."""
        if isinstance(result, Refused):
            if result.code == OVER_BUDGET:
                work.exceeded = result.message
        elif isinstance(effect, EmitHealth):
            work.condition = work.condition if effect.condition == "healthy" else effect

    async def _ask_person(self, work: _Work, question: NeedsAnswer) -> None:
        await self._store.apply_when_room(
            request_attention,
            self._agent,
            RequestAttention(
                delivery=work.attempt.delivery,
                incarnation=work.attempt.incarnation,
                step=question.step,
                effect=question.effect,
                question=question.question,
            ),
        )
        work.interrupt("parked")

    def _enter_phase(self, work: _Work, phase: Phase | None) -> None:
        if phase == work.phase:
            return
        now_us = self._clock_us()
        if work.phase is not None:
            self._metrics.phase(work.phase, (now_us - work.phase_us) / 1e6)
        work.phase, work.phase_us = phase, now_us

    # -- hanging: only between an answer to the worker and its next sign of life

    def _expect_progress(self, work: _Work) -> None:
        if work.turn == "working":
            loop = asyncio.get_running_loop()
            work.timer = loop.call_later(WORKER_PATIENCE_US / 1e6, work.interrupt, "hung")

    def _stop_expecting(self, work: _Work) -> None:
        if work.timer is not None:
            work.timer.cancel()
            work.timer = None


def _phase_of(effect: Effect, before: Phase | None) -> Phase:
    match effect:
        case Infer(phase=phase) | Weigh(phase=phase) | Recall(phase=phase) | Note(phase=phase):
            return phase
        case _:
            return before or "act"


def _answer(work: _Work, call: "asyncio.Future[Completion]") -> Completion:
    """What the worker has answered, which counts even if it went away right after it."""
    try:
        return call.result()
    except Failure as failure:
        work.answered = not failure.code.startswith(LINE_CODES)
        raise
