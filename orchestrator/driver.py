"""The driver of one agent: its worker, its lane, and what becomes of each delivery.

It keeps a confined worker alive, leases the agent's deliveries one at a time, hands each to the
worker and applies the completion. It decides nothing about messages (the bus does), about restarts
(`supervision.restart` does) or about effects (`effects` does).

A delivery that the worker holds ends in exactly one of four ways: its completion is applied, it is
parked, the worker dies of it, or the lease is given back because somebody else failed.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import msgspec

from ipc_protocol.aio import Call, Handlers
from ipc_protocol.control import AgentStatus
from ipc_protocol.errors import Failure
from ipc_protocol.methods import WORK_EFFECT, WORKER_HANDLE, WORKER_START
from ipc_protocol.values import LayerReport
from ipc_protocol.work import (
    AgentProfile,
    Completion,
    EffectRequest,
    EffectResult,
    Fork,
    Infer,
    Note,
    Phase,
    Recall,
    UseTool,
    Weigh,
    WorkerStart,
)
from orchestrator.bus.attention import (
    RaiseAttention,
    RequestAttention,
    raise_attention,
    request_attention,
)
from orchestrator.bus.completion import Complete, Completed, complete
from orchestrator.bus.leasing import (
    Fail,
    Lease,
    Leased,
    Park,
    ReleaseLeases,
    fail,
    lease_next,
    park,
    release_leases,
)
from orchestrator.bus.observations import HealthEvent, report_health
from orchestrator.bus.routing import BUS
from orchestrator.config.types import AgentConfig
from orchestrator.effects import Effects, NeedsAnswer
from orchestrator.effects import Lease as EffectLease
from orchestrator.engines import EmbeddingEngine
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store
from orchestrator.supervision.child import ChildState
from orchestrator.supervision.hang import WORKER_PATIENCE_US
from orchestrator.supervision.restart import Died, Quarantine, RestartPolicy, RestartType
from orchestrator.supervision.supervisor import Supervisor
from orchestrator.workers import EXIT_NOTICE_SECONDS_MAX, Worker, Zygote

log = logging.getLogger(__name__)

SEED_BITS: Final = 63
"""A seed is an integer of the store."""

PASSING: Final = ("store.", "inference.")
"""Codes of failures that are nobody's fault and pass: a full disk, a full queue."""

RETRY_US: Final = 1_000_000
"""Until a delivery is tried again that such a failure has stopped."""

AgentState = Literal["starting", "idle", "busy", "backoff", "quarantined", "stopped"]

_STATES: Final[dict[ChildState, AgentState]] = {
    ChildState.STOPPED: "stopped",
    ChildState.STARTING: "starting",
    ChildState.RUNNING: "idle",
    ChildState.STOPPING: "stopped",
    ChildState.BACKOFF: "backoff",
    ChildState.QUARANTINED: "quarantined",
}


class _Work(msgspec.Struct):
    """The delivery in the worker's hands."""

    leased: Leased
    lease: EffectLease
    parked: asyncio.Event
    """Set when an effect has parked it: the worker has to let go."""
    hung: "asyncio.Future[None]"
    over: asyncio.Event
    """Nobody waits for its effects any more."""
    asking: bool = False
    """An effect is under way: a worker asks for one at a time."""
    timer: asyncio.TimerHandle | None = None
    phase: Phase | None = None
    phase_us: int = 0


