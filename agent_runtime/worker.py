"""The sealed worker: it is told who it is, handles one delivery at a time, and asks for effects.

A thin shell around the loop. It blocks on one socket and has no other reach: no file, no clock, no
thread. Everything is imported before it is sealed, so nothing may be imported later.

While it waits for an effect it hears what else comes: a withdrawal of the delivery drops it, other
requests wait their turn. Whoever holds the other end of the line decides about its life: when the
line ends, so does the worker, with status 0; a defect of its own ends it with status 1.
"""

import socket
import sys
import traceback
from collections import deque
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from agent_runtime.loop import LOOP_VERSION, advance, start
from agent_runtime.wire import END_OF_LINE, BlockingLine
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.events import (
    CancelReceived,
    ErrorReceived,
    Event,
    Failed,
    Hello,
    RequestReceived,
    ResultReceived,
)
from ipc_protocol.frames import typed
from ipc_protocol.methods import WORK_EFFECT, WORKER_HANDLE, WORKER_START, Method
from ipc_protocol.work import (
    AgentProfile,
    Completion,
    Effect,
    EffectRequest,
    EffectResult,
    Handle,
    WorkerReady,
)

HELLO: Final = Hello(name="worker")
CANCELLED: Final = Failure("request.cancelled", "The delivery was withdrawn.").problem

P = TypeVar("P", bound=msgspec.Struct)


class _Hangup(Exception):
    """The line is over. `problem` is None when the peer simply left."""

    def __init__(self, problem: Problem | None) -> None:
        self.problem = problem


class _Dropped(Exception):
    """The delivery in hand cannot go on; `problem` is the answer to it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class Worker:
    """One agent at the accepting end of its line."""

    def __init__(self, sock: socket.socket) -> None:
        self._line = BlockingLine(sock, HELLO, initiator=False)
        self._profile: AgentProfile | None = None
        self._arrived: deque[Event] = deque()  # bound: the events of one read
        self._waiting: deque[RequestReceived] = deque()  # bound: the hello's `streams_max`

    def run(self) -> int:
        """Serve until the line ends. Returns the exit status."""
        try:
            while True:
                self._serve(self._next_request())
        except _Hangup as hangup:
            if hangup.problem is None:
                return 0
            print(f"worker: {hangup.problem.message}", file=sys.stderr)
            return 1
        finally:
            self._line.close()

    # -- what comes

    def _next_event(self) -> Event:
        while not self._arrived:
            self._arrived.extend(self._line.receive())
        event = self._arrived.popleft()
        if isinstance(event, Failed):
            left = event.problem.code == END_OF_LINE
            raise _Hangup(None if left else event.problem)
        return event

    def _next_request(self) -> RequestReceived:
        while not self._waiting:
            self._set_aside(self._next_event())
        return self._waiting.popleft()

    def _set_aside(self, event: Event) -> None:
        """Keep a request for later, or forget one that is withdrawn before its turn."""
        if isinstance(event, RequestReceived):
            self._waiting.append(event)
        elif isinstance(event, CancelReceived):
            for request in self._waiting:
                if request.stream == event.stream:
                    self._waiting.remove(request)
                    self._line.send(self._line.session.error(request.stream, CANCELLED))
                    return

    # -- what is served

    def _serve(self, received: RequestReceived) -> None:
        session = self._line.session
        try:
            answer = self._answer(received)
        except _Dropped as dropped:
            self._line.send(session.error(received.stream, dropped.problem))
        else:
            self._line.send(session.result(received.stream, answer))

    def _answer(self, received: RequestReceived) -> WorkerReady | Completion:
        method = received.request.method
        if method == WORKER_START.name:
            self._profile = _params(received, WORKER_START).profile
            return WorkerReady(loop=LOOP_VERSION)
        if method == WORKER_HANDLE.name:
            return self._handle(received.stream, _params(received, WORKER_HANDLE))
        raise _dropped(
            "request.unknown-method",
            f"There is no method {method!r} on this line.",
            f"It serves {WORKER_START.name} and {WORKER_HANDLE.name}.",
        )

    def _handle(self, stream: int, handle: Handle) -> Completion:
        if self._profile is None:
            raise _dropped(
                "request.invalid",
                "This worker does not know yet which agent it is.",
                f"Send {WORKER_START.name} first.",
            )
        state, outcome = start(self._profile, handle)
        while not isinstance(outcome, Completion):
            request = EffectRequest(delivery=handle.delivery, step=state.effects, effect=outcome)
            state, outcome = advance(state, self._have_done(stream, request))
        return outcome

    def _have_done(self, stream: int, request: EffectRequest) -> EffectResult:
        """Ask for one effect and wait for it. Raises `_Dropped` when the delivery is withdrawn."""
        session = self._line.session
        if not session.may_request:
            raise _dropped("protocol.closed", "The line is closing: no effect can be had.")
        asked, data = session.request(WORK_EFFECT.name, request)
        self._line.send(data)
        while True:
            event = self._next_event()
            match event:
                case ResultReceived(stream=answered, value=value) if answered == asked:
                    return _result(value, request.effect)
                case ErrorReceived(stream=answered, problem=problem) if answered == asked:
                    raise _Dropped(problem)
                case CancelReceived(stream=withdrawn) if withdrawn == stream:
                    self._line.send(session.cancel(asked))
                    raise _Dropped(CANCELLED)
                case _:
                    self._set_aside(event)


def _dropped(code: str, message: str, cure: str = "") -> _Dropped:
    return _Dropped(Failure(code, message, cure).problem)


def _params(received: RequestReceived, method: Method[P, Any, Any]) -> P:
    try:
        params: P = typed(received.request.params, method.params)
    except msgspec.ValidationError as error:
        raise _dropped("request.invalid", f"{method.name}: {error}.") from error
    return params


def _result(value: dict[str, Any], effect: Effect) -> EffectResult:
    try:
        result: EffectResult = typed(value, WORK_EFFECT.result)
    except msgspec.ValidationError as error:
        raise _dropped(
            "protocol.malformed", f"The result of {type(effect).__name__} is not one: {error}."
        ) from error
    return result


def worker_main(sock: socket.socket) -> NoReturn:
    """The life of a worker on its inherited socket. Ends the process."""
    try:
        status = Worker(sock).run()
    except Exception:  # noqa: BLE001 (a defect is shown, and ends this worker alone)
        traceback.print_exc()
        status = 1
    sys.exit(status)
