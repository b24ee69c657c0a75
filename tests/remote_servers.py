"""Real servers on loopback that stand for the world outside, with or without TLS."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import trustme
from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RemoteServer:
    """Answers as `answer` says, and keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.gone = asyncio.Event()
        """A client has left before its answer was whole."""
        self.url = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise


@contextlib.asynccontextmanager
async def remote_server(
    answer: Answer, authority: trustme.CA | None = None
) -> AsyncIterator[RemoteServer]:
    """On a port of 127.0.0.1 that the kernel chooses. `authority` signs its certificate."""
    server = RemoteServer(answer)
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", server.serve)
    runner = web.AppRunner(
        application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
    )
    await runner.setup()
    context = None
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        server.url = f"{'https' if context else 'http'}://127.0.0.1:{port}/v1"
        yield server
    finally:
        await runner.cleanup()


async def streamed(
    request: web.Request, *pieces: bytes, status: int = 200, kind: str = "text/event-stream"
) -> web.StreamResponse:
    """Send the pieces one by one, and end in order."""
    response = web.StreamResponse(status=status, headers={"Content-Type": kind})
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
    await response.write_eof()
    return response
