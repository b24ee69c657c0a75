"""The language engine's side of the protocol: what each of its methods does with the pool.

llama.cpp is imported when a model is loaded, and not before: importing it takes longer on a busy
machine than the protocol allows for the hello.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ipc_protocol import methods
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import (
    EngineStart,
    EngineStatus,
    Generate,
    Generated,
    GeneratedText,
    ModelInfo,
    Nothing,
    Score,
    Scored,
)

if TYPE_CHECKING:
    from inference_client.engine.loading import Loaded
    from inference_client.engine.pool import Pool


class LanguageEngine:
    """Serves one language model. `broken` is set when its decode thread has failed."""

    def __init__(self) -> None:
        self.broken = asyncio.Event()
        self._pool: Pool | None = None
        self._starting = False

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Handlers]:
        try:
            yield (
                Handlers()
                .add(methods.ENGINE_START, self._start)
                .add(methods.ENGINE_STATUS, self._status)
                .add(methods.ENGINE_GENERATE, self._generate)
                .add(methods.ENGINE_SCORE, self._score)
            )
        finally:
            if self._pool is not None:
                await self._pool.stop()

    async def _start(self, params: EngineStart, _: Call) -> ModelInfo:
        if self._starting:
            raise Failure(
                "request.invalid", "The engine has a model already.", "Start another engine."
            )
        self._starting = True
        try:
            loaded = await asyncio.to_thread(_load, params)
        except BaseException:
            self._starting = False
            raise
        from inference_client.engine.pool import Pool

        self._pool = Pool(
            loaded.context,
            loaded.policy,
            loaded.swap,
            loaded.info,
            loaded.cores,
            self.broken.set,
        )
        self._pool.start()
        return loaded.info

    async def _status(self, _: Nothing, __: Call) -> EngineStatus:
        return await self._loaded.status()

    async def _generate(self, params: Generate, call: Call) -> Generated:
        async def send(item: GeneratedText) -> None:
            await call.send_item(item)

        return await self._loaded.generate(params, send)

    async def _score(self, params: Score, _: Call) -> Scored:
        return await self._loaded.score(params)

    @property
    def _loaded(self) -> "Pool":
        if self._pool is None:
            raise Failure(
                "inference.unavailable", "The engine has no model yet.", "Send `engine.start`."
            )
        return self._pool


def _load(start: EngineStart) -> "Loaded":
    from inference_client.engine.loading import load

    return load(start)