class Driver:
    """Drives one agent. `run` supervises; `wake` says that there may be work; the rest is read."""

    def __init__(
        self,
        config: AgentConfig,
        profile: AgentProfile,
        prompts: dict[str, str],
        fork: Callable[[int], Fork],
        *,
        store: Store,
        effects: Effects,
        zygote: Zygote,
        embedding: EmbeddingEngine,
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        self.config = config
        self.name = config.name
        self.effects = effects
        self.layers: list[LayerReport] = []
        self.pid: int | None = None
        self._profile = profile
        self._prompts = prompts
        self._fork = fork
        self._store = store
        self._zygote = zygote
        self._embedding = embedding
        self._metrics = metrics
        self._clock_us = clock_us
        policy = RestartPolicy(type=RestartType(config.restart))
        self._supervisor = Supervisor(
            f"worker/{self.name}", policy, clock_us, self._raise_quarantine
        )
        self._loop = 0
        self._work: _Work | None = None
        self._awake = asyncio.Event()
        self._handlers = Handlers().add(WORK_EFFECT, self._on_effect)

    # -- for reading

    @property
    def state(self) -> AgentState:
        return "busy" if self._work is not None else _STATES[self._supervisor.state]

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    def status(self, pending: int, parked: int, done: int, memories: int) -> AgentStatus:
        """How the agent is, with the numbers that only the store knows."""
        return AgentStatus(
            name=self.name,
            role=self.config.role,
            state=self.state,
            priority=self.config.priority,
            restarts=self.restarts,
            pending=pending,
            parked=parked,
            done=done,
            memories=memories,
            pid=self.pid,
            delivery=self._work.lease.delivery if self._work is not None else None,
            phase=(self._work.phase or "") if self._work is not None else "",
            detail=self._supervisor.detail,
            sandbox=self.layers,
        )

    def wake(self) -> None:
        """A delivery may be ready to be leased."""
        self._awake.set()

    def release(self) -> None:
        """Let it out of quarantine."""
        self._supervisor.release()

    # -- one life of the worker

    async def run(self) -> None:
        """Supervise until cancelled, or until the restart type says that it has ended."""
        await self._supervisor.run(self._live)

    async def _live(self) -> Died:
        if self._supervisor.restarts:
            self._metrics.worker_restarted(self.name)
        incarnation = f"{self.name}.{secrets.token_hex(8)}"
        async with self._zygote.worker(self._fork, self._handlers) as worker:
            self.pid, self.layers = worker.pid, worker.layers
            try:
                start = WorkerStart(profile=self._profile)
                self._loop = (await worker.connection.call(WORKER_START, start)).loop
                self._supervisor.ready()
                await self._drive(worker, incarnation)
            except Failure as failure:
                log.info("worker/%s: %s", self.name, failure)
            finally:
                self.pid = None
                await self._give_back(incarnation)
        return await self._bury(worker)

    async def _bury(self, worker: Worker) -> Died:
        self._metrics.worker_died(self.name)
        if not worker.exited.done():
            self._supervisor.detail = "it was killed, and no notice of its death came"
            return Died()
        exit_ = worker.exited.result()
        self._supervisor.detail = exit_.description
        log.warning("worker/%s %s", self.name, exit_.description)
        return Died(orderly=exit_.orderly, own=exit_.own)

    async def _drive(self, worker: Worker, incarnation: str) -> None:
        """Lease and handle until the worker is gone. Raises `Failure` when it goes."""
        while not worker.connection.closed:
            self._awake.clear()
            leased = await self._lease(incarnation)
            if leased is None:
                await self._wait_for_work(worker)
            else:
                await self._handle(worker, incarnation, leased)

    async def _lease(self, incarnation: str) -> Leased | None:
        request = Lease(
            agent=self.name,
            incarnation=incarnation,
            seed=secrets.randbits(SEED_BITS),
            loop=self._loop,
            prompts=self._prompts,
        )
        return await self._store.apply_when_room(lease_next, BUS, request)

    async def _wait_for_work(self, worker: Worker) -> None:
        await _first(self._awake.wait(), worker.connection.wait_closed())

    async def _give_back(self, incarnation: str) -> None:
        """What the worker still held goes back, unless its death was counted already.

        A daemon that is stopping waits for no room on the disk: its next start gives all back.
        """
        released = ReleaseLeases(incarnation=incarnation)
        if _is_stopping():
            with contextlib.suppress(Failure):
                await self._store.apply(release_leases, BUS, released)
        else:
            await self._store.apply_when_room(release_leases, BUS, released)

    # -- one delivery

    async def _handle(self, worker: Worker, incarnation: str, leased: Leased) -> None:
        handle, envelope = leased.handle, leased.handle.envelope
        now_us = self._clock_us()
        work = _Work(
            leased=leased,
            lease=EffectLease(
                delivery=handle.delivery,
                incarnation=incarnation,
                correlation=envelope.correlation,
                priority=envelope.priority,
            ),
            parked=asyncio.Event(),
            hung=asyncio.get_running_loop().create_future(),
            over=asyncio.Event(),
            phase_us=now_us,
        )
        self._work = work
        self._expect_progress(work)
        try:
            completion = await self._completion(worker, work)
            if completion is not None:
                await self._apply(work, completion)
        except Failure as failure:
            await self._failed(worker, work, failure)
        finally:
            self._stop_expecting(work)
            work.over.set()
            self._work = None

    async def _completion(self, worker: Worker, work: _Work) -> Completion | None:
        """What the worker makes of it; None when it was parked. Raises `Failure`."""
        call = asyncio.ensure_future(worker.connection.call(WORKER_HANDLE, work.leased.handle))
        parked = asyncio.ensure_future(work.parked.wait())
        try:
            await asyncio.wait((call, parked, work.hung), return_when=asyncio.FIRST_COMPLETED)
            if work.hung.done():
                raise Failure(
                    "work.budget",
                    f"The worker did nothing for {WORKER_PATIENCE_US / 1e6:g} s though it was its "
                    "turn.",
                )
            return None if parked.done() else call.result()
        finally:
            parked.cancel()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def _apply(self, work: _Work, completion: Completion) -> None:
        memories = [f"{entry.text} {entry.lesson}" for entry in completion.memories]
        vectors: list[bytes | None] = []
        if memories:
            # A memory without a vector is still found by its words.
            with contextlib.suppress(Failure):
                vectors.extend(await self._embedding.embed(memories))
        completed: Completed = await self._store.apply_when_room(
            complete,
            self.name,
            Complete(
                delivery=work.lease.delivery,
                incarnation=work.lease.incarnation,
                completion=completion,
                vectors=vectors,
            ),
        )
        self._enter_phase(work, None)
        if completed.state == "done":
            seconds = (self._clock_us() - work.leased.handle.envelope.sent_us) / 1e6
            self._metrics.delivery_done(self.name, work.lease.priority, completion.outcome, seconds)

    async def _failed(self, worker: Worker, work: _Work, failure: Failure) -> None:
        """Count it where the worker died of it, and give the delivery back or up."""
        delivery, incarnation = work.lease.delivery, work.lease.incarnation
        self._metrics.delivery_retried(self.name)
        if worker.connection.closed or work.hung.done():
            died, reason = await _cause_of_death(worker, work)
            ended = Fail(delivery=delivery, incarnation=incarnation, error=reason, worker_died=died)
            await self._store.apply_when_room(fail, BUS, ended)
            raise failure
        if failure.code.startswith(PASSING):
            until_us = self._clock_us() + RETRY_US
            again = Park(
                delivery=delivery,
                incarnation=incarnation,
                reason="retry",
                until_us=until_us,
                on=str(failure),
            )
            await self._store.apply_when_room(park, BUS, again)
        else:
            refused = Fail(
                delivery=delivery,
                incarnation=incarnation,
                error=str(failure),
                worker_died=False,
                final=True,
            )
            await self._store.apply_when_room(fail, BUS, refused)

    # -- effects

    async def _on_effect(self, request: EffectRequest, call: Call) -> EffectResult:
        work = self._work
        if work is None or work.lease.delivery != request.delivery or work.parked.is_set():
            raise Failure(
                "work.unknown-delivery", f"Delivery {request.delivery} is not in your hands."
            )
        if work.asking:
            raise Failure("request.invalid", "An effect is under way.", "Ask one at a time.")
        work.asking = True
        self._stop_expecting(work)
        self._enter_phase(work, _phase_of(request, work.phase))
        try:
            return await self.effects.perform(work.lease, request)
        except NeedsAnswer as question:
            await self._ask_person(work, question)
            # The worker is told to let go of the delivery, not that its effect has failed.
            await work.over.wait()
            raise Failure("request.cancelled", "The delivery waits for a person.") from question
        finally:
            work.asking = False
            self._expect_progress(work)

    async def _ask_person(self, work: _Work, question: NeedsAnswer) -> None:
        await self._store.apply_when_room(
            request_attention,
            self.name,
            RequestAttention(
                delivery=work.lease.delivery,
                incarnation=work.lease.incarnation,
                step=question.step,
                effect=question.effect,
                question=question.question,
            ),
        )
        work.parked.set()

    def _enter_phase(self, work: _Work, phase: Phase | None) -> None:
        if phase == work.phase:
            return
        now_us = self._clock_us()
        if work.phase is not None:
            self._metrics.phase(work.phase, (now_us - work.phase_us) / 1e6)
        work.phase, work.phase_us = phase, now_us

    # -- hanging: only between an answer to the worker and its next sign of life

    def _expect_progress(self, work: _Work) -> None:
        self._stop_expecting(work)
        loop = asyncio.get_running_loop()
        work.timer = loop.call_later(WORKER_PATIENCE_US / 1e6, _hang, work)

    def _stop_expecting(self, work: _Work) -> None:
        if work.timer is not None:
            work.timer.cancel()
            work.timer = None

    # -- quarantine

    async def _raise_quarantine(self, quarantine: Quarantine) -> None:
        detail = (
            f"{self.name} died {quarantine.deaths} times within "
            f"{quarantine.window_us / 1e6:g} s and is quarantined: {self._supervisor.detail}"
        )
        await self._store.apply_when_room(
            report_health, BUS, HealthEvent(kind="quarantine", detail=detail, agent=self.name)
        )
        await self._store.apply_when_room(
            raise_attention, BUS, RaiseAttention(agent=self.name, question=f"{detail} Restart it?")
        )


async def _cause_of_death(worker: Worker, work: _Work) -> tuple[bool, str]:
    """Whether it was the worker's own death, and how it came about."""
    if work.hung.done():
        return True, "The worker hung."
    await asyncio.wait((worker.exited,), timeout=EXIT_NOTICE_SECONDS_MAX)
    if not worker.exited.done():
        return True, f"The worker hung up: {worker.connection.problem}."
    exit_ = worker.exited.result()
    return exit_.own, f"The worker {exit_.description}."


def _is_stopping() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _hang(work: _Work) -> None:
    if not work.hung.done():
        work.hung.set_result(None)


def _phase_of(request: EffectRequest, before: Phase | None) -> Phase:
    match request.effect:
        case Infer(phase=phase) | Weigh(phase=phase) | Recall(phase=phase) | Note(phase=phase):
            return phase
        case UseTool():
            return before or "act"


async def _first(*waits: Awaitable[object]) -> None:
    """Return when the first of them does; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
