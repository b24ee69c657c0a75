"""Engines kept alive, and requests that outlive their deaths.

An `Engine` supervises one engine process: it starts it, loads its model, and starts it again with
backoff when it dies. A request that was under way is asked again of the next incarnation, so that
its caller sees a delay at most.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar

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
    Score,
    Scored,
)
from orchestrator.supervision.child import ChildState
from orchestrator.supervision.processes import ChildProcess
from orchestrator.supervision.restart import Died
from orchestrator.supervision.supervisor import TOLERANT, Supervisor

log = logging.getLogger(__name__)

R = TypeVar("R")

READY_SECONDS_MAX: Final = 60.0
"""Until an engine greets: it imports its library, which takes 0.5 s, or 20 s from a cold disk."""

DEATHS_PER_REQUEST_MAX: Final = 5
"""A request whose engine died this often under it is taken for the cause, and refused."""

STATUS_SECONDS_MAX: Final = 2.0
"""A status waits for the end of the present step; one that comes later than this is of no use."""

_STATES: Final[dict[ChildState, Literal["starting", "ready", "backoff"]]] = {
    ChildState.RUNNING: "ready",
    ChildState.BACKOFF: "backoff",
}


class Engine:
    """One engine process, again and again. `run` supervises; the rest waits until it is ready."""

    def __init__(
        self,
        kind: Literal["language", "embedding"],
        start: EngineStart,
        clock_us: Callable[[], int],
        on_restart: Callable[[str], None],
    ) -> None:
        self.name = start.name
        self.pid: int | None = None
        self._kind = kind
        self._start = start
        self._supervisor = Supervisor(f"engine/{start.name}", TOLERANT, clock_us)
        self._on_restart = on_restart
        self._client: EngineClient | None = None
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Supervise until cancelled."""
        await self._supervisor.run(self._live)

    async def _live(self) -> Died:
        if self._supervisor.restarts:
            self._on_restart(self._supervisor.name)
        async with ChildProcess.spawn(self._supervisor.name, self._command) as child:
            await child.wait_ready(READY_SECONDS_MAX)
            hello = Hello(name="orchestrator")
            async with Connection(child.line, hello, Handlers(), initiator=False) as connection:
                client = EngineClient(connection)
                info = await client.start(self._start)
                self.pid, self._client = child.pid, client
                self._supervisor.ready(info.architecture)
                self._ready.set()
                log.info("%s is ready: %s", self._supervisor.name, info.architecture)
                try:
                    await connection.wait_closed()
                finally:
                    self._ready.clear()
                    self.pid = self._client = None
            death = await child.stop()
        self._supervisor.detail = death.description
        log.warning("%s %s", self._supervisor.name, death.description)
        return Died()

    def _command(self, fd: int) -> list[str]:
        return [
            *(sys.executable, "-m", "inference_client.engine"),
            *("--kind", self._kind, "--fd", str(fd)),
        ]

    async def _ask(self, request: Callable[[EngineClient], Awaitable[R]]) -> R:
        """Ask, and ask the next incarnation when this one dies. Raises `inference.unavailable`."""
        for _ in range(DEATHS_PER_REQUEST_MAX):
            await self._ready.wait()
            assert self._client is not None
            try:
                return await request(self._client)
            except Failure as failure:
                if failure.code != "inference.unavailable":
                    raise
                log.info("%s died under a request, which is asked again", self.name)
            # Its end is noticed by two tasks; the other one has to clear `_ready` first.
            await asyncio.sleep(0)
        raise Failure(
            "inference.unavailable",
            f"The engine {self.name} died {DEATHS_PER_REQUEST_MAX} times under one request.",
            "Its log says why; the request itself may be the cause.",
        )

    async def summary(self) -> EngineSummary:
        """How it is, with its slots and queue where it answers in time."""
        status: EngineStatus | None = None
        if self._client is not None:
            with contextlib.suppress(Failure, TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS_MAX):
                    status = await self._client.status()
        return EngineSummary(
            name=self.name,
            state=_STATES.get(self._supervisor.state, "starting"),
            restarts=self._supervisor.restarts,
            pid=self.pid,
            detail=self._supervisor.detail,
            status=status,
        )


class LanguageEngine(Engine):
    """An engine that generates text."""

    def __init__(
        self, start: EngineStart, clock_us: Callable[[], int], on_restart: Callable[[str], None]
    ) -> None:
        super().__init__("language", start, clock_us, on_restart)

    async def generate(self, params: Generate) -> Generated:
        return await self._ask(lambda client: client.generate(params))

    async def score(self, params: Score) -> Scored:
        return await self._ask(lambda client: client.score(params))


class EmbeddingEngine(Engine):
    """An engine that turns texts into vectors of length 1."""

    def __init__(
        self, start: EngineStart, clock_us: Callable[[], int], on_restart: Callable[[str], None]
    ) -> None:
        super().__init__("embedding", start, clock_us, on_restart)

    async def embed(self, texts: list[str]) -> list[bytes]:
        """A vector per text: 4-byte little-endian floats."""
        embedded = await self._ask(lambda client: client.embed(texts))
        return embedded.vectors
