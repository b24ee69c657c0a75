"""Programs that the daemon runs: started with one socket, logged, and ended for certain.

The convention between the daemon and its programs (zygote, engines, gateway):

- The program inherits one connected Unix socket, named by number on its command line, and nothing
  else. It is the initiator of that line: it says hello when it is ready to serve, not before.
- When the line closes, the program leaves. So a daemon that is killed leaves nobody behind.
- Its standard error goes to the daemon's log, line by line and at a bounded rate; its standard
  output goes nowhere.

It runs in a session of its own, so that Ctrl-C in a terminal reaches the daemon alone, which then
ends its programs in order.

Programs are started by `subprocess` and their deaths heard of by a pidfd, not by the event loop's
own way: uvloop's leaves descriptors open in the program that nobody meant for it, and asyncio's
reports no death while a grandchild holds the log open.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, Self

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.supervision.childlog import ChildLog

log = logging.getLogger(__name__)

LAST_LINES_MAX: Final = 20
"""Kept of a program's log for the explanation of its death: a traceback and what led to it."""


class StopDeadlines(msgspec.Struct, frozen=True):
    """Seconds between asking, SIGTERM and SIGKILL."""

    ask_seconds: float = 5.0
    term_seconds: float = 2.0


class Death(msgspec.Struct, frozen=True):
    """How a program ended: by an exit status or by a signal, never both."""

    exit_status: int | None
    signal: int | None
    last_lines: tuple[str, ...] = ()

    @property
    def orderly(self) -> bool:
        return self.exit_status == 0

    @property
    def description(self) -> str:
        if self.signal is None:
            return f"exited with status {self.exit_status}"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:  # a real-time signal
            return f"killed by signal {self.signal}"


class ChildProcess:
    """One running program. Only `spawn` makes one; `line` is the daemon's end of its socket."""

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        line: socket.socket,
        log_read: int,
        deadlines: StopDeadlines,
    ) -> None:
        self.name = name
        self.line = line
        self._process = process
        self._deadlines = deadlines
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES_MAX)
        self._log = ChildLog(name, log_read, self._last_lines.append)
        self._exited = asyncio.Event()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    @classmethod
    @contextlib.asynccontextmanager
    async def spawn(
        cls,
        name: str,
        command: Callable[[int], Sequence[str]],
        *,
        inherit: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        deadlines: StopDeadlines | None = None,
    ) -> AsyncIterator[Self]:
        """Run `command(fd)`, where `fd` is the number of the program's socket.

        It inherits the descriptors `inherit` too, which stay the caller's. `environment` is added
        to the daemon's own. Leaving the block stops the program and waits for its death. Raises
        `OSError` when it cannot be started.
        """
        process, line, log_read = _start(command, inherit, {**os.environ, **(environment or {})})
        child = cls(name, process, line, log_read, deadlines or StopDeadlines())
        try:
            yield child
        finally:
            try:
                await child.stop()
            finally:
                line.close()
                await child._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._exited.is_set()

    async def wait_ready(self, seconds: float) -> None:
        """Wait until the program greets, so that a `Connection` finds its hello waiting.

        Raises `Failure` (`protocol.closed`, `protocol.hello-timeout`) when it dies or closes its
        line instead, or says nothing in time; how long loading may take is the caller's to say.
        """
        try:
            async with asyncio.timeout(seconds):
                await _wait_readable(self.line)
        except TimeoutError as error:
            raise Failure(
                "protocol.hello-timeout",
                f"{self.name} was not ready within {seconds:g} s.",
                "Its log says what it was doing.",
            ) from error
        if not _has_greeted(self.line):
            # It may only have closed its line, and hang: then its death is to be brought about.
            death = await self.stop()
            raise Failure(
                "protocol.closed",
                f"{self.name} {death.description} before it was ready.",
                "\n".join(death.last_lines[-3:]),
            )

    async def wait_death(self) -> Death:
        """Wait for the end of the program, whoever brings it about."""
        await self._exited.wait()
        await self._log.wait_end()
        status = self._process.returncode
        return Death(
            exit_status=status if status >= 0 else None,
            signal=-status if status < 0 else None,
            last_lines=tuple(self._last_lines),
        )

    async def stop(self, ask: Callable[[], Awaitable[object]] | None = None) -> Death:
        """Ask, then SIGTERM, then SIGKILL, each after its deadline, and wait for the death.

        `ask` is how to ask: closing the `Connection` on the line. Without it the line itself is
        closed. A program that is dead already is only looked up.
        """
        try:
            await self._within(self._deadlines.ask_seconds, self._ask_and_wait(ask))
            if self.alive:
                log.warning("%s did not leave when asked; it gets SIGTERM", self.name)
                self._signal(signal.SIGTERM)
                await self._within(self._deadlines.term_seconds, self._exited.wait())
        finally:
            # Also when this is cancelled: nobody else would end the program then.
            if self.alive:
                log.warning("%s gets SIGKILL", self.name)
                self._signal(signal.SIGKILL)
        return await self.wait_death()

    def kill(self) -> None:
        """SIGKILL at once, for one that is hung. Its death is reported as any other."""
        self._signal(signal.SIGKILL)

    async def _ask_and_wait(self, ask: Callable[[], Awaitable[object]] | None) -> None:
        try:
            if ask is not None:
                await ask()
            else:
                self.line.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the line is closed already
        except Exception:  # a program that cannot be asked is still to be ended
            log.exception("%s could not be asked to leave", self.name)
        await self._exited.wait()

    async def _within(self, seconds: float, work: Awaitable[object]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await work

    def _signal(self, number: signal.Signals) -> None:
        # Its pid stays taken until it is reaped, so no stranger can be hit.
        if self.alive:
            self._process.send_signal(number)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()  # it is dead: this only takes its status
        self._exited.set()


def _start(
    command: Callable[[int], Sequence[str]],
    inherit: Sequence[int],
    environment: Mapping[str, str],
) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """The program, the daemon's end of its line, and where its log is read."""
    line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    log_read, log_write = os.pipe2(os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            command(theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log_write,
            pass_fds=(theirs.fileno(), *inherit),
            start_new_session=True,
            env=environment,
        )
    except BaseException:
        line.close()
        os.close(log_read)
        raise
    finally:
        theirs.close()
        os.close(log_write)
    return process, line, log_read


async def _wait_readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)


def _has_greeted(sock: socket.socket) -> bool:
    """Whether a readable socket brings bytes, and not its end."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except ConnectionError:
        return False
