"""Supervised embedding engines for tests: real processes, and one whose texts do harm to it."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

from ipc_protocol.inference import EngineStart
from orchestrator.engine_life import WATCH, Engine, Watch
from orchestrator.engines import VECTOR_DIMENSIONS, EmbeddingEngine

E = TypeVar("E", bound=Engine)

PROGRAM: Final = Path(__file__).parent / "embedding_program.py"

IMPATIENT: Final = Watch(interval_seconds=0.05, silent_seconds=0.3, patience_us=600_000)

SECONDS_MAX: Final = 30.0


def clock_us() -> int:
    return time.time_ns() // 1000


class HarmedEngine(EmbeddingEngine):
    """Runs `embedding_program` in the place of the engine."""

    def __init__(self, watch: Watch = WATCH, dimensions: int = VECTOR_DIMENSIONS) -> None:
        self.restarted: list[str] = []
        self._dimensions = dimensions
        start = EngineStart(name="embed", path="")
        super().__init__(start, clock_us, self.restarted.append, watch)

    def _command(self, fd: int) -> list[str]:
        return [sys.executable, str(PROGRAM), str(fd), str(self._dimensions)]


@contextlib.asynccontextmanager
async def supervised(engine: E) -> AsyncIterator[E]:
    """The engine, running under its supervisor; its process ends with the block."""
    task = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for it, and fail when it takes too long."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)
