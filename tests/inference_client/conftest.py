"""Engines that run the real model."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from engines import RunningEngine, running_engine

from ipc_protocol.inference import EngineStart

StartEngine = Callable[..., contextlib.AbstractAsyncContextManager[RunningEngine]]


@pytest.fixture
def start_engine(model_path: Path) -> StartEngine:
    """Start an engine with the real model: `async with start_engine(slots=2) as engine`."""

    @contextlib.asynccontextmanager
    async def start(slots: int = 4, context: int = 4096) -> AsyncIterator[RunningEngine]:
        async with running_engine() as engine:
            await engine.client.start(
                EngineStart(
                    name="smollm2", path=os.fspath(model_path), slots=slots, context=context
                )
            )
            yield engine

    return start
