"""The sealed worker: it is told who it is, handles deliveries one by one, and asks for effects.

A thin shell around the loop, and around the component of an agent that has one. It blocks on one
socket and has no other reach: no file, and of time only what passes. Everything is imported before
it is sealed, so nothing may be imported later.

Deliveries come several to a request. Their completions gather for a moment, and go out before
anything else is said of them: an effect that the next one asks for, an error that ends the rest.

While it waits for an effect, and between two deliveries, it hears what else comes: a withdrawal of
the request drops the delivery in hand and those behind it, other requests wait their turn. Whoever
holds the other end of the line decides about its life: when the line ends, so does the worker, with
status 0; a defect of its own ends it with status 1. So does a trap of its component, whose memory
is lost with it: the worker says what happened, and goes.
"""

import socket
import sys
import time
import traceback
from collections import deque
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec.structs import replace

from agent_runtime.component.host import Host
from agent_runtime.component.native import Native
from agent_runtime.echo import Echo
from agent_runtime.gathering import Gathering
from agent_runtime.loop import LOOP_VERSION, advance, start
from agent_runtime.loop.consulting import Consult, Consulted
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
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import WORK_EFFECT, WORKER_HANDLE, WORKER_START, WORKER_STOP, Method
from ipc_protocol.work import (
    AgentProfile,
    Completion,
    ComponentStart,
    Delivery,
    Effect,
    EffectRequest,
    EffectResult,
    Handle,
    Work,
    WorkerReady,
    WorkerStart,
)

HELLO: Final = Hello(name="worker")
CANCELLED: Final = Failure("request.cancelled", "The work was withdrawn.").problem

IDLE_SECONDS: Final = 1.0
"""Without a request, before memory is given back. Fetching it anew for each message would be half
of the time that a large one takes."""

GLANCE_SECONDS: Final = 0.001
"""From one look at the line to the next while nothing is waited for: a look costs 1 µs, as long as
it takes to handle the cheapest delivery."""

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

    def __init__(self, sock: socket.socket, native: Native | None = None) -> None:
        self._line = BlockingLine(sock, HELLO, initiator=False)
        self._native = native
        self._profile: AgentProfile | None = None
        self._component: ComponentStart | None = None
        self._echo: Echo | None = None
        self._host: Host | None = None
        self._gathering = Gathering()
        self._glanced_at = 0.0
        self._arrived: deque[Event] = deque()  # bound: the events of one read
        self._waiting: deque[RequestReceived] = deque()  # bound: the hello's `streams_max`
        self._stopped = False

    def run(self) -> int:
        """Serve until the line ends, or the component is of no more use. Returns the status."""
        try:
            while not self._stopped:
                self._serve(self._next_request())
            return 1 if self._host is not None and self._host.dead else 0
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
            self._rest_if_idle()
            self._set_aside(self._next_event())
        return self._waiting.popleft()

    def _rest_if_idle(self) -> None:
        """Give back what the component's last call has left, unless the next one comes soon."""
        if self._host is None or not self._host.holds_memory or self._arrived:
            return
        if not self._line.has_more_within(IDLE_SECONDS):
            self._host.release_memory()

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

    def _glance(self, stream: int, now: float) -> None:
        """Hear what has come by now. Raises `_Dropped` when that withdraws the request in hand."""
        if now - self._glanced_at >= GLANCE_SECONDS:
            self._glanced_at = now
            if self._line.has_more_within(0):
                self._arrived.extend(self._line.receive())
        while self._arrived:
            event = self._next_event()
            if isinstance(event, CancelReceived) and event.stream == stream:
                raise _Dropped(CANCELLED)
            self._set_aside(event)

    # -- what is served

    def _serve(self, received: RequestReceived) -> None:
        session = self._line.session
        try:
            answer = self._answer(received)
        except _Dropped as dropped:
            self._line.send(session.error(received.stream, dropped.problem))
        else:
            self._line.send(session.result(received.stream, answer))
        if self._host is not None and self._host.dead:
            self._stopped = True

    def _answer(self, received: RequestReceived) -> WorkerReady | Nothing:
        method = received.request.method
        if method == WORKER_START.name:
            return self._start(_params(received, WORKER_START))
        if method == WORKER_HANDLE.name:
            return self._handle(received.stream, _params(received, WORKER_HANDLE))
        if method == WORKER_STOP.name:
            self._stopped = True
            if self._host is not None:
                self._host.shutdown()
            return Nothing()
        raise _dropped(
            "request.unknown-method",
            f"There is no method {method!r} on this line.",
            f"It serves {WORKER_START.name}, {WORKER_HANDLE.name} and {WORKER_STOP.name}.",
        )

    def _start(self, start: WorkerStart) -> WorkerReady:
        try:
            self._echo = None if start.echo is None else Echo(start.echo)
        except Failure as failure:
            raise _Dropped(failure.problem) from failure
        self._profile, self._component = start.profile, start.component
        host = self._instantiated(start.profile)
        if host is None:
            return WorkerReady(loop=LOOP_VERSION)
        return WorkerReady(loop=LOOP_VERSION, world=host.shape.world, inert=host.inert)

    def _instantiated(self, profile: AgentProfile) -> Host | None:
        """The component's host, made where there is none. Raises `_Dropped`."""
        if self._host is None and self._component is not None:
            if self._native is None:
                raise _dropped(
                    "request.invalid",
                    "This worker was forked without the native code of a component.",
                    "Fork it with `native`.",
                )
            try:
                host = Host(self._native, self._component, profile, sys.stderr)
                self._host = host
                host.init()
            except Failure as failure:
                raise _Dropped(failure.problem) from failure
        return self._host

    def interrupted(self) -> None:
        """The component was left in the middle of a call, and cannot be entered again."""
        self._host = None

    def _handle(self, stream: int, work: Work) -> Nothing:
        """Raises `_Dropped` with the delivery that it is about; those before it are told of."""
        for each in work.deliveries:
            began = time.monotonic()
            try:
                self._glance(stream, began)
                completion = self._completion(stream, work, each)
            except _Dropped as dropped:
                self._flush(stream)
                raise _Dropped(_about(each, dropped.problem)) from dropped
            self._gathering.add(each.delivery, completion, began)
            if self._gathering.is_due(time.monotonic()):
                self._flush(stream)
        self._flush(stream)
        return Nothing()

    def _completion(self, stream: int, work: Work, each: Delivery) -> Completion:
        if self._profile is None:
            raise _dropped(
                "request.invalid",
                "This worker does not know yet which agent it is.",
                f"Send {WORKER_START.name} first.",
            )
        if self._echo is not None:
            return self._echo.completion(each.payload)
        host = self._instantiated(self._profile)
        return _Run(self, stream, work.handle(each)).through(self._profile, host)

    def _flush(self, stream: int) -> None:
        """Tell of the completions that have gathered."""
        done = self._gathering.take(time.monotonic())
        if done is not None:
            self._line.send(self._line.session.item(stream, done))

    def have_done(self, stream: int, request: EffectRequest) -> EffectResult:
        """Ask for one effect and wait for it. Raises `_Dropped` when the request is withdrawn."""
        self._flush(stream)
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


