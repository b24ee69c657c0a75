"""The protocol over asyncio: the only part of the package that touches a socket.

A `Connection` is the same thing at both ends: it calls methods of the peer and serves its own. It
is an async context manager; every task it starts ends with it. Writers wait while the transport is
above its high-water mark; a streamed response that nobody reads stops the reading of its socket.
"""

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from ipc_protocol import limits
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.frames import FrameError
from ipc_protocol.methods import Method
from ipc_protocol.session import (
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
    Session,
    SessionState,
)

log = logging.getLogger(__name__)

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R")
Item = TypeVar("Item")

ITEMS_RESUME: Final = limits.STREAM_ITEMS_MAX // 2
"""Reading goes on when half of a full buffer has been taken, so that it does not flutter."""


class Call:
    """One request being served. Handlers send the items of a streamed response through it."""

    def __init__(self, connection: "Connection", stream: int) -> None:
        self.connection = connection
        self._stream = stream

    async def send_item(self, item: msgspec.Struct) -> None:
        """Send one item; waits while the peer is slow to read."""
        self.connection._write(self.connection._session.item(self._stream, item))
        await self.connection._wait_writable()


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


class Response(Generic[R, Item]):
    """A streamed response: iterate over its items, then read `result`."""

    def __init__(self, connection: "Connection", method: Method[Any, R, Item]) -> None:
        self._connection = connection
        self._method = method
        self._items: deque[dict[str, Any]] = deque()
        self._arrived = asyncio.Event()
        self._outcome: asyncio.Future[dict[str, Any]] = connection._loop.create_future()
        self.full = False

    @property
    def closed(self) -> bool:
        return self._outcome.done()

    def _push(self, item: dict[str, Any]) -> None:
        self._items.append(item)
        if len(self._items) >= limits.STREAM_ITEMS_MAX:
            self.full = True
            self._connection._update_reading()
        self._arrived.set()

    def _finish(self, value: dict[str, Any]) -> None:
        if not self._outcome.done():
            self._outcome.set_result(value)
        self._arrived.set()

    def _fail(self, failure: Failure) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(failure)
            self._outcome.exception()  # seen here, so that asyncio does not call it forgotten
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Item]:
        while True:
            while self._items:
                item = self._items.popleft()
                if self.full and len(self._items) <= ITEMS_RESUME:
                    self.full = False
                    self._connection._update_reading()
                yield msgspec.convert(item, self._method.item)
            if self.closed:
                if self._outcome.exception() is not None:
                    self._outcome.result()
                return
            self._arrived.clear()
            await self._arrived.wait()

    async def result(self) -> R:
        """The final result. Raises `Failure` when the request ended in an error."""
        value: R = msgspec.convert(await asyncio.shield(self._outcome), self._method.result)
        return value


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
        self._responses: dict[int, Response[Any, Any]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None
        self.problem: Problem | None = None
        """Why the connection ended, or None while it lives or when it ended in order."""

    # -- life

    async def __aenter__(self) -> "Connection":
        self._sock.setblocking(False)
        transport, _ = await self._loop.create_unix_connection(lambda: _Wire(self), sock=self._sock)
        self._transport = transport
        transport.set_write_buffer_limits(
            high=limits.WRITE_HIGH_WATER_BYTES, low=limits.WRITE_LOW_WATER_BYTES
        )
        self._writable.set()
        if self._initiator:
            self._write(self._session.hello())
        timer = self._loop.call_later(limits.HELLO_SECONDS_MAX, self._on_hello_timeout)
        try:
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
        tasks = list(self._serving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._transport is not None:
            if self._session.state is SessionState.OPEN and not self.closed:
                self._write(self._session.goodbye())
            self._transport.close()
            await self._closed.wait()

    # -- calling the peer

    async def call(self, method: Method[P, R, Item], params: P) -> R:
        """Ask and wait for the result. Cancelling the caller withdraws the request."""
        async with self.stream(method, params) as response:
            return await response.result()

    @contextlib.asynccontextmanager
    async def stream(
        self, method: Method[P, R, Item], params: P
    ) -> AsyncIterator[Response[R, Item]]:
        """Ask for a streamed response. Leaving the block early withdraws the request."""
        if self.closed or self._session.state is not SessionState.OPEN:
            raise self._closed_failure()
        await self._wait_writable()
        if self.closed:
            raise self._closed_failure()
        try:
            stream, data = self._session.request(method.name, params)
        except FrameError as error:
            raise Failure(error.code, str(error)) from error
        response: Response[R, Item] = Response(self, method)
        self._responses[stream] = response
        self._write(data)
        try:
            yield response
        finally:
            if not response.closed and not self.closed:
                self._write(self._session.cancel(stream))
            del self._responses[stream]
            response.full = False
            self._update_reading()

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
                task = self._loop.create_task(self._serve(stream, request.method, request.params))
                self._serving[stream] = task
                task.add_done_callback(lambda _: self._serving.pop(stream, None))
            case ItemReceived(stream=stream, value=value):
                if stream in self._responses:
                    self._responses[stream]._push(value)
            case ResultReceived(stream=stream, value=value):
                if stream in self._responses:
                    self._responses[stream]._finish(value)
            case ErrorReceived(stream=stream, problem=problem):
                if stream in self._responses:
                    self._responses[stream]._fail(Failure.of(problem))
            case CancelReceived(stream=stream):
                if stream in self._serving:
                    self._serving[stream].cancel()
            case GoodbyeReceived():
                pass
            case Failed(problem=problem, farewell=farewell):
                self._fail(problem, farewell)

    def _fail(self, problem: Problem, farewell: bytes = b"") -> None:
        self.problem = problem
        if self._transport is not None:
            if farewell:
                self._transport.write(farewell)
            self._transport.close()
        self._give_up()

    def _on_hello_timeout(self) -> None:
        if self._session.state is SessionState.GREETING:
            failed = self._session.hello_timed_out()
            self._fail(failed.problem, failed.farewell)

    def _on_end(self) -> None:
        for event in self._session.receive_end():
            self._on_event(event)

    def _on_lost(self, error: Exception | None) -> None:
        self._on_end()
        self._closed.set()
        self._writable.set()
        for task in self._serving.values():
            task.cancel()
        self._give_up()

    def _give_up(self) -> None:
        failure = self._closed_failure()
        if not self._opened.done():
            self._opened.set_exception(failure)
        for response in self._responses.values():
            response._fail(failure)

    def _closed_failure(self) -> Failure:
        if self.problem is not None:
            return Failure.of(self.problem)
        return Failure("protocol.closed", "The connection is closed.")

    def _update_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if any(response.full for response in self._responses.values()):
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # -- serving the peer

    async def _serve(self, stream: int, name: str, params: dict[str, Any]) -> None:
        try:
            answer = await self._answer(stream, name, params)
            data = self._session.result(stream, answer)
        except asyncio.CancelledError:
            data = self._error(stream, Problem(code="request.cancelled", message="Withdrawn."))
        except Failure as failure:
            data = self._error(stream, failure.problem)
        except FrameError as error:
            data = self._error(stream, Problem(code=error.code, message=str(error)))
        except Exception:  # a defect in one handler must not end the others
            log.exception("the handler of %s failed", name)
            data = self._error(
                stream,
                Problem(code="request.internal", message=f"{name} failed.", cure="See the log."),
            )
        self._write(data)

    async def _answer(self, stream: int, name: str, params: dict[str, Any]) -> msgspec.Struct:
        method, handler = self._handlers.find(name)
        try:
            typed = msgspec.convert(params, method.params)
        except msgspec.ValidationError as error:
            raise Failure(
                "request.invalid",
                f"The parameters of {name} are wrong: {error}.",
                "docs/protocol.md lists them.",
            ) from error
        return await handler(typed, Call(self, stream))

    def _error(self, stream: int, problem: Problem) -> bytes:
        if self._session.state not in (SessionState.OPEN, SessionState.LEAVING):
            return b""
        return self._session.error(stream, problem)

    # -- writing

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _wait_writable(self) -> None:
        await self._writable.wait()


class _Wire(asyncio.Protocol):
    """Hands what the transport says to its connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        self._connection._on_bytes(data)

    def eof_received(self) -> bool:
        self._connection._on_end()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._connection._on_lost(error)

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
