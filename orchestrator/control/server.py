"""Listens on the control socket, and serves each connection until it ends.

Whoever may open the socket may do everything that `agentd ctl` can, so its file belongs to the
daemon's user alone.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ipc_protocol import limits
from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.events import Hello
from ipc_protocol.frames import FrameType, encode
from orchestrator import sockets

log = logging.getLogger(__name__)

BACKLOG: Final = 128
"""Connections that the kernel holds while the loop is busy: a shell loop of `agentd ctl`."""

CONNECTIONS_MAX: Final = 256
"""Operators, their programs and watchers at once; each costs a descriptor and its buffers."""

REFUSALS_MAX: Final = 32
"""Connections beyond those that are told so at once. The others wait in the backlog."""

SOCKET_MODE: Final = 0o600

_FULL: Final = encode(
    FrameType.ERROR,
    0,
    Problem(
        code="protocol.too-many-connections",
        message=f"{CONNECTIONS_MAX} connections are open.",
        cure="Close one, such as a forgotten `agentd ctl watch`, and connect again.",
    ),
)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """The control socket at `path`; who connects waits until it is served. Raises `ListenError`."""
    with sockets.listening(path, mode=SOCKET_MODE, backlog=BACKLOG) as listener:
        yield listener


async def serve_control(listener: socket.socket, handlers: Handlers) -> None:
    """Serve until cancelled. One connection too many is told so."""
    places, refusals = asyncio.Semaphore(CONNECTIONS_MAX), asyncio.Semaphore(REFUSALS_MAX)
    loop = asyncio.get_running_loop()
    log.info("listening on %s", listener.getsockname())
    async with asyncio.TaskGroup() as connections:
        while True:
            sock, _ = await loop.sock_accept(listener)
            if places.locked():
                await refusals.acquire()
                refused = connections.create_task(_refuse(sock))
                refused.add_done_callback(lambda _: refusals.release())
            else:
                await places.acquire()
                served = connections.create_task(_serve(sock, handlers))
                served.add_done_callback(lambda _: places.release())


async def _serve(sock: socket.socket, handlers: Handlers) -> None:
    hello = Hello(name="agentd")
    try:
        async with Connection(sock, hello, handlers, initiator=False) as connection:
            await connection.wait_closed()
    except (Failure, OSError) as error:
        log.info("a connection to the control socket failed: %s", error)


async def _refuse(sock: socket.socket) -> None:
    """Say why, after its hello: who is still writing when the line ends never reads the reason."""
    loop = asyncio.get_running_loop()
    log.warning("the control socket has %d connections, and refused one", CONNECTIONS_MAX)
    with sock, contextlib.suppress(OSError):
        async with asyncio.timeout(limits.HELLO_SECONDS_MAX):
            await loop.sock_recv(sock, limits.SOCKET_READ_BYTES)
            await loop.sock_sendall(sock, _FULL)
