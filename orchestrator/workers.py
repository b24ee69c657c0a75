"""Workers, as the orchestrator sees them: forked by the zygote, talked to over a socket pair each.

A compiler is one of them here, with descriptors of its own and a limit on its CPU time.

`Zygote` keeps one zygote process alive, asks it for workers and hears of their deaths. When the
zygote dies its workers die with it; that is not their fault, and `Exit.own` or `ZygoteDied` says
so. Each worker has a log of its own, so that none can speak in the name of another.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.components import Library
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import Nothing
from ipc_protocol.limits import FORK_TOKEN_BYTES
from ipc_protocol.methods import (
    WORKER_HANDLE,
    ZYGOTE_EXITS,
    ZYGOTE_FORK,
    ZYGOTE_KILL,
    ZYGOTE_LIBRARY,
    Method,
    P,
    R,
)
from ipc_protocol.values import LayerReport
from ipc_protocol.work import (
    Completion,
    Fork,
    Forked,
    Handle,
    Kill,
    WatchExits,
    WorkerExited,
    work_of,
)
from orchestrator.supervision.childlog import ChildLog
from orchestrator.supervision.processes import ChildProcess
from orchestrator.supervision.restart import Died
from orchestrator.supervision.supervisor import TOLERANT, Supervisor

log = logging.getLogger(__name__)

HELLO: Final = Hello(name="orchestrator")

READY_SECONDS_MAX: Final = 30.0
"""Until the zygote greets: its imports take 0.3 s, or 10 s from a cold disk."""

WORKER_UID_MIN: Final = 61_184
"""The first of the user ids that systemd keeps for services without a name (61184 to 65519): no
file of the host belongs to them. Used where the daemon is root; else workers have its own id."""

EXIT_NOTICE_SECONDS_MAX: Final = 5.0
"""Between the end of a worker's line and the notice of its death. The kernel needs microseconds,
a machine that swaps needs more."""

ANSWER_SECONDS_MAX: Final = 30.0
"""Between two answers of a zygote that owes some. It does one thing after the other, and gives up a
fork after 10 s (FORK_SECONDS_MAX of the agent runtime): one that works answers three times over. A
kill has no shorter limit, since it may wait behind a fork, and a queue of forks has no longer one,
since each answer counts."""

FORKS_MAX: Final = 32
"""Asked for at once. The zygote forks one after the other; more would fill its socket with
descriptors, of which a user may have as many under way as files open."""


def worker_uid(number: int) -> int | None:
    """The user that a confined process runs as, by a number of its own; None keeps ours."""
    return WORKER_UID_MIN + number if os.geteuid() == 0 else None


async def handle_alone(line: Connection, handle: Handle) -> Completion:
    """What a worker makes of one delivery. Raises `Failure`."""
    async with line.stream(WORKER_HANDLE, work_of(handle)) as response:
        finished = [each async for done in response for each in done.finished]
        await response.result()
    return finished[0].completion


class ZygoteDied(Exception):
    """The zygote died while it forked a worker: nobody's fault but its own."""


class Exit(msgspec.Struct, frozen=True):
    """How a worker ended. `own` is false when it only went down with the zygote."""

    description: str
    own: bool
    orderly: bool = False
    by_signal: bool = False
    cpu_used_up: bool = False


WITH_THE_ZYGOTE: Final = Exit("went down with the zygote", own=False)


