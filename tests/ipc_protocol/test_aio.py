"""Two connections over a socket pair, on both event loops; the peer is sometimes a bare socket."""

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from ipc_protocol import aio, limits
from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.events import Hello, Limits, Request
from ipc_protocol.frames import HEADER, VERSION, FrameDecoder, FrameType, encode
from ipc_protocol.inference import Nothing
from ipc_protocol.limits import BODY_BYTES_MIN
from ipc_protocol.methods import Method
from ipc_protocol.response import Response


class Text(msgspec.Struct, frozen=True):
    text: str


class Number(msgspec.Struct, frozen=True):
    n: int


ECHO = Method[Text, Text, Nothing]("test.echo", Text, Text)
COUNT = Method[Number, Text, Number]("test.count", Number, Text, Number)
WAIT = Method[Nothing, Nothing, Nothing]("test.wait", Nothing, Nothing)

NOTHING = Nothing()


async def echo(params: Text, call: Call) -> Text:
    return params


async def count(params: Number, call: Call) -> Text:
    for n in range(params.n):
        await call.send_item(Number(n))
    return Text("done")


class Waiter:
    """A handler that waits until it is let go or cancelled, and says how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, params: Nothing, call: Call) -> Nothing:
        self.begun.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return NOTHING


def serving(**extra: Any) -> Handlers:
    handlers = Handlers().add(ECHO, echo).add(COUNT, count)
    for method, handler in extra.values():
        handlers.add(method, handler)
    return handlers


@contextlib.asynccontextmanager
async def line(
    ours: Handlers | None = None,
    theirs: Handlers | None = None,
    *,
    bounds: Limits | None = None,
) -> AsyncIterator[tuple[Connection, Connection]]:
    one, two = socket.socketpair()
    bounds = bounds or Limits()
    asker = Connection(one, Hello(name="asker", limits=bounds), ours or Handlers(), initiator=True)
    server = Connection(two, Hello(name="server"), theirs or serving(), initiator=False)
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.gather(stack.enter_async_context(asker), stack.enter_async_context(server))
        yield asker, server


class Bare:
    """The other end as a bare socket: it can break every rule."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = FrameDecoder()
        self._frames: list[tuple[FrameType, int, dict[str, Any]]] = []

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def frame(self) -> tuple[FrameType, int, dict[str, Any]]:
        while not self._frames:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 2**16)
            if not data:
                raise EOFError
            for frame in self._decoder.feed(data):
                self._frames.append((frame.type, frame.stream, frame.body))
        return self._frames.pop(0)

    async def rest(self) -> list[tuple[FrameType, int, dict[str, Any]]]:
        frames = []
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                frames.append(await self.frame())
        return frames


@contextlib.asynccontextmanager
async def bare_line(
    handlers: Handlers | None = None, **kwargs: Any
) -> AsyncIterator[tuple[Connection, Bare]]:
    """A served connection and a bare initiator whose hello is already said."""
    one, two = socket.socketpair()
    bare = Bare(two)
    connection = Connection(
        one, Hello(name="server", **kwargs), handlers or serving(), initiator=False
    )
    await bare.send(encode(FrameType.HELLO, 0, Hello(name="bare")))
    with two:
        async with connection:
            assert (await bare.frame())[0] is FrameType.HELLO
            yield connection, bare


