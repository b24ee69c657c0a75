"""Egress kept alive, and reached: the daemon's side of the one process that dials out.

A program that may ask a remote server asks on its own line, the *dialling* line. Under which grant
is fixed here when the line is made, whatever the program says; so it can neither name another
server nor see the key of its own.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Final

import msgspec

from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.egress import Dial, EgressStart, Fetch, Fetched
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.methods import EGRESS_FETCH, EGRESS_START
from orchestrator import secrets
from orchestrator.config.types import ModelConfig
from orchestrator.egress_urls import GrantedUrl, UrlError
from orchestrator.supervision.processes import ChildProcess
from orchestrator.supervision.restart import Died
from orchestrator.supervision.supervisor import TOLERANT, Supervisor

READY_SECONDS_MAX: Final = 30.0
"""Until egress greets: it imports its HTTP library, 0.3 s or 10 s from a cold disk."""

WAIT_SECONDS_MAX: Final = 30.0
"""How long a request waits for egress: a restart after the first few deaths takes less."""

TAKE_SECONDS_MAX: Final = 30.0
"""How long whoever asked may take to make room for one more piece: a program that reads nothing
must not hold up the line on which the others' answers come."""


def grants_of(
    models: Mapping[str, ModelConfig], environment: MutableMapping[str, str]
) -> dict[str, Dial]:
    """What egress may dial: the server of each remote model, with its key.

    Keys that stand in `environment` are taken out of it, so that no program inherits them. Raises
    `model.unavailable` for a key that cannot be read, or must not be sent; it blocks for the files.
    """
    remote = {name: model for name, model in models.items() if model.url}
    grants = {name: _dial(name, model, environment) for name, model in remote.items()}
    secrets.withdraw((model.key for model in remote.values()), environment)
    return grants


def _dial(name: str, model: ModelConfig, environment: Mapping[str, str]) -> Dial:
    try:
        url = GrantedUrl.parse(model.url)
    except UrlError as error:
        raise Failure(
            "model.unavailable", f"The URL of {name} cannot be dialled: {error}.", "Correct it."
        ) from error
    if model.key and not url.keeps_secrets:
        raise Failure(
            "model.unavailable",
            f"The key of {name} would travel to {url} for everybody on the way to read.",
            "Use https, or no key.",
        )
    secret = secrets.read(model.key, environment).reveal() if model.key else ""
    return Dial(url=model.url, secret=secret)


class Egress:
    """Supervises the egress program. `run` goes on until cancelled."""

    def __init__(
        self,
        grants: Mapping[str, Dial],
        clock_us: Callable[[], int],
        on_restart: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.pid: int | None = None
        self._grants = dict(grants)
        self._supervisor = Supervisor("egress", TOLERANT, clock_us)
        self._on_restart = on_restart
        self._environment = environment
        self._line: Connection | None = None
        self._ready = asyncio.Event()

    async def run(self) -> None:
        await self._supervisor.run(self._live)

    def dialling(self, grant: str) -> Handlers:
        """What is served to the one program that has this grant."""
        assert grant in self._grants, grant

        async def fetch(params: Fetch, call: Call) -> Fetched:
            return await self._relay(msgspec.structs.replace(params, grant=grant), call)

        return Handlers().add(EGRESS_FETCH, fetch)

    async def _live(self) -> Died:
        if self._supervisor.restarts:
            self._on_restart("egress")
        async with ChildProcess.spawn(
            "egress", self._command, environment=self._environment
        ) as child:
            await child.wait_ready(READY_SECONDS_MAX)
            hello = Hello(name="orchestrator")
            async with Connection(child.line, hello, Handlers(), initiator=False) as line:
                await line.call(EGRESS_START, EgressStart(grants=self._grants))
                self.pid, self._line = child.pid, line
                self._ready.set()
                self._supervisor.ready(", ".join(sorted(self._grants)))
                try:
                    await line.wait_closed()
                finally:
                    self._ready.clear()
                    self.pid = self._line = None
            await child.stop()
        return Died()

    async def _relay(self, asked: Fetch, call: Call) -> Fetched:
        """Raises what egress answers, and `egress.failed` when it is not there or ends."""
        line = await self._wait_line()
        try:
            async with line.stream(EGRESS_FETCH, asked) as response:
                async for piece in response:
                    async with asyncio.timeout(TAKE_SECONDS_MAX):
                        await call.send_item(piece)
                return await response.result()
        except TimeoutError as error:
            raise _failed("Whoever asked has not taken the answer.", "broken") from error
        except Failure as failure:
            if not line.closed and not failure.code.startswith("protocol."):
                raise
            raise _failed(f"Egress: {failure.problem.message}", "broken") from failure

    async def _wait_line(self) -> Connection:
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                while self._line is None:  # it may have ended again before this task runs
                    await self._ready.wait()
        except TimeoutError as error:
            raise _failed("Egress is not running.", "unreachable") from error
        return self._line

    def _command(self, fd: int) -> list[str]:
        return [sys.executable, "-m", "orchestrator.egress", "--fd", str(fd)]


def _failed(sentence: str, reason: str) -> Failure:
    return Failure("egress.failed", sentence, "Ask again; the log has more.", reason=reason)
