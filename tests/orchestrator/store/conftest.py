"""A real store in a temporary folder, with a clock that only moves when told to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.store.store import Store


class Clock:
    def __init__(self) -> None:
        self.now_us = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agentd.db"


@pytest.fixture
async def store(path: Path, clock: Clock) -> AsyncIterator[Store]:
    opened = await Store.open(path, clock_us=clock)
    yield opened
    await opened.close()
