"""Engines kept alive, and requests that outlive their deaths.

An `Engine` supervises one engine process: it starts it, loads its model, and starts it again with
backoff when it dies. A request that was under way is asked again of the next incarnation, so that
its caller sees a delay at most. An engine that hangs is killed, and then it has died: while it
lives it is asked for its status, and what it answers, or that it does not, is what `hang` judges.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import ClassVar, Final, Literal, TypeVar

import msgspec

from inference_client.client import EngineClient
from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.control import EngineSummary
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import (
    EngineStart,
    EngineStatus,
    Generate,
    Generated,
    ModelInfo,
    Score,
    Scored,
)
from orchestrator.store.database import VECTOR_BYTES
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

DEATHS_PER_REQUEST_MAX: Final = 5
"""A request whose engine died this often under it is taken for the cause, and refused."""

STATUS_SECONDS_MAX: Final = 2.0
"""How long whoever looks waits for a status, which comes at the end of the present step."""

OPTIONAL_SECONDS_MAX: Final = 2.0
"""How long a vector is waited for by what goes on without one: a memory is found by its words too.
An engine that is up answers within milliseconds, and one that has just died is back in a second."""

VECTOR_DIMENSIONS: Final = VECTOR_BYTES // 4
"""What the store holds of a text: floats of 4 bytes."""

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


class _Life:
    """One incarnation of an engine, from its loaded model to its end."""

    def __init__(self, client: EngineClient, info: ModelInfo) -> None:
        self.client = client
        self.over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._status = EngineStatus(model=info)
        self._heard_at = self._loop.time()

    async def ask_status(self) -> EngineStatus:
        """Raises `inference.unavailable`. The answer is a sign of life, whoever asked."""
        self._status = await self.client.status()
        self._heard_at = self._loop.time()
        return self._status

    @property
    def silent_seconds(self) -> float:
        return self._loop.time() - self._heard_at

    def status_within(self, seconds: float) -> EngineStatus | None:
        """The latest status, unless it is older than that."""
        return self._status if self.silent_seconds < seconds else None


class Engine:
    """One engine process, again and again. `run` supervises; the rest waits until it is ready."""

    KIND: ClassVar[Literal["language", "embedding"]]

    def __init__(
        self,
        start: EngineStart,
        clock_us: Callable[[], int],
        on_restart: Callable[[str], None],
        watch: Watch = WATCH,
    ) -> None:
        self.name = start.name
        self.pid: int | None = None
        self._start = start
        self._supervisor = Supervisor(f"engine/{start.name}", TOLERANT, clock_us)
        self._on_restart = on_restart
        self._watch_as = watch
        self._life: _Life | None = None
        self._ready = asyncio.Event()

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
        if self._supervisor.restarts:
            self._on_restart(self._supervisor.name)
        hung = False
        async with ChildProcess.spawn(self._supervisor.name, self._command) as child:
            await child.wait_ready(READY_SECONDS_MAX)
            hello = Hello(name="orchestrator")
            async with Connection(child.line, hello, Handlers(), initiator=False) as connection:
                client = EngineClient(connection)
                info = await self._load(client)
                self.pid, self._life = child.pid, _Life(client, info)
                self._supervisor.ready(info.architecture)
                self._ready.set()
                log.info("%s is ready: %s", self._supervisor.name, info.architecture)
                try:
                    hung = await self._hangs_before_it_ends(connection, self._life)
                finally:
                    self._end_life()
                if hung:
                    log.error("%s hangs", self._supervisor.name)
                    child.kill()
            death = await child.stop()
        self._supervisor.detail = f"hung, and {death.description}" if hung else death.description
        log.warning("%s %s", self._supervisor.name, self._supervisor.detail)
        return Died()

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

    def _end_life(self) -> None:
        assert self._life is not None
        self._ready.clear()
        self._life.over.set()
        self.pid = self._life = None

    async def _hangs_before_it_ends(self, connection: Connection, life: _Life) -> bool:
        """Until the line ends or the engine hangs; whether it hangs."""
        closed = asyncio.ensure_future(connection.wait_closed())
        hung = asyncio.ensure_future(self._wait_hung(life))
        try:
            await asyncio.wait((closed, hung), return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                return False
            hung.result()
            return True
        finally:
            closed.cancel()
            hung.cancel()
            await asyncio.gather(closed, hung, return_exceptions=True)

    async def _wait_hung(self, life: _Life) -> None:
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

    # -- what others ask

    async def _ask(self, request: Callable[[EngineClient], Awaitable[R]]) -> R:
        """Ask, and ask the next incarnation when this one dies. Raises `inference.unavailable`."""
        for _ in range(DEATHS_PER_REQUEST_MAX):
            life = await self._wait_life()
            try:
                return await request(life.client)
            except Failure as failure:
                if failure.code != "inference.unavailable":
                    raise
            # The line of one that is dying fails at once, before its end is noticed.
            await life.over.wait()
            log.info("engine/%s died under a request, which is asked again", self.name)
        raise Failure(
            "inference.unavailable",
            f"The engine {self.name} died {DEATHS_PER_REQUEST_MAX} times under one request.",
            "Its log says why; the request itself may be the cause.",
        )

    async def _wait_life(self) -> _Life:
        while self._life is None:  # it may have ended again before this task runs
            await self._ready.wait()
        return self._life

    async def summary(self) -> EngineSummary:
        """How it is. Without a status it is not up, or has not answered for too long."""
        life, status, detail = self._life, None, self._supervisor.detail
        if life is not None:
            with contextlib.suppress(Failure, TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS_MAX):
                    await life.ask_status()
            status = life.status_within(self._watch_as.silent_seconds)
            if status is None:
                detail = f"it has not answered for {life.silent_seconds:.0f} s"
        return EngineSummary(
            name=self.name,
            state=_STATES.get(self._supervisor.state, "starting"),
            restarts=self._supervisor.restarts,
            pid=self.pid,
            detail=detail,
            status=status,
        )


class LanguageEngine(Engine):
    """An engine that generates text."""

    KIND = "language"

    async def generate(self, params: Generate) -> Generated:
        return await self._ask(lambda client: client.generate(params))

    async def score(self, params: Score) -> Scored:
        return await self._ask(lambda client: client.score(params))


class EmbeddingEngine(Engine):
    """An engine that turns texts into vectors of length 1, as wide as the store has them."""

    KIND = "embedding"

    async def embed(
        self, texts: list[str], wait_seconds: float | None = OPTIONAL_SECONDS_MAX
    ) -> list[bytes]:
        """A vector per text: 4-byte little-endian floats.

        Raises `inference.unavailable` when they have not come in `wait_seconds`; None waits for as
        long as it takes, and is for what cannot go on without them.
        """
        try:
            async with asyncio.timeout(wait_seconds):
                embedded = await self._ask(lambda client: client.embed(texts))
        except TimeoutError as error:
            raise Failure(
                "inference.unavailable",
                f"The engine {self.name} has not answered within {wait_seconds:g} s.",
                "`agentd ctl status` says how it is.",
            ) from error
        return embedded.vectors

    def _check(self, info: ModelInfo) -> None:
        if info.dimensions == VECTOR_DIMENSIONS:
            return
        model = f"{info.architecture} ({self._start.path})" if self._start.path else info.name
        raise Failure(
            "model.invalid",
            f"The embedding model {model} makes vectors of {info.dimensions} dimensions, and the "
            f"store holds {VECTOR_DIMENSIONS}.",
            f"Configure `wordllama`, or a model of {VECTOR_DIMENSIONS} dimensions, as "
            "`embedding.engine`.",
            model=self._start.path or info.name,
            found=info.dimensions,
            expected=VECTOR_DIMENSIONS,
        )
