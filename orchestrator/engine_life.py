"""Engine processes kept alive.

An `Engine` supervises one engine process: it starts it, loads its model, and starts it again with
backoff when it dies. An engine that hangs is killed, and then it has died: while it lives it is
asked for its status, and what it answers, or that it does not, is what `hang` judges. One that is
told to leave has not died, and is started again when it is let in again.

What is asked of it, and what becomes of a request whose engine dies, is the business of `engines`.
"""

import asyncio
import contextlib
import enum
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, Literal, TypeVar

import msgspec

from inference_client.client import EngineClient
from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.control import EngineSummary
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import EngineStart, EngineStatus, ModelInfo
from orchestrator.supervision.child import ChildState
from orchestrator.supervision.hang import ENGINE_PATIENCE_US, Activity, heard, is_hung
from orchestrator.supervision.processes import ChildProcess
from orchestrator.supervision.restart import Died
from orchestrator.supervision.supervisor import TOLERANT, Supervisor

log = logging.getLogger(__name__)

R = TypeVar("R")

READY_SECONDS_MAX: Final = 60.0
"""Until an engine greets: it imports its library, which takes 0.5 s, or 20 s from a cold disk."""

LOAD_SECONDS_MAX: Final = 600.0
"""Until its model is loaded: 70 GB at 200 MB/s take 350 s."""

STATUS_SECONDS_MAX: Final = 2.0
"""How long whoever looks waits for a status, which comes at the end of the present step."""

_STATES: Final[dict[ChildState, Literal["starting", "ready", "backoff"]]] = {
    ChildState.RUNNING: "ready",
    ChildState.BACKOFF: "backoff",
}


class Watch(msgspec.Struct, frozen=True):
    """How an engine is watched while it lives."""

    interval_seconds: float = 5.0
    """From one question for its status to the next."""
    silent_seconds: float = 10.0
    """Without an answer for so long it is no longer called healthy: twice the slowest step seen."""
    patience_us: int = ENGINE_PATIENCE_US
    """Without a sign of life for so long it is hung."""

    def __post_init__(self) -> None:
        if not 0 < self.interval_seconds < self.silent_seconds <= self.patience_us / 1e6:
            raise ValueError("an engine is asked, then called unhealthy, then hung, in this order")


WATCH: Final = Watch()


class End(enum.Enum):
    """Why a life is over."""

    DIED = "died"
    HUNG = "hung"
    LEFT = "left"
    """It was told to."""


class Ended(Exception):
    """The engine ended before it answered."""


class Life:
    """One incarnation of an engine, from its loaded model to its end."""

    def __init__(self, connection: Connection, info: ModelInfo) -> None:
        self.client = EngineClient(connection)
        self.over = asyncio.Event()
        self.deliberate = False
        """It is over because it was told to leave."""
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._status = EngineStatus(model=info)
        self._heard_at = self._loop.time()

    @property
    def ends(self) -> bool:
        """Nothing more will be heard of it, even if nobody has noticed yet."""
        broken = self._connection.closed or self._connection.problem is not None
        return broken or self.over.is_set()

    async def ask_status(self) -> EngineStatus:
        """Raises `inference.unavailable`. The answer is a sign of life, whoever asked."""
        self._status = await self.client.status()
        self._heard_at = self._loop.time()
        return self._status

    async def answer(self, request: Callable[[EngineClient], Awaitable[R]]) -> R:
        """Ask it something. Raises its own `Failure`, or `Ended` once it has."""
        try:
            return await request(self.client)
        except Failure as failure:
            if failure.code != "inference.unavailable" or not self.ends:
                raise
        # The line of one that is dying fails at once, before its end is noticed.
        await self.over.wait()
        raise Ended

    @property
    def silent_seconds(self) -> float:
        return self._loop.time() - self._heard_at

    def status_within(self, seconds: float) -> EngineStatus | None:
        """The latest status, unless it is older than that."""
        return self._status if self.silent_seconds < seconds else None


