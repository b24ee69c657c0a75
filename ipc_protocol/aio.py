"""The protocol over asyncio: the only part of the package that touches a socket.

A `Connection` is the same thing at both ends: it calls methods of the peer and serves its own. It
is an async context manager; every task it starts ends with it.

Nothing grows without bound for a peer that is slow or hostile. Requests, items and results wait
while the transport is above its high-water mark, so that it holds one frame more at most; the small
frames that may not wait (errors, cancellations) end the connection at a hard limit. A streamed
response that nobody reads stops the reading of its whole socket, so whoever iterates over one must
not wait, inside the loop, for another answer on the same connection.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from ipc_protocol import limits
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.events import (
    CancelReceived,
    ErrorReceived,
    Event,
    Failed,
    GoodbyeReceived,
    Hello,
    ItemReceived,
    Opened,
    RequestReceived,
    ResultReceived,
)
from ipc_protocol.frames import FrameError, typed
from ipc_protocol.methods import Method
from ipc_protocol.response import Response
from ipc_protocol.session import Session
from ipc_protocol.states import SessionState

log = logging.getLogger(__name__)

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R")
Item = TypeVar("Item")


class Call:
    """One request being served. Handlers send the items of a streamed response through it."""

    def __init__(self, connection: "Connection", stream: int) -> None:
        self.connection = connection
        self._stream = stream

    async def send_item(self, item: msgspec.Struct) -> None:
        """Send one item; waits while the peer is slow to read. Raises `Failure` when it is gone."""
        await self.connection._wait_writable()
        self.connection._write(self.connection._session.item(self._stream, item))


Handler = Callable[[Any, Call], Awaitable[msgspec.Struct]]


class Handlers:
    """Which methods this end serves. `add` ties a handler to the types of its method."""

    def __init__(self) -> None:
        self._by_name: dict[str, tuple[Method[Any, Any, Any], Handler]] = {}

    def add(
        self, method: Method[P, R, Item], handler: Callable[[P, Call], Awaitable[R]]
    ) -> "Handlers":
        assert method.name not in self._by_name, method.name
        self._by_name[method.name] = (method, handler)  # type: ignore[assignment]
        return self

    @property
    def names(self) -> Mapping[str, object]:
        return self._by_name

    def find(self, name: str) -> tuple[Method[Any, Any, Any], Handler]:
        found = self._by_name.get(name)
        if found is None:
            raise Failure(
                "request.unknown-method",
                f"There is no method {name!r} on this line.",
                f"It serves {', '.join(sorted(self._by_name)) or 'none'}.",
            )
        return found


class Connection:
    """One end of a line. Use it as a context manager; `wait_closed` returns when it is over."""

    def __init__(
        self, sock: socket.socket, hello: Hello, handlers: Handlers, *, initiator: bool
    ) -> None:
        self._sock = sock
        self._hello = hello
        self._handlers = handlers
        self._initiator = initiator
        self._session = Session(hello, initiator=initiator)
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._responses: dict[int, Response[Any, Any]] = {}
        self._full: set[Response[Any, Any]] = set()
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._abort_timer: asyncio.TimerHandle | None = None
        self._ending = False
        self.problem: Problem | None = None
        """Why the connection ended, or None while it lives or when it ended in order."""

    # -- life

    async def __aenter__(self) -> "Connection":
        try:
            self._sock.setblocking(False)
            await self._loop.create_unix_connection(lambda: _Wire(self), sock=self._sock)
        except BaseException:
            self._sock.close()
            raise
        timer = self._loop.call_later(limits.HELLO_SECONDS_MAX, self._on_hello_timeout)
        try:
            if self._initiator:
                self._write(self._session.hello())
            await self._opened
        except BaseException:
            await self._end()
            raise
        finally:
            timer.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def peer(self) -> str:
        return self._session.settled.peer

    async def _end(self) -> None:
        self._ending = True  # from here on no request is taken
        try:
            await self._stop_serving()
            if self._session.may_say_goodbye:
                self._write(self._session.goodbye())
        finally:
            self._close_transport()
        await self._closed.wait()

    async def _stop_serving(self) -> None:
        tasks = list(self._serving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _close_transport(self) -> None:
        """What is written goes out first, but a peer that does not take it holds nothing up."""
        if self._abort_timer is None and self._transport is not None and not self.closed:
            self._send()
            self._transport.close()
            self._abort_timer = self._loop.call_later(
                limits.CLOSE_SECONDS_MAX, self._transport.abort
            )

    # -- calling the peer

    async def call(self, method: Method[P, R, Item], params: P) -> R:
        """Ask and wait for the result. Cancelling the caller withdraws the request."""
        stream, response = await self._ask(method, params)
        try:
            return await response.result()
        finally:
            self._leave(stream, response)

    @contextlib.asynccontextmanager
    async def stream(
        self, method: Method[P, R, Item], params: P
    ) -> AsyncIterator[Response[R, Item]]:
        """Ask for a streamed response. Leaving the block early withdraws the request."""
        stream, response = await self._ask(method, params)
        try:
            yield response
        finally:
            self._leave(stream, response)

    async def _ask(self, method: Method[P, R, Item], params: P) -> tuple[int, Response[R, Item]]:
        await self._wait_writable()
        if not self._session.may_request:
            raise self._refused_here()
        try:
            stream, data = self._session.request(method.name, params)
        except FrameError as error:
            # Malformed is what the peer breaks; parameters that cannot be sent are the caller's.
            too_long = error.code == "protocol.frame-too-long"
            raise Failure(error.code if too_long else "request.invalid", str(error)) from error
        response: Response[R, Item] = Response(method, self._hold_reading, self._release_reading)
        self._responses[stream] = response
        self._write(data)
        return stream, response

    def _leave(self, stream: int, response: Response[Any, Any]) -> None:
        if not response.closed and self._session.talking:
            self._write(self._session.cancel(stream))
        del self._responses[stream]
        response.drop_items()

    def _refused_here(self) -> Failure:
        if self._ending or self._session.state is not SessionState.OPEN:
            return self._closed_failure()
        return Failure(
            "protocol.too-many-streams",
            f"{self._session.settled.limits.streams_max} requests are under way on this line.",
            "Wait for answers before asking more.",
        )

    # -- what the wire brings

    def _on_bytes(self, data: bytes) -> None:
        for event in self._session.receive(data):
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        match event:
            case Opened():
                if not self._initiator:
                    self._write(self._session.hello())
                if not self._opened.done():
                    self._opened.set_result(None)
            case RequestReceived(stream=stream, request=request):
                self._start_serving(stream, request.method, request.params)
            case ItemReceived(stream=stream, value=value):
                if stream in self._responses:
                    self._responses[stream].push(value)
            case ResultReceived(stream=stream, value=value):
                if stream in self._responses:
                    self._responses[stream].finish(value)
            case ErrorReceived(stream=stream, problem=problem):
                if stream in self._responses:
                    self._responses[stream].fail(Failure.of(problem))
            case CancelReceived(stream=stream):
                if stream in self._serving:
                    self._serving[stream].cancel()
            case GoodbyeReceived():
                pass
            case Failed(problem=problem, farewell=farewell):
                self._fail(problem, farewell)

    def _on_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(
            high=limits.WRITE_HIGH_WATER_BYTES, low=limits.WRITE_LOW_WATER_BYTES
        )

    def _fail(self, problem: Problem, farewell: bytes = b"") -> None:
        self.problem = self.problem or problem  # the first is the cause of the others
        self._write(farewell)
        self._close_transport()
        self._give_up()

    def _on_hello_timeout(self) -> None:
        if self._session.state is SessionState.GREETING:
            failed = self._session.hello_timed_out()
            self._fail(failed.problem, failed.farewell)

    def _on_end(self) -> None:
        events = self._session.receive_end()
        if not self._ending:  # else it is this end that hung up
            for event in events:
                self._on_event(event)
        self._close_transport()

    def _on_lost(self) -> None:
        self._on_end()
        self._closed.set()
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        for task in self._serving.values():
            task.cancel()
        self._give_up()

    def _give_up(self) -> None:
        """Nothing more will come: tell everybody who waits."""
        if not self._opened.done():
            self._opened.set_exception(self._closed_failure())
        for response in self._responses.values():
            response.fail(self._closed_failure())
        self._writable.set()

    def _closed_failure(self) -> Failure:
        if self.problem is not None:
            return Failure.of(self.problem)
        return Failure("protocol.closed", "The connection is closed.", "Connect again.")

    def _hold_reading(self, response: Response[Any, Any]) -> None:
        self._full.add(response)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _release_reading(self, response: Response[Any, Any]) -> None:
        if response not in self._full:
            return
        self._full.remove(response)
        if not self._full and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- serving the peer

    def _start_serving(self, stream: int, name: str, params: dict[str, Any]) -> None:
        if self._ending:
            self._write_error(stream, self._closed_failure().problem)
            return
        task = self._loop.create_task(self._serve(stream, name, params))
        self._serving[stream] = task
        # Here and not in the task, because one that is cancelled at once never runs at all.
        task.add_done_callback(lambda task: self._on_served(stream, name, task))

    async def _serve(self, stream: int, name: str, params: dict[str, Any]) -> None:
        answer = await self._answer(stream, name, params)
        await self._wait_writable()
        self._write(self._session.result(stream, answer))

    def _on_served(self, stream: int, name: str, task: asyncio.Task[None]) -> None:
        del self._serving[stream]
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            self._write_error(stream, self._cancelled(stream, name))
        elif isinstance(error, Failure):
            self._write_error(stream, error.problem)
        elif isinstance(error, FrameError) and error.code == "protocol.frame-too-long":
            self._write_error(stream, Problem(code=error.code, message=str(error)))
        elif error is not None:  # a defect in one handler must not end the others
            log.error("the handler of %s failed", name, exc_info=error)
            self._write_error(
                stream,
                Problem(code="request.internal", message=f"{name} failed.", cure="See the log."),
            )

    def _cancelled(self, stream: int, name: str) -> Problem:
        if self._session.is_withdrawn(stream):
            return Problem(code="request.cancelled", message=f"{name} was withdrawn.")
        if self._ending:
            return Problem(
                code="protocol.closed",
                message=f"The line was closed before {name} was done.",
                cure="Connect again, and ask again.",
            )
        return Problem(code="request.internal", message=f"{name} was given up.", cure="Ask again.")

    async def _answer(self, stream: int, name: str, params: dict[str, Any]) -> msgspec.Struct:
        method, handler = self._handlers.find(name)
        try:
            arguments = typed(params, method.params)
        except msgspec.ValidationError as error:
            raise Failure(
                "request.invalid",
                f"The parameters of {name} are wrong: {error}.",
                "docs/protocol.md lists them.",
            ) from error
        return await handler(arguments, Call(self, stream))

    def _write_error(self, stream: int, problem: Problem) -> None:
        if self._session.talking:
            self._write(self._session.error(stream, problem))

    # -- writing

    def _write(self, data: bytes) -> None:
        """Frames that are written in one turn of the loop are sent together, by one system call."""
        if self._transport is None or self._transport.is_closing():
            return
        held_bytes = self._transport.get_write_buffer_size()
        if held_bytes > limits.WRITE_BYTES_MAX:
            self._transport.abort()
            self._fail(Problem(code="protocol.closed", message="The peer does not read."))
        elif data:
            if not self._unsent:
                self._loop.call_soon(self._send)
            self._unsent.append(data)
            self._unsent_bytes += len(data)
            if held_bytes + self._unsent_bytes >= limits.WRITE_TOGETHER_BYTES_MAX:
                self._send()

    def _send(self) -> None:
        """Hand what was written to the transport, which says when it holds too much."""
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _wait_writable(self) -> None:
        """Waits while the transport holds too much. Raises `Failure` when it takes nothing more."""
        while not self._writable.is_set():
            await self._writable.wait()
        if not self._session.talking or self.closed:
            raise self._closed_failure()


class _Wire(asyncio.Protocol):
    """Hands what the transport says to its connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection._on_made(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._connection._on_bytes(data)

    def eof_received(self) -> bool:
        self._connection._on_end()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._connection._on_lost()

    def pause_writing(self) -> None:
        self._connection._writable.clear()

    def resume_writing(self) -> None:
        self._connection._writable.set()


def connect(path: Path, hello: Hello, handlers: Handlers | None = None) -> Connection:
    """A connection to the socket at `path`. Raises `OSError` when nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return Connection(sock, hello, handlers or Handlers(), initiator=True)
