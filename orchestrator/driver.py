"""The driver of one agent: keeps a confined worker alive, and has deliveries leased to it.

It decides nothing about messages (the bus does), about restarts (`supervision.restart` does), about
a delivery in work (`lane` does), or about how good a new version is (`trial` does).

Theory of operation. The worker of a new version is begun beside the one that works, and waits. When
the lane is between two deliveries it takes over: from then on all leases are its own, and the other
one is asked to stop. What is queued does not notice, since the subscription is the agent's and not
the worker's. A version that is sent back from its probation is stopped, and a worker of the version
before it is begun; the delivery in hand goes back to the queue, and its run begins anew.

A component that cannot be had at all (its file, its world, its grants) is no death of a worker, so
nothing is tried again: the agent is in quarantine until another version comes, or the daemon is
started with another configuration.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from ipc_protocol.control import AgentComponent, AgentStatus, OnProbation
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.values import LayerReport
from ipc_protocol.work import Setting
from orchestrator.bus.attention import RaiseAttention, raise_attention
from orchestrator.bus.handing import Leased
from orchestrator.bus.leasing import Grant, grant
from orchestrator.bus.observations import HealthEvent, report_health
from orchestrator.bus.routing import BUS
from orchestrator.bus.versions import Version
from orchestrator.components.compiling import Progress
from orchestrator.components.probation import Terms
from orchestrator.components.versions import UNUSABLE, Change, ComponentVersions
from orchestrator.config.types import AgentConfig
from orchestrator.effects import Effects
from orchestrator.incarnations import Incarnation, Incarnations
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
from orchestrator.trial import Trial
from orchestrator.waiting import first_of
from orchestrator.workers import ZygoteDied

log = logging.getLogger(__name__)

FULL_DISK_SECONDS: Final = 1.0
"""Between two looks whether the disk has room again."""

ZYGOTE_DEATHS_MAX: Final = 3
"""Under one start of a successor or of a rehearsal. Something else is wrong after that."""

LEAVING: Final = "retired, and finishes what it has"

AgentState = Literal["starting", "idle", "busy", "backoff", "quarantined", "stopped"]

_STATES: Final[dict[ChildState, AgentState]] = {
    ChildState.STOPPED: "stopped",
    ChildState.STARTING: "starting",
    ChildState.RUNNING: "idle",
    ChildState.STOPPING: "stopped",
    ChildState.BACKOFF: "backoff",
    ChildState.QUARANTINED: "quarantined",
}


class _Succession(msgspec.Struct):
    """A worker that is up, and waits until the lane is between two deliveries."""

    incarnation: Incarnation
    change: Change
    taken: "asyncio.Future[Version]"


class Driver:
    """Drives one agent. `run` supervises; `wake` says that there may be work; the rest is read."""

    def __init__(
        self,
        config: AgentConfig,
        prompts: dict[str, str],
        lane: Lane,
        effects: Effects,
        incarnations: Incarnations,
        versions: ComponentVersions | None,
        *,
        store: Store,
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        self.config = config
        self.name = config.name
        self.effects = effects
        self.layers: list[LayerReport] = []
        self.version: Version | None = None
        """What is run, of an agent with a component; None until that is known."""
        self.leaving = False
        """It is retired, and only finishes what it has."""
        self.problem: Problem | None = None
        """Why that cannot be run."""
        self.versions = versions
        self._prompts = prompts
        self._lane = lane
        self._incarnations = incarnations
        self._store = store
        self._metrics = metrics
        self._clock_us = clock_us
        policy = RestartPolicy(type=RestartType(config.restart))
        self._supervisor = Supervisor(
            f"worker/{self.name}", policy, clock_us, self._raise_quarantine
        )
        self._incarnation: Incarnation | None = None
        self._trial = Trial(self.name, versions, store=store, metrics=metrics, clock_us=clock_us)
        self._succession: _Succession | None = None
        self._called = asyncio.Event()
        """There is a succession."""
        self._handling = False
        self._awake = asyncio.Event()

    # -- for reading

    @property
    def state(self) -> AgentState:
        if self._lane.delivery is not None:
            return "busy"
        return "quarantined" if self.problem is not None else _STATES[self._supervisor.state]

    @property
    def pid(self) -> int | None:
        return None if self._incarnation is None else self._incarnation.worker.pid

    @property
    def probation(self) -> OnProbation | None:
        """How far the version is that works."""
        return self._trial.told

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
            detail=self._detail(),
            sandbox=self.layers,
            component=self._component(),
            problem=self.problem,
        )

    def _detail(self) -> str:
        leaving = LEAVING if self.leaving else ""
        return ", ".join(filter(None, (leaving, self._supervisor.detail)))

    def _component(self) -> AgentComponent | None:
        if self.version is None:
            return None
        ready = None if self._incarnation is None else self._incarnation.ready
        return AgentComponent(
            sha256=self.version.sha256,
            number=self.version.number,
            world=self.version.world if ready is None else ready.world,
            inert=[] if ready is None else ready.inert,
            probation=self.probation,
        )

    def wake(self) -> None:
        """There is something else to do than to wait for a delivery."""
        self._awake.set()

    def urge(self, rank: int) -> None:
        """Something of class `rank` waits behind what its worker holds."""
        self._lane.urge(rank)

    def hold(self) -> None:
        """Before `run`: stay in the quarantine in which the daemon was stopped."""
        self._supervisor.hold("it waits for an answer from before the daemon was started")

    def release(self) -> None:
        """Let it out of quarantine."""
        self._supervisor.release()

    # -- one version after the other

    async def rehearse(self, sha256: str) -> None:
        """Start a worker with a component, and stop it. Raises `Failure` where that fails."""
        incarnation = await self._begin_successor(sha256)
        await self._incarnations.end(incarnation, in_order=True)

    async def succeed(self, sha256: str, change: Change, on_start: Callable[[], None]) -> Version:
        """Begin a worker of another component and let it take over. Returns the new version.

        `on_start` is called when it is up. Raises `Failure` when it does not come to that; then
        nothing has changed. One at a time.
        """
        assert self.versions is not None and self._succession is None
        incarnation = await self._begin_successor(sha256)
        on_start()
        taken: asyncio.Future[Version] = asyncio.get_running_loop().create_future()
        succession = self._succession = _Succession(incarnation, change, taken)
        self._called.set()
        self.wake()
        self._supervisor.renew()
        try:
            await first_of(asyncio.shield(taken), incarnation.worker.connection.wait_closed())
        finally:
            words = await self._withdraw(succession)
        if words is not None:
            raise Failure(
                "component.trapped",
                f"The worker of the new version ended ({words}) before it could take over.",
                "Look into the log for what it said.",
            )
        return await taken

    async def _begin_successor(self, sha256: str) -> Incarnation:
        for _ in range(ZYGOTE_DEATHS_MAX):
            with contextlib.suppress(ZygoteDied):
                return await self._incarnations.begin(sha256)
        raise Failure(
            "component.init",
            f"The zygote died {ZYGOTE_DEATHS_MAX} times while the new version started.",
            "Look into the log for why, and try again.",
        )

    async def _withdraw(self, succession: _Succession) -> str | None:
        """Take back one that has not taken over: how its worker ended. Else None."""
        if self._succession is not succession:
            return None
        self._succession = None
        self._called.clear()
        _, words = await self._incarnations.end(succession.incarnation, in_order=True)
        return words

    async def _hand_over(self, succession: _Succession) -> Incarnation:
        """The successor has the lane from now on."""
        assert self.versions is not None
        self._succession = None
        self._called.clear()
        incarnation, change = succession.incarnation, succession.change
        try:
            self.version, before = await self.versions.take_over(incarnation.component, change)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                succession.taken.cancel()
            else:
                succession.taken.set_exception(error)
            await self._incarnations.end(incarnation, in_order=False)
            raise
        self._trial.drop()
        if before is not None:
            assert change.terms is not None
            await self._trial.begin(self.version, before, change.terms)
        log.info("worker/%s: version %d has taken over", self.name, self.version.number)
        if change.source == "rollback":
            self._metrics.rolled_back(self.name)
        else:
            self._metrics.upgraded(self.name)
        succession.taken.set_result(self.version)
        return incarnation

    # -- one life after the other

    async def run(self) -> None:
        """Supervise until cancelled. What has ended for good begins again with another version."""
        async with asyncio.TaskGroup() as self._farewells:
            while True:
                await self._supervisor.run(self._live)
                await self._called.wait()

    async def _live(self) -> Died:
        if self._supervisor.restarts:
            self._metrics.worker_restarted(self.name)
        try:
            incarnation = await self._next()
            self._supervisor.ready()
            while True:
                died, why = await self._spend(incarnation)
                if died.own and self._succession is None:
                    await self._trial.failed(why)
                if not self._is_followed:
                    return died
                incarnation = await self._next()
                self._supervisor.detail = ""
        except ZygoteDied as died:
            self._supervisor.detail = str(died)
            return Died(own=False)

    @property
    def _is_followed(self) -> bool:
        """Another worker comes at once, and it is not the restart policy that says so."""
        return self._succession is not None or self._trial.has_failed

    async def _next(self) -> Incarnation:
        """The worker that comes now. Raises `Failure` and `ZygoteDied`."""
        while True:
            if self._succession is not None:
                return await self._hand_over(self._succession)
            if self._trial.has_failed:
                self.version = await self._trial.go_back()
            try:
                return await self._begin()
            except Failure as failure:
                await self._trial.failed(failure.problem.message)
                if self._is_followed:
                    continue
                if failure.code not in UNUSABLE:
                    raise
                await self._refuse(failure)

    async def _begin(self) -> Incarnation:
        if self.versions is None:
            return await self._incarnations.begin("")
        if self.version is None:
            self.version, before = await self.versions.opening(self._tell_progress)
            if before is not None:
                # The daemon was stopped during its probation, which begins anew.
                await self._trial.begin(self.version, before, Terms())
        return await self._incarnations.begin(self.version.sha256, self._tell_progress)

    def _tell_progress(self, progress: Progress) -> None:
        self._supervisor.detail = (
            f"compiling, {progress.elapsed_s:.0f} s of about {progress.expected_s:.0f} s"
            if progress.expected_s
            else "waiting for a compiler"
        )

    async def _spend(self, incarnation: Incarnation) -> tuple[Died, str]:
        """From here to the worker's end, and why it ended. What is to follow it may begin before
        that."""
        self._incarnation, self.layers = incarnation, incarnation.worker.layers
        cause: Failure | None = None
        in_order = bool(incarnation.component)
        self._handling = False
        try:
            await self._drive(incarnation)
        except Failure as failure:
            cause, in_order = failure, False
            log.info("worker/%s: %s", self.name, failure)
        except BaseException:
            await self._incarnations.end(incarnation, in_order=in_order and not self._handling)
            raise
        finally:
            self._incarnation = None
        if self._succession is not None:
            self._farewells.create_task(self._incarnations.end(incarnation, in_order=in_order))
            return Died(orderly=True), ""
        died, words = await self._incarnations.end(incarnation, in_order=in_order)
        if not self._is_followed:
            log.warning("worker/%s %s", self.name, words)
        if cause is not None and cause.code.startswith("component."):
            self._supervisor.detail = str(cause)
            return died, cause.problem.message
        self._supervisor.detail = words
        return died, f"Its worker ended ({words})."

    async def _drive(self, incarnation: Incarnation) -> None:
        """Hand over what is leased until the worker is gone, or another is to follow it.

        Raises `Failure` when it goes with a delivery in its hands.
        """
        worker, lane = incarnation.worker, self._lane
        granted = 0
        lane.drop()  # what came for a worker before this one has been given back
        closing = asyncio.create_task(worker.connection.wait_closed())
        closing.add_done_callback(lambda _: self._awake.set())
        with self._store.receiving(incarnation.name, self._take):
            try:
                while not worker.connection.closed and not self._is_followed:
                    self._awake.clear()
                    if granted != lane.window and not await self._grant(incarnation):
                        continue
                    granted = lane.window
                    if lane.waits:
                        await self._idle()
                        continue
                    trial = self._trial.is_on
                    if batch := await lane.next_batch(incarnation.name, trial=trial):
                        self._handling = True
                        ending = await lane.handle(worker, incarnation.name, batch, trial=trial)
                        self._handling = False
                        await self._trial.ended(ending)
            finally:
                closing.cancel()
                await lane.settle()
                # What it has not begun goes to the one that follows it; on a full disk that one
                # gives it back, or the next start of the daemon.
                with contextlib.suppress(Failure):
                    await self._incarnations.give_back(incarnation.name)

    def _take(self, leased: Leased) -> None:
        self._lane.take(leased)
        self._awake.set()

    async def _idle(self) -> None:
        """Until there may be work, the worker is gone, or its probation may be over."""
        due_us = self._trial.due_us
        if due_us is None:
            await self._awake.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, due_us - self._clock_us()) / 1e6):
                await self._awake.wait()
        await self._trial.time_passed()

    async def _grant(self, incarnation: Incarnation) -> bool:
        """Let it hold as many deliveries as it is worth. False while the disk is full: then what is
        queued waits."""
        request = Grant(
            agent=self.name,
            incarnation=incarnation.name,
            window=self._lane.window,
            setting=Setting(
                loop=incarnation.ready.loop,
                component=incarnation.component,
                prompts=self._prompts,
            ),
        )
        try:
            await self._incarnations.give_back_unreturned()
            await self._store.apply(grant, BUS, request)
        except Failure as failure:
            if failure.code != "store.full":
                raise
            await asyncio.sleep(FULL_DISK_SECONDS)
            return False
        return True

    async def _refuse(self, failure: Failure) -> None:
        """Wait until another version comes. Nobody is asked whether to try again: what is wrong
        stands in the component or in the configuration, and who changes it starts it too."""
        self._supervisor.detail, self.problem = str(failure), failure.problem
        log.error("worker/%s: %s", self.name, failure)
        event = HealthEvent(
            kind="component",
            detail=f"{self.name} cannot be run: {failure}",
            agent=self.name,
            data={"code": failure.code},
        )
        await self._store.apply_when_room(report_health, BUS, event)
        await self._called.wait()
        self._supervisor.detail, self.problem = "", None

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
