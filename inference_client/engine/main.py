"""The engine as a program: `python -m inference_client.engine --fd N [--kind KIND]`.

It speaks the protocol over the inherited descriptor N, loads one model when told to, and exits when
the line ends: an engine whose parent has died has nobody to work for. When its decode thread fails
it exits with status 1, and supervision starts another.
"""

import asyncio
import contextlib
import json
import logging
import socket
import sys
from typing import Final, Literal, Protocol

import click
import uvloop

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.events import Hello

SWITCH_SECONDS: Final = 0.0005
"""The decode thread waits for the event loop so long at most when a step ends: a hundredth of a
step instead of the tenth that Python's default would cost."""

Kind = Literal["language", "embedding", "remote"]


class Engine(Protocol):
    """What all kinds have in common: they serve until the line ends, or until they break."""

    broken: asyncio.Event

    def serving(self) -> contextlib.AbstractAsyncContextManager[Handlers]: ...


def engine_of(kind: Kind) -> Engine:
    """The engine of a kind. Each imports its own heavy library, and only that."""
    if kind == "language":
        from inference_client.engine.language import LanguageEngine

        return LanguageEngine()
    if kind == "remote":
        from inference_client.engine.remote.engine import RemoteEngine

        return RemoteEngine()
    from inference_client.engine.embedding import EmbeddingEngine

    return EmbeddingEngine()


async def serve(sock: socket.socket, kind: Kind) -> bool:
    """Serve one connection. Returns whether it ended in order."""
    engine = engine_of(kind)
    hello = Hello(name=f"engine/{kind}")
    async with (
        engine.serving() as handlers,
        Connection(sock, hello, handlers, initiator=True) as connection,
    ):
        closed = asyncio.ensure_future(connection.wait_closed())
        broken = asyncio.ensure_future(engine.broken.wait())
        await asyncio.wait((closed, broken), return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        broken.cancel()
    return not engine.broken.is_set()


@click.command()
@click.option("--fd", type=int, help="The inherited socket to speak over.")
@click.option("--devices", is_flag=True, help="Say what there is to compute on, and leave.")
@click.option("--kind", type=click.Choice(["language", "embedding", "remote"]), default="language")
@click.option("--log-level", default="INFO", help="DEBUG shows what llama.cpp says.")
def main(fd: int | None, devices: bool, kind: Kind, log_level: str) -> None:
    """Serve one model to the orchestrator."""
    if devices:
        click.echo(_devices())
        return
    if fd is None:
        raise click.UsageError("An engine speaks over an inherited socket: give --fd.")
    logging.basicConfig(level=log_level, stream=sys.stderr, format="%(levelname)s %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    with socket.socket(fileno=fd) as sock:
        orderly = uvloop.run(serve(sock, kind))
    sys.exit(0 if orderly else 1)


def _devices() -> str:
    """The build of llama.cpp, and what it can compute on, as JSON."""
    from inference_client.engine import llama

    found = [
        {
            "name": device.name,
            "description": device.description,
            "kind": device.kind,
            "memory_bytes": device.memory_bytes,
            "memory_free_bytes": device.memory_free_bytes,
        }
        for device in llama.devices()
    ]
    about = {"version": llama.version(), "gpu_offload": llama.offloads(), "devices": found}
    return json.dumps(about)