def request(stream: int, method: str, **params: Any) -> bytes:
    return encode(FrameType.REQUEST, stream, Request(method=method, params=params))


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until `condition` holds; the test's own time limit is the only clock."""
    while not condition():  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No exception that nobody retrieved, and no task that was destroyed while it waited."""
    with caplog.at_level(logging.WARNING):
        yield
        gc.collect()
    left = [
        record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"
    ]
    assert left == []


# ---- Calls --------------------------------------------------------------------------------------


async def test_a_call_returns_the_typed_result() -> None:
    async with line() as (asker, server):
        assert await asker.call(ECHO, Text("hello")) == Text("hello")
        assert asker.peer == "server"
        assert server.peer == "asker"


async def test_both_ends_call_each_other_at_the_same_time() -> None:
    async with line(serving()) as (asker, server):
        calls = [end.call(ECHO, Text(str(n))) for n in range(50) for end in (asker, server)]
        answers = await asyncio.gather(*calls)
        assert [answer.text for answer in answers] == [str(n) for n in range(50) for _ in "ab"]


async def test_a_slow_call_does_not_hold_up_the_next() -> None:
    waiter = Waiter()
    async with line(theirs=serving(wait=(WAIT, waiter))) as (asker, _):
        slow = asyncio.create_task(asker.call(WAIT, NOTHING))
        await waiter.begun.wait()
        assert await asker.call(ECHO, Text("quick")) == Text("quick")
        waiter.let_go.set()
        assert await slow == NOTHING


async def test_what_is_asked_in_one_turn_of_the_loop_goes_out_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with line(theirs=serving()) as (asker, _):
        transport = asker._transport
        assert transport is not None
        sent: list[bytes] = []

        class Told:
            def __getattr__(self, name: str) -> Any:
                return getattr(transport, name)

            def write(self, data: bytes) -> None:
                sent.append(data)
                transport.write(data)

        monkeypatch.setattr(asker, "_transport", Told())
        texts = [Text(str(number)) for number in range(20)]
        assert await asyncio.gather(*(asker.call(ECHO, text) for text in texts)) == texts
        assert len(sent) == 1
        # What is long by itself does not wait for more.
        sent.clear()
        long = Text("x" * limits.WRITE_TOGETHER_BYTES_MAX)
        both = [asker.call(ECHO, text) for text in (long, texts[0], texts[1])]
        assert await asyncio.gather(*both) == [long, texts[0], texts[1]]
        assert len(sent) == 2


async def test_large_calls_in_both_directions_do_not_block_each_other() -> None:
    blob = "x" * (3 * 2**20)
    async with line(serving()) as (asker, server):
        answers = await asyncio.gather(
            *(end.call(ECHO, Text(blob)) for _ in range(8) for end in (asker, server))
        )
        assert all(answer.text == blob for answer in answers)


async def test_an_unknown_method_lists_those_that_are_served() -> None:
    async with line() as (asker, server):
        with pytest.raises(Failure, match=r"no method 'test.wait'.*count, test.echo") as caught:
            await asker.call(WAIT, NOTHING)
        assert caught.value.code == "request.unknown-method"
        with pytest.raises(Failure, match="It serves none"):
            await server.call(ECHO, Text(""))


async def test_parameters_of_the_wrong_type_are_invalid() -> None:
    wrong = Method[Number, Text, Nothing]("test.echo", Number, Text)
    async with line() as (asker, _):
        with pytest.raises(Failure, match=r"missing required field `text`") as caught:
            await asker.call(wrong, Number(1))
        assert caught.value.code == "request.invalid"
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")


async def test_an_answer_of_the_wrong_type_is_the_servers_fault() -> None:
    other = Method[Text, Number, Number]("test.echo", Text, Number, Number)
    streamed = Method[Number, Text, Text]("test.count", Number, Text, Text)
    async with line() as (asker, _):
        with pytest.raises(Failure, match=r"answer to test.echo is not of its type") as caught:
            await asker.call(other, Text("a"))
        assert caught.value.code == "protocol.malformed"
        with pytest.raises(Failure, match=r"answer to test.count"):
            async with asker.stream(streamed, Number(1)) as response:
                _ = [item async for item in response]
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")


async def test_a_request_over_the_limit_fails_here_and_the_line_goes_on() -> None:
    async with line(bounds=Limits(body_bytes_max=BODY_BYTES_MIN)) as (asker, _):
        with pytest.raises(Failure) as caught:
            await asker.call(ECHO, Text("x" * BODY_BYTES_MIN))
        assert caught.value.code == "protocol.frame-too-long"
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")


async def test_a_result_over_the_limit_is_an_error_and_the_line_goes_on() -> None:
    async def long(params: Nothing, call: Call) -> Text:
        return Text("x" * BODY_BYTES_MIN)

    method = Method[Nothing, Text, Nothing]("test.long", Nothing, Text)
    handlers = serving(long=(method, long))
    async with line(theirs=handlers, bounds=Limits(body_bytes_max=BODY_BYTES_MIN)) as (asker, _):
        with pytest.raises(Failure) as caught:
            await asker.call(method, NOTHING)
        assert caught.value.code == "protocol.frame-too-long"
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")


async def test_more_calls_than_settled_fail_here_and_the_line_goes_on() -> None:
    waiter = Waiter()
    handlers = serving(wait=(WAIT, waiter))
    async with line(theirs=handlers, bounds=Limits(streams_max=1)) as (asker, _):
        slow = asyncio.create_task(asker.call(WAIT, NOTHING))
        await waiter.begun.wait()
        with pytest.raises(Failure) as caught:
            await asker.call(ECHO, Text("one too many"))
        assert caught.value.code == "protocol.too-many-streams"
        waiter.let_go.set()
        await slow
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")


async def test_parameters_that_cannot_be_sent_are_invalid_and_the_line_goes_on() -> None:
    async with line() as (asker, _):
        with pytest.raises(Failure, match="cannot be written as msgpack") as caught:
            await asker.call(ECHO, Text("half a pair: \udc80"))
        assert caught.value.code == "request.invalid"
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")


# ---- Handlers that fail -------------------------------------------------------------------------


async def test_a_defect_in_a_handler_is_internal_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(params: Nothing, call: Call) -> Nothing:
        raise ZeroDivisionError

    async with line(theirs=serving(wait=(WAIT, broken))) as (asker, _):
        with pytest.raises(Failure) as caught:
            await asker.call(WAIT, NOTHING)
        assert caught.value.code == "request.internal"
        assert "ZeroDivision" not in str(caught.value)
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")
    assert "the handler of test.wait failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_result_that_cannot_be_sent_is_internal_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def strange(params: Nothing, call: Call) -> Text:
        return Text("half a pair: \udc80")

    method = Method[Nothing, Text, Nothing]("test.strange", Nothing, Text)
    async with line(theirs=serving(strange=(method, strange))) as (asker, _):
        with pytest.raises(Failure) as caught:
            await asker.call(method, NOTHING)
        assert caught.value.code == "request.internal"
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")
    assert "cannot be written as msgpack" in caplog.text


async def test_a_failure_arrives_with_all_it_says() -> None:
    async def full(params: Nothing, call: Call) -> Nothing:
        raise Failure("store.full", "The disk is full.", "Make room.", free_bytes=7)

    async with line(theirs=serving(wait=(WAIT, full))) as (asker, _):
        with pytest.raises(Failure) as caught:
            await asker.call(WAIT, NOTHING)
        assert caught.value.problem == Problem(
            code="store.full",
            message="The disk is full.",
            cure="Make room.",
            details={"free_bytes": 7},
        )


async def test_a_handler_that_cancels_itself_is_internal() -> None:
    async def gives_up(params: Nothing, call: Call) -> Nothing:
        raise asyncio.CancelledError

    async with line(theirs=serving(wait=(WAIT, gives_up))) as (asker, _):
        with pytest.raises(Failure) as caught:
            await asker.call(WAIT, NOTHING)
        assert caught.value.code == "request.internal"


# ---- Streams ------------------------------------------------------------------------------------


async def test_a_streamed_response_brings_its_items_in_order_and_then_its_result() -> None:
    async with line() as (asker, _), asker.stream(COUNT, Number(1000)) as response:
        assert [item.n async for item in response] == list(range(1000))
        assert await response.result() == Text("done")


async def test_items_before_an_error_are_still_delivered() -> None:
    async def breaks(params: Number, call: Call) -> Text:
        await call.send_item(Number(1))
        raise Failure("tool.failed", "Broken.")

    handlers = Handlers().add(COUNT, breaks)
    items = []
    async with line(theirs=handlers) as (asker, _), asker.stream(COUNT, Number(9)) as response:
        with pytest.raises(Failure, match="Broken"):
            async for item in response:
                items.append(item.n)  # noqa: PERF401 - the error comes while it iterates
        with pytest.raises(Failure, match="Broken"):
            await response.result()
    assert items == [1]


class Flood:
    """A handler that sends large items without end, and counts them."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended = asyncio.Event()

    async def __call__(self, params: Number, call: Call) -> Text:
        try:
            while self.sent < params.n:
                await call.send_item(Text("x" * 10_000))
                self.sent += 1
        finally:
            self.ended.set()
        return Text("done")


