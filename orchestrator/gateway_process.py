"""The gateway kept alive: the daemon's side of the one process that listens on the network."""

import logging
import sys
from collections.abc import Callable
from typing import Final

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.events import Hello
from orchestrator.config.types import Config
from orchestrator.supervision.processes import ChildProcess
from orchestrator.supervision.restart import Died
from orchestrator.supervision.supervisor import TOLERANT, Supervisor

log = logging.getLogger(__name__)

READY_SECONDS_MAX: Final = 30.0
"""Until the gateway greets: it imports its HTTP library, 0.3 s or 10 s from a cold disk."""


def listens(config: Config) -> bool:
    """Whether anything is served at all."""
    return bool(config.gateway.listen or config.endpoint.listen)


class Gateway:
    """Supervises the gateway program and serves its line. `run` goes on until cancelled."""

    def __init__(
        self,
        config: Config,
        handlers: Handlers,
        clock_us: Callable[[], int],
        on_restart: Callable[[str], None],
    ) -> None:
        self._listen = config.gateway.listen
        self._endpoint = config.endpoint.listen
        self._handlers = handlers
        self._supervisor = Supervisor("gateway", TOLERANT, clock_us)
        self._on_restart = on_restart

    async def run(self) -> None:
        await self._supervisor.run(self._live)

    async def _live(self) -> Died:
        if self._supervisor.restarts:
            self._on_restart("gateway")
        async with ChildProcess.spawn("gateway", self._command) as child:
            await child.wait_ready(READY_SECONDS_MAX)
            hello = Hello(name="orchestrator")
            async with Connection(child.line, hello, self._handlers, initiator=False) as line:
                self._supervisor.ready(" and ".join(filter(None, (self._listen, self._endpoint))))
                await line.wait_closed()
            death = await child.stop()
        self._supervisor.detail = death.description
        log.warning("gateway %s", death.description)
        return Died()

    def _command(self, fd: int) -> list[str]:
        return [
            *(sys.executable, "-m", "orchestrator.gateway"),
            *("--fd", str(fd)),
            *(("--listen", self._listen) if self._listen else ()),
            *(("--endpoint", self._endpoint) if self._endpoint else ()),
        ]
