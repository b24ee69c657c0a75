"""Engine processes for tests."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator

from inference_client.client import EngineClient
from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.events import Hello


class RunningEngine:
    """An engine process, and a client of it."""

    def __init__(self, process: asyncio.subprocess.Process, connection: Connection) -> None:
        self.process = process
        self.client = EngineClient(connection)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)


@contextlib.asynccontextmanager
async def running_engine(kind: str = "language") -> AsyncIterator[RunningEngine]:
    """An engine without a model, which ends with its line."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "inference_client.engine"),
            *("--fd", str(theirs.fileno()), "--kind", kind),
            pass_fds=[theirs.fileno()],
        )
    try:
        async with Connection(ours, Hello(name="tests"), Handlers(), initiator=False) as connection:
            yield RunningEngine(process, connection)
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
