"""The OpenAI-compatible endpoint: HTTP in, requests of the protocol out, and back.

It reads what a request says and writes what its answer is; who the key belongs to and what it may
have is decided at the other end of the line. Whatever goes wrong is an error of OpenAI's form.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from ipc_protocol.aio import Connection
from ipc_protocol.errors import Failure
from ipc_protocol.limits import STREAMS_MAX
from ipc_protocol.methods import SERVE_EMBED, SERVE_MODELS
from ipc_protocol.serving import OfKey, ServedModel
from orchestrator.gateway import server
from orchestrator.gateway.openai_errors import ApiError, of_failure
from orchestrator.gateway.openai_requests import (
    Asked,
    Caller,
    read_caller,
    read_chat,
    read_completion,
    read_embedding,
)
from orchestrator.gateway.openai_responses import (
    Answer,
    ChatAnswer,
    CompletionAnswer,
    Identity,
    embeddings_list,
    models_list,
    one_model,
)
from orchestrator.gateway.streaming import Patience, send_stream, send_whole, whole

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Bounds(msgspec.Struct, frozen=True):
    """What all clients together may take of the gateway."""

    requests_max: int = STREAMS_MAX // 2
    """At once, waiting ones too. The line takes twice as many, so that those that were given up,
    and whose end is not confirmed yet, keep nobody out; nor do they keep out who reads metrics."""
    of_a_key_max: int = STREAMS_MAX * 7 // 16
    """Of them with one key: an eighth of the places is left to the others."""
    body_bytes_max: int = 2 * 1024 * 1024
    """A context of 256 thousand tokens, at four characters and some escapes for each."""
    bodies_bytes_max: int = 64 * 1024 * 1024
    """Of all requests under way: 128 KiB for each, and room for some that are large."""
    body_seconds_max: float = 30.0
    """For a body to come, whole."""
    patience: Patience = Patience()


BOUNDS: Final = Bounds()
assert BOUNDS.requests_max + server.REQUESTS_MAX < STREAMS_MAX

_HELD: Final = web.RequestKey("held", int)
"""Bytes of the request's body, which count until it is answered."""


class Endpoint:
    """The resources below `/v1`, answered over `line`."""

    def __init__(self, line: Connection, bounds: Bounds = BOUNDS) -> None:
        self._line = line
        self._bounds = bounds
        self._requests = 0
        self._of_key: Counter[str] = Counter()
        self._bodies_bytes = 0

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._answering])
        router = application.router
        router.add_post("/v1/chat/completions", self._chat)
        router.add_post("/v1/completions", self._completion)
        router.add_post("/v1/embeddings", self._embeddings)
        router.add_get("/v1/models", self._models)
        router.add_get("/v1/models/{model}", self._model)
        application.on_response_prepare.append(server.name_ourselves)
        return application

    # -- resources

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = read_chat(await self._body(request), _caller(request), secrets.randbits(32))
        return await self._generate(request, asked, ChatAnswer(asked, _identity()))

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        asked = read_completion(await self._body(request), _caller(request), secrets.randbits(32))
        return await self._generate(request, asked, CompletionAnswer(asked, _identity()))

    async def _generate(
        self, request: web.Request, asked: Asked, answer: Answer
    ) -> web.StreamResponse:
        if asked.stream:
            patience = self._bounds.patience
            return await send_stream(request, self._line, asked.serve, answer, patience)
        return _json(await whole(self._line, asked.serve, answer))

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        asked = read_embedding(await self._body(request), _caller(request))
        return _json(embeddings_list(await self._line.call(SERVE_EMBED, asked.serve), asked))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return _json(models_list(await self._served(request)))

    async def _model(self, request: web.Request) -> web.StreamResponse:
        return _json(one_model(await self._served(request), request.match_info["model"]))

    async def _served(self, request: web.Request) -> list[ServedModel]:
        served = await self._line.call(SERVE_MODELS, OfKey(key=_caller(request).key))
        return served.models

    # -- around all of them

    @web.middleware
    async def _answering(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """One request over the bound is turned away. It is under way until its answer is sent."""
        patience = self._bounds.patience
        key = request.headers.get("Authorization", "")
        if self._requests >= self._bounds.requests_max:
            crowded = _error(_crowded("Too many requests at once."))
            return await send_whole(request, crowded, patience)
        if self._of_key[key] >= self._bounds.of_a_key_max:
            crowded = _error(_crowded("Too many requests at once with this key."))
            return await send_whole(request, crowded, patience)
        self._requests += 1
        self._of_key[key] += 1
        request[_HELD] = 0
        try:
            response = await _answer(request, handler)
            return response if response.prepared else await send_whole(request, response, patience)
        finally:
            self._requests -= 1
            self._of_key[key] -= 1
            if not self._of_key[key]:
                del self._of_key[key]
            self._bodies_bytes -= request[_HELD]

    async def _body(self, request: web.Request) -> bytes:
        """Raises `ApiError` for one that is too long, too slow, or one too many."""
        bounds, body = self._bounds, bytearray()
        try:
            async with asyncio.timeout(bounds.body_seconds_max):
                async for piece in request.content.iter_any():
                    if len(body) + len(piece) > bounds.body_bytes_max:
                        raise ApiError(413, f"The body is over {bounds.body_bytes_max} bytes.")
                    if self._bodies_bytes + len(piece) > bounds.bodies_bytes_max:
                        raise _crowded("Too many large requests at once.")
                    self._bodies_bytes += len(piece)
                    request[_HELD] += len(piece)
                    body += piece
        except TimeoutError as error:
            seconds = bounds.body_seconds_max
            raise ApiError(408, f"The body has not come within {seconds:g} s.") from error
        except web.RequestPayloadError as error:
            raise ApiError(400, f"The body cannot be read: {error}.") from error
        return bytes(body)


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong is the answer."""
    try:
        return await handler(request)
    except ApiError as error:
        return _error(error)
    except Failure as failure:
        return _error(of_failure(failure))
    except web.HTTPException as error:
        what = f"{request.method} {request.path}"
        return _error(ApiError(error.status, f"{what}: {error.reason}."))


def _crowded(message: str) -> ApiError:
    code = "rate_limit_exceeded"
    return ApiError(429, message, kind="rate_limit_error", code=code, retry=True)


def _caller(request: web.Request) -> Caller:
    return read_caller(request.headers)


def _identity() -> Identity:
    return Identity(secrets.token_hex(12), int(time.time()))


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _error(error: ApiError) -> web.Response:
    return web.Response(status=error.status, body=error.body, headers=error.headers)
