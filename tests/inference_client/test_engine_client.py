"""What the client makes of a line that fails, against a peer that speaks in bytes."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from inference_client.client import EngineClient
from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello


@contextlib.asynccontextmanager
async def client_and_peer() -> AsyncIterator[tuple[EngineClient, socket.socket]]:
    """A client, and the raw socket of the engine that it talks to, after the hellos."""
    ours, theirs = socket.socketpair()
    other, relay = socket.socketpair()
    with theirs, other:
        # The hello of a real engine, passed on as it is.
        async with contextlib.AsyncExitStack() as stack:
            loop = asyncio.get_running_loop()
            theirs.setblocking(False)
            other.setblocking(False)
            peer = asyncio.create_task(_entered(stack, relay, initiator=True))
            hello = await loop.sock_recv(other, 65536)
            await loop.sock_sendall(theirs, hello)
            connection = Connection(ours, Hello(name="tests"), Handlers(), initiator=False)
            await stack.enter_async_context(connection)
            await loop.sock_sendall(other, await loop.sock_recv(theirs, 65536))
            await peer
            yield EngineClient(connection), theirs


async def _entered(
    stack: contextlib.AsyncExitStack, sock: socket.socket, *, initiator: bool
) -> None:
    await stack.enter_async_context(
        Connection(sock, Hello(name="engine"), Handlers(), initiator=initiator)
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"this is no frame of any version",
        b"AGD\x01\xff\xff\xff\xff\x00\x04\x00\x00\x00\x00\x00\x01",
        b"AGD\x01\x00\x00\x00\x00\x00\x63\x00\x00\x00\x00\x00\x01",
    ],
    ids=["another version", "too long", "of an unknown type"],
)
async def test_an_engine_that_breaks_the_line_has_ended_for_whoever_waits(answer: bytes) -> None:
    async with client_and_peer() as (client, peer):
        asked = asyncio.create_task(client.embed(["text"]))
        loop = asyncio.get_running_loop()
        await loop.sock_recv(peer, 65536)
        await loop.sock_sendall(peer, answer)
        with pytest.raises(Failure) as failure:
            await asked
        assert failure.value.code == "inference.unavailable"


async def test_a_request_that_no_frame_holds_is_the_callers_own_fault() -> None:
    async with client_and_peer() as (client, _):
        with pytest.raises(Failure) as failure:
            await client.embed(["x" * 5_000_000])
        assert failure.value.code == "protocol.frame-too-long"
