"""The client of an engine, as the orchestrator uses it: one coroutine per method.

An engine that dies takes the answers under way with it: those calls raise `inference.unavailable`,
whatever the line said, and the caller asks again when supervision has started another engine. Every
other `Failure` is the engine's own answer, and asking again would bring the same.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from ipc_protocol import methods
from ipc_protocol.aio import Connection
from ipc_protocol.errors import Failure
from ipc_protocol.inference import (
    Embed,
    Embedded,
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

LINE_CODES: Final = frozenset(
    ("protocol.closed", "protocol.hello-timeout", "protocol.malformed", "protocol.sequence")
)
"""What the line says when the engine behind it is gone, or is no longer itself."""


class EngineClient:
    """Asks one engine over its connection. Cancelling a call withdraws it from the engine."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def start(self, params: EngineStart) -> ModelInfo:
        """Load a model. Raises `model.invalid`."""
        with self._engine_alive():
            return await self._connection.call(methods.ENGINE_START, params)

    async def status(self) -> EngineStatus:
        """Slots, queue and usage, as they stand between two steps."""
        with self._engine_alive():
            return await self._connection.call(methods.ENGINE_STATUS, Nothing())

    async def generate(
        self, params: Generate, on_item: Callable[[GeneratedText], Awaitable[None]] | None = None
    ) -> Generated:
        """The answer. With `params.stream`, `on_item` gets it as it comes."""
        with self._engine_alive():
            async with self._connection.stream(methods.ENGINE_GENERATE, params) as response:
                async for item in response:
                    if on_item is not None:
                        await on_item(item)
                return await response.result()

    async def score(self, params: Score) -> Scored:
        """The log-likelihood of a text as the continuation of another."""
        with self._engine_alive():
            return await self._connection.call(methods.ENGINE_SCORE, params)

    async def embed(self, texts: list[str]) -> Embedded:
        """A vector per text, from an embedding engine."""
        with self._engine_alive():
            return await self._connection.call(methods.ENGINE_EMBED, Embed(texts=texts))

    @contextlib.contextmanager
    def _engine_alive(self) -> Iterator[None]:
        try:
            yield
        except Failure as failure:
            # Whatever ended the line is not the answer to this request.
            if failure.code not in LINE_CODES and failure.problem != self._connection.problem:
                raise
            raise Failure(
                "inference.unavailable",
                f"The engine ended before it answered: {failure.problem.message}",
                "Ask again when it has been restarted.",
            ) from failure
