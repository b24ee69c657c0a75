"""Supervised language engines for tests: real processes that count instead of running a model."""

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
from embedding_engines import clock_us, supervised, until
from language_program import Options

from ipc_protocol.inference import ChatMessage, EngineStart, Generate, GeneratedText
from ipc_protocol.values import Priority
from orchestrator.engine_life import WATCH, Watch
from orchestrator.engines import LanguageEngine
from orchestrator.model_memory import Residence

PROGRAM: Final = Path(__file__).parent / "language_program.py"


class CountingEngine(LanguageEngine):
    """Runs `language_program` in the place of the engine. It logs who had a slot."""

    def __init__(
        self,
        folder: Path,
        name: str = "default",
        *,
        slots: int = 8,
        watch: Watch = WATCH,
        residence: Residence | None = None,
        expected: int = 0,
        **options: Any,
    ) -> None:
        self.restarted: list[str] = []
        self.log = folder / f"{name}.log"
        self.expected = expected
        self._options = Options(log=str(self.log), **options)
        start = EngineStart(name=name, path=name, slots=slots)
        super().__init__(start, clock_us, self.restarted.append, watch, residence=residence)

    def _command(self, fd: int) -> list[str]:
        options = msgspec.json.encode(self._options).decode()
        return [sys.executable, str(PROGRAM), str(fd), options]

    async def _estimate(self) -> int:
        return self.expected

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Who had a slot: one entry each time."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def wait_slot(self, agent: str, times: int = 1) -> None:
        """Until the agent has had a slot so often."""

        async def had() -> bool:
            return sum(entry["agent"] == agent for entry in self.entries) >= times

        await until(had)


class Heard:
    """A listener who keeps what he is told."""

    def __init__(self) -> None:
        self.items: list[GeneratedText] = []

    async def __call__(self, item: GeneratedText) -> None:
        self.items.append(item)

    @property
    def text(self) -> str:
        return "".join(item.text for item in self.items)

    @property
    def tokens(self) -> list[int]:
        return [token for item in self.items for token in item.tokens]


def asked(prompt: str, agent: str = "opsclaw", tokens: int = 40, **more: Any) -> Generate:
    priority: Priority = more.pop("priority", "normal")
    return Generate(
        agent=agent,
        priority=priority,
        messages=[ChatMessage(role="user", content=prompt)],
        tokens_max=tokens,
        **more,
    )


@contextlib.asynccontextmanager
async def all_supervised(*engines: LanguageEngine) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(supervised(engine))
        yield
