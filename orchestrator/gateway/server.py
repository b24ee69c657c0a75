"""Answers `GET /metrics` and `GET /healthz` by asking the orchestrator, and nothing else."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ipc_protocol.aio import Connection
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import HEALTH, METRICS

log = logging.getLogger(__name__)

R = TypeVar("R")

ANSWER_SECONDS_MAX: Final = 5.0
"""Half of the shortest time that Prometheus allows a scrape by default."""
REQUESTS_MAX: Final = 16
"""At once. Every scrape renders all series in the orchestrator, so a crowd must not add up."""
IDLE_SECONDS_MAX: Final = 15.0
"""For a connection to send a request, whole; a scraper that comes every 15 s keeps its own."""
LINE_BYTES_MAX: Final = 1024
HEADER_BYTES_MAX: Final = 4096
HEADERS_MAX: Final = 32
BODY_BYTES_MAX: Final = 1024
"""Neither of the two requests has a body."""

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Server:
    """The two resources, answered over `connection`."""

    def __init__(
        self, connection: Connection, *, answer_seconds_max: float = ANSWER_SECONDS_MAX
    ) -> None:
        self._connection = connection
        self._answer_seconds_max = answer_seconds_max
        self._requests = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._bounded])
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._health)
        application.on_response_prepare.append(name_ourselves)
        return application

    async def _metrics(self, _: web.Request) -> web.StreamResponse:
        exposition = await self._ask(self._connection.call(METRICS, Nothing()))
        return web.Response(body=exposition.text.encode(), headers={"Content-Type": METRICS_TYPE})

    async def _health(self, _: web.Request) -> web.StreamResponse:
        health = await self._ask(self._connection.call(HEALTH, Nothing()))
        text = health.detail or ("healthy" if health.healthy else "not healthy")
        return web.Response(status=200 if health.healthy else 503, text=f"{text}\n")

    async def _ask(self, answer: Awaitable[R]) -> R:
        try:
            async with asyncio.timeout(self._answer_seconds_max):
                return await answer
        except TimeoutError as error:
            raise web.HTTPServiceUnavailable(text="The orchestrator is too slow.\n") from error
        except Failure as failure:
            raise web.HTTPServiceUnavailable(text=f"{failure}\n") from failure

    @web.middleware
    async def _bounded(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if self._requests >= REQUESTS_MAX:
            raise web.HTTPServiceUnavailable(text="Too many requests at once.\n")
        self._requests += 1
        try:
            return await handler(request)
        finally:
            self._requests -= 1


async def name_ourselves(_: web.Request, response: web.StreamResponse) -> None:
    """Say who answers, but not with which library, and in which version."""
    response.headers["Server"] = "agentd"


def is_defect(record: logging.LogRecord) -> bool:
    """Whether it is ours to know of. A request of the wrong form has its answer; to write each down
    would let anybody fill the log."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


log.addFilter(is_defect)


@asynccontextmanager
async def serving(server: Server, sock: socket.socket) -> AsyncIterator[None]:
    """Answer on the listening socket `sock` until the block is left."""
    runner = web.AppRunner(
        server.application(),
        access_log=None,
        logger=log,
        keepalive_timeout=IDLE_SECONDS_MAX,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
        max_headers=HEADERS_MAX,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()