FLOOD = Method[Number, Text, Text]("test.flood", Number, Text, Text)


async def stalled(flood: Flood) -> None:
    """Waits until the flood stands still: over many turns of the loop nothing more was sent."""
    before = -1
    while flood.sent != before:
        before = flood.sent
        for _ in range(500):
            await asyncio.sleep(0)


async def test_a_slow_reader_stops_the_writer_and_nothing_is_lost() -> None:
    flood = Flood()
    total = 2000  # 20 MB
    async with line(theirs=Handlers().add(FLOOD, flood)) as (asker, server):
        async with asker.stream(FLOOD, Number(total)) as response:
            await stalled(flood)
            assert flood.sent < total
            # One read beyond the full buffer, the kernel's buffers, and the writer's high mark.
            chunk = limits.SOCKET_READ_BYTES // 10_000 + 1
            assert len(response._items) >= limits.STREAM_ITEMS_MAX
            assert len(response._items) <= limits.STREAM_ITEMS_MAX + chunk
            assert server._transport is not None
            written = server._transport.get_write_buffer_size()
            assert written <= limits.WRITE_HIGH_WATER_BYTES + 11_000
            received = 0
            async for _ in response:
                received += 1
            assert received == total
            assert await response.result() == Text("done")
        assert await asker.call(FLOOD, Number(0)) == Text("done")


