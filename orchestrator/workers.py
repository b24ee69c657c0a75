"""Workers, as the orchestrator sees them: forked by the zygote, talked to over a socket pair each.

`Zygote` keeps one zygote process alive, asks it for workers and hears of their deaths. When the
zygote dies its workers die with it; that is not their fault, and `Exit.own` says so.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.methods import ZYGOTE_EXITS, ZYGOTE_FORK, ZYGOTE_KILL
from ipc_protocol.values import LayerReport
from ipc_protocol.work import Fork, Kill, WatchExits
from orchestrator.supervision.processes import ChildProcess
from orchestrator.supervision.restart import Died
from orchestrator.supervision.supervisor import TOLERANT, Supervisor

log = logging.getLogger(__name__)

HELLO: Final = Hello(name="orchestrator")

READY_SECONDS_MAX: Final = 30.0
"""Until the zygote greets: its imports take 0.3 s, or 10 s from a cold disk."""

EXIT_NOTICE_SECONDS_MAX: Final = 5.0
"""Between the end of a worker's line and the notice of its death. The kernel needs microseconds,
a machine that swaps needs more."""


class Exit(msgspec.Struct, frozen=True):
    """How a worker ended. `own` is false when it only went down with the zygote."""

    description: str
    own: bool
    orderly: bool = False


class Worker(msgspec.Struct):
    """One confined process and the line to it."""

    pid: int
    layers: list[LayerReport]
    connection: Connection
    exited: "asyncio.Future[Exit]"


class _Line(msgspec.Struct):
    """What there is while a zygote lives."""

    connection: Connection
    descriptors: socket.socket
    exits: dict[int, "asyncio.Future[Exit]"]


class Zygote:
    """Keeps a zygote alive. `run` supervises; `worker` waits until one is up."""

    def __init__(self, clock_us: Callable[[], int], on_restart: Callable[[str], None]) -> None:
        self.pid: int | None = None
        self._supervisor = Supervisor("zygote", TOLERANT, clock_us)
        self._on_restart = on_restart
        self._line: _Line | None = None
        self._up = asyncio.Event()
        self._tokens = itertools.count(1)

    async def run(self) -> None:
        """Supervise until cancelled."""
        await self._supervisor.run(self._live)

    async def _live(self) -> Died:
        if self._supervisor.restarts:
            self._on_restart("zygote")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours, contextlib.ExitStack() as until_spawned:
            until_spawned.enter_context(theirs)

            def command(fd: int) -> list[str]:
                return [
                    *(sys.executable, "-m", "agent_runtime"),
                    *("--fd", str(fd), "--descriptors", str(theirs.fileno())),
                ]

            spawned = ChildProcess.spawn("zygote", command, inherit=(theirs.fileno(),))
            async with spawned as child:
                until_spawned.close()
                await child.wait_ready(READY_SECONDS_MAX)
                async with Connection(child.line, HELLO, Handlers(), initiator=False) as connection:
                    self.pid = child.pid
                    await self._serve(_Line(connection, ours, {}))
                death = await child.stop()
        log.warning("the zygote %s", death.description)
        return Died()

    async def _serve(self, line: _Line) -> None:
        self._line = line
        self._supervisor.ready()
        self._up.set()
        try:
            async with line.connection.stream(ZYGOTE_EXITS, WatchExits()) as exits:
                async for exit_ in exits:
                    future = line.exits.pop(exit_.pid, None)
                    if future is not None and not future.done():
                        orderly = exit_.status == 0
                        future.set_result(Exit(exit_.description, own=True, orderly=orderly))
        finally:
            self._up.clear()
            self._line = self.pid = None
            for future in line.exits.values():
                if not future.done():
                    future.set_result(Exit("went down with the zygote", own=False))

    @contextlib.asynccontextmanager
    async def worker(
        self, fork: Callable[[int], Fork], handlers: Handlers
    ) -> AsyncIterator[Worker]:
        """A sealed worker, from its fork to the notice of its death. Raises `sandbox.refused`.

        `fork` is called with the token that pairs the request with its descriptor.
        """
        await self._up.wait()
        line = self._line
        assert line is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        token = next(self._tokens)
        with ours, theirs:
            # Sent before the request, so that the zygote finds it when it reads the request.
            socket.send_fds(line.descriptors, [token.to_bytes(8, "big")], [theirs.fileno()])
            forked = await line.connection.call(ZYGOTE_FORK, fork(token))
            theirs.close()
            exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
            line.exits[forked.pid] = exited
            try:
                async with Connection(ours, HELLO, handlers, initiator=True) as connection:
                    yield Worker(forked.pid, forked.layers, connection, exited)
            finally:
                await _end(line, forked.pid, exited)


async def _end(line: _Line, pid: int, exited: "asyncio.Future[Exit]") -> None:
    """Kill what still lives, and wait for the notice of its death."""
    if not exited.done() and not line.connection.closed:
        with contextlib.suppress(Failure):
            await line.connection.call(ZYGOTE_KILL, Kill(pid=pid))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(exited), EXIT_NOTICE_SECONDS_MAX)
