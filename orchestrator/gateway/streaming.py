"""A streamed answer: server-sent events to a client that may be slow, or gone.

The line carries the answers of all clients, and one that is not read stops the others. So a task
reads this answer as it comes, into a bounded relay, and the client gets from there what it takes.
One that takes too little is hung up on, and with that its request is withdrawn.
"""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
from aiohttp import web

from ipc_protocol.aio import Connection
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Generated
from ipc_protocol.methods import SERVE_GENERATE
from ipc_protocol.serving import ServeGenerate
from orchestrator.gateway.openai_errors import ApiError, of_failure
from orchestrator.gateway.openai_responses import Answer, event
from orchestrator.gateway.relay import Relay, RelayFull


class Patience(msgspec.Struct, frozen=True):
    """With a client that does not read."""

    unread_bytes_max: int = 256 * 1024
    """Behind what the kernel and the transport hold: over a thousand events, ten seconds of the
    fastest model."""
    unread_seconds_max: float = 30.0
    """Without room for the next events."""


async def send_stream(
    request: web.Request,
    line: Connection,
    serve: ServeGenerate,
    answer: Answer,
    patience: Patience,
) -> web.StreamResponse:
    """Ask, and send the answer. Raises `Failure` and `ApiError` while nothing has been sent."""
    relay: Relay[bytes] = Relay(patience.unread_bytes_max)
    reading = asyncio.create_task(_read(request, line, serve, answer, relay))
    try:
        return await _write(request, relay, patience)
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


async def send_whole(
    request: web.Request, response: web.StreamResponse, patience: Patience
) -> web.StreamResponse:
    """Send an answer of which all is there. Vectors take megabytes, which are not held for as long
    as somebody likes who does not read them."""
    try:
        async with asyncio.timeout(patience.unread_seconds_max):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        _hang_up(request)
    except ConnectionError:
        pass  # it has hung up, and there is nobody to tell
    return response


async def whole(line: Connection, serve: ServeGenerate, answer: Answer) -> bytes:
    """Ask, and return the answer, of which nothing is sent before. Raises as `send_stream`."""
    return answer.whole(await _heard(line, serve, answer, lambda _: None))


async def _heard(
    line: Connection, serve: ServeGenerate, answer: Answer, send: Callable[[bytes], None]
) -> Generated:
    """The answer, when `send` has been given all events before its end."""
    async with line.stream(SERVE_GENERATE, serve) as response:
        try:
            async for item in response:
                if events := answer.piece(item):
                    send(events)
            return await response.result()
        except Failure as failure:
            return answer.cut_short(failure)


async def _read(
    request: web.Request,
    line: Connection,
    serve: ServeGenerate,
    answer: Answer,
    relay: Relay[bytes],
) -> None:
    """Turn items into events, without waiting for anybody but the line."""
    failure: Exception | None = Failure("request.internal", "The answer could not be written.")
    try:
        generated = await _heard(line, serve, answer, lambda data: relay.put(data, len(data)))
        events = answer.closing(generated)
        relay.put(events, len(events))
        failure = None
    except (Failure, ApiError) as error:
        failure = error
    except RelayFull:
        failure = None
        _hang_up(request)
    finally:
        relay.end(failure)


async def _write(
    request: web.Request, relay: Relay[bytes], patience: Patience
) -> web.StreamResponse:
    """The headers go out with the first event, so that what fails before has a status."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    try:
        while events := await _taken(relay, response):
            async with asyncio.timeout(patience.unread_seconds_max):
                if not response.prepared:
                    await response.prepare(request)
                await response.write(b"".join(events))
        async with asyncio.timeout(patience.unread_seconds_max):
            await response.write_eof()
    except TimeoutError:
        _hang_up(request)
    except ConnectionError:
        pass  # it has hung up, and there is nobody to tell
    return response


async def _taken(relay: Relay[bytes], response: web.StreamResponse) -> list[bytes]:
    """The next events; what fails when the stream has begun is its last one."""
    try:
        return await relay.take()
    except (Failure, ApiError) as failure:
        if not response.prepared:
            raise
        relay.end()
        error = of_failure(failure) if isinstance(failure, Failure) else failure
        return [event(error.body)]


def _hang_up(request: web.Request) -> None:
    """At once: what was not sent is not sent any more. The request's own task ends with it."""
    if request.transport is not None:
        request.transport.abort()