async def test_another_call_is_answered_once_the_slow_reader_reads() -> None:
    flood = Flood()
    handlers = serving(flood=(FLOOD, flood))
    async with line(theirs=handlers) as (asker, _), asker.stream(FLOOD, Number(600)) as response:
        await stalled(flood)
        other = asyncio.create_task(asker.call(ECHO, Text("me too")))
        assert len([item async for item in response]) == 600
        assert await other == Text("me too")


async def test_leaving_a_full_stream_lets_the_line_go_on() -> None:
    flood = Flood()
    async with line(theirs=serving(flood=(FLOOD, flood))) as (asker, _):
        async with asker.stream(FLOOD, Number(10**9)) as response:
            await stalled(flood)
            async for _ in response:
                break
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")
        await flood.ended.wait()


async def test_the_result_of_a_stream_can_be_had_without_its_items() -> None:
    flood = Flood()
    async with line(theirs=Handlers().add(FLOOD, flood)) as (asker, _):
        assert await asker.call(FLOOD, Number(2000)) == Text("done")


async def test_two_full_streams_hold_the_reading_until_both_are_read() -> None:
    floods = Flood(), Flood()
    second = Method[Number, Text, Text]("test.second", Number, Text, Text)
    handlers = Handlers().add(FLOOD, floods[0]).add(second, floods[1])
    async with (
        line(theirs=handlers) as (asker, _),
        asker.stream(FLOOD, Number(1000)) as one,
        asker.stream(second, Number(1000)) as two,
    ):
        await stalled(floods[0])
        await stalled(floods[1])

        async def take(response: Response[Text, Text]) -> int:
            return len([item async for item in response])

        assert set(await asyncio.gather(take(one), take(two))) == {1000}


