"""The driver of one agent: keeps a confined worker alive, and leases it one delivery at a time.

It decides nothing about messages (the bus does), about restarts (`supervision.restart` does) or
about a delivery in work (`lane` does).
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from typing import Final, Literal

from ipc_protocol.aio import Handlers
from ipc_protocol.control import AgentStatus
from ipc_protocol.errors import Failure
from ipc_protocol.methods import WORK_EFFECT, WORKER_START
from ipc_protocol.values import LayerReport
from ipc_protocol.work import AgentProfile, Fork, WorkerStart
from orchestrator.bus.attention import RaiseAttention, raise_attention
from orchestrator.bus.leasing import Lease, Leased, ReleaseLeases, lease_next, release_leases
from orchestrator.bus.observations import HealthEvent, Span, record_span, report_health
from orchestrator.bus.routing import BUS
from orchestrator.config.types import AgentConfig
from orchestrator.effects import Effects
from orchestrator.lane import Lane
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store
from orchestrator.supervision.child import ChildState
from orchestrator.supervision.restart import (
    RELEASE_QUESTION,
    Died,
    Quarantine,
    RestartPolicy,
    RestartType,
)
from orchestrator.supervision.supervisor import Supervisor
from orchestrator.waiting import first_of
from orchestrator.workers import Worker, Zygote, ZygoteDied

log = logging.getLogger(__name__)

FULL_DISK_SECONDS: Final = 1.0
"""Between two looks whether the disk has room again."""

SEED_BITS: Final = 63
"""A seed is an integer of the store."""

AgentState = Literal["starting", "idle", "busy", "backoff", "quarantined", "stopped"]

_STATES: Final[dict[ChildState, AgentState]] = {
    ChildState.STOPPED: "stopped",
    ChildState.STARTING: "starting",
    ChildState.RUNNING: "idle",
    ChildState.STOPPING: "stopped",
    ChildState.BACKOFF: "backoff",
    ChildState.QUARANTINED: "quarantined",
}


class Driver:
    """Drives one agent. `run` supervises; `wake` says that there may be work; the rest is read."""

    def __init__(
        self,
        config: AgentConfig,
        profile: AgentProfile,
        prompts: dict[str, str],
        fork: Callable[[int], Fork],
        lane: Lane,
        effects: Effects,
        *,
        store: Store,
        zygote: Zygote,
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
        self._lane = lane
        self._store = store
        self._zygote = zygote
        self._metrics = metrics
        self._clock_us = clock_us
        policy = RestartPolicy(type=RestartType(config.restart))
        self._supervisor = Supervisor(
            f"worker/{self.name}", policy, clock_us, self._raise_quarantine
        )
        self._loop = 0
        self._unreturned: str | None = None
        """An incarnation whose lease could not be given back."""
        self._awake = asyncio.Event()
        self._handlers = Handlers().add(WORK_EFFECT, lane.on_effect)

    # -- for reading

    @property
    def state(self) -> AgentState:
        return "busy" if self._lane.delivery is not None else _STATES[self._supervisor.state]

    def status(self, pending: int, parked: int, done: int, memories: int) -> AgentStatus:
        """How the agent is, with the numbers that only the store knows."""
        return AgentStatus(
            name=self.name,
            role=self.config.role,
            state=self.state,
            priority=self.config.priority,
            restarts=self._supervisor.restarts,
            pending=pending,
            parked=parked,
            done=done,
            memories=memories,
            pid=self.pid,
            delivery=self._lane.delivery,
            phase=self._lane.phase,
            detail=self._supervisor.detail,
            sandbox=self.layers,
        )

    def wake(self) -> None:
        """A delivery may be ready to be leased."""
        self._awake.set()

    def hold(self) -> None:
        """Before `run`: stay in the quarantine in which the daemon was stopped."""
        self._supervisor.hold("it waits for an answer from before the daemon was started")

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
        incarnation, began_us = f"{self.name}.{secrets.token_hex(8)}", self._clock_us()
        try:
            async with self._zygote.worker(self._fork, self._handlers) as worker:
                await self._live_as(worker, incarnation)
        except ZygoteDied as died:
            self._supervisor.detail = str(died)
            return Died(own=False)
        death = self._bury(worker)
        await self._write_life(incarnation, began_us)
        return death

    async def _live_as(self, worker: Worker, incarnation: str) -> None:
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
            # On a full disk its successor gives it back, or the next start of the daemon.
            with contextlib.suppress(Failure):
                await self._give_back(incarnation)

    async def _write_life(self, incarnation: str, began_us: int) -> None:
        life = Span(
            name="worker",
            started_us=began_us,
            finished_us=max(began_us, self._clock_us()),
            data={"agent": self.name, "incarnation": incarnation, "end": self._supervisor.detail},
        )
        with contextlib.suppress(Failure):  # a full disk has no room for what can be missed
            await self._store.apply(record_span, BUS, life)

    def _bury(self, worker: Worker) -> Died:
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
            try:
                leased = await self._lease(incarnation)
            except Failure as failure:
                if failure.code != "store.full":
                    raise
                # What is queued waits until there is room again.
                await asyncio.sleep(FULL_DISK_SECONDS)
                continue
            if leased is None:
                await first_of(self._awake.wait(), worker.connection.wait_closed())
            else:
                await self._lane.handle(worker, incarnation, leased)

    async def _lease(self, incarnation: str) -> Leased | None:
        if self._unreturned is not None:
            await self._give_back(self._unreturned)
        request = Lease(
            agent=self.name,
            incarnation=incarnation,
            seed=secrets.randbits(SEED_BITS),
            loop=self._loop,
            prompts=self._prompts,
        )
        return await self._store.apply(lease_next, BUS, request)

    async def _give_back(self, incarnation: str) -> None:
        """What the worker still held goes back, unless its death was counted already."""
        self._unreturned = incarnation
        await self._store.apply(release_leases, BUS, ReleaseLeases(incarnation=incarnation))
        self._unreturned = None

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
            raise_attention,
            BUS,
            RaiseAttention(agent=self.name, question=f"{detail} {RELEASE_QUESTION}"),
        )
