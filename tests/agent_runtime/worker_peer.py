"""The orchestrator's end of a worker's line, and a worker in a process of its own."""

import socket
import subprocess
import sys

import msgspec

from agent_runtime.wire import BlockingLine
from ipc_protocol.errors import Problem
from ipc_protocol.events import (
    CancelReceived,
    ErrorReceived,
    Event,
    Hello,
    Opened,
    RequestReceived,
    ResultReceived,
)
from ipc_protocol.frames import typed
from ipc_protocol.methods import WORK_EFFECT, WORKER_HANDLE, WORKER_START
from ipc_protocol.work import (
    AgentProfile,
    Completion,
    EffectRequest,
    EffectResult,
    Handle,
    WorkerStart,
)

_WORKER = """
import os, socket, sys
from agent_runtime.worker import worker_main

def tell(event, arguments):
    if event in ("open", "import"):
        os.write(2, f"{event} {arguments[0]}\\n".encode())

sock = socket.socket(fileno=int(sys.argv[1]))
sys.addaudithook(tell)
worker_main(sock)
"""
"""A sealed worker could neither open nor import anything: this one says so if it tries."""


class Orchestrator:
    """Talks to one worker, synchronously. Every wait ends after ten seconds."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(10)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self.line = BlockingLine(self.sock, Hello(name="orchestrator"), initiator=True)
        self._events: list[Event] = []
        assert isinstance(self.event(), Opened)

    def event(self) -> Event:
        while not self._events:
            self._events.extend(self.line.receive())
        return self._events.pop(0)

    def request(self, method: str, params: msgspec.Struct) -> int:
        stream, data = self.line.session.request(method, params)
        self.line.send(data)
        return stream

    def start(self, profile: AgentProfile) -> Event:
        self.request(WORKER_START.name, WorkerStart(profile=profile))
        return self.event()

    def handle(self, delivery: Handle) -> int:
        return self.request(WORKER_HANDLE.name, delivery)

    def cancel(self, stream: int) -> None:
        self.line.send(self.line.session.cancel(stream))

    def effect(self) -> tuple[int, EffectRequest]:
        event = self.event()
        assert isinstance(event, RequestReceived), event
        assert event.request.method == WORK_EFFECT.name
        return event.stream, typed(event.request.params, EffectRequest)

    def result(self, stream: int, result: EffectResult) -> None:
        self.line.send(self.line.session.result(stream, result))

    def completion(self, stream: int) -> Completion:
        event = self.event()
        assert isinstance(event, ResultReceived), event
        assert event.stream == stream
        completion: Completion = typed(event.value, Completion)
        return completion

    def problem(self, stream: int) -> Problem:
        """The error that answers `stream`; a withdrawn effect may be heard of before it."""
        event = self.event()
        if isinstance(event, CancelReceived):
            event = self.event()
        assert isinstance(event, ErrorReceived), event
        assert event.stream == stream
        return event.problem

    def exit(self) -> tuple[int, str]:
        """Status and standard error of the worker, once it has gone."""
        _, errors = self.process.communicate(timeout=10)
        return self.process.returncode, errors

    def close(self) -> None:
        self.sock.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