# ---- Cancellation -------------------------------------------------------------------------------


async def test_a_cancelled_call_cancels_its_handler() -> None:
    waiter = Waiter()
    async with line(theirs=serving(wait=(WAIT, waiter))) as (asker, server):
        call = asyncio.create_task(asker.call(WAIT, NOTHING))
        await waiter.begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: asker._session.idle and not server._serving)
        assert waiter.cancelled == 1
        assert await asker.call(ECHO, Text("goes on")) == Text("goes on")


async def test_a_withdrawn_request_is_answered_with_cancelled() -> None:
    waiter = Waiter()
    async with bare_line(serving(wait=(WAIT, waiter))) as (_, bare):
        await bare.send(request(1, "test.wait"))
        await waiter.begun.wait()
        await bare.send(encode(FrameType.CANCEL, 1, {}))
        type_, stream, body = await bare.frame()
        assert (type_, stream, body["code"]) == (FrameType.ERROR, 1, "request.cancelled")


async def test_a_request_that_is_withdrawn_in_the_same_breath_is_answered_too() -> None:
    async with bare_line() as (_, bare):
        await bare.send(request(1, "test.echo", text="a") + encode(FrameType.CANCEL, 1, {}))
        type_, stream, body = await bare.frame()
        assert (type_, stream, body["code"]) == (FrameType.ERROR, 1, "request.cancelled")
        await bare.send(request(3, "test.echo", text="b"))
        assert await bare.frame() == (FrameType.RESULT, 3, {"text": "b"})


async def test_a_cancellation_that_crosses_the_result_changes_nothing() -> None:
    async with bare_line() as (_, bare):
        await bare.send(request(1, "test.echo", text="a"))
        assert (await bare.frame())[0] is FrameType.RESULT
        await bare.send(encode(FrameType.CANCEL, 1, {}) + request(3, "test.echo", text="b"))
        assert await bare.frame() == (FrameType.RESULT, 3, {"text": "b"})


@pytest.mark.parametrize(
    "last",
    [(FrameType.RESULT, {"text": "done"}), (FrameType.ERROR, {"code": "a.b", "message": "No."})],
    ids=["result", "error"],
)
async def test_what_arrives_for_a_call_that_was_left_is_dropped(
    last: tuple[FrameType, dict[str, str]],
) -> None:
    async with bare_line() as (connection, bare):
        async with connection.stream(COUNT, Number(2)):
            _, stream, _ = await bare.frame()
        assert await bare.frame() == (FrameType.CANCEL, stream, {})
        await bare.send(encode(FrameType.ITEM, stream, {"n": 0}) + encode(last[0], stream, last[1]))
        await until(lambda: connection._session.idle)
        await bare.send(request(1, "test.echo", text="goes on"))
        assert await bare.frame() == (FrameType.RESULT, 1, {"text": "goes on"})


async def test_a_handler_may_answer_in_spite_of_its_cancellation() -> None:
    async def stubborn(params: Nothing, call: Call) -> Nothing:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return NOTHING

    async with bare_line(serving(wait=(WAIT, stubborn))) as (connection, bare):
        await bare.send(request(1, "test.wait"))
        await until(lambda: bool(connection._serving))
        await asyncio.sleep(0)
        await bare.send(encode(FrameType.CANCEL, 1, {}))
        assert await bare.frame() == (FrameType.RESULT, 1, {})


# ---- The peer goes ------------------------------------------------------------------------------


async def test_every_pending_call_fails_when_the_peer_dies() -> None:
    async with bare_line() as (connection, bare):
        calls = [asyncio.create_task(connection.call(ECHO, Text("?"))) for _ in range(3)]
        for _ in calls:
            await bare.frame()
        bare.sock.close()
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert [failure.code for failure in failures if isinstance(failure, Failure)] == [
            "protocol.closed"
        ] * 3
        assert len({id(failure) for failure in failures}) == 3
        await connection.wait_closed()
        assert connection.closed
        with pytest.raises(Failure) as caught:
            await connection.call(ECHO, Text("too late"))
        assert caught.value.code == "protocol.closed"