def _own(told: WorkerExited) -> Exit:
    return Exit(
        told.description,
        own=True,
        orderly=told.status == 0,
        by_signal=told.status is None,
        cpu_used_up=told.cpu_used_up,
    )


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
    over: asyncio.Event
    kill: Callable[[], None]
    deadlines: dict[int, asyncio.Timeout] = msgspec.field(default_factory=dict)
    """Of the requests under way, by the identity of each."""

    async def ask(self, method: Method[P, R, Any], params: P) -> R:
        """Ask the zygote. Raises `ZygoteDied` for one that is stuck, which is killed for it."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX) as deadline:
                self.deadlines[id(deadline)] = deadline
                try:
                    answer = await self.connection.call(method, params)
                except Failure:  # an answer too
                    self._put_off_deadlines()
                    raise
                finally:
                    del self.deadlines[id(deadline)]
                self._put_off_deadlines()
                return answer
        except TimeoutError as error:
            log.error("the zygote has not answered for %g s; it gets SIGKILL", ANSWER_SECONDS_MAX)
            self.kill()
            await self.over.wait()
            raise ZygoteDied("the zygote was stuck, and was killed") from error

    def _put_off_deadlines(self) -> None:
        when = asyncio.get_running_loop().time() + ANSWER_SECONDS_MAX
        for deadline in self.deadlines.values():
            if not deadline.expired():
                deadline.reschedule(when)


class Zygote:
    """Keeps a zygote alive. `run` supervises; `worker` waits until one is up."""

    def __init__(self, clock_us: Callable[[], int], on_restart: Callable[[str], None]) -> None:
        self.pid: int | None = None
        self._supervisor = Supervisor("zygote", TOLERANT, clock_us)
        self._on_restart = on_restart
        self._line: _Line | None = None
        self._up = asyncio.Event()
        self._tokens = itertools.count(1)
        self._forks = asyncio.Semaphore(FORKS_MAX)

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
                    await self._serve(_Line(connection, ours, {}, asyncio.Event(), child.kill))
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
                        future.set_result(_own(exit_))
        finally:
            self._up.clear()
            self._line = self.pid = None
            line.over.set()
            for future in line.exits.values():
                if not future.done():
                    future.set_result(WITH_THE_ZYGOTE)

    async def library(self) -> Library:
        """What native code has to be good for to be run by the workers of the zygote that is up."""
        while True:
            while (line := self._line) is None:
                await self._up.wait()
            try:
                return await line.ask(ZYGOTE_LIBRARY, Nothing())
            except ZygoteDied:
                continue
            except (Failure, ConnectionError) as error:
                if isinstance(error, Failure) and error.code != "protocol.closed":
                    raise
                # Without this the dead one would be asked again, in a circle.
                await line.over.wait()

    @contextlib.asynccontextmanager
    async def worker(
        self, fork: Callable[[int], Fork], handlers: Handlers, extra: tuple[int, ...] = ()
    ) -> AsyncIterator[Worker]:
        """A sealed worker, from its fork to the notice of its death. Raises `sandbox.refused`.

        `fork` is called with the token that pairs the request with its descriptors. `extra` are
        those of its role; they stay the caller's, who may close them once this is entered. Raises
        `ZygoteDied` once it is clear that a new zygote is needed, for which the next call waits,
        and `component.*` for native code that cannot be loaded.
        """
        request = fork(next(self._tokens))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, contextlib.ExitStack() as until_sent:
            until_sent.enter_context(theirs)
            log_read, log_write = os.pipe2(os.O_CLOEXEC)
            until_sent.callback(os.close, log_write)
            worker_log = ChildLog(f"{request.role}/{request.agent}", log_read)
            try:
                line, forked = await self._fork(request, (theirs.fileno(), log_write, *extra))
                until_sent.close()
                async with (
                    _mourned(line, forked.pid) as exited,
                    Connection(ours, HELLO, handlers, initiator=True) as connection,
                ):
                    yield Worker(forked.pid, forked.layers, connection, exited)
            finally:
                until_sent.close()
                await worker_log.wait_end()
                await worker_log.close()

    async def _fork(self, request: Fork, descriptors: tuple[int, ...]) -> tuple[_Line, Forked]:
        """Raises `ZygoteDied`, and `Failure` for what the zygote answers."""
        async with self._forks:
            while (line := self._line) is None:
                await self._up.wait()
            try:
                # Sent before the request, so that the zygote finds it when it reads the request.
                token = request.token.to_bytes(FORK_TOKEN_BYTES, "big")
                socket.send_fds(line.descriptors, [token], descriptors)
                return line, await line.ask(ZYGOTE_FORK, request)
            except (Failure, ConnectionError) as error:
                if isinstance(error, Failure) and error.code != "protocol.closed":
                    raise
                # Without this the caller would ask the dead one again, in a circle.
                await line.over.wait()
                raise ZygoteDied("the zygote died while it forked a worker") from error


@contextlib.asynccontextmanager
async def _mourned(line: _Line, pid: int) -> AsyncIterator["asyncio.Future[Exit]"]:
    """The death to come of a new worker, which is brought about when the block is left.

    Raises `ZygoteDied` for a failure of the block that is only the zygote's death.
    """
    exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    line.exits[pid] = exited
    failed: Failure | None = None
    try:
        if line.over.is_set():
            exited.set_result(WITH_THE_ZYGOTE)
        yield exited
    except Failure as failure:
        failed = failure
    finally:
        await _end(line, pid, exited)
    if failed is not None:
        if exited.done() and not exited.result().own:
            raise ZygoteDied("the zygote died, and the new worker with it") from failed
        raise failed


async def _end(line: _Line, pid: int, exited: "asyncio.Future[Exit]") -> None:
    """Kill what still lives, and wait for the notice of its death."""
    if not exited.done() and not line.connection.closed:
        with contextlib.suppress(Failure, ZygoteDied):  # it died, and the worker with it
            await line.ask(ZYGOTE_KILL, Kill(pid=pid))
    # Not `wait_for`, which forgets a cancellation that comes together with the result.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EXIT_NOTICE_SECONDS_MAX):
            await asyncio.shield(exited)
