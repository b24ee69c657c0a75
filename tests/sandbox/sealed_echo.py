"""`sealed_echo.py COUNT`: a strictly confined worker, whose brain is *echo*, handles messages.

A zygote of its own forks the worker, as the daemon's does. Prints how many completions came in how
many frames, then the code with which a request ended that was withdrawn.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Final, NoReturn

sys.path[:0] = [str(Path(__file__).parents[2])]

from agent_runtime.component.native import Native  # noqa: E402  (the path comes first)
from agent_runtime.wire import BlockingLine  # noqa: E402
from agent_runtime.worker import worker_main  # noqa: E402
from agent_runtime.zygote import WorkerSpec, Zygote  # noqa: E402
from ipc_protocol.events import ErrorReceived, Event, Hello, ItemReceived  # noqa: E402
from ipc_protocol.frames import typed  # noqa: E402
from ipc_protocol.methods import WORKER_HANDLE, WORKER_START  # noqa: E402
from ipc_protocol.work import (  # noqa: E402
    AgentProfile,
    Delivery,
    Done,
    Setting,
    Work,
    WorkerStart,
)

MEMORY_BYTES: Final = 64 * 1024 * 1024
SCRATCH_BYTES: Final = 1024 * 1024
SECONDS_MAX: Final = 60
AGENT_UID: Final = 61184

PROFILE: Final = AgentProfile(
    name="tested",
    role="agent",
    identity="",
    duties=[],
    delegates={},
    tools=[],
    publishes=["heard"],
    steps_max=1,
    tokens_max=1,
)


def run(connection: socket.socket, _: WorkerSpec, native: Native | None) -> NoReturn:
    connection.setblocking(True)
    worker_main(connection, native)


def delivery(number: int) -> Delivery:
    return Delivery(
        delivery=number,
        attempt=1,
        message=number,
        topic="said",
        sender="caller",
        payload=bytes(256),
        correlation=f"c-{number}",
        rank=2,
        sent_us=1,
        expires_us=2,
        cause=None,
        hops=0,
        begun_us=1,
        seed=number,
    )


class Line:
    def __init__(self, sock: socket.socket) -> None:
        self._line = BlockingLine(sock, Hello(name="orchestrator"), initiator=True)
        self._events: list[Event] = []
        self.event()
        self.ask(WORKER_START.name, WorkerStart(profile=PROFILE, echo=["heard"]))
        self.event()

    def event(self) -> Event:
        while not self._events:
            self._events.extend(self._line.receive())
        return self._events.pop(0)

    def ask(self, method: str, params: Work | WorkerStart) -> None:
        _, data = self._line.session.request(method, params)
        self._line.send(data)

    def handle(self, count: int) -> None:
        self.ask(WORKER_HANDLE.name, work(count))

    def handle_and_withdraw(self) -> None:
        """In one piece, so that the worker has heard of both before it begins."""
        stream, data = self._line.session.request(WORKER_HANDLE.name, work(1))
        self._line.send(data + self._line.session.cancel(stream))


def work(count: int) -> Work:
    deliveries = [delivery(number) for number in range(1, count + 1)]
    return Work(setting=Setting(loop=1), deliveries=deliveries)


def main() -> None:
    uid = AGENT_UID if os.geteuid() == 0 else None
    spec = WorkerSpec("tested", "strict", MEMORY_BYTES, SCRATCH_BYTES, uid, uid)
    ours, theirs = socket.socketpair()
    ours.settimeout(SECONDS_MAX)
    with Zygote(run) as zygote, ours:
        zygote.fork(spec, theirs.fileno(), sys.stderr.fileno())
        theirs.close()
        line = Line(ours)
        line.handle(int(sys.argv[1]))
        line.handle_and_withdraw()
        finished, frames, code = 0, 0, ""
        while not code or finished < int(sys.argv[1]):
            event = line.event()
            if isinstance(event, ItemReceived):
                done: Done = typed(event.value, Done)
                finished, frames = finished + len(done.finished), frames + 1
            elif isinstance(event, ErrorReceived):
                code = event.problem.code
        print(finished, frames, code)


main()
