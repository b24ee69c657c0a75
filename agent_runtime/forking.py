"""The forking primitive of the zygote: one confined process, or the exact reason why there is none.

Theory of operation. A pid namespace holds only for the children of the process that entered it, so
the fork is double:

    zygote ──fork──> intermediate: the trusted stage, then ──fork──> worker: process 1
       │                  └ tells the worker's pid on the status pipe, and exits
       │ adopts the worker (it is a child subreaper), then sends the go byte
       └──────────────────────────────────────────────────────────> worker: asks to die with the
                     zygote, `load`, the sealed stage, its reports on the status pipe, `run`

The worker asks for its death signal only after the go byte, because the signal belongs to the
parent that it has at that moment. Its parent lives outside its pid namespace, so `getppid` cannot
tell whether the zygote is still there; the go pipe can: only the zygote holds its other end.

The caller must be single-threaded: a fork copies the calling thread alone, and every lock that
another one held would stay locked for good.
"""

import contextlib
import gc
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

import msgspec

from agent_runtime.sandbox import (
    CURE_UNKNOWN,
    Confinement,
    LayerReport,
    SandboxRefusal,
    limits,
    stage_sealed,
    stage_trusted,
    syscalls,
)
from ipc_protocol.errors import Failure, Problem

_GO = b"g"
_LENGTH_BYTES = 4
_EXIT_NOT_STARTED = 71  # EX_OSERR of <sysexits.h>: nothing of the agent ran
_EXIT_UNCAUGHT = 70  # EX_SOFTWARE of <sysexits.h>: the worker's own code raised


class ForkError(Exception):
    """No worker was started, and none is left behind.

    `layer` is the layer of the sandbox to blame, or "fork"; `errno` is 0 where no system call was
    to blame; `reports` are the layers settled before that. `problem` is there when it is neither:
    the body could not load what it was given.
    """

    def __init__(
        self,
        layer: str,
        errno: int,
        message: str,
        cure: str,
        reports: tuple[LayerReport, ...] = (),
        problem: Problem | None = None,
    ) -> None:
        self.layer = layer
        self.errno = errno
        self.message = message
        self.cure = cure
        self.reports = reports
        self.problem = problem
        super().__init__(f"{layer}: {message}. {cure}")


class ThreadsRunning(RuntimeError):
    """A process with several threads was asked to fork: the program's fault, not the host's."""


class Body(Protocol):
    """What a confined process does, and what it needs for that from before it was confined."""

    def load(self) -> None:
        """As its own user in its own namespaces, but with the files of the host.

        Raises `Failure` for what cannot be loaded.
        """

    def start_threads(self) -> None:
        """Without any privilege; they will be under the same filter."""

    def run(self) -> NoReturn:
        """Sealed."""


class ConfinedProcess(msgspec.Struct, frozen=True):
    """A worker that is sealed and has begun its body. It is a child of the caller."""

    pid: int
    reports: tuple[LayerReport, ...]


class _Forked(msgspec.Struct, frozen=True, tag="forked"):
    pid: int


class _Sealed(msgspec.Struct, frozen=True, tag="sealed"):
    reports: tuple[LayerReport, ...]


class _Refused(msgspec.Struct, frozen=True, tag="refused"):
    layer: str
    errno: int
    message: str
    cure: str
    reports: tuple[LayerReport, ...] = ()


class _Unloadable(msgspec.Struct, frozen=True, tag="unloadable"):
    problem: Problem


_StatusRecord = _Forked | _Sealed | _Refused | _Unloadable
_status_decoder: msgspec.msgpack.Decoder[_StatusRecord] = msgspec.msgpack.Decoder(_StatusRecord)