class Engine:
    """One engine process, again and again. `run` supervises; the rest waits until it is ready."""

    KIND: ClassVar[Literal["language", "embedding", "remote"]]

    def __init__(
        self,
        start: EngineStart,
        clock_us: Callable[[], int],
        on_restart: Callable[[str], None],
        watch: Watch = WATCH,
        *,
        handlers: Handlers | None = None,
    ) -> None:
        """`handlers` are what the engine may ask on its line."""
        self.name = start.name
        self.pid: int | None = None
        self._start = start
        self._supervisor = Supervisor(f"engine/{start.name}", TOLERANT, clock_us)
        self._on_restart = on_restart
        self._watch_as = watch
        self._handlers = handlers or Handlers()
        self._life: Life | None = None
        self._leave = asyncio.Event()
        """Set while it is to leave, by whoever decides that."""
        self._died = False
        """How the life before ended."""
        self._departures = 0
        """Restarts that followed no death."""
        self._changed = asyncio.Event()
        """Set whenever a life begins, or an attempt at one fails."""

    async def run(self) -> None:
        """Supervise until cancelled."""
        await self._supervisor.run(self._live)

    @property
    def answers(self) -> bool:
        """Whether it is up, and has not been silent for too long."""
        life = self._life
        return life is not None and life.silent_seconds < self._watch_as.silent_seconds

    # -- one life

    async def _live(self) -> Died:
        await self._enter()
        if self._died:
            self._on_restart(self._supervisor.name)
        self._died = True
        end: End | None = None
        try:
            async with ChildProcess.spawn(self._supervisor.name, self._command) as child:
                await child.wait_ready(READY_SECONDS_MAX)
                hello = Hello(name="orchestrator")
                async with Connection(
                    child.line, hello, self._handlers, initiator=False
                ) as connection:
                    info = await self._load_unless_told_to_leave(EngineClient(connection))
                    end = End.LEFT
                    if info is not None:
                        end = await self._serve(connection, info, child.pid)
                    if end is End.HUNG:
                        log.error("%s hangs", self._supervisor.name)
                        child.kill()
                death = await child.stop()
        finally:
            self._exit(end)
        if end is End.LEFT:
            self._died = False
            self._departures += 1
            self._supervisor.detail = ""
            return Died(own=False)
        hung = end is End.HUNG
        self._supervisor.detail = f"hung, and {death.description}" if hung else death.description
        log.warning("%s %s", self._supervisor.name, self._supervisor.detail)
        return Died()

    async def _enter(self) -> None:
        """Wait until it may start. Raises `Failure` where it never may."""

    def _exit(self, end: End | None) -> None:
        """Its process has ended, and how; None if it never got as far as to be loaded."""

    async def _load_unless_told_to_leave(self, client: EngineClient) -> ModelInfo | None:
        """None if it was told to. Raises as `_load` does."""
        loading = asyncio.ensure_future(self._load(client))
        told = asyncio.ensure_future(self._leave.wait())
        try:
            await asyncio.wait((loading, told), return_when=asyncio.FIRST_COMPLETED)
            return await loading if loading.done() else None
        finally:
            loading.cancel()
            told.cancel()
            await asyncio.gather(loading, told, return_exceptions=True)

    async def _load(self, client: EngineClient) -> ModelInfo:
        """Raises `model.invalid`, or `inference.unavailable` when it takes too long."""
        try:
            async with asyncio.timeout(LOAD_SECONDS_MAX):
                info = await client.start(self._start)
        except TimeoutError as error:
            raise Failure(
                "inference.unavailable",
                f"The engine {self.name} has not loaded {self._start.path!r} within "
                f"{LOAD_SECONDS_MAX:g} s.",
                "Its log says what it was doing.",
            ) from error
        self._check(info)
        return info

    def _check(self, info: ModelInfo) -> None:
        """Whether this is a model that can be used. Raises `model.invalid`."""

    async def _serve(self, connection: Connection, info: ModelInfo, pid: int) -> End:
        """From its loaded model to its end."""
        life = self._life = Life(connection, info)
        self.pid = pid
        self._supervisor.ready(info.architecture)
        self._changed.set()
        log.info("%s is ready: %s", self._supervisor.name, info.architecture)
        end = End.LEFT  # when this is cancelled
        try:
            end = await self._wait_end(connection, life)
            return end
        finally:
            life.deliberate = end is End.LEFT
            life.over.set()
            self.pid = self._life = None

    async def _wait_end(self, connection: Connection, life: Life) -> End:
        """Until the line ends, the engine hangs, or it is told to leave."""
        ends: dict[asyncio.Future[Any], End] = {
            asyncio.ensure_future(connection.wait_closed()): End.DIED,
            asyncio.ensure_future(self._leave.wait()): End.LEFT,
            asyncio.ensure_future(self._wait_hung(life)): End.HUNG,
        }
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            first = next(task for task in ends if task in done)
            await first
            return ends[first]
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _wait_hung(self, life: Life) -> None:
        """Ask again and again how it is, one question at a time, and return when it hangs.

        Its time is the time of watching, in whole intervals: a daemon that was itself held up for
        minutes must not take that for the silence of the engine.
        """
        interval = self._watch_as.interval_seconds
        activity, now_us = Activity(), 0
        asked = asyncio.ensure_future(life.ask_status())
        try:
            while not is_hung(activity, now_us, self._watch_as.patience_us):
                await asyncio.sleep(interval)
                now_us += round(interval * 1e6)
                if not asked.done():
                    continue
                with contextlib.suppress(Failure):  # an engine that refuses shows no life
                    status = asked.result()
                    activity = heard(activity, status.steps, status.working, now_us)
                asked = asyncio.ensure_future(life.ask_status())
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    def _command(self, fd: int) -> list[str]:
        return [
            *(sys.executable, "-m", "inference_client.engine"),
            *("--kind", self.KIND, "--fd", str(fd)),
        ]

    # -- what others see

    async def _wait_life(self) -> Life:
        while self._life is None:
            self._changed.clear()
            await self._changed.wait()
        return self._life

    async def summary(self) -> EngineSummary:
        """How it is. Without a status it is not up, or has not answered for too long."""
        life, status, detail = self._life, None, self._supervisor.detail
        if life is not None:
            with contextlib.suppress(Failure, TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS_MAX):
                    await life.ask_status()
            if life is not self._life:  # what it has said is not its successor's
                return await self.summary()
            status = life.status_within(self._watch_as.silent_seconds)
            if status is None:
                detail = f"it has not answered for {life.silent_seconds:.0f} s"
        return EngineSummary(
            name=self.name,
            state=self._state,
            restarts=self._supervisor.restarts - self._departures,
            pid=self.pid,
            detail=detail,
            status=status,
        )

    @property
    def _state(self) -> Literal["unloaded", "starting", "ready", "backoff"]:
        return _STATES.get(self._supervisor.state, "starting")