async def test_a_stream_that_is_being_read_fails_when_the_peer_dies() -> None:
    async with bare_line() as (connection, bare), connection.stream(COUNT, Number(2)) as response:
        _, stream, _ = await bare.frame()
        await bare.send(encode(FrameType.ITEM, stream, {"n": 0}))
        items = aiter(response)
        assert await anext(items) == Number(0)
        bare.sock.close()
        with pytest.raises(Failure, match="hung up"):
            await anext(items)


async def test_handlers_end_quietly_when_their_caller_dies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waiter, flood = Waiter(), Flood()
    handlers = serving(wait=(WAIT, waiter), flood=(FLOOD, flood))
    async with bare_line(handlers) as (connection, bare):
        await bare.send(request(1, "test.wait") + request(3, "test.flood", n=10**9))
        await waiter.begun.wait()
        bare.sock.close()
        await connection.wait_closed()
        await until(lambda: not connection._serving)
        assert waiter.cancelled == 1
    assert caplog.records == []


async def test_an_orderly_end_leaves_no_problem() -> None:
    async with line() as (asker, server):
        await asker.call(ECHO, Text("a"))
        await asker.__aexit__()
        await server.wait_closed()
        assert server.problem is None
        assert asker.problem is None


async def test_ending_twice_is_ending_once() -> None:
    async with line() as (asker, _):
        await asyncio.gather(asker.__aexit__(), asker.__aexit__())
        await asker.__aexit__()


async def test_an_end_tells_the_callers_that_their_answers_will_not_come() -> None:
    waiter = Waiter()
    async with line(theirs=serving(wait=(WAIT, waiter))) as (asker, server):
        call = asyncio.create_task(asker.call(WAIT, NOTHING))
        await waiter.begun.wait()
        await server.__aexit__()
        with pytest.raises(Failure, match=r"closed before test.wait was done") as caught:
            await call
        assert caught.value.code == "protocol.closed"
        assert waiter.cancelled == 1


async def test_a_request_that_arrives_while_the_line_is_closing_is_refused() -> None:
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def slow_to_end(params: Nothing, call: Call) -> Nothing:
        try:
            await asyncio.Event().wait()
        finally:
            reached.set()
            await let_go.wait()
        return NOTHING

    async with bare_line(serving(wait=(WAIT, slow_to_end))) as (connection, bare):
        await bare.send(request(1, "test.wait"))
        await until(lambda: bool(connection._serving))
        await asyncio.sleep(0)
        ending = asyncio.create_task(connection.__aexit__())
        await reached.wait()
        await bare.send(request(3, "test.echo", text="late"))
        type_, stream, body = await bare.frame()
        assert (type_, stream, body["code"]) == (FrameType.ERROR, 3, "protocol.closed")
        let_go.set()
        await ending
        assert [frame[:2] for frame in await bare.rest()] == [
            (FrameType.ERROR, 1),
            (FrameType.GOODBYE, 0),
        ]


async def test_no_call_is_made_after_the_peers_goodbye() -> None:
    async with bare_line() as (connection, bare):
        await bare.send(encode(FrameType.GOODBYE, 0, {}) + request(1, "test.echo")[:3])
        await until(lambda: not connection._session.may_request)
        with pytest.raises(Failure) as caught:
            await connection.call(ECHO, Text("too late"))
        assert caught.value.code == "protocol.closed"


# ---- The peer does not read ---------------------------------------------------------------------


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CLOSE_SECONDS_MAX", 0.01)
    flood = Flood()
    async with bare_line(Handlers().add(FLOOD, flood)) as (connection, bare):
        await bare.send(request(1, "test.flood", n=10**9))
        await stalled(flood)
        await connection.__aexit__()
        assert connection.closed
        assert flood.ended.is_set()


