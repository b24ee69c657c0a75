"""The daemon's end of the endpoint with models that say what a test wants, and both ends of HTTP.

The line, what is decided about keys, and the gateway are the real ones; only the engines are not.
"""

import asyncio
import contextlib
import hashlib
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import httpx2
import openai

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import Embedded, Generate, Generated, GeneratedText, TokenLogprob, Usage
from orchestrator.config.types import ClientConfig, Config, ModelConfig
from orchestrator.endpoint import Endpoint
from orchestrator.engines import EmbeddingEngine, LanguageEngine
from orchestrator.gateway import endpoint as gateway_endpoint
from orchestrator.gateway.endpoint import BOUNDS, Bounds
from orchestrator.gateway.endpoint_server import CONNECTIONS_MAX, serving_endpoint
from orchestrator.supervision.processes import ChildProcess

KEY: Final = "sk-ada"
LIMITED_KEY: Final = "sk-bob"
FOREVER: Final = "Go on and on."
"""What is asked of a model that shall never end."""


class ScriptedLanguage(LanguageEngine):
    """Says `pieces`, one item for each, and notes what it was asked and what was withdrawn."""

    def __init__(self) -> None:
        self.name = "small"
        self.pieces = ["Hel", "lo", "."]
        self.finish: Any = "stop"
        self.failure: Failure | None = None
        self.fails_after: int | None = None
        """Pieces before the failure; None for before everything."""
        self.held: asyncio.Event | None = None
        """Waited for behind the pieces."""
        self.asked: list[Generate] = []
        self.arrived = asyncio.Event()
        self.withdrawn = asyncio.Event()

    async def generate(
        self, params: Generate, on_item: Callable[[GeneratedText], Awaitable[None]] | None = None
    ) -> Generated:
        self.asked.append(params)
        self.arrived.set()
        try:
            return await self._generate(params, on_item)
        except BaseException as error:
            if not isinstance(error, Failure):
                self.withdrawn.set()
            raise

    async def _generate(
        self, params: Generate, on_item: Callable[[GeneratedText], Awaitable[None]] | None
    ) -> Generated:
        if self.failure is not None and self.fails_after is None:
            raise self.failure
        logprobs = [TokenLogprob(piece=one.encode(), logprob=-0.5) for one in self.pieces]
        if params.logprobs is None:
            logprobs = []
        if on_item is not None:
            await on_item(GeneratedText())
            for place, piece in enumerate(self.pieces):
                if place == self.fails_after and self.failure is not None:
                    raise self.failure
                some = logprobs[place : place + 1]
                await on_item(GeneratedText(text=piece, tokens=[place], logprobs=some))
            while params.messages and params.messages[-1].content == FOREVER:
                await on_item(GeneratedText(text="x" * 1000, tokens=[1]))
                await asyncio.sleep(0)
        if self.held is not None:
            await self.held.wait()
        usage = Usage(
            prompt_tokens=7,
            cached_tokens=4,
            generated_tokens=len(self.pieces),
            queue_us=0,
            first_token_us=1,
            total_us=2,
        )
        text = "".join(self.pieces)
        return Generated(text=text, finish=self.finish, usage=usage, logprobs=logprobs)


class ScriptedEmbedding(EmbeddingEngine):
    """Vectors of two numbers: the length of the text, and 1. Each character is a token."""

    def __init__(self) -> None:
        self.name = "embed"
        self.batches: list[int] = []
        self.held: asyncio.Event | None = None
        """Waited for before an answer."""

    async def embed(self, texts: list[str], wait_seconds: float | None = 2.0) -> Embedded:
        self.batches.append(len(texts))
        if self.held is not None:
            await self.held.wait()
        vectors = [struct.pack("<2f", len(text), 1) for text in texts]
        return Embedded(dimensions=2, vectors=vectors, tokens=sum(map(len, texts)))


class Models:
    """The orchestrator behind the gateway: a language model, vectors, and two clients."""

    def __init__(self) -> None:
        self.language = ScriptedLanguage()
        self.embedding = ScriptedEmbedding()
        self.config = Config(
            source=Path("agentd.toml"),
            prompts=Path("prompts"),
            models={"small": ModelConfig(context=4096), "large": ModelConfig(context=8192)},
            clients={
                "ada": _client("ada", KEY, priority="high", weight=2.0, requests=3),
                "bob": _client("bob", LIMITED_KEY, models=["large"]),
            },
        )

    def handlers(self) -> Handlers:
        languages: dict[str, LanguageEngine] = {"small": self.language, "large": self.language}
        return Endpoint(self.config, languages, self.embedding).add_to(Handlers())


def _client(name: str, key: str, **fields: Any) -> ClientConfig:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return ClientConfig(name=name, key_sha256=digest, **fields)


@contextlib.asynccontextmanager
async def served(
    path: Path, models: Models, bounds: Bounds = BOUNDS, connections_max: int = CONNECTIONS_MAX
) -> AsyncIterator[Connection]:
    """The endpoint alone, in this process; yields the daemon's end of the line."""
    ours, theirs = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    daemon = Connection(theirs, Hello(name="daemon"), models.handlers(), initiator=False)
    line = Connection(ours, Hello(name="gateway"), Handlers(), initiator=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(daemon.__aenter__())
        async with line:
            endpoint = gateway_endpoint.Endpoint(line, bounds)
            async with serving_endpoint(endpoint, listener, connections_max=connections_max):
                yield daemon
            await daemon.__aexit__()


@contextlib.asynccontextmanager
async def program(models: Models, *arguments: str) -> AsyncIterator[ChildProcess]:
    """The gateway as the daemon runs it, with these arguments."""
    command = (sys.executable, "-m", "orchestrator.gateway", *arguments, "--fd")
    async with ChildProcess.spawn("gateway", lambda fd: (*command, str(fd))) as child:
        await child.wait_ready(60)
        hello = Hello(name="orchestrator")
        async with Connection(child.line, hello, models.handlers(), initiator=False):
            yield child


def client_at(path: Path, key: str = KEY) -> openai.AsyncOpenAI:
    """The official client, over a Unix socket. It does not ask twice, which tests would not see."""
    return openai.AsyncOpenAI(
        base_url="http://agentd/v1",
        api_key=key,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(path))),
    )


def unused_port() -> int:
    """Of the loopback, which the kernel gives to nobody else right away."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port
