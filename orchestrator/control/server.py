"""Listens on the control socket, and serves each connection until it ends.

Whoever may open the socket may do everything that `agentd ctl` can, so its file belongs to the
daemon's user alone.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello

log = logging.getLogger(__name__)

BACKLOG: Final = 128
"""Connections that the kernel holds while the loop is busy: a shell loop of `agentd ctl`."""

CONNECTIONS_MAX: Final = 256
"""Operators, their programs and watchers at once; each costs a descriptor and its buffers."""

SOCKET_MODE: Final = 0o600


async def serve_control(path: Path, handlers: Handlers) -> None:
    """Serve until cancelled. Raises `OSError` when the socket cannot be had or is in use."""
    room = asyncio.Semaphore(CONNECTIONS_MAX)
    loop = asyncio.get_running_loop()
    with listening(path) as listener:
        log.info("listening on %s", path)
        async with asyncio.TaskGroup() as connections:
            while True:
                await room.acquire()
                sock, _ = await loop.sock_accept(listener)
                task = connections.create_task(_serve(sock, handlers))
                task.add_done_callback(lambda _: room.release())


async def _serve(sock: socket.socket, handlers: Handlers) -> None:
    hello = Hello(name="agentd")
    try:
        async with Connection(sock, hello, handlers, initiator=False) as connection:
            await connection.wait_closed()
    except (Failure, OSError) as error:
        log.info("a connection to the control socket failed: %s", error)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, whose file goes when the block is left.

    The file of a daemon that was killed is taken over; that of one that answers is not.
    """
    if _answers(path):
        raise OSError(
            errno.EADDRINUSE,
            "another agentd listens there; stop it, or give this one another socket",
            str(path),
        )
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        mask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        identity = _identity(path)
        listener.listen(BACKLOG)
        try:
            yield listener
        finally:
            # Another daemon may have taken the path over since.
            with contextlib.suppress(FileNotFoundError):
                if _identity(path) == identity:
                    path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