async def test_failing_does_not_wait_for_a_peer_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CLOSE_SECONDS_MAX", 0.01)
    flood = Flood()
    async with bare_line(Handlers().add(FLOOD, flood)) as (connection, bare):
        await bare.send(request(1, "test.flood", n=10**9))
        await stalled(flood)
        await bare.send(b"not a frame at all")
        await connection.wait_closed()
        assert connection.problem is not None
        assert connection.problem.code == "protocol.version"


async def test_an_end_that_is_cancelled_still_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLOSE_SECONDS_MAX", 0.01)
    flood = Flood()
    async with bare_line(Handlers().add(FLOOD, flood)) as (connection, bare):
        await bare.send(request(1, "test.flood", n=10**9))
        await stalled(flood)
        ending = asyncio.create_task(connection.__aexit__())
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        await connection.wait_closed()


async def test_results_for_a_peer_that_does_not_read_wait_and_do_not_pile_up() -> None:
    async def large(params: Nothing, call: Call) -> Text:
        return Text("x" * 2**20)

    method = Method[Nothing, Text, Nothing]("test.large", Nothing, Text)
    async with bare_line(Handlers().add(method, large)) as (connection, bare):
        for n in range(100):
            await bare.send(request(2 * n + 1, "test.large"))
        await until(lambda: len(connection._serving) > 90)
        for _ in range(500):
            await asyncio.sleep(0)
        assert connection._transport is not None
        written = connection._transport.get_write_buffer_size()
        assert written <= limits.WRITE_HIGH_WATER_BYTES + 2**20 + 100
        assert {(await bare.frame())[0] for _ in range(100)} == {FrameType.RESULT}


async def test_a_flood_of_errors_to_a_peer_that_does_not_read_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "WRITE_BYTES_MAX", 10_000)
    async with bare_line() as (connection, bare):
        with contextlib.suppress(ConnectionError):
            for n in range(20_000):
                await bare.send(request(2 * n + 1, "no.such.method"))
                if connection.closed:
                    break
        await connection.wait_closed()
        assert connection.problem is not None
        assert connection.problem.message == "The peer does not read."


async def test_calls_to_a_peer_that_does_not_read_wait_and_can_be_cancelled() -> None:
    async with bare_line() as (connection, _):
        calls = [asyncio.create_task(connection.call(ECHO, Text("x" * 2**20))) for _ in range(20)]
        await until(lambda: not connection._writable.is_set())
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < limits.WRITE_HIGH_WATER_BYTES * 2
        assert len(connection._responses) < 20
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert connection._responses == {}


# ---- The greeting -------------------------------------------------------------------------------


@pytest.mark.parametrize("initiator", [True, False], ids=["initiator", "acceptor"])
async def test_no_hello_in_time_ends_the_connection_at_either_end(
    initiator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HELLO_SECONDS_MAX", 0.01)
    one, two = socket.socketpair()
    connection = Connection(one, Hello(name="a"), Handlers(), initiator=initiator)
    with two:
        with pytest.raises(Failure) as caught:
            await connection.__aenter__()
        assert caught.value.code == "protocol.hello-timeout"
        frames = await Bare(two).rest()
        assert frames[-1][2]["code"] == "protocol.hello-timeout"
        assert [frame[0] for frame in frames[:-1]] == [FrameType.HELLO] * initiator


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (HEADER.pack(b"AGD\x02", 1, 1, 0, 0) + b"\x80", "protocol.version"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "protocol.version"),
        (HEADER.pack(VERSION, 2**32 - 1, 1, 0, 0), "protocol.frame-too-long"),
        (HEADER.pack(VERSION, 1, 1, 0, 0) + b"\x90", "protocol.malformed"),
        (HEADER.pack(VERSION, 1, 99, 0, 0) + b"\x80", "protocol.unknown-type"),
        (encode(FrameType.GOODBYE, 0, {}), "protocol.sequence"),
    ],
    ids=["version", "http", "too long", "not a map", "unknown type", "no hello"],
)
async def test_a_peer_that_greets_wrongly_is_told_why(data: bytes, code: str) -> None:
    one, two = socket.socketpair()
    bare = Bare(two)
    await bare.send(data)
    with two:
        with pytest.raises(Failure) as caught:
            await Connection(one, Hello(name="a"), Handlers(), initiator=False).__aenter__()
        assert caught.value.code == code
        type_, stream, body = await bare.frame()
        assert (type_, stream, body["code"]) == (FrameType.ERROR, 0, code)