def fork_confined(
    name: str,
    confinement: Confinement,
    *,
    kept: tuple[int, ...],
    null_fd: int,
    log_fd: int,
    body: Body,
    seconds_max: float = limits.FORK_SECONDS_MAX,
) -> ConfinedProcess:
    """Fork a process that confines itself and then runs `body`; return once it is sealed.

    Of the caller's descriptors it has those of `kept`; its standard input and output are `null_fd`,
    its standard error `log_fd`. Raises `ForkError`, or `ThreadsRunning`.
    """
    _refuse_threads()
    # A worker whose parent exits becomes ours instead of init's.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    # The collector would otherwise write to every object in its first run and unshare its page.
    gc.freeze()
    with contextlib.ExitStack() as pipes:
        status_read, status_write = _pipe(pipes)
        go_read, go_write = _pipe(pipes)
        try:
            intermediate = os.fork()
        except OSError as error:
            raise _fork_refused(error) from error
        if intermediate == 0:
            pipes_kept = (status_write.fd, go_read.fd)
            child = _Child(name, confinement, (*kept, *pipes_kept), null_fd, log_fd, *pipes_kept)
            _run_intermediate(child, body)
        status_write.close()
        go_read.close()
        status = _StatusReader(status_read.fd, time.monotonic() + seconds_max)
        pid = _adopt_worker(status, intermediate)
        try:
            _write_go(go_write.fd)
            return ConfinedProcess(pid, _wait_sealed(status))
        except ForkError as error:
            raise _bury(pid, error) from None


def _refuse_threads() -> None:
    tasks = list(Path("/proc/self/task").iterdir())
    if len(tasks) != 1:
        names = ", ".join(sorted((task / "comm").read_text().strip() for task in tasks))
        raise ThreadsRunning(
            f"cannot fork: {len(tasks)} threads are running ({names}). "
            "Import nothing that starts threads, and make no executor, in the zygote"
        )


class _End:
    """One end of a pipe, closed exactly once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _pipe(pipes: contextlib.ExitStack) -> tuple[_End, _End]:
    try:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise ForkError(
            "fork",
            error.errno or 0,
            f"making a pipe: {error.strerror}",
            "raise the daemon's limit on open files (systemd: LimitNOFILE=)",
        ) from error
    ends = _End(read_fd), _End(write_fd)
    for end in ends:
        pipes.callback(end.close)
    return ends


def _fork_refused(error: OSError) -> ForkError:
    return ForkError(
        "fork",
        error.errno or 0,
        f"forking: {error.strerror}",
        "free memory, or raise the limit on processes (systemd: TasksMax=)",
    )


# --- the zygote's side ----------------------------------------------------------------------------


class _StatusReader:
    """Records from the status pipe, each within the deadline of the whole fork."""

    def __init__(self, fd: int, deadline: float) -> None:
        self._fd = fd
        self._deadline = deadline
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read_record(self) -> _StatusRecord:
        size = int.from_bytes(self._read_exactly(_LENGTH_BYTES), "little")
        if size > limits.STATUS_RECORD_BYTES_MAX:
            raise _SilentDeath(f"a status record of {size} bytes is too long")
        return _status_decoder.decode(self._read_exactly(size))

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            remaining_s = self._deadline - time.monotonic()
            if remaining_s <= 0 or not self._poll.poll(remaining_s * 1000):
                raise ForkError(
                    "fork", 0, "the worker was not sealed in time", "look for memory pressure"
                )
            piece = os.read(self._fd, size - len(data))
            if not piece:
                raise _SilentDeath("the worker died before it was sealed")
            data += piece
        return data


class _SilentDeath(ForkError):
    """The status pipe ended without the record that was due."""

    def __init__(self, message: str) -> None:
        cure = "look in the kernel's log for the out-of-memory killer or a refused system call"
        super().__init__("fork", 0, message, cure)


def _bury(pid: int, error: ForkError) -> ForkError:
    """End a process that will not become a worker; returns the error with the manner of its death.

    SIGKILL does not replace the cause of a death that had already begun.
    """
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not isinstance(error, _SilentDeath):
        return error
    manner = f"killed by {signal_name(-code)}" if code < 0 else f"exit status {code}"
    return _SilentDeath(f"{error.message} ({manner})")


def signal_name(number: int) -> str:
    """What a worker was killed by; it may have chosen a real-time signal, which has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _adopt_worker(status: _StatusReader, intermediate: int) -> int:
    """Wait for the worker's pid and for the death of the process in between: then it is ours."""
    try:
        record = status.read_record()
    except ForkError as error:
        # A worker that it may have forked by now finds its go pipe closed, and leaves.
        raise _bury(intermediate, error) from None
    os.waitpid(intermediate, 0)
    if isinstance(record, _Forked):
        return record.pid
    raise _as_error(record)


