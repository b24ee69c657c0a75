"""The engine alone, for `agentd bench inference`: its own protocol over a socket, and no daemon."""

import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from inference_client.client import EngineClient
from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import ChatMessage, EngineStart, Generate, GeneratedText
from orchestrator.bench.bus_processes import running
from orchestrator.bench.inference_actors import AskError, Heard
from orchestrator.bench.inference_load import Actor, Ask, Said


class EngineAlone:
    """Asks an engine what a plan says."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    async def ask(self, actor: Actor, ask: Ask, heard: Heard) -> Said:
        """One answer. Raises `AskError`."""
        text: list[str] = []

        async def on_item(item: GeneratedText) -> None:
            text.append(item.text)
            if item.text:
                heard()

        try:
            answer = await self._client.generate(_generate(actor, ask), on_item)
        except Failure as failure:
            raise AskError(str(failure)) from failure
        usage = answer.usage
        return Said(
            text="".join(text),
            finish=answer.finish,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            generated_tokens=usage.generated_tokens,
            forced_tokens=usage.forced_tokens,
        )


def _generate(actor: Actor, ask: Ask) -> Generate:
    messages = [
        ChatMessage(role="system", content=ask.identity),
        ChatMessage(role="user", content=ask.text),
    ]
    typed = ask.schema is not None
    return Generate(
        agent=actor.name,
        priority=actor.priority,
        tokens_max=ask.tokens_max,
        messages=messages if typed else [],
        prompt=None if typed else ask.text,
        schema=ask.schema,
        stream=True,
    )


@contextlib.asynccontextmanager
async def engine_alone(start: EngineStart, folder: Path) -> AsyncIterator[EngineAlone]:
    """An engine with its model loaded, which says what goes wrong in `folder`. Raises `Failure`."""
    ours, theirs = socket.socketpair()
    async with contextlib.AsyncExitStack() as stack:
        with theirs:
            command = (sys.executable, "-m", "inference_client.engine", "--fd")
            descriptor = theirs.fileno()
            process = running((*command, str(descriptor)), folder, passed=[descriptor])
            await stack.enter_async_context(process)
        hello = Hello(name="agentd bench")
        line = await stack.enter_async_context(Connection(ours, hello, Handlers(), initiator=False))
        client = EngineClient(line)
        await client.start(start)
        yield EngineAlone(client)
