"""The zygote as a program: `python -m agent_runtime --fd N --descriptors M`.

N is its line to the orchestrator, M a socket over which descriptors come: a worker's socket, its
log and those of its role in one datagram, with the token that a `zygote.fork` request then names.
It waits for two things: the line, and a pipe that the kernel writes to when a worker has died. What
it is asked it does one after the other; a fork lasts until the worker is sealed.
"""

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import msgspec

from agent_runtime.component import library
from agent_runtime.sandbox import LayerReport as Report
from agent_runtime.wire import BlockingLine
from agent_runtime.worker import worker_main
from agent_runtime.zygote import ForkError, UnknownWorker, WorkerSpec, Zygote
from ipc_protocol.components import Library
from ipc_protocol.errors import Failure
from ipc_protocol.events import CancelReceived, Event, Failed, Hello, Opened, RequestReceived
from ipc_protocol.frames import typed
from ipc_protocol.inference import Nothing
from ipc_protocol.limits import FORK_TOKEN_BYTES
from ipc_protocol.methods import ZYGOTE_EXITS, ZYGOTE_FORK, ZYGOTE_KILL, ZYGOTE_LIBRARY
from ipc_protocol.values import LayerReport
from ipc_protocol.work import Fork, Forked, Kill, WatchExits, WorkerExited

DESCRIPTORS_MAX: Final = 4
"""With one fork: a compiler's socket, its log, the component and the file for the native code."""


class Program:
    """The zygote's side of its line."""

    def __init__(self, line: BlockingLine, descriptors: socket.socket, zygote: Zygote) -> None:
        self._line = line
        self._descriptors = descriptors
        self._zygote = zygote
        self._exits: int | None = None
        """The stream on which deaths are told, once somebody listens."""

    def serve(self, deaths_fd: int) -> None:
        """Until the line ends."""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        poll.register(deaths_fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if deaths_fd in ready:
                os.read(deaths_fd, select.PIPE_BUF)
                self._tell_deaths()
            if self._line.fileno() in ready:
                for event in self._line.receive():
                    if isinstance(event, Failed):
                        return
                    self._on_event(event)

    def _on_event(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._on_request(event)
            case CancelReceived(stream=stream) if stream == self._exits:
                self._exits = None
                self._line.send(self._line.session.result(stream, Nothing()))
            case Opened() | _:
                pass

    def _on_request(self, received: RequestReceived) -> None:
        session, stream = self._line.session, received.stream
        try:
            answer = self._answer(received)
        except Failure as failure:
            self._line.send(session.error(stream, failure.problem))
        except msgspec.ValidationError as error:
            invalid = Failure("request.invalid", f"{received.request.method}: {error}.")
            self._line.send(session.error(stream, invalid.problem))
        else:
            if answer is not None:
                self._line.send(session.result(stream, answer))

    def _answer(self, received: RequestReceived) -> msgspec.Struct | None:
        method, params = received.request.method, received.request.params
        if method == ZYGOTE_FORK.name:
            return self._fork(typed(params, Fork))
        if method == ZYGOTE_KILL.name:
            return self._kill(typed(params, Kill))
        if method == ZYGOTE_LIBRARY.name:
            typed(params, Nothing)
            return Library(settings=library.settings_id())
        if method == ZYGOTE_EXITS.name:
            typed(params, WatchExits)
            self._exits = received.stream
            return None
        raise Failure("request.unknown-method", f"There is no method {method!r} on this line.")

    def _fork(self, fork: Fork) -> Forked:
        spec = WorkerSpec(
            agent=fork.agent,
            sandbox=fork.sandbox,
            memory_bytes_max=fork.memory_bytes_max,
            scratch_bytes_max=fork.scratch_bytes_max,
            uid=fork.uid,
            gid=fork.uid,
            cpu_seconds_max=fork.cpu_seconds_max,
        )
        descriptors = self._descriptors_of(fork)
        try:
            if fork.role == "compiler":
                worker = self._zygote.fork_compiler(spec, *descriptors)
            else:
                worker = self._zygote.fork(spec, *descriptors)
        except ForkError as error:
            raise _refused(error) from error
        finally:
            _close(descriptors)
        return Forked(pid=worker.pid, layers=[_report(report) for report in worker.reports])

    def _descriptors_of(self, fork: Fork) -> list[int]:
        """Those sent for its token; those of requests that never came are closed."""
        expected = 4 if fork.role == "compiler" else 3 if fork.native else 2
        while True:
            data, fds, _, _ = socket.recv_fds(self._descriptors, FORK_TOKEN_BYTES, DESCRIPTORS_MAX)
            if data and int.from_bytes(data, "big") != fork.token:
                _close(fds)
                continue
            if len(fds) == expected:
                return fds
            _close(fds)
            raise Failure(
                "request.invalid",
                f"{len(fds)} descriptors came for token {fork.token}, not {expected}.",
            )

    def _kill(self, kill: Kill) -> Nothing:
        with contextlib.suppress(UnknownWorker):  # it died first, and its death is told
            self._zygote.kill(kill.pid)
        return Nothing()

    def _tell_deaths(self) -> None:
        for exit_ in self._zygote.reap():
            if self._exits is None:
                continue
            told = WorkerExited(
                pid=exit_.pid,
                status=exit_.exit_status,
                description=exit_.description,
                cpu_used_up=exit_.cpu_seconds_max is not None,
            )
            self._line.send(self._line.session.item(self._exits, told))


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _report(report: Report) -> LayerReport:
    return LayerReport(
        layer=report.layer, state=report.state, detail=report.detail, cure=report.cure
    )


def _refused(error: ForkError) -> Failure:
    if error.problem is not None:
        return Failure.of(error.problem)
    return Failure(
        "sandbox.refused",
        f"{error.layer}: {error.message}.",
        error.cure,
        layer=error.layer,
        errno=error.errno,
    )


def _deaths_fd() -> int:
    """A descriptor that becomes readable when a child has died."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_fd


def _leave_on_sigterm() -> None:
    def leave(*_: Any) -> NoReturn:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)


def main() -> None:
    parser = argparse.ArgumentParser("agent_runtime", description="Forks confined workers.")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the orchestrator")
    parser.add_argument("--descriptors", type=int, required=True, help="where descriptors come")
    options = parser.parse_args()
    _leave_on_sigterm()
    deaths_fd = _deaths_fd()
    with (
        socket.socket(fileno=options.fd) as sock,
        socket.socket(fileno=options.descriptors) as descriptors,
        Zygote(lambda sock, _, native: worker_main(sock, native)) as zygote,
    ):
        line = BlockingLine(sock, Hello(name="zygote"), initiator=True)
        Program(line, descriptors, zygote).serve(deaths_fd)


if __name__ == "__main__":
    main()
