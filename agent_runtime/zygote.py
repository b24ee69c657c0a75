"""The zygote: one single-threaded process that has imported everything once and forks the workers.

It decides nothing: the orchestrator says whom to fork, whom to kill, and hears who died. It starts
no thread, makes no event loop and runs no code of an agent. When it dies, its workers die with it.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, Self

import msgspec

from agent_runtime import sandbox
from agent_runtime.forking import (
    ConfinedProcess,
    ForkError,
    ThreadsRunning,
    fork_confined,
    signal_name,
)
from agent_runtime.sandbox import Confinement, SandboxMode, limits

__all__ = [
    "ForkError",
    "ThreadsRunning",
    "UnknownWorker",
    "WorkerExit",
    "WorkerSpec",
    "Zygote",
]


class WorkerSpec(msgspec.Struct, frozen=True):
    """Which worker to fork. Sizes are in bytes, uid and gid are those outside the namespace."""

    agent: str
    sandbox: SandboxMode
    memory_bytes_max: int  # growth beyond what the zygote has mapped
    scratch_bytes_max: int
    uid: int | None = None
    gid: int | None = None


class WorkerExit(msgspec.Struct, frozen=True):
    """How one worker ended: by an exit status or by a signal, never both."""

    pid: int
    agent: str
    exit_status: int | None
    signal: int | None

    @property
    def description(self) -> str:
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        return f"exited with status {self.exit_status}"


class UnknownWorker(LookupError):
    """No worker of that pid is alive."""


WorkerMain = Callable[[socket.socket, WorkerSpec], NoReturn]


class Zygote:
    """Forks, kills and reaps workers. Make one per process, after everything has been imported."""

    def __init__(
        self,
        worker_main: WorkerMain,
        *,
        fork_seconds_max: float = limits.FORK_SECONDS_MAX,
    ) -> None:
        """`worker_main` runs in the sealed worker."""
        self._worker_main = worker_main
        self._fork_seconds_max = fork_seconds_max
        self._agent_by_pid: dict[int, str] = {}
        # Opened once: after confinement there is no /dev.
        self._null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        sandbox.preload()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill every worker, and wait for the death of each."""
        for pid in self._agent_by_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in tuple(self._agent_by_pid):
            os.waitpid(pid, 0)
        self._agent_by_pid.clear()
        os.close(self._null_fd)

    @property
    def worker_pids(self) -> frozenset[int]:
        return frozenset(self._agent_by_pid)

    def fork(self, spec: WorkerSpec, socket_fd: int, log_fd: int) -> ConfinedProcess:
        """Fork a worker on the connected socket `socket_fd`, and wait until it is sealed.

        `log_fd` becomes its standard error, of which it has no other: a worker that shared one
        could speak in the name of others. Both stay the caller's, who should close them. Raises
        `ForkError`.
        """
        confinement = Confinement(
            mode=spec.sandbox,
            uid=spec.uid,
            gid=spec.gid,
            address_space_bytes_max=sandbox.address_space_bytes_now() + spec.memory_bytes_max,
            scratch_bytes_max=spec.scratch_bytes_max,
        )

        def body() -> NoReturn:
            self._worker_main(socket.socket(fileno=socket_fd), spec)

        worker = fork_confined(
            f"worker/{spec.agent}",
            confinement,
            kept_fd=socket_fd,
            null_fd=self._null_fd,
            log_fd=log_fd,
            body=body,
            seconds_max=self._fork_seconds_max,
        )
        self._agent_by_pid[worker.pid] = spec.agent
        return worker

    def kill(self, pid: int) -> None:
        """SIGKILL, the only signal that process 1 of a pid namespace cannot ignore.

        The pid stays taken until `reap` has returned it, so no stranger can be hit. Raises
        `UnknownWorker`.
        """
        if pid not in self._agent_by_pid:
            raise UnknownWorker(f"no worker has pid {pid}")
        os.kill(pid, signal.SIGKILL)

    def reap(self) -> list[WorkerExit]:
        """Everybody who has died since the last call; never waits."""
        exits: list[WorkerExit] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return exits
            if pid == 0:
                return exits
            # An adopted process that never became a worker has no name, and nobody waits for it.
            agent = self._agent_by_pid.pop(pid, None)
            if agent is not None:
                exits.append(_describe_exit(pid, agent, status))


def _describe_exit(pid: int, agent: str, status: int) -> WorkerExit:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return WorkerExit(pid, agent, exit_status=None, signal=-code)
    return WorkerExit(pid, agent, exit_status=code, signal=None)
