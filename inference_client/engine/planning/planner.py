"""What the next step decodes, and for whom: the policy of the pool, as one pure state machine.

In each step the planner lets go of what cannot meet its deadline, gives slots to waiting requests
(`admission`), and fills a batch (`batching`). What it decides comes back as a `Step`; when the
backend has carried it out, `commit` makes it so. The rules, each where it is carried out:

- Five strict classes, and within a class fair shares by tokens per agent: `queue`.
- A request that waits for too long has a tenth of all tokens, though never before urgent work:
  `admission`.
- A request makes way in three strengths: it sits out a step (`batching`), or loses its slot
  (`admission`), and then its cache goes to host memory or is computed again (`cache`).
- The longest cached prefix decides about the slot: `slots`, `cache`.
- The time of a step decides about the prefill in it: `pacing`.

A step that is not decoded, for want of room or because a sequence could not be read back, changes
nothing but the operations that were carried out.

Pure: no clock, no socket, no model.
"""

from dataclasses import dataclass
from typing import Final

from inference_client.engine.planning.admission import Admission
from inference_client.engine.planning.agents import Agents
from inference_client.engine.planning.batching import Batching, Row
from inference_client.engine.planning.cache import Cache
from inference_client.engine.planning.forecast import Forecast, Place
from inference_client.engine.planning.pacing import Pacing
from inference_client.engine.planning.policy import Counters, Policy
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import Operation, SlotTable, SwapIn, SwapOut
from inference_client.engine.planning.swap import SwapArea
from ipc_protocol.errors import Failure

__all__ = ["Counters", "Place", "Planner", "Policy", "Row", "Step"]

FORESEE_US: Final = 100_000
"""How often it is asked of every request whether its deadline can still be met. That costs a look
into the cache for each, too much for every step with a thousand of them."""


@dataclass(frozen=True)
class Step:
    """First the operations on the cache, in their order, then one batch of all rows.

    `expired` requests have left the pool, since their deadlines cannot be met. Without rows there
    is nothing to decode until a request comes, or until `retry_us` microseconds are over.
    """

    operations: list[Operation]
    rows: list[Row]
    expired: list[Request]
    now_us: int
    retry_us: int | None = None