def _write_go(fd: int) -> None:
    # A worker that is dead by now says so by the end of its status pipe, with the better message.
    with contextlib.suppress(BrokenPipeError):
        os.write(fd, _GO)


def _wait_sealed(status: _StatusReader) -> tuple[LayerReport, ...]:
    record = status.read_record()
    if isinstance(record, _Sealed):
        return record.reports
    raise _as_error(record)


def _as_error(record: _StatusRecord) -> ForkError:
    if isinstance(record, _Refused):
        return ForkError(record.layer, record.errno, record.message, record.cure, record.reports)
    if isinstance(record, _Unloadable):
        problem = record.problem
        return ForkError("load", 0, problem.message, problem.cure, problem=problem)
    return _SilentDeath(f"the worker sent {type(record).__name__} out of turn")


# --- the child's side -----------------------------------------------------------------------------


class _Child(msgspec.Struct, frozen=True):
    name: str
    confinement: Confinement
    kept: tuple[int, ...]
    null_fd: int
    log_fd: int
    status_fd: int
    go_fd: int


def _run_intermediate(child: _Child, body: Body) -> NoReturn:
    try:
        _forget_parent_state()
        trusted = stage_trusted(child.confinement, child.kept, child.null_fd, child.log_fd)
        pid = os.fork()
        if pid == 0:
            _run_worker(child, trusted, body)
        _send(child.status_fd, _Forked(pid))
    except BaseException as error:  # noqa: BLE001 (a child must never return into the zygote's code)
        _send_refusal(child.status_fd, error)
    os._exit(0)


def _run_worker(child: _Child, trusted: tuple[LayerReport, ...], body: Body) -> NoReturn:
    try:
        _wait_go(child.go_fd)
        syscalls.set_process_name(child.name)
        # Inherited state would make all workers draw the same numbers.
        random.seed()
        body.load()
        reports = stage_sealed(child.confinement, trusted, body.start_threads)
        _send(child.status_fd, _Sealed(reports))
        os.close(child.status_fd)
    except BaseException as error:  # noqa: BLE001 (a child must never return into the zygote's code)
        _send_refusal(child.status_fd, error)
        os._exit(_EXIT_NOT_STARTED)
    _run_body(body.run)


def _run_body(run: Callable[[], NoReturn]) -> NoReturn:
    exit_status = _EXIT_UNCAUGHT
    try:
        run()
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            exit_status = leaving.code or 0
    except BaseException:  # noqa: BLE001 (the last frame of the process: shown, then gone)
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(exit_status)


def _forget_parent_state() -> None:
    """Leave the zygote's session and its signal handling behind."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGCHLD,
        signal.SIGUSR1,
        signal.SIGUSR2,
    ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _wait_go(go_fd: int) -> None:
    """Wait until the zygote has adopted this process, then tie its life to the zygote's."""
    if os.read(go_fd, 1) != _GO:
        os._exit(_EXIT_NOT_STARTED)  # the zygote gave up or died: nobody is left to tell
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(go_fd, 0)  # a hang-up is always reported
    if poll.poll(0):
        os._exit(_EXIT_NOT_STARTED)  # it died before the signal was armed
    os.close(go_fd)


def _send(fd: int, record: _StatusRecord) -> None:
    body = msgspec.msgpack.encode(record)
    os.write(fd, len(body).to_bytes(_LENGTH_BYTES, "little") + body)


def _send_refusal(fd: int, error: BaseException) -> None:
    record: _StatusRecord
    if isinstance(error, SandboxRefusal):
        failure = error.failure
        record = _Refused(failure.layer, failure.errno, failure.detail, failure.cure, error.reports)
    elif isinstance(error, Failure):
        record = _Unloadable(error.problem)
    else:
        number = error.errno or 0 if isinstance(error, OSError) else 0
        record = _Refused("fork", number, f"{type(error).__name__}: {error}", CURE_UNKNOWN)
    with contextlib.suppress(OSError):
        _send(fd, record)
