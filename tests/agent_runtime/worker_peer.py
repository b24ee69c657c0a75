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
    ItemReceived,
    Opened,
    RequestReceived,
    ResultReceived,
)
from ipc_protocol.frames import typed
from ipc_protocol.methods import WORK_EFFECT, WORKER_HANDLE, WORKER_START
from ipc_protocol.work import (
    AgentProfile,
    Completion,
    ComponentStart,
    Delivery,
    Done,
    EffectRequest,
    EffectResult,
    Finished,
    Setting,
    Work,
    WorkerStart,
)

SETTING = Setting(loop=1)

_WORKER = """
import os, socket, sys
from agent_runtime.component import library
from agent_runtime.component.native import Native
from agent_runtime.component.ticker import Ticker
from agent_runtime.worker import worker_main

native = None
if sys.argv[2]:
    from wasmtime import wat2wasm

    ticker = Ticker(library.engine().increment_epoch)
    ticker.start()
    native = Native(library.compile_component(bytes(wat2wasm(sys.argv[2]))), ticker)

def tell(event, arguments):
    if event in ("open", "import"):
        os.write(2, f"{event} {arguments[0]}\\n".encode())

sock = socket.socket(fileno=int(sys.argv[1]))
sys.addaudithook(tell)
worker_main(sock, native)
"""
"""A sealed worker could neither open nor import anything: this one says so if it tries."""


class Orchestrator:
    """Talks to one worker, synchronously. Every wait ends after ten seconds.

    With the WAT of a component, its native code is there before the worker begins.
    """

    def __init__(self, wat: str = "") -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(10)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(theirs.fileno()), wat],
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

    def start(
        self,
        profile: AgentProfile,
        *,
        component: ComponentStart | None = None,
        echo: list[str] | None = None,
    ) -> Event:
        start = WorkerStart(profile=profile, component=component, echo=echo)
        self.request(WORKER_START.name, start)
        return self.event()

    def handle(self, *deliveries: Delivery) -> int:
        return self.request(WORKER_HANDLE.name, Work(setting=SETTING, deliveries=list(deliveries)))

    def cancel(self, stream: int) -> None:
        self.line.send(self.line.session.cancel(stream))

    def effect(self) -> tuple[int, EffectRequest]:
        event = self.event()
        assert isinstance(event, RequestReceived), event
        assert event.request.method == WORK_EFFECT.name
        return event.stream, typed(event.request.params, EffectRequest)

    def result(self, stream: int, result: EffectResult) -> None:
        self.line.send(self.line.session.result(stream, result))

    def done(self, stream: int) -> list[Finished]:
        """One item of `stream`: the completions that came together."""
        event = self.event()
        assert isinstance(event, ItemReceived), event
        assert event.stream == stream
        done: Done = typed(event.value, Done)
        return done.finished

    def ended(self, stream: int) -> None:
        event = self.event()
        assert event == ResultReceived(stream=stream, value={}), event

    def completion(self, stream: int) -> Completion:
        """Of a request with one delivery, whose end this is."""
        (finished,) = self.done(stream)
        self.ended(stream)
        return finished.completion

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