class Planner:
    """The only writer of queue, slot table, swap area and requests."""

    def __init__(
        self,
        queue: RequestQueue,
        slots: SlotTable,
        policy: Policy,
        swap: SwapArea | None = None,
        pacing: Pacing | None = None,
    ) -> None:
        assert policy.context <= slots.capacity, "a sequence of the whole context has to fit"
        self.slots = slots
        self.swap = SwapArea(0, 1) if swap is None else swap
        self.pacing = Pacing() if pacing is None else pacing
        self.counters = Counters()
        self.steps = 0
        self._policy = policy
        self._queue = queue
        self._agents = Agents()
        self._cache = Cache(slots, self.swap, self._agents, self.pacing, self.counters)
        self._admission = Admission(queue, self._cache, self._agents, policy, self.counters)
        self._batching = Batching(
            queue, self._cache, self._admission, self.pacing, policy, self.counters
        )
        self._forecast = Forecast(
            queue, self._cache, self._admission, self._agents, self.pacing, policy, self.counters
        )
        self._timed: dict[int, Request] = {}
        self._fresh: set[int] = set()
        self._foreseen_us = 0
        self._now_us = 0

    @property
    def idle(self) -> bool:
        return not self._queue and not self.slots.busy

    def submit(self, request: Request) -> None:
        """Let a request wait.

        Raises `inference.busy`, `inference.context` if it never fits, or `inference.deadline` if it
        comes too late. A budget that the context cannot hold is cut to what it can: the answer then
        ends there.
        """
        room = self._policy.context - len(request.target)
        if room < 1:
            raise Failure(
                "inference.context",
                f"The prompt has {request.prompt_tokens} tokens, and the context holds "
                f"{self._policy.context}.",
                "Send less, or give the engine a larger context.",
                prompt_tokens=request.prompt_tokens,
                context=self._policy.context,
            )
        if request.deadline_us is not None and request.deadline_us <= request.arrived_us:
            raise Failure(
                "inference.deadline",
                "The deadline was past when the request came.",
                "Ask sooner, or allow more time.",
            )
        request.tokens_max = min(request.tokens_max, request.produced_tokens + room)
        self._queue.push(request)
        self._agents.arrived(request)
        self._batching.arrived(request)
        if request.deadline_us is not None:
            self._timed[request.id] = request
            self._fresh.add(request.id)

    def cancel(self, request: Request) -> None:
        """Forget a request, wherever it is. Its slot is free for the next step.

        Nothing is learned from what it has so far: it says nothing of how long answers are. One
        that is not in the pool is none of its business.
        """
        self._leave(request)

    def finish(self, request: Request) -> None:
        """A request has its whole answer, and leaves. One that is not in the pool is none of its
        business."""
        if self._leave(request) and request.tokens_max:
            self._agents.answered(request)

    def plan(self, now_us: int) -> Step:
        """Decide the next step."""
        self.steps += 1
        self._now_us = now_us
        self._cache.begin(now_us)
        expired = self._expire(now_us)
        self._admission.admit(now_us)
        rows = self._batching.fill(now_us)
        retry_us = None if rows else self._retry_us(now_us)
        return Step(self._cache.collect(), rows, expired, now_us, retry_us)

    def commit(self, step: Step, elapsed_us: int) -> None:
        """The step has been decoded, in so much time."""
        self._now_us = step.now_us + elapsed_us
        self.slots.settled()
        decodes = prefill = gained = 0
        for row in step.rows:
            tokens = len(row.tokens)
            if row.request.ready and tokens == 1:
                decodes += 1
            else:
                prefill += tokens
            gained += self._serve(row)
        self.pacing.observe(decodes, prefill, elapsed_us)
        self.counters.decode_tokens += decodes
        self.counters.prefill_tokens += prefill
        if self._admission.starving(step.now_us):
            self._admission.earn(self._policy.starved_share * gained)
        else:
            self._admission.credit = min(self._admission.credit, 0.0)

    def produce(self, request: Request, tokens: list[int]) -> None:
        """A token was sampled for the request, and others were forced behind it; the next step
        decodes them. Comes after the commit of the step."""
        assert request.ready and tokens
        if request.first_us is None:
            request.first_us = self._now_us
        request.tokens += tokens
        request.forced_tokens += len(tokens) - 1
        self._queue.charge(request, len(tokens))
        self._agents.spend(request.agent, len(tokens), self._now_us)

    def swapped(self, operation: SwapOut | SwapIn, size: int, elapsed_us: int) -> None:
        """A sequence of `size` bytes was moved in so much time; 0 if it could not be kept."""
        if size:
            self.pacing.observe_swap(size, elapsed_us)
        if isinstance(operation, SwapOut):
            self._cache.settle(operation.handle, size)
            self.counters.swapped_out_bytes += size
        else:
            self.counters.swapped_in_bytes += size

    def lost(self, request: Request) -> None:
        """What should have come back from host memory into the request's slot did not: it is
        computed again. The step may not be decoded."""
        assert request.slot is not None
        self._cache.operations += self.slots.keep(self.slots.slots[request.slot], 0)
        if not request.served_tokens and request.preemptions == 0:
            request.cached_tokens = 0

    def refuse(self) -> Request | None:
        """The backend found no room for the last step, which was not decoded.

        Makes room as far as it can, and lets no more requests run at once than are left until one
        of them has ended: the backend may need more room than the table counts, as llama.cpp does
        for sliding windows whose cells are shared. Returns the request that cannot go on when
        nothing is left to give way.
        """
        running = self.slots.running()
        if not self._cache.evict():
            if len(running) == 1:
                return running[0]
            self._batching.squeeze(running[-1])
        self._admission.ceiling = self.slots.busy
        return None

    def waiting(self, now_us: int) -> list[Place]:
        """The queue in its order, why each of them waits, and for about how long yet."""
        return self._forecast.waiting(now_us)

    def _leave(self, request: Request) -> bool:
        """Whether the request was in the pool."""
        self._timed.pop(request.id, None)
        if request.slot is not None:
            self._admission.stopped(request)
            self._admission.ceiling = None
            self.slots.release(request, self._now_us)
        elif not self._queue.remove(request):
            return False
        self._cache.forget(request)
        self._admission.earn(max(request.paid_tokens, 0))
        return True

    def _expire(self, now_us: int) -> list[Request]:
        """One after the other, so that the last of them that runs is seen to be alone."""
        expired = []
        for request in self._due(now_us):
            if self._forecast.hopeless(request, now_us):
                self.cancel(request)
                expired.append(request)
        return expired

    def _due(self, now_us: int) -> list[Request]:
        """Requests that may have to expire: those whose time is over, those that came just now, and
        every `FORESEE_US` all that have a deadline."""
        fresh, self._fresh = self._fresh, set()
        if now_us >= self._foreseen_us + FORESEE_US:
            self._foreseen_us = now_us
            return list(self._timed.values())
        return [
            request
            for request in self._timed.values()
            if request.id in fresh
            or (request.deadline_us is not None and request.deadline_us <= now_us)
        ]

    def _retry_us(self, now_us: int) -> int | None:
        """When to plan again though nothing was decoded and nobody came: when a minute's share has
        grown, or a deadline comes."""
        times = [
            request.deadline_us - now_us for request in self._timed.values() if request.deadline_us
        ]
        times += [self._agents.allowed_in_us(agent, now_us) for agent in self._admission.limited]
        return max(min(times), 1) if times else None

    def _serve(self, row: Row) -> int:
        """Note what was decoded for a request. Returns the tokens that earn the tier its share."""
        request, tokens = row.request, len(row.tokens)
        slot = self.slots.slots[row.slot]
        end = row.start + tokens
        self.slots.extend(slot, row.tokens)
        request.served_tokens += tokens
        self.counters.recomputed_tokens += max(0, min(end, request.computed_tokens) - row.start)
        request.computed_tokens = max(request.computed_tokens, end)
        if not request.ready and end == len(request.target):
            self._admission.is_ready(request)
            request.prefilled_us = request.prefilled_us or self._now_us
            if request.tail:
                request.scored = True
                if self.slots.partial:
                    self._cache.operations += self.slots.keep(slot, request.reusable_max)
        if not request.promoted:
            return tokens
        request.paid_tokens -= tokens
        if request.paid_tokens < 0:
            self._admission.credit -= min(tokens, -request.paid_tokens)
        return 0
