"""A daemon that is to be killed: talking to it while it lives, and finding what it has started."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal

from daemons import RunningDaemon, descendants, parent_of

from ipc_protocol.aio import Connection, connect
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello

Program = Literal["zygote", "engine", "model"]

PROGRAMS: Final[dict[Program, set[bytes]]] = {
    "zygote": {b"agent_runtime"},
    "engine": {b"inference_client.engine", b"embedding"},
    "model": {b"inference_client.engine", b"language"},
}
"""The programs that the daemon runs: words of their command lines. *engine* is the one that makes
vectors, *model* the one that generates."""

SERVING_SECONDS_MAX: Final = 30.0
DEATH_SECONDS_MAX: Final = 20.0
"""From SIGKILL to the end of a process and of all that it has started."""
LOOK_SECONDS: Final = 0.05


class Dead(Exception):
    """The daemon has been killed while it was talked to."""


@contextlib.asynccontextmanager
async def line_to(daemon: RunningDaemon) -> AsyncIterator[Connection]:
    """A connection, as soon as there is one. Raises `Dead` where the daemon was killed."""
    try:
        async with contextlib.AsyncExitStack() as stack:
            yield await stack.enter_async_context(await _connected(daemon))
    except (Failure, OSError) as error:
        if isinstance(error, Failure) and not error.code.startswith("protocol."):
            raise
        if not await ended(daemon, DEATH_SECONDS_MAX):
            raise
        require_killed(daemon)
        raise Dead from error


async def _connected(daemon: RunningDaemon) -> Connection:
    """Raises `OSError` for a daemon that has died, or does not serve in time."""
    deadline = time.monotonic() + SERVING_SECONDS_MAX
    while True:
        try:
            return connect(daemon.socket, Hello(name="kill-loop"))
        except OSError:
            if daemon.process.poll() is not None or time.monotonic() > deadline:
                raise
            await asyncio.sleep(LOOK_SECONDS)


async def ended(daemon: RunningDaemon, seconds: float) -> bool:
    """Whether the daemon ends within that time."""
    try:
        await asyncio.to_thread(daemon.process.wait, seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def require_killed(daemon: RunningDaemon) -> None:
    """A daemon that ends in any other way than by SIGKILL has a defect of its own."""
    status = daemon.process.returncode
    assert status == -signal.SIGKILL, f"the daemon ended with {status}:\n{daemon.tail()}"


def sigkill(pid: int) -> bool:
    """False for one that is dead already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def program(daemon: RunningDaemon, name: Program) -> int | None:
    """The process of one of the daemon's programs, if it is there."""
    for process in descendants(daemon.process.pid):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            # A worker has the command line of the zygote, whose child it is.
            if PROGRAMS[name] <= set(command) and parent_of(process.pid) == daemon.process.pid:
                return process.pid
    return None