async def test_a_refused_initiator_learns_why() -> None:
    one, two = socket.socketpair()
    problem = Problem(code="protocol.version", message="Version 2 here.", cure="Update.")
    with two:
        await Bare(two).send(encode(FrameType.ERROR, 0, problem))
        with pytest.raises(Failure) as caught:
            await Connection(one, Hello(name="a"), Handlers(), initiator=True).__aenter__()
        assert caught.value.problem == problem


async def test_a_peer_that_hangs_up_instead_of_greeting_is_an_error() -> None:
    one, two = socket.socketpair()
    two.close()
    with pytest.raises(Failure) as caught:
        await Connection(one, Hello(name="a"), Handlers(), initiator=True).__aenter__()
    assert caught.value.code == "protocol.closed"


async def test_a_greeting_that_is_cancelled_closes_the_socket() -> None:
    one, two = socket.socketpair()
    with two:
        entering = asyncio.create_task(
            Connection(one, Hello(name="a"), Handlers(), initiator=False).__aenter__()
        )
        for _ in range(10):
            await asyncio.sleep(0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert await Bare(two).rest() == []


async def test_a_socket_that_is_none_is_closed() -> None:
    one, two = socket.socketpair()
    one.close()
    with two, pytest.raises((OSError, ValueError)):
        await Connection(one, Hello(name="a"), Handlers(), initiator=True).__aenter__()


async def test_a_frame_that_is_too_long_ends_the_connection_but_not_the_server() -> None:
    async with bare_line(limits=Limits(body_bytes_max=BODY_BYTES_MIN)) as (connection, bare):
        await bare.send(HEADER.pack(VERSION, BODY_BYTES_MIN + 1, 2, 0, 1))
        type_, stream, body = await bare.frame()
        assert (type_, stream, body["code"]) == (FrameType.ERROR, 0, "protocol.frame-too-long")
        await connection.wait_closed()
        with pytest.raises(Failure, match="announces 8193 bytes"):
            await connection.call(ECHO, Text("too late"))


async def test_requests_before_a_broken_frame_end_with_the_connection() -> None:
    waiter = Waiter()
    async with bare_line(serving(wait=(WAIT, waiter))) as (connection, bare):
        await bare.send(request(1, "test.wait") + b"not a frame at all")
        assert [frame[1] for frame in await bare.rest()] == [0]
        await connection.wait_closed()
        await until(lambda: not connection._serving)


# ---- Connecting ---------------------------------------------------------------------------------


async def test_connecting_by_path_finds_the_listener(tmp_path: Any) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        asker = aio.connect(path, Hello(name="asker"))
        accepted, _ = listener.accept()
        server = Connection(accepted, Hello(name="server"), serving(), initiator=False)
        async with contextlib.AsyncExitStack() as stack:
            await asyncio.gather(
                stack.enter_async_context(asker), stack.enter_async_context(server)
            )
            assert await asker.call(ECHO, Text("a")) == Text("a")


async def test_connecting_where_nobody_listens_is_an_error_of_the_system(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError):
        aio.connect(tmp_path / "socket", Hello(name="asker"))


def test_a_method_is_served_once() -> None:
    handlers = serving()
    assert set(handlers.names) == {"test.echo", "test.count"}
    with pytest.raises(AssertionError):
        handlers.add(ECHO, echo)
