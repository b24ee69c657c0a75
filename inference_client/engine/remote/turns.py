"""Whose request is sent next to a remote model, when one of its slots is free.

A slot here is a request that may be out, and no memory: none is better than another, and nothing
that is out is ever called back. So the rules are those of the queue: the most urgent class first,
fair shares of tokens within it, and the limits of each agent. One turn in ten is for whoever has
waited for too long, but never before an urgent request. Pure.
"""

from collections.abc import Iterator
from typing import Final

from inference_client.engine.planning.agents import Agents
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request
from ipc_protocol.inference import SlotState, Waiting
from ipc_protocol.values import PRIORITIES, rank

STARVING_US: Final = 30_000_000
"""Waiting for longer than that while others have their turn is too long for anybody."""

STARVING_TURNS: Final = 10
"""Of so many turns one is for those: they have a tenth of the server, and the others nine."""

WEIGHT: Final = 0.25
"""Of a new observation in the mean time that a request is out, as in `agents`."""


class Turns:
    """The queue, and who is out. Times are microseconds of one clock."""

    def __init__(self, slots: int, waiting_max: int) -> None:
        self._slots: list[Request | None] = [None] * slots
        self._queue = RequestQueue(waiting_max)
        self._agents = Agents()
        self._turns = 0
        """Since the last one that was given to somebody starving."""
        self._mean_us: float | None = None

    @property
    def working(self) -> bool:
        """Whether a request is out."""
        return any(self._slots)

    def submit(self, request: Request) -> None:
        """Raises `inference.busy` when the queue is full."""
        self._queue.push(request)
        self._agents.arrived(request)

    def grant(self, now_us: int) -> list[Request]:
        """Give the free slots away. Each that is returned has one now, until `leave`."""
        granted: list[Request] = []
        while None in self._slots:
            request = self._next(now_us)
            if request is None:
                break
            self._give(request, self._slots.index(None), now_us)
            granted.append(request)
        return granted

    def begun(self, request: Request, now_us: int) -> None:
        """The first of its answer has come."""
        request.ready = True
        request.first_us = now_us

    def leave(self, request: Request, spent_tokens: int | None, now_us: int) -> None:
        """The request waits no more, or is out no more. `spent_tokens` is what it has cost, prompt
        and answer; None where nobody knows more than was expected of it."""
        if self._queue.remove(request):
            return
        assert request.slot is not None
        assert request.started_us is not None
        self._slots[request.slot] = None
        request.slot = None
        self._agents.stopped(request)
        if spent_tokens is not None:
            self._spend(request, spent_tokens - request.prompt_tokens, now_us)
            elapsed = now_us - request.started_us
            mean = elapsed if self._mean_us is None else self._mean_us
            self._mean_us = mean + WEIGHT * (elapsed - mean)

    def slots(self, now_us: int) -> list[SlotState]:
        return [
            SlotState(slot=index, state="free")
            if request is None
            else SlotState(
                slot=index,
                state="decode" if request.ready else "prefill",
                agent=request.agent,
                priority=request.priority,
                prompt_tokens=request.prompt_tokens,
                age_us=now_us - (request.started_us or now_us),
            )
            for index, request in enumerate(self._slots)
        ]

    def queue(self, now_us: int) -> list[Waiting]:
        """Who waits, in the order of their turns as things stand, and why."""
        return [
            Waiting(
                position=position,
                agent=request.agent,
                priority=request.priority,
                reason=reason,
                waited_us=now_us - request.arrived_us,
                estimate_us=estimate_us,
            )
            for position, (request, reason, estimate_us) in enumerate(self._reasons(now_us), 1)
        ]

    # -- who is next

    def _next(self, now_us: int) -> Request | None:
        starving = self._starving(now_us)
        if starving is not None:
            self._turns = 0
            return starving
        request = next(self._allowed(now_us), None)
        self._turns += request is not None
        return request

    def _allowed(self, now_us: int) -> Iterator[Request]:
        for one in range(len(PRIORITIES)):
            for request in self._queue.offers(one, ()):
                if self._limit(request, now_us) is None:
                    yield request

    def _starving(self, now_us: int) -> Request | None:
        if self._turns < STARVING_TURNS - 1 or self._queue.waits(rank("urgent")):
            return None
        for request in self._queue.oldest():
            if now_us - request.arrived_us < STARVING_US:
                break
            if self._limit(request, now_us) is None:
                return request
        return None

    def _limit(self, request: Request, now_us: int) -> tuple[str, int | None] | None:
        """Which limit of its agent holds it back, and for about how long."""
        running_max = request.share.running_max
        if running_max and self._agents.runs(request.agent) >= running_max:
            return f"its agent may have {running_max} running at once", None
        if wait_us := self._agents.allowed_in_us(request.agent, now_us):
            return "its agent has used up its tokens of this minute", wait_us
        return None

    def _reasons(self, now_us: int) -> Iterator[tuple[Request, str, int | None]]:
        ahead = 0
        for request in self._queue.in_order():
            limited = self._limit(request, now_us)
            if limited is not None:
                yield (request, *limited)
                continue
            if ahead:
                others = "1 request goes" if ahead == 1 else f"{ahead} requests go"
                yield request, f"{others} first", self._estimate_us(ahead)
            else:
                slots = len(self._slots)
                taken = "the only slot is" if slots == 1 else f"all {slots} slots are"
                yield request, f"{taken} taken", self._estimate_us(ahead)
            ahead += 1

    def _estimate_us(self, ahead: int) -> int | None:
        """As many come back at once as are out, each after the mean time."""
        if self._mean_us is None:
            return None
        return round(self._mean_us * (ahead + 1) / len(self._slots))

    # -- what it costs

    def _give(self, request: Request, slot: int, now_us: int) -> None:
        self._queue.take(request)
        self._slots[slot] = request
        request.slot = slot
        request.started_us = now_us
        self._agents.started(request)
        # At once, so that the next free slot is not given by an account that knows nothing of it.
        self._spend(request, request.prompt_tokens, now_us)

    def _spend(self, request: Request, tokens: int, now_us: int) -> None:
        self._queue.charge(request, tokens)
        self._agents.spend(request.agent, tokens, now_us)
