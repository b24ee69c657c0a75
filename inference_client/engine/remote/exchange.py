"""One request of a remote model: asked through egress, again where that is harmless, and its answer
passed on as it comes.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Final

from inference_client.engine.remote.messages import Dialect, RemoteAnswer, path_of, refusal_of
from inference_client.engine.remote.retries import Backoff, Refusal, delay_seconds
from inference_client.engine.remote.sse import EventReader
from ipc_protocol.aio import Call
from ipc_protocol.egress import Fetch, Fetched, FetchedPiece
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Generate, GeneratedText
from ipc_protocol.methods import EGRESS_FETCH
from ipc_protocol.response import Response

log = logging.getLogger(__name__)

ANSWER_SECONDS_MAX: Final = 3600.0
"""What egress allows in all."""

GRACE_SECONDS: Final = 1.0
"""By which egress's time limit is longer than the request's own, which says what it was for."""

LINGER_SECONDS: Final = 0.5
"""After the last event, for the end of the body: then the connection can be used again."""

REFUSAL_BYTES_MAX: Final = 64 * 1024
"""Read of an answer that is an error."""

HEADERS: Final = {"content-type": "application/json", "accept": "text/event-stream"}


class _Refused(Exception):
    """An attempt has failed before anything was answered."""

    def __init__(self, failure: Failure, refusal: Refusal, *, otherwise: bool = False) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.refusal = refusal
        self.otherwise = otherwise
        """The server has said how to ask instead, and the next attempt does."""


class Exchange:
    """Fills `answer`; `heard` is called whenever something of it has come."""

    def __init__(
        self,
        call: Call,
        asked: Generate,
        dialect: Dialect,
        answer: RemoteAnswer,
        backoff: Backoff,
        heard: Callable[[], None],
    ) -> None:
        self._call = call
        self._asked = asked
        self._dialect = dialect
        self._answer = answer
        self._backoff = backoff
        self._heard = heard
        self._items = _Items(call, asked.interval_us / 1e6)

    async def run(self) -> None:
        """Until the answer has come and was passed on. Raises `egress.failed`, `egress.refused`
        and `inference.context`."""
        if not self._asked.stream:
            await self._ask()
            return
        await self._call.send_item(GeneratedText())  # it has its slot
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._items.send())
                await self._ask()
                self._items.end()
        except ExceptionGroup as group:  # the first failure is the reason
            raise group.exceptions[0] from None

    async def _ask(self) -> None:
        attempt = 1
        while True:
            try:
                await self._attempt()
            except _Refused as refused:
                if refused.otherwise:
                    continue
                delay = delay_seconds(refused.refusal, attempt, random.random(), self._backoff)
                if delay is None:
                    raise refused.failure from None
                log.info("asking again in %.1f s: %s", delay, refused.failure)
                await asyncio.sleep(delay)
                attempt += 1
            else:
                return

    async def _attempt(self) -> None:
        """Raises `_Refused` too."""
        fetch = self._fetch()
        async with self._call.connection.stream(EGRESS_FETCH, fetch) as response:
            pieces = aiter(response)
            try:
                head = await anext(pieces, FetchedPiece())
            except Failure as failure:
                reason = failure.problem.details.get("reason")
                if failure.code != "egress.failed" or not isinstance(reason, str):
                    raise
                raise _Refused(failure, Refusal(reason=reason)) from failure
            if head.status != 200:
                await self._refuse(fetch.body, head, pieces)
            await self._read(pieces)
            if self._answer.done:
                await _linger(response)

    async def _read(self, pieces: AsyncIterator[FetchedPiece]) -> None:
        events = EventReader()
        async for piece in pieces:
            for data in events.feed(piece.data):
                news = self._answer.feed(data)
                self._heard()
                if self._asked.stream:
                    self._items.add(news)
            if self._answer.done:
                return

    async def _refuse(
        self, sent: bytes, head: FetchedPiece, pieces: AsyncIterator[FetchedPiece]
    ) -> None:
        body = bytearray()
        async for piece in pieces:
            body += piece.data
            if len(body) >= REFUSAL_BYTES_MAX:
                break
        failure = refusal_of(self._answer.model, head.status, bytes(body))
        retry_after = head.headers.get("retry-after", "")
        raise _Refused(
            failure,
            Refusal(status=head.status, retry_after=retry_after),
            otherwise=self._dialect.learn(self._asked, sent, head.status, bytes(body)),
        )

    def _fetch(self) -> Fetch:
        deadline_us = self._asked.deadline_us
        seconds = ANSWER_SECONDS_MAX
        if deadline_us is not None:
            seconds = min(seconds, deadline_us / 1e6 + GRACE_SECONDS)
        return Fetch(
            grant=self._answer.model,
            path=path_of(self._asked),
            headers=HEADERS,
            body=self._dialect.body_of(self._asked),
            timeout_us=round(seconds * 1e6),
        )


async def _linger(response: Response[Fetched, FetchedPiece]) -> None:
    """The answer is whole, whatever becomes of the rest."""
    with contextlib.suppress(TimeoutError, Failure):
        async with asyncio.timeout(LINGER_SECONDS):
            await response.result()


class _Items:
    """Sends what has come, an item at most every so often. Its size is bounded by the answer's."""

    def __init__(self, call: Call, interval_seconds: float) -> None:
        self._call = call
        self._interval_seconds = interval_seconds
        self._unsent: list[GeneratedText] = []
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()

    def add(self, item: GeneratedText) -> None:
        if item.text or item.logprobs:
            self._unsent.append(item)
            self._arrived.set()

    def end(self) -> None:
        """Nothing more comes: `send` returns when it has sent the rest."""
        self._ended.set()
        self._arrived.set()

    async def send(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            items, self._unsent = self._unsent, []
            if items:
                await self._call.send_item(_joined(items))
            if self._ended.is_set() and not self._unsent:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_seconds):
                    await self._ended.wait()


def _joined(items: list[GeneratedText]) -> GeneratedText:
    return GeneratedText(
        text="".join(item.text for item in items),
        logprobs=[logprob for item in items for logprob in item.logprobs],
    )