class _Run:
    """One delivery in the loop's hands. Counts its effects, whoever asks for them."""

    def __init__(self, worker: Worker, stream: int, handle: Handle) -> None:
        self._worker = worker
        self._stream = stream
        self._handle = handle
        self._step = 0

    def through(self, profile: AgentProfile, host: Host | None) -> Completion:
        """From the first effect to the completion. Raises `_Dropped`."""
        consultable = frozenset() if host is None else host.consultable
        state, outcome = start(profile, self._handle, consultable)
        while not isinstance(outcome, Completion):
            answer: EffectResult | Consulted
            if isinstance(outcome, Consult):
                assert host is not None
                answer = self._consult(host, outcome)
            else:
                answer = self._ask(outcome)
            state, outcome = advance(state, answer)
        return outcome if host is None else replace(outcome, usage=host.usage())

    def _ask(self, effect: Effect) -> EffectResult:
        self._step += 1
        request = EffectRequest(delivery=self._handle.delivery, step=self._step, effect=effect)
        return self._worker.have_done(self._stream, request)

    def _consult(self, host: Host, consult: Consult) -> Consulted:
        try:
            return host.consult(consult, self._handle, self._ask)
        except Failure as failure:
            raise _Dropped(failure.problem) from failure
        except _Dropped:
            self._worker.interrupted()
            raise


def _dropped(code: str, message: str, cure: str = "") -> _Dropped:
    return _Dropped(Failure(code, message, cure).problem)


def _about(each: Delivery, problem: Problem) -> Problem:
    return replace(problem, details={**problem.details, "delivery": each.delivery})


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


def worker_main(sock: socket.socket, native: Native | None = None) -> NoReturn:
    """The life of a worker on its inherited socket. Ends the process."""
    try:
        status = Worker(sock, native).run()
    except Exception:  # noqa: BLE001 (a defect is shown, and ends this worker alone)
        traceback.print_exc()
        status = 1
    sys.exit(status)
