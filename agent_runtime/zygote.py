"""The zygote: one single-threaded process that has imported everything once and forks the others.

It forks workers and compilers, and calls all of them workers: confined processes that it has to
kill and to bury. It decides nothing: the orchestrator says whom to fork, whom to kill, and hears
who died. It starts no thread, makes no event loop and runs no code of an agent, nor maps any. When
it dies, its workers die with it.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn, Self

import msgspec

from agent_runtime import sandbox
from agent_runtime.component import native
from agent_runtime.component.compiler import compiler_main
from agent_runtime.component.native import Native
from agent_runtime.forking import (
    Body,
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
    """Whom to fork. Sizes are in bytes, uid and gid are those outside the namespace."""

    agent: str  # for a compiler, what it compiles
    sandbox: SandboxMode
    memory_bytes_max: int  # growth beyond what the zygote has mapped
    scratch_bytes_max: int
    uid: int | None = None
    gid: int | None = None
    cpu_seconds_max: int | None = None


class WorkerExit(msgspec.Struct, frozen=True):
    """How one worker ended: by an exit status or by a signal, never both."""

    pid: int
    agent: str
    exit_status: int | None
    signal: int | None
    cpu_seconds_max: int | None = None
    """The limit that it had, if it was killed for having used up that much."""

    @property
    def description(self) -> str:
        if self.cpu_seconds_max is not None:
            return f"used up its {self.cpu_seconds_max} s of CPU time, and was killed for it"
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        return f"exited with status {self.exit_status}"


class UnknownWorker(LookupError):
    """No worker of that pid is alive."""


WorkerMain = Callable[[socket.socket, WorkerSpec, Native | None], NoReturn]
CompilerMain = Callable[[socket.socket, int, int], NoReturn]


class _WorkerBody:
    """A worker, which may have a component."""

    def __init__(
        self, main: WorkerMain, spec: WorkerSpec, socket_fd: int, native_fd: int | None
    ) -> None:
        self._main = main
        self._spec = spec
        self._socket_fd = socket_fd
        self._native_fd = native_fd
        self._native: Native | None = None

    def load(self) -> None:
        if self._native_fd is not None:
            self._native = native.load(self._native_fd)
            os.close(self._native_fd)

    def start_threads(self) -> None:
        if self._native is not None:
            self._native.ticker.start()

    def run(self) -> NoReturn:
        self._main(socket.socket(fileno=self._socket_fd), self._spec, self._native)


COMPILER_NICENESS: Final = 10
"""A compiler works for seconds and nobody waits for it but a person: agents come first."""


class _CompilerBody:
    """A compiler, which has everything at hand already."""

    def __init__(
        self, main: CompilerMain, socket_fd: int, component_fd: int, native_fd: int
    ) -> None:
        self._main = main
        self._socket_fd = socket_fd
        self._component_fd = component_fd
        self._native_fd = native_fd

    def load(self) -> None:
        os.nice(COMPILER_NICENESS)

    def start_threads(self) -> None:
        pass

    def run(self) -> NoReturn:
        self._main(socket.socket(fileno=self._socket_fd), self._component_fd, self._native_fd)


class Zygote:
    """Forks, kills and reaps workers. Make one per process, after everything has been imported."""

    def __init__(
        self,
        worker_main: WorkerMain,
        compiler_main: CompilerMain = compiler_main,
        *,
        fork_seconds_max: float = limits.FORK_SECONDS_MAX,
    ) -> None:
        """`worker_main` runs in the sealed worker, `compiler_main` in the sealed compiler."""
        self._worker_main = worker_main
        self._compiler_main = compiler_main
        self._fork_seconds_max = fork_seconds_max
        self._spec_by_pid: dict[int, WorkerSpec] = {}
        # Opened once: after confinement there is no /dev.
        self._null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        sandbox.preload()
        native.preload()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill every worker, and wait for the death of each."""
        for pid in self._spec_by_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in tuple(self._spec_by_pid):
            os.waitpid(pid, 0)
        self._spec_by_pid.clear()
        os.close(self._null_fd)

    @property
    def worker_pids(self) -> frozenset[int]:
        return frozenset(self._spec_by_pid)

    def fork(
        self, spec: WorkerSpec, socket_fd: int, log_fd: int, native_fd: int | None = None
    ) -> ConfinedProcess:
        """Fork a worker on the connected socket `socket_fd`, and wait until it is sealed.

        `log_fd` becomes its standard error, of which it has no other: a worker that shared one
        could speak in the name of others. `native_fd` is the native code of its component, which
        the worker's own user has to be able to read. All stay the caller's, who should close them.
        Raises `ForkError`.
        """
        kept = [socket_fd]
        mapped_bytes = 0
        if native_fd is not None:
            kept.append(native_fd)
            # Shared by all that map it, as what the zygote has mapped.
            mapped_bytes = os.fstat(native_fd).st_size
        return self._fork(
            f"worker/{spec.agent}",
            spec,
            _confinement(spec, mapped_bytes, file_bytes_max=spec.scratch_bytes_max),
            kept=tuple(kept),
            log_fd=log_fd,
            body=_WorkerBody(self._worker_main, spec, socket_fd, native_fd),
        )

    def fork_compiler(
        self, spec: WorkerSpec, socket_fd: int, log_fd: int, component_fd: int, native_fd: int
    ) -> ConfinedProcess:
        """Fork a compiler, which reads from `component_fd` and writes to `native_fd`.

        In all else as `fork`.
        """
        return self._fork(
            f"compiler/{spec.agent}",
            spec,
            _confinement(spec, 0, file_bytes_max=limits.NATIVE_CODE_BYTES_MAX, compiles=True),
            kept=(socket_fd, component_fd, native_fd),
            log_fd=log_fd,
            body=_CompilerBody(self._compiler_main, socket_fd, component_fd, native_fd),
        )

    def _fork(
        self,
        name: str,
        spec: WorkerSpec,
        confinement: Confinement,
        *,
        kept: tuple[int, ...],
        log_fd: int,
        body: Body,
    ) -> ConfinedProcess:
        worker = fork_confined(
            name,
            confinement,
            kept=kept,
            null_fd=self._null_fd,
            log_fd=log_fd,
            body=body,
            seconds_max=self._fork_seconds_max,
        )
        self._spec_by_pid[worker.pid] = spec
        return worker

    def kill(self, pid: int) -> None:
        """SIGKILL, the only signal that process 1 of a pid namespace cannot ignore.

        The pid stays taken until `reap` has returned it, so no stranger can be hit. Raises
        `UnknownWorker`.
        """
        if pid not in self._spec_by_pid:
            raise UnknownWorker(f"no worker has pid {pid}")
        os.kill(pid, signal.SIGKILL)

    def reap(self) -> list[WorkerExit]:
        """Everybody who has died since the last call; never waits."""
        exits: list[WorkerExit] = []
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return exits
            if pid == 0:
                return exits
            # An adopted process that never became a worker has no name, and nobody waits for it.
            spec = self._spec_by_pid.pop(pid, None)
            if spec is not None:
                exits.append(_describe_exit(pid, spec, status, used.ru_utime + used.ru_stime))


def _confinement(
    spec: WorkerSpec, mapped_bytes: int, *, file_bytes_max: int, compiles: bool = False
) -> Confinement:
    mapped_bytes += sandbox.address_space_bytes_now()
    return Confinement(
        mode=spec.sandbox,
        uid=spec.uid,
        gid=spec.gid,
        address_space_bytes_max=mapped_bytes + spec.memory_bytes_max,
        scratch_bytes_max=spec.scratch_bytes_max,
        file_bytes_max=file_bytes_max,
        cpu_seconds_max=spec.cpu_seconds_max,
        compiles=compiles,
    )


def _describe_exit(pid: int, spec: WorkerSpec, status: int, cpu_seconds: float) -> WorkerExit:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return WorkerExit(pid, spec.agent, exit_status=code, signal=None)
    limit = spec.cpu_seconds_max
    used_up = (
        code == -signal.SIGKILL
        and limit is not None
        and cpu_seconds >= limit - limits.CPU_SECONDS_UNREPORTED_MAX
    )
    return WorkerExit(
        pid, spec.agent, exit_status=None, signal=-code, cpu_seconds_max=limit if used_up else None
    )
