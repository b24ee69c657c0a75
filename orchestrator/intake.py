"""Taking in what operators and other programs publish: fairly, many to a commit.

Requests wait here for the store's writer, one queue for each connection, so that one that floods
does not keep another from publishing. While the writer works on some, others gather: the busier it
is, the more of them share a commit.
"""

import asyncio
import logging
from collections.abc import Hashable, Iterable
from typing import Final

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.bus.fairness import FairQueue, cost_of
from orchestrator.bus.opening import Accepted, Publish, require_shape
from orchestrator.bus.publishing import publish_all
from orchestrator.bus.routing import OPERATOR
from orchestrator.failpoints import reach
from orchestrator.metrics import Metrics
from orchestrator.store.changes import LAGGED
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store

log = logging.getLogger(__name__)

UNDER_WAY_MAX: Final = 2
"""Batches with the writer: one that it works on, one that is ready for it."""

BATCH_COST: Final = 512
"""Of one batch, as `cost_of` counts: a few milliseconds of the writer."""

CLOSED_CHANGES_MAX: Final = 65_536
"""Changes of closed deliveries that are not looked at yet: as many commits, which are seconds."""


class _Request(msgspec.Struct):
    publish: Publish
    answer: "asyncio.Future[Accepted]"
    waiting: "_Waiting | None"


class _Waiting(msgspec.Struct):
    """Somebody waits until `left` deliveries are closed."""

    handled: "asyncio.Future[None]"
    messages: list[int] = []
    left: int = 0
    uncounted: bool = False
    """What is left is not known, and looked up instead."""


class Intake:
    """Publishes for the operator. `publish` is the only way in; `run` hears what was handled."""

    def __init__(self, store: Store, reader: Reader, metrics: Metrics) -> None:
        self._store = store
        self._reader = reader
        self._metrics = metrics
        self._requests: FairQueue[Hashable, _Request] = FairQueue()
        self._under_way: set[asyncio.Task[None]] = set()
        self._looking: set[asyncio.Task[None]] = set()
        self._waiting: dict[int, list[_Waiting]] = {}
        """Who waits for a message; bound: the requests that may be under way."""

    async def publish(
        self, publisher: Hashable, request: Publish, *, handled: bool = False
    ) -> Accepted:
        """What came of it, once that is on disk; with `handled`, once all deliveries are closed.

        Raises what `bus.publishing.publish` raises, and `bus.busy` for a publisher that has too
        much under way.
        """
        waiting = _Waiting(asyncio.get_running_loop().create_future()) if handled else None
        try:
            accepted = await self._accepted(publisher, request, waiting)
            reach("publish.committed")
            if waiting is not None:
                await waiting.handled
            return accepted
        finally:
            if waiting is not None:
                self._tell(waiting)

    async def _accepted(
        self, publisher: Hashable, request: Publish, waiting: _Waiting | None
    ) -> Accepted:
        answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        payloads = request.payloads
        try:
            require_shape(request)
            cost = cost_of(len(payloads), sum(map(len, payloads)))
            self._requests.push(publisher, cost, _Request(request, answer, waiting))
            self._pump()
            return await answer
        except Failure as failure:
            self._metrics.publish_refused(failure.code)
            raise

    def _pump(self) -> None:
        while len(self._requests) and len(self._under_way) < UNDER_WAY_MAX:
            batch = self._requests.take(BATCH_COST)
            task = asyncio.create_task(self._write(batch))
            self._under_way.add(task)
            task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._pump()

    async def _write(self, batch: list[_Request]) -> None:
        try:
            answers = await self._store.take_in(
                publish_all, OPERATOR, [request.publish for request in batch]
            )
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of any of them
            answers = [_failure(error)] * len(batch)
        for request, answer in zip(batch, answers, strict=True):
            if request.answer.done():
                continue  # Who asked is gone; the messages stand.
            if isinstance(answer, Failure):
                request.answer.set_exception(answer)
                continue
            if request.waiting is not None:
                self._expect(request.waiting, answer)
            request.answer.set_result(answer)

    # -- who waits until it is handled

    def _expect(self, waiting: _Waiting, accepted: Accepted) -> None:
        """Count its deliveries down. Their workers have not been given them yet, so none of them
        is missed, unless a message was published before."""
        waiting.messages = accepted.messages
        waiting.left = len(accepted.messages) * len(accepted.subscribers)
        for message in accepted.messages:
            self._waiting.setdefault(message, []).append(waiting)
        if accepted.repeated or not waiting.left:
            self._look_soon(waiting)

    async def run(self) -> None:
        """Hear what is closed, until cancelled."""
        kinds = {"deliveries.closed"}
        with self._store.changes.subscribe(kinds, CLOSED_CHANGES_MAX) as changes:
            async for change in changes:
                if change.kind == LAGGED:
                    everybody = [each for waiting in self._waiting.values() for each in waiting]
                    for waiting in {id(each): each for each in everybody}.values():
                        self._look_soon(waiting)
                elif self._waiting:
                    self._count_down(change.data["messages"])

    def _count_down(self, messages: Iterable[int]) -> None:
        for message in messages:
            for waiting in tuple(self._waiting.get(message, ())):
                waiting.left -= 1
                if waiting.uncounted:
                    self._look_soon(waiting)
                elif not waiting.left:
                    self._tell(waiting)

    def _look_soon(self, waiting: _Waiting) -> None:
        """Its count is not to be trusted: look at the table, now and whenever one is closed."""
        waiting.uncounted = True
        task = asyncio.create_task(self._look(waiting))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look(self, waiting: _Waiting) -> None:
        try:
            unfinished = await self._reader.fetch(
                "SELECT 1 FROM delivery WHERE message IN (SELECT value FROM json_each(?))"
                " AND finished_us IS NULL LIMIT 1",
                (msgspec.json.encode(waiting.messages).decode(),),
            )
        except Failure as failure:
            self._tell(waiting, failure)
            return
        if not unfinished:
            self._tell(waiting)

    def _tell(self, waiting: _Waiting, failure: Failure | None = None) -> None:
        """It waits no longer."""
        for message in waiting.messages:
            others = [each for each in self._waiting.get(message, ()) if each is not waiting]
            if others:
                self._waiting[message] = others
            else:
                self._waiting.pop(message, None)
        if waiting.handled.done():
            return
        if failure is None:
            waiting.handled.set_result(None)
        else:
            waiting.handled.set_exception(failure)


def _failure(error: Exception) -> Failure:
    if isinstance(error, Failure):
        return error
    log.error("a batch of messages could not be published", exc_info=error)
    return Failure(
        "request.internal", f"Publishing failed: {type(error).__name__}.", "See the log."
    )
