"""Serves the endpoint on its socket: how many connections, how large their heads, how long idle."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

from aiohttp import web

from orchestrator.gateway import server
from orchestrator.gateway.endpoint import Endpoint
from orchestrator.gateway.openai_errors import ApiError

CONNECTIONS_MAX: Final = 768
"""At once, of 1,024 descriptors that a program has by default: clients keep connections that they
do not use, so these are half as many again as there may be requests."""
BACKLOG: Final = 1024
"""Connections that wait to be accepted: a crowd of a thousand comes in one turn of the loop."""
IDLE_SECONDS_MAX: Final = 30.0
"""For a connection without a request; clients connect again by themselves."""
LINE_BYTES_MAX: Final = 1024
HEADER_BYTES_MAX: Final = 8192
"""OpenAI's own client sends a dozen short ones about itself."""
HEADERS_MAX: Final = 64
TURNED_AWAY_SECONDS_MAX: Final = 1.0
"""For one connection too many to send its request: it is told then, and else as well."""
LINGERING_SECONDS_MAX: Final = 1.0
"""For the rest of a body that was refused: reading it lets the client see the answer."""

LEAVING_SECONDS_MAX: Final = 0.2
"""For answers under way when the gateway is told to leave: most take longer than a stop may."""


@asynccontextmanager
async def serving_endpoint(
    endpoint: Endpoint, sock: socket.socket, *, connections_max: int = CONNECTIONS_MAX
) -> AsyncIterator[None]:
    """Answer on the listening socket `sock` until the block is left.

    A client that hangs up cancels the handler of its request, and so the request itself.
    """
    runner = web.AppRunner(
        endpoint.application(),
        access_log=None,
        logger=server.log,
        handler_cancellation=True,
        keepalive_timeout=IDLE_SECONDS_MAX,
        lingering_time=LINGERING_SECONDS_MAX,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
        max_headers=HEADERS_MAX,
        shutdown_timeout=LEAVING_SECONDS_MAX,
    )
    await runner.setup()
    serve = runner.server
    assert serve is not None  # `setup` makes it

    def accept() -> asyncio.Protocol:
        return serve() if len(serve.connections) < connections_max else _TurnedAway()

    listener = await asyncio.get_running_loop().create_server(accept, sock=sock, backlog=BACKLOG)
    try:
        yield
    finally:
        listener.close()
        await runner.cleanup()


class _TurnedAway(asyncio.Protocol):
    """One connection too many: it is told so when it has asked, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(TURNED_AWAY_SECONDS_MAX, self._tell)

    def data_received(self, data: bytes) -> None:
        self._tell()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()

    def _tell(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_TOO_MANY)
            self._transport.close()


def _response(error: ApiError) -> bytes:
    """A whole response, as bytes: there is no library around a connection that is turned away."""
    headers = {**error.headers, "Content-Length": str(len(error.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {error.status} Too Many Requests"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + error.body


_TOO_MANY: Final = _response(
    ApiError(
        429,
        "Too many connections at once.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry=True,
    )
)
