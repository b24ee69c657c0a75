"""The lane of one agent: its deliveries in order, from the hand-over to what becomes of them.

They go to the worker in batches, one of which it works on at a time. Of each delivery in its hands
comes exactly one of five things: its completion is applied; an effect parks it; the worker dies of
it, or hangs; something that passes is in the way, and it is tried again; or it is refused for good,
as is whatever a worker sends that cannot be applied. What the worker has not begun then is queued
again.

A component that traps, or uses up what one call may have, is the death of its worker: the worker
says so, and is then of no more use. What it said is kept for the trace. Where a worker dies with
several deliveries in its hands and says nothing, nobody knows which one it was: none of them is
blamed, and each is then tried alone.

A worker on probation is on trial, and not what it is given: what it dies of, or uses up a budget
with, goes back to the queue as it came.

Something more urgent parks the delivery in work before its next effect, and at once where that is
a question to the model: it resumes from its journal, which loses at most that answer.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from ipc_protocol.aio import Call
from ipc_protocol.errors import Failure
from ipc_protocol.methods import WORKER_HANDLE
from ipc_protocol.values import PRIORITIES
from ipc_protocol.work import (
    Done,
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
    Work,
)
from orchestrator.applying import PASSING, Applying
from orchestrator.batch import REASONS, Batch, Ending, EndingKind, Interruption
from orchestrator.budget import Spent
from orchestrator.bus.attention import RequestAttention, request_attention
from orchestrator.bus.handing import GivenBack, Leased
from orchestrator.bus.leasing import GiveWay, Park, Release, give_way, park, release
from orchestrator.bus.observations import Span, record_span
from orchestrator.bus.routing import BUS
from orchestrator.deaths import TRAPS, Trap, cause_of_death
from orchestrator.effects import Attempt, Effects, NeedsAnswer
from orchestrator.engines import EmbeddingEngine
from orchestrator.failpoints import reach
from orchestrator.metrics import Metrics
from orchestrator.pace import BATCH_BYTES_MAX, BATCH_MAX, Pace
from orchestrator.store.store import Store
from orchestrator.supervision.hang import WORKER_PATIENCE_US
from orchestrator.turn import TURN
from orchestrator.workers import Worker

log = logging.getLogger(__name__)

RETRY_US: Final = 1_000_000
"""Until a delivery is tried again that such a failure has stopped."""

TOOL_SECONDS_MAX: Final = 10.0
"""A tool that has not come to its end by then hangs, as one on a dead network mount may."""

PREEMPTIONS_MAX: Final = 3
"""How often one delivery gives way to something more urgent. Each time may cost it an answer of the
model, and it has to come to an end."""

PREEMPTED_MAX: Final = 1024
"""Deliveries of which that is counted. Those that have ended otherwise than done are among them."""

DIVERGED: Final = "journal.mismatch"

OVER_BUDGET: Final = "work.budget"

TRAP_SPAN: Final = "trap"
"""The name of the span that keeps such an answer beside its delivery."""

LINE_CODES: Final = "protocol."
"""How the failures of the line itself begin: they are no answer."""


class Lane:
    """Handles the deliveries of one agent, one after the other."""

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
        self._metrics = metrics
        self._clock_us = clock_us
        self._work: Batch | None = None
        self._arrived: list[tuple[int, int, Leased]] = []  # bound: the credit of its worker
        """A heap by class and number: what goes to the worker next."""
        self._urgent: int | None = None
        """The class of the most urgent that waits behind what is leased."""
        self._pace = Pace()
        self._suspects = 0
        """Deliveries one of which a worker may have died of: so many are tried alone."""
        self._preempted: dict[int, int] = {}
        """How often deliveries have given way."""
        self._applying = Applying(
            agent, store=store, embedding=embedding, metrics=metrics, clock_us=clock_us
        )

    # -- for reading

    @property
    def delivery(self) -> int | None:
        return None if self._work is None else self._work.delivery.delivery

    @property
    def phase(self) -> str:
        return "" if self._work is None else self._work.phase or ""

    @property
    def window(self) -> int:
        """How many deliveries it is worth to have at hand."""
        return 1 if self._suspects else self._pace.window

    @property
    def waits(self) -> bool:
        """It has nothing to hand over."""
        return not self._arrived

    # -- what is leased

    def take(self, leased: Leased | GivenBack) -> None:
        """One more, which goes to the worker in its turn; or none of those that have come."""
        if isinstance(leased, GivenBack):
            self.drop()
        else:
            delivery = leased.delivery
            heapq.heappush(self._arrived, (delivery.rank, delivery.delivery, leased))
            self._let_go_first()

    def drop(self) -> None:
        """Forget what has not gone to the worker; its lease is given back."""
        self._arrived.clear()
        self._urgent = None

    async def next_batch(self, incarnation: str, *, trial: bool) -> list[Leased]:
        """Those that go to the worker in one frame now; none where others will come for them.

        On `trial` they go one by one, so that each is counted for or against its version.
        """
        if self._urgent is not None:
            # Something more urgent is queued. It comes first when all of these are queued too.
            self._urgent = None
            await self.settle()
            unbegun = Release(incarnation=incarnation)
            await self._store.apply_when_room(release, BUS, unbegun)
        return self._batch(alone=trial) if self._arrived else []

    def _batch(self, *, alone: bool) -> list[Leased]:
        arrived = self._arrived
        *_, first = heapq.heappop(arrived)
        batch, size = [first], len(first.delivery.payload)
        alone = alone or self._suspects > 0 or _goes_alone(first)
        while arrived and not alone and len(batch) < BATCH_MAX:
            following = arrived[0][2]
            size += len(following.delivery.payload)
            if (
                following.setting is not first.setting
                or _goes_alone(following)
                or size > BATCH_BYTES_MAX
            ):
                break
            batch.append(following)
            heapq.heappop(arrived)
        return batch

    # -- one batch

    async def handle(
        self, worker: Worker, incarnation: str, batch: Sequence[Leased], *, trial: bool = False
    ) -> Ending:
        """See deliveries of one setting to their end. Raises `Failure` when the worker is of no
        more use.

        The completions of several may still be under way when it returns; `settle` waits for them.
        With `trial`, its death and its spending are not held against a delivery.
        """
        interrupted: asyncio.Future[Interruption] = asyncio.get_running_loop().create_future()
        now_us = self._clock_us()
        work = self._work = Batch(
            worker,
            incarnation,
            batch,
            interrupted,
            asyncio.Event(),
            asyncio.Event(),
            began_us=now_us,
            phase_us=now_us,
            trial=trial,
        )
        self._expect_progress(work)
        reach("lease.handed")
        try:
            kind = await self._see_through(work)
            if trial or len(batch) == 1:
                await self.settle()
            left = kind == "parked" or work.obstacle is not None
            return Ending(kind, work.at, work.condition, left, work.exceeded)
        finally:
            await self._end_turn(work)
            work.over.set()
            work.moved.set()
            self._work = None

    async def settle(self) -> None:
        """Return when what the worker has completed is applied."""
        await self._applying.settle()

    async def _see_through(self, work: Batch) -> EndingKind:
        try:
            why = await self._followed(work)
        except Failure as failure:
            await self._end_turn(work)
            return await self._failed(work, failure)
        await self._end_turn(work)
        if why == "parked":
            return "parked"
        self._suspects = max(0, self._suspects - len(work.deliveries))
        return "completed"

    async def _followed(self, work: Batch) -> Interruption | None:
        """Take what the worker makes of the batch; why not, where it is parked. Raises
        `Failure`."""
        following = asyncio.create_task(self._follow(work))
        try:
            await asyncio.wait((following, work.interrupted), return_when=asyncio.FIRST_COMPLETED)
            if not work.interrupted.done():
                following.result()
                return None
            why = work.interrupted.result()
            if why == "parked":
                return why
            raise Failure("work.refused", REASONS[why])
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _follow(self, work: Batch) -> None:
        order = Work(
            setting=work.deliveries[0].setting,
            deliveries=[each.delivery for each in work.deliveries],
        )
        try:
            async with work.worker.connection.stream(WORKER_HANDLE, order) as response:
                async for done in response:
                    self._take(work, done)
                await response.result()
        except Failure as failure:
            # What it has answered counts even if it went away right after it.
            work.answered = not failure.code.startswith(LINE_CODES)
            raise
        if work.at < len(work.deliveries):
            raise Failure("work.refused", "The worker has left deliveries out.")

    def _take(self, work: Batch, done: Done) -> None:
        """The worker has completed these, which are the next ones."""
        finished = done.finished
        reach("completion.received")
        expected = work.deliveries[work.at : work.at + len(finished)]
        if [each.delivery for each in finished] != [each.delivery.delivery for each in expected]:
            raise Failure("work.refused", "The worker has completed what was not its turn.")
        if not finished:
            return
        self._pace = self._pace.after(len(finished), done.worked_us / 1e6)
        self._enter_phase(work, None)
        work.at += len(finished)
        work.attempt = None
        work.moved.set()
        for each in finished:
            self._preempted.pop(each.delivery, None)
        self._applying.add(work.incarnation, expected, finished)
        self._stop_expecting(work)
        self._expect_progress(work)

    async def _end_turn(self, work: Batch) -> None:
        """Take nothing more from the worker, and wait for a tool that has begun: a retry has to
        find it done."""
        work.turn = TURN.after(work.turn, "end")
        self._stop_expecting(work)
        performing = work.performing
        if performing is not None and not performing.done():
            if work.tool:
                await asyncio.wait((performing,), timeout=TOOL_SECONDS_MAX)
            performing.cancel()
            await asyncio.gather(performing, return_exceptions=True)

    # -- when it does not come to a completion

    async def _failed(self, work: Batch, failure: Failure) -> EndingKind:
        """Of the delivery in work. Raises `failure` where the worker is of no more use."""
        await self.settle()
        met = work.obstacle
        if met is None and work.answered and failure.code in TRAPS:
            await self._trapped(work, failure)
            raise failure
        if not work.answered and (work.worker.connection.closed or work.hung):
            await self._died(work)
            raise failure
        return await self._refuse_or_retry(work, met or failure, own=met is not None)

    async def _died(self, work: Batch) -> None:
        """Count the death, if it was the worker's own, and queue the delivery in its place."""
        component = bool(work.leased.setting.component)
        own, reason = await cause_of_death(work.worker, hung=work.hung, component=component)
        if work.behind:
            # It may have been one that it had done and not told of, or the one behind that.
            if own:
                self._suspects = len(work.behind) + 1
            own = False
        await self._applying.end(
            work.leased, work.incarnation, reason, worker_died=own and not work.trial, final=False
        )

    async def _trapped(self, work: Batch, failure: Failure) -> None:
        """The same for a death that the worker explains, with all that it says."""
        trap = Trap.of(failure)
        log.warning("worker/%s: %s %s\n%s", self._agent, trap.code, trap.message, trap.backtrace)
        self._metrics.component_trapped(self._agent, trap.code)
        span = Span(
            name=TRAP_SPAN,
            delivery=work.delivery.delivery,
            started_us=work.began_us,
            finished_us=max(work.began_us, self._clock_us()),
            data={
                **msgspec.structs.asdict(trap),
                "component": work.leased.setting.component,
            },
        )
        await self._store.apply_when_room(record_span, BUS, span)
        await self._applying.end(
            work.leased,
            work.incarnation,
            trap.message,
            worker_died=not work.trial,
            final=False,
        )

    async def _refuse_or_retry(self, work: Batch, failure: Failure, *, own: bool) -> EndingKind:
        """Park what met an obstacle that passes; give up what can never be, unless another version
        may do it with less."""
        if work.trial and work.exceeded:
            await self._applying.end(work.leased, work.incarnation, str(failure), final=False)
            return "retried"
        if not (own and failure.code in PASSING):
            # A component may depend on memory of its own, which its worker's death has taken.
            anew = failure.code == DIVERGED and bool(work.leased.setting.component)
            await self._applying.end(
                work.leased, work.incarnation, str(failure), final=True, anew=anew
            )
            return "refused"
        again = Park(
            delivery=work.delivery.delivery,
            incarnation=work.incarnation,
            reason="retry",
            until_us=self._clock_us() + RETRY_US,
            on=str(failure),
        )
        self._metrics.delivery_retried(self._agent)
        await self._store.apply_when_room(park, BUS, again)
        return "retried"

    # -- something more urgent

    def urge(self, rank: int) -> None:
        """Something of class `rank` waits behind what the worker holds."""
        self._urgent = rank if self._urgent is None else min(rank, self._urgent)
        self._let_go_first()

    def _let_go_first(self) -> None:
        """Break off what the worker waits for, if there is something more urgent."""
        work = self._work
        if work is None or work.performing is None or work.tool or not self._gives_way(work):
            return
        # Nothing has come of it yet that would be lost, but an answer of the model.
        work.performing.cancel()

    def _gives_way(self, work: Batch) -> bool:
        delivery, waiting = work.delivery, [entry[0] for entry in self._arrived[:1]]
        if self._urgent is not None:
            waiting.append(self._urgent)
        return (
            min(waiting, default=delivery.rank) < delivery.rank
            and self._preempted.get(delivery.delivery, 0) < PREEMPTIONS_MAX
        )

    async def _preempt(self, work: Batch) -> None:
        """Park what it works on: it is queued again, behind what is more urgent."""
        delivery = work.delivery.delivery
        self._preempted[delivery] = self._preempted.get(delivery, 0) + 1
        if len(self._preempted) > PREEMPTED_MAX:
            del self._preempted[next(iter(self._preempted))]
        yielding = GiveWay(incarnation=work.incarnation, delivery=delivery)
        await self._store.apply_when_room(give_way, BUS, yielding)
        work.interrupt("parked")

    # -- effects

    async def on_effect(self, request: EffectRequest, call: Call) -> EffectResult:
        """Serve `work.effect` on the worker's line: one at a time, while it is its turn."""
        work = self._work
        if work is None or call.connection is not work.worker.connection:
            raise _not_in_hand(request.delivery)
        place = work.place_of(request.delivery)
        while place is not None and place > work.at and work.turn != "ended":
            # What it has completed before is on the same line, and read by another task.
            work.moved.clear()
            await work.moved.wait()
        if place != work.at or work.turn == "ended":
            raise _not_in_hand(request.delivery)
        if work.turn == "performing":
            raise Failure("request.invalid", "An effect is under way.", "Ask one at a time.")
        work.turn = TURN.after(work.turn, "ask")
        await self.settle()  # it may read what the ones before it have written
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

    async def _perform(self, work: Batch, request: EffectRequest) -> EffectResult:
        try:
            if self._gives_way(work):
                return await self._parked(work, self._preempt(work), "It gives way.")
            work.tool = isinstance(request.effect, UseTool)
            work.performing = asyncio.create_task(
                self._effects.perform(self._attempt(work), request)
            )
            await asyncio.wait((work.performing,))
            if work.performing.cancelled() and self._gives_way(work):
                return await self._parked(work, self._preempt(work), "It gives way.")
            return work.performing.result()
        except NeedsAnswer as question:
            asking = self._ask_person(work, question)
            return await self._parked(work, asking, "The delivery waits for a person.")
        except Failure as failure:
            work.obstacle = failure
            if failure.code == OVER_BUDGET:
                work.exceeded = failure.problem.message
            raise

    def _attempt(self, work: Batch) -> Attempt:
        if work.attempt is None:
            delivery = work.delivery
            work.attempt = Attempt(
                delivery=delivery.delivery,
                incarnation=work.incarnation,
                priority=PRIORITIES[delivery.rank],
                message=delivery.payload.decode(errors="replace"),
                evidence=delivery.evidence,
                spent=work.leased.spent,
            )
        return work.attempt

    async def _parked(self, work: Batch, parking: Awaitable[None], why: str) -> EffectResult:
        """The worker is told to let go of the delivery, not that its effect has failed."""
        await parking
        await work.over.wait()
        raise Failure("request.cancelled", why)

    def _listen(self, work: Batch, effect: Effect, result: EffectResult) -> None:
        """Remember what an agent says of itself that is not good, and what it wants too much of."""
        if isinstance(result, Refused):
            if result.code == OVER_BUDGET:
                work.exceeded = result.message
        elif isinstance(effect, EmitHealth):
            work.condition = work.condition if effect.condition == "healthy" else effect

    async def _ask_person(self, work: Batch, question: NeedsAnswer) -> None:
        await self._store.apply_when_room(
            request_attention,
            self._agent,
            RequestAttention(
                delivery=work.delivery.delivery,
                incarnation=work.incarnation,
                step=question.step,
                effect=question.effect,
                question=question.question,
            ),
        )
        work.interrupt("parked")

    def _enter_phase(self, work: Batch, phase: Phase | None) -> None:
        if phase == work.phase:
            return
        now_us = self._clock_us()
        if work.phase is not None:
            self._metrics.phase(work.phase, (now_us - work.phase_us) / 1e6)
        work.phase, work.phase_us = phase, now_us

    # -- hanging: only between an answer to the worker and its next sign of life

    def _expect_progress(self, work: Batch) -> None:
        if work.turn == "working":
            loop = asyncio.get_running_loop()
            work.timer = loop.call_later(WORKER_PATIENCE_US / 1e6, work.interrupt, "hung")

    def _stop_expecting(self, work: Batch) -> None:
        if work.timer is not None:
            work.timer.cancel()
            work.timer = None


def _phase_of(effect: Effect, before: Phase | None) -> Phase:
    match effect:
        case Infer(phase=phase) | Weigh(phase=phase) | Recall(phase=phase) | Note(phase=phase):
            return phase
        case _:
            return before or "act"


def _goes_alone(leased: Leased) -> bool:
    """It may end otherwise than with a completion that stands: a worker has died of it, or it was
    left in the middle, and what it has read may be out of date."""
    return leased.composing or leased.delivery.attempt > 1 or leased.spent != Spent()


def _not_in_hand(delivery: int) -> Failure:
    return Failure("work.unknown-delivery", f"Delivery {delivery} is not in your hands.")
