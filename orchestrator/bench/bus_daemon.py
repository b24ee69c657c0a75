"""A daemon for `agentd bench bus`: its own folder, and one agent that acts on every message.

It is the real one, with strict confinement, a worker of its own for the agent, and the settings of
every installation; only the inbox is larger, because what is measured is not how a publisher waits.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import tomli_w

from ipc_protocol.aio import connect
from ipc_protocol.control import Status
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import STATUS
from orchestrator.bench.bus_processes import TOPIC, Side, running, tail

AGENT: Final = "echo"
INBOX: Final = 100_000
UP_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.05
ANSWER_SECONDS_MAX: Final = 60.0
"""Counting a million deliveries takes a second."""


class Daemon:
    """One that is up."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.side = Side("agentd", str(socket), ("orchestrator.bench.bus_publisher",))

    async def require_handled(self, messages: int) -> None:
        """Raises `Failure` unless the store has exactly so many as handled, and nothing died."""
        status = await self._status()
        done = sum(agent.done for agent in status.agents)
        if done != messages or status.dead_letters:
            raise Failure(
                "request.internal",
                f"The publishers were told that {messages} messages were handled; the store has "
                f"{done} of them, and {status.dead_letters} dead letters.",
                "The figures are worthless: this is a defect, please report it.",
            )

    async def is_healthy(self) -> bool:
        """Whether its agent is up."""
        try:
            return (await self._status()).healthy
        except (OSError, Failure):
            return False  # it does not listen yet, or is too busy to greet

    async def _status(self) -> Status:
        async with (
            asyncio.timeout(ANSWER_SECONDS_MAX),
            connect(self._socket, Hello(name="agentd bench")) as connection,
        ):
            return await connection.call(STATUS, Nothing())


@contextlib.asynccontextmanager
async def daemon(folder: Path) -> AsyncIterator[Daemon]:
    """A daemon in `folder`, which is empty. Raises `Failure` where none comes up."""
    config = folder / "agentd.toml"
    socket = folder / "agentd.sock"
    config.write_text(_config(folder, socket))
    command = (sys.executable, "-m", "orchestrator.cli.main", "run", "--config", str(config))
    async with running(command, folder) as process:
        started = Daemon(socket)
        try:
            async with asyncio.timeout(UP_SECONDS_MAX):
                while not await started.is_healthy():
                    if process.returncode is not None:
                        raise TimeoutError
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise Failure(
                "request.internal",
                f"No daemon came up for the measurement:\n{tail(folder)}",
                "`agentd run` with a configuration of your own says what this host lacks.",
            ) from error
        yield started


def _config(folder: Path, socket: Path) -> str:
    return tomli_w.dumps(
        {
            "daemon": {
                "state": str(folder / "state"),
                "socket": str(socket),
                "sandbox": "strict",
                "log": "text",
                "log_level": "warning",
            },
            "gateway": {"listen": ""},
            "agent": {AGENT: {"brain": "echo", "consumes": [TOPIC], "limits": {"inbox": INBOX}}},
        }
    )
