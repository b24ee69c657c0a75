"""How long will it take? For deadlines, and for those who ask when their turn comes.

Estimates are of a pool to which nothing else comes: every request takes the slot that is free
first, for as long as its prompt and its expected answer take at the pace of the steps so far.

Pure: no clock, no socket, no model.
"""

import heapq
import itertools
from dataclasses import dataclass
from typing import Final, Literal

from inference_client.engine.planning.admission import FOLLOWS, SPENT, Admission
from inference_client.engine.planning.agents import Agents
from inference_client.engine.planning.cache import Cache
from inference_client.engine.planning.pacing import Pacing
from inference_client.engine.planning.policy import Counters, Policy
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request

PLACES_MAX: Final = 256
"""Waiting requests that are told of: as many as a screen or a status message has any use for."""


@dataclass(frozen=True)
class Place:
    """Where a waiting request stands. `position` 1 is the next to be admitted.

    `state` is *swapped* where its cache lies in host memory, and *preempted* where it had to make
    way otherwise. `estimate_us` is None where nothing is known about how fast this model is.
    """

    request: Request
    position: int
    reason: str
    state: Literal["queued", "swapped", "preempted"] = "queued"
    estimate_us: int | None = None


class Forecast:
    """Reads everything and writes nothing."""

    def __init__(
        self,
        queue: RequestQueue,
        cache: Cache,
        admission: Admission,
        agents: Agents,
        pacing: Pacing,
        policy: Policy,
        counters: Counters,
    ) -> None:
        self._queue = queue
        self._cache = cache
        self._slots = cache.slots
        self._admission = admission
        self._agents = agents
        self._pacing = pacing
        self._policy = policy
        self._counters = counters

    def hopeless(self, request: Request, now_us: int) -> bool:
        """Whether the deadline of the request is past, or too near even if it were alone.

        Where nobody else runs it is given a chance as long as there is time: what is known may be
        of a slower hour, and only the steps of those who run teach better.
        """
        assert request.deadline_us is not None
        left_us = request.deadline_us - now_us
        if left_us <= 0:
            return True
        if not self._pacing.measured or not self._others_run(request):
            return False
        left_us = int(left_us / self._policy.deadline_margin)
        if self._alone_us(request, self._held(request)) <= left_us:
            return False
        return self._alone_us(request, self._cache.found(request)) > left_us

    def _others_run(self, request: Request) -> bool:
        return self._slots.busy > (request.slot is not None)

    def waiting(self, now_us: int) -> list[Place]:
        """The queue in its order, why each of them waits, and for about how long yet.

        Of the first `PLACES_MAX`; those behind are left out.
        """
        estimates = self._estimates() if self._pacing.measured else None
        places = []
        ahead = 0
        for index, request in enumerate(itertools.islice(self._queue.in_order(), PLACES_MAX)):
            limit = self._admission.limit_of(request, now_us)
            follows = request.id in self._admission.following
            reason = limit or (FOLLOWS if follows else None)
            if reason is None:
                first = f"{ahead} {'request goes' if ahead == 1 else 'requests go'} first"
                reason = first if ahead else self._admission.held
                ahead += 1
            estimate = None
            if limit is not None:
                estimate = self._limited_us(request, limit, now_us)
            elif estimates is not None:
                estimate = estimates.take(request, follows=follows)
            places.append(Place(request, index + 1, reason, self._state(request), estimate))
        return places

    def _state(self, request: Request) -> Literal["queued", "swapped", "preempted"]:
        if self._cache.swap.of(request) is not None:
            return "swapped"
        return "preempted" if request.preemptions else "queued"

    def _limited_us(self, request: Request, limit: str, now_us: int) -> int | None:
        """Until the limit of the request's agent lets the next one through."""
        if limit == SPENT:
            return self._agents.allowed_in_us(request.agent, now_us)
        own = [one for one in self._slots.requests() if one.agent == request.agent]
        if not own or not self._pacing.measured:
            return None
        return min(self._remaining_us(one) for one in own)

    def _estimates(self) -> "Estimates":
        running = self._slots.requests()
        ends = [self._remaining_us(request) for request in running]
        ends += [0] * (len(self._slots.slots) - len(running))
        step_us = self._pacing.decode_us(len(self._slots.slots))
        yielding = [
            (one.rank, -int(self._admission.quantum(one) * step_us))
            for one in running
            if not self._admission.pinned(one)
        ]
        return Estimates(self, ends, yielding)

    def service_us(self, request: Request) -> int:
        """From slot to answer in a full pool. Of the prompt as much is computed as lately."""
        queries = self._counters.prefix_queries
        missing = 1 - self._counters.prefix_hits / queries if queries else 1.0
        return self._work_us(request, len(request.target) * missing, len(self._slots.slots))

    def _remaining_us(self, request: Request) -> int:
        left = len(request.target) - self._held(request)
        return self._work_us(request, left, max(self._slots.busy, 1))

    def _alone_us(self, request: Request, found: int) -> int:
        return self._work_us(request, len(request.target) - found, 1)

    def _work_us(self, request: Request, prefill: float, sequences: int) -> int:
        decodes = self._agents.expected_tokens(request) if request.tokens_max else 0
        return int(prefill * self._pacing.prefill_us + decodes * self._pacing.decode_us(sequences))

    def _held(self, request: Request) -> int:
        return 0 if request.slot is None else len(self._slots.slots[request.slot].tokens)


class Estimates:
    """The slots of a full pool, as they become free for one waiting request after the other.

    `ends` has the microseconds until each is free, and `yielding` the class of every request that
    may have to make way, with the microseconds of its quantum below zero.
    """

    def __init__(
        self, forecast: Forecast, ends: list[int], yielding: list[tuple[int, int]]
    ) -> None:
        self._forecast = forecast
        self._ends = ends
        self._yielding = sorted(yielding)
        heapq.heapify(self._ends)

    def take(self, request: Request, *, follows: bool) -> int:
        """In how many microseconds the request has a slot.

        One that takes it from somebody less urgent waits for a quantum at most, and one that
        `follows` another's preamble does not keep others waiting.
        """
        first = self._ends[0]
        if self._yielding and self._yielding[-1][0] > request.rank:
            _, quantum_us = self._yielding.pop()
            return min(first, -quantum_us)
        if not follows:
            heapq.heapreplace(self._ends, first + self._forecast.service_us(request))
        return first
