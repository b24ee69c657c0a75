"""Applying what workers have completed, in its order, while they work on what is next."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from ipc_protocol.errors import Failure
from ipc_protocol.values import PRIORITIES
from ipc_protocol.work import Completion, Finished, Outcome
from orchestrator.bus.allowed import require_limits
from orchestrator.bus.completion import Complete, Completed, complete
from orchestrator.bus.completions import CompleteAll, complete_all
from orchestrator.bus.handing import Leased
from orchestrator.bus.leasing import Fail, fail
from orchestrator.bus.routing import BUS
from orchestrator.engines import EmbeddingEngine
from orchestrator.failpoints import reach
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store

log = logging.getLogger(__name__)

PASSING: Final = frozenset({"store.full", "store.slow-reader", "inference.busy"})
"""Failures of the daemon's own side that are nobody's fault and pass."""


class Applying:
    """The completions of one agent."""

    def __init__(
        self,
        agent: str,
        *,
        store: Store,
        embedding: EmbeddingEngine,
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        self._agent = agent
        self._store = store
        self._embedding = embedding
        self._metrics = metrics
        self._clock_us = clock_us
        self._last: asyncio.Task[None] | None = None
        """The end of the chain of those that are being applied."""

    def add(self, incarnation: str, leased: Sequence[Leased], finished: Sequence[Finished]) -> None:
        """Apply `finished`, which are those of `leased`, when all before them are applied."""
        following = self._apply_after(self._last, incarnation, leased, finished)
        self._last = asyncio.create_task(following)

    async def settle(self) -> None:
        """Return when all are applied."""
        if self._last is not None:
            await asyncio.shield(self._last)

    async def end(
        self,
        leased: Leased,
        incarnation: str,
        error: str,
        *,
        worker_died: bool = False,
        final: bool,
        code: str = "work.refused",
        anew: bool = False,
        rest: bool = True,
    ) -> None:
        """A delivery has left its worker's hands without a completion that could be applied: queue
        it again, or with `final` give it up.

        With `rest` it is the one that the worker works on: what is behind it is queued again too.
        """
        delivery = leased.delivery
        ended = Fail(
            delivery=delivery.delivery,
            incarnation=incarnation,
            error=error,
            worker_died=worker_died,
            final=final,
            code=code,
            anew=anew,
            rest=rest,
        )
        state = await self._store.apply_when_room(fail, BUS, ended)
        if state == "dead":
            lived = (self._clock_us() - delivery.sent_us) / 1e6
            self._metrics.deliveries_done(self._agent, PRIORITIES[delivery.rank], "dead", [lived])
        else:
            self._metrics.delivery_retried(self._agent)

    async def _apply_after(
        self,
        before: "asyncio.Task[None] | None",
        incarnation: str,
        leased: Sequence[Leased],
        finished: Sequence[Finished],
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        try:
            answers = await self._apply(incarnation, finished)
        except Failure as failure:
            answers = [failure] * len(finished)
        except Exception:
            # Whatever a worker sends must not end more than its own delivery.
            log.exception("completions of %s are applied one by one", self._agent)
            answers = [await self._apply_or_refuse(incarnation, each) for each in finished]
        reach("completion.committed")
        self._count(leased, finished, answers)
        for each, answer in zip(leased, answers, strict=True):
            if isinstance(answer, Failure):
                final = answer.code not in PASSING
                await self.end(
                    each, incarnation, str(answer), final=final, code=answer.code, rest=False
                )

    async def _apply(
        self, incarnation: str, finished: Sequence[Finished]
    ) -> list[Completed | Failure]:
        if any(each.completion.memories for each in finished):
            return [await self._apply_one(incarnation, each) for each in finished]
        request = CompleteAll(incarnation=incarnation, finished=finished)
        return await self._store.apply_when_room(complete_all, self._agent, request)

    async def _apply_one(self, incarnation: str, finished: Finished) -> Completed | Failure:
        completion = finished.completion
        try:
            require_limits(completion)
            request = Complete(
                delivery=finished.delivery,
                incarnation=incarnation,
                completion=completion,
                vectors=await self._vectors(completion),
            )
            return await self._store.apply_when_room(complete, self._agent, request)
        except Failure as failure:
            return failure

    async def _apply_or_refuse(self, incarnation: str, finished: Finished) -> Completed | Failure:
        try:
            return await self._apply_one(incarnation, finished)
        except Exception as error:
            log.exception("a completion of %s could not be applied", self._agent)
            return Failure("work.refused", f"{type(error).__name__}: {error}.")

    async def _vectors(self, completion: Completion) -> list[bytes | None]:
        memories = [f"{entry.text} {entry.lesson}" for entry in completion.memories]
        vectors: list[bytes | None] = []
        if memories:
            # A memory without a vector is still found by its words.
            with contextlib.suppress(Failure):
                vectors.extend((await self._embedding.embed(memories)).vectors)
        return vectors

    def _count(
        self,
        leased: Sequence[Leased],
        finished: Sequence[Finished],
        answers: Sequence[Completed | Failure],
    ) -> None:
        now_us = self._clock_us()
        alike: defaultdict[tuple[int, Outcome], list[float]] = defaultdict(list)
        for each, done, answer in zip(leased, finished, answers, strict=True):
            if not isinstance(answer, Failure) and answer.state == "done":
                delivery = each.delivery
                lived = (now_us - delivery.sent_us) / 1e6
                alike[delivery.rank, done.completion.outcome].append(lived)
        for (rank, outcome), seconds in alike.items():
            self._metrics.deliveries_done(self._agent, PRIORITIES[rank], outcome, seconds)
