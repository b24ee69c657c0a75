"""Who is given a slot, and who has to make way for it.

- Urgent requests first, then the starvation tier, then the other classes in their order.
- A slot is given in the same step in which it is chosen, with the cells for the prompt and for what
  the answer is expected to need; nobody holds one of the two while it waits for the other.
- A beginning that another request is computing just now is waited for, and then shared. Nobody
  waits so for a request that is less urgent or does not get on, and since this is decided anew in
  every step, nobody waits for one that is gone.
- A request over the limits of its agent lets others overtake it.
- Nobody is taken off for a request that would still not fit.
- *The starvation tier*: while a request has waited for too long, a tenth of all tokens is put
  aside. When that covers what the oldest one needs, it is *promoted*: it may take the slot of any
  work that is not urgent, and runs to its end; only urgent work can take it off.

Pure: no clock, no socket, no model.
"""

from typing import Final

from inference_client.engine.planning.agents import Agents
from inference_client.engine.planning.cache import Cache
from inference_client.engine.planning.policy import URGENT, Counters, Policy
from inference_client.engine.planning.prefixes import PrefixIndex, common_prefix
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import Choice
from ipc_protocol.values import PRIORITIES

NEXT: Final = "the next step takes it in"
FULL: Final = "every slot is taken by work that may not be preempted"
NO_CELLS: Final = "the KV cache is full"
FOLLOWS: Final = "its preamble is being read for another request"
SPENT: Final = "its agent has spent its tokens of this minute"

FOLLOWERS_MAX: Final = 64
"""Requests that are looked at in one step and found to wait for a beginning, as many as there may
be slots: a thousand cost no more time. Those behind them wait for a later step."""


def running_limit(count: int) -> str:
    noun = "request" if count == 1 else "requests"
    return f"its agent runs {count} {noun} already, as many as it may"


class Admission:
    """One step's decisions about slots. The planner calls `admit` once in each."""

    def __init__(
        self,
        queue: RequestQueue,
        cache: Cache,
        agents: Agents,
        policy: Policy,
        counters: Counters,
    ) -> None:
        self.held = NEXT
        """Why the first in order was not taken in the last step, and with it all behind it."""
        self.following: set[int] = set()
        """Requests that wait for a preamble."""
        self.limited: set[str] = set()
        """Agents that have reached a limit, of those whose turn it was."""
        self.credit = 0.0
        """Tokens that are put aside for the starvation tier, at most what one request can cost."""
        self.boundaries: dict[int, int] = {}
        """By slot: where its prefill has to pause, so that others can copy it whole."""
        self.ceiling: int | None = None
        """Requests that may run at once, since the backend had no room for more; until one ends."""
        self._queue = queue
        self._cache = cache
        self._slots = cache.slots
        self._agents = agents
        self._policy = policy
        self._counters = counters
        self._reading = PrefixIndex()
        self._promised: int | None = None
        self._paid: dict[int, Request] = {}
        self._now_us = 0

    def limit_of(self, request: Request, now_us: int) -> str | None:
        """The limit that the request's agent has reached, if it has.

        A request that was begun may go on, whatever it has cost by now.
        """
        agent, most = request.agent, request.share.running_max
        if most and self._agents.runs(agent) >= most:
            return running_limit(most)
        spent = request.started_us is None and self._agents.allowed_in_us(agent, now_us)
        return SPENT if spent else None

    def admit(self, now_us: int) -> None:
        """Give slots to waiting requests, as long as there are any to give."""
        self._now_us = now_us
        self._promised = None
        self.held = NEXT
        self.following.clear()
        self.limited.clear()
        self.boundaries.clear()
        if not self._queue or not self._possible():
            return
        if not self._admit_class(URGENT):
            return
        self._promote()
        for rank in range(URGENT + 1, len(PRIORITIES)):
            if not self._admit_class(rank):
                return

    def starving(self, now_us: int) -> bool:
        """Whether somebody is in the tier: has waited too long for a slot, or left out.

        Nobody is whom a limit of its own holds back: its wait begins anew.
        """
        limit = now_us - self._policy.starved_us
        while (first := next(self._queue.oldest(), None)) and first.idle_since_us <= limit:
            if self.limit_of(first, now_us) is None:
                return True
            self._queue.renew(first, now_us)
        return any(
            request.left_out and request.idle_since_us <= limit
            for request in self._slots.requests()
        )

    def earn(self, tokens: float) -> None:
        """Put tokens aside for the tier."""
        self.credit = min(self.credit + tokens, float(self._policy.context))

    def pinned(self, request: Request) -> bool:
        """It has made way often enough, and keeps its slot."""
        return request.preemptions >= self._policy.preemptions_max

    def quantum(self, request: Request) -> int:
        """Tokens that the request is given in its slot before it has to make way."""
        doublings = min(request.preemptions, self._policy.quantum_doublings_max)
        return self._policy.quantum_tokens << doublings

    def take_off(self, request: Request) -> None:
        """Let the request make way. Its tokens stay in the slot until somebody needs the room."""
        self.stopped(request)
        self._slots.release(request, self._now_us, owned=True)
        request.preemptions += 1
        request.left_out = request.ready = False
        request.idle_since_us = self._now_us
        self._queue.put_back(request)
        self._promised = None
        if request.promoted:
            self._paid[request.id] = request

    def stopped(self, request: Request) -> None:
        """The request is about to leave its slot."""
        assert request.slot is not None
        if not request.ready:
            self._reading.remove(request.slot, request.hashes)
        self._agents.stopped(request)

    def is_ready(self, request: Request) -> None:
        """All of the request's target lies in its slot: nobody waits for it any more."""
        assert request.slot is not None
        self._reading.remove(request.slot, request.hashes)
        request.ready = True

    # -- one request

    def _possible(self) -> bool:
        """Whether a slot is free, or could be taken from somebody."""
        if not self._full:
            return True
        self.held = FULL if self._slots.full else NO_CELLS
        rank = self._queue.rank
        assert rank is not None
        least = max(request.rank for request in self._slots.requests())
        return least > rank or (least > URGENT and self.starving(self._now_us))

    @property
    def _full(self) -> bool:
        return self._slots.full or (self.ceiling is not None and self._slots.busy >= self.ceiling)

    def _admit_class(self, rank: int) -> bool:
        """Whether the next class may have its turn."""
        skipped: set[str] = set()
        for request in self._queue.offers(rank, skipped):
            if self._limited(request):
                # Those that were begun come first among its agent's, and were offered.
                skipped.add(request.agent)
                continue
            if self._full and not self._victims(request):
                self.held = FULL if self._slots.full else NO_CELLS
                return False
            if len(self.following) >= FOLLOWERS_MAX:
                self.held = FOLLOWS
                return False
            if self._follows(request):
                continue
            if held := self._seat(request):
                self.held = held
                return False
        return True

    def _limited(self, request: Request) -> bool:
        """Whether the request's agent has reached a limit, which then is the reason it waits: that
        time does not lead to the tier."""
        if self.limit_of(request, self._now_us) is None:
            return False
        self.limited.add(request.agent)
        self._queue.renew(request, self._now_us)
        return True

    def _follows(self, request: Request) -> bool:
        """Whether the request should wait for a beginning that is being computed."""
        if self._comes_back(request):
            self.following.add(request.id)
            return True
        blocks, leaders = self._reading.longest(request.hashes)
        if blocks * self._slots.block < self._policy.preamble_tokens_min:
            return False
        found = self._cache.found(request)
        for index in sorted(leaders):
            leader = self._slots.slots[index].request
            assert leader is not None
            length = min(common_prefix(leader.target, request.target), request.reusable_max)
            if (
                self._saves(length, found, len(self._slots.slots[index].tokens))
                and (leader.rank <= request.rank or leader.promoted)
                and leader.stalled_steps < self._policy.preamble_stalled_max
            ):
                self.following.add(request.id)
                before = self.boundaries.get(index, length)
                self.boundaries[index] = min(before, length)
                return True
        return False

    def _comes_back(self, request: Request) -> bool:
        """Whether its beginning was read back for another request in this step, and can be copied
        in the next one. That request runs, so there is a next one."""
        length, holders = self._slots.longest(request)
        return length >= self._policy.preamble_tokens_min and all(
            holder.request is not None and not self._slots.may_copy(holder) for holder in holders
        )

    def _saves(self, length: int, found: int, computed: int) -> bool:
        """Whether it is worth waiting for `length` tokens, of which a leader has `computed` some.

        What the request would find already may be just those: then it waits for the few that are
        missing as well, instead of computing them beside the leader.
        """
        if length <= max(found, computed):
            return False
        least = self._policy.preamble_tokens_min
        return length - found >= least or (computed >= found and length >= least)

    def _seat(self, request: Request) -> str:
        """Give the request a slot and its cells. Returns why it cannot be."""
        victim = self._victim(request) if self._full else None
        if self._full and victim is None:
            return FULL if self._slots.full else NO_CELLS
        if not self._could_fit(request):
            return NO_CELLS
        if victim is not None:
            self.take_off(victim)
        choice = self._find_cells(request, self._cache.choose(request))
        if choice is None:
            return NO_CELLS
        self._start(request, choice)
        return ""

    def _start(self, request: Request, choice: Choice) -> None:
        self._queue.take(request)
        self._cache.place(choice, request, self._now_us)
        assert request.slot is not None
        self._reading.add(request.slot, request.hashes)
        self._agents.started(request)
        request.served_tokens = request.stalled_steps = 0
        request.idle_since_us = self._now_us
        request.computed_tokens = max(request.computed_tokens, choice.length)
        if self._promised is not None:
            self._promised += self._needs(request) - choice.length
        if request.started_us is not None:
            return
        request.started_us = self._now_us
        self._agents.prompted(request)
        request.cached_tokens = min(choice.length, request.prompt_tokens)
        self._counters.prefix_queries += len(request.target)
        self._counters.prefix_hits += choice.length
        fresh = len(request.target) - choice.length
        self._queue.charge(request, fresh)
        self._agents.spend(request.agent, fresh, self._now_us)

    # -- making way

    def _victim(self, request: Request) -> Request | None:
        """The least urgent request that may be taken off for this one; of several the one that made
        way least often, then the one in whose slot the longest prefix lies, then the youngest."""
        victims = self._victims(request)
        if not victims:
            return None
        _, holders = self._slots.longest(request)
        places = {slot.index for slot in holders}
        return max(
            victims,
            key=lambda one: (one.rank, -one.preemptions, one.slot in places, one.order),
        )

    def _victims(self, request: Request) -> list[Request]:
        return [other for other in self._slots.requests() if self._yields(other, request)]

    def _yields(self, other: Request, request: Request) -> bool:
        """Whether `other` has to make way: for a strictly more urgent class or for the tier, after
        its quantum, and not too often."""
        if other.served_tokens < self.quantum(other) or self.pinned(other):
            return False
        if other.promoted or request.promoted:
            return (request.rank == URGENT or (request.promoted and not other.promoted)) and (
                other.rank > URGENT
            )
        return other.rank > request.rank

    # -- cells

    def _needs(self, request: Request) -> int:
        """Cells for the whole of the request: its target, and what it is expected to produce.

        One that may not be taken off any more is counted with all that it may produce, so that it
        never has to be.
        """
        if self.pinned(request) or not request.tokens_max:
            expected = request.tokens_max - request.produced_tokens if request.tokens_max else 0
        else:
            expected = self._agents.expected_tokens(request)
        return min(len(request.target) + expected, self._slots.capacity)

    def _promises(self) -> int:
        """Cells that running requests are expected to need yet."""
        if self._promised is None:
            self._promised = sum(
                max(self._needs(request) - len(self._slots.slots[index].tokens), 0)
                for request in self._slots.requests()
                if (index := request.slot) is not None
            )
        return self._promised

    def _could_fit(self, request: Request) -> bool:
        """Whether there would be cells if all residents went, and all who have to make way."""
        if self._slots.layout == "streams":
            return True
        if not self._slots.busy:
            return True
        length, holders = self._slots.longest(request)
        victims = self._victims(request)
        room = self._slots.cells_free - self._promises() + self._cache.evictable_cells()
        for other in victims:
            assert other.slot is not None
            slot = self._slots.slots[other.slot]
            room += self._slots.own_cells(slot) + max(self._needs(other) - len(slot.tokens), 0)
        for holder in holders[:1]:
            if holder.request is None or holder.request in victims:
                # What the request takes over from there is not freed.
                room -= min(length, self._slots.own_cells(holder))
        return self._needs(request) - length <= room

    def _find_cells(self, request: Request, choice: Choice) -> Choice | None:
        """Free the cells that the request needs, by eviction and then by preemption.

        A prefix is given up where it is in the way of its own request.
        """
        if self._slots.layout == "streams":
            return choice
        while not self._fits(request, choice):
            source = self._slots.slots[choice.source]
            spared = choice.source if choice.handle is None else None
            if self._cache.evict(spared, hurried=request.rank == URGENT):
                continue
            if choice.handle is not None:
                choice = self._cache.choose(request, swapped=False)
            elif choice.source != choice.slot and source.request is None:
                choice = Choice(choice.source, choice.source, choice.length)
            elif victims := self._victims(request):
                self.take_off(max(victims, key=lambda one: one.order))
            else:
                return None
        return choice

    def _fits(self, request: Request, choice: Choice) -> bool:
        slot = self._slots.slots[choice.slot]
        free = self._slots.cells_free - self._promises()
        if choice.handle is not None:
            entry = self._cache.swap.get(choice.handle)
            assert entry is not None
            whole = max(self._needs(request), len(entry.tokens))
            return whole <= free + self._slots.own_cells(slot)
        if choice.source != choice.slot:
            free += self._slots.own_cells(slot)
            return self._needs(request) - choice.length <= free
        # What lies in the slot behind the prefix is cut before anything is decoded.
        dropped = min(len(slot.tokens) - choice.length, self._slots.own_cells(slot))
        return self._needs(request) - choice.length <= free + dropped

    # -- the starvation tier

    def _promote(self) -> None:
        """Give the oldest of those that have waited too long its slot, once it is paid for.

        Those that were paid for and had to make way for urgent work come first.
        """
        self._paid = {key: one for key, one in self._paid.items() if one in self._queue}
        for request in self._paid.values():
            if not self._limited(request):
                self._seat(request)
        limit = self._now_us - self._policy.starved_us
        for request in self._queue.idle_since(limit) if self.credit > 0 else []:
            if request.rank == URGENT or request.promoted or self._limited(request):
                continue
            cost = self._needs(request) - request.reusable_max
            if cost <= self.credit:
                cost = self._needs(request) - self._cache.found(request)
            if cost > self.credit:
                return
            request.promoted = True
            if self._seat(request):
                request.promoted = False
                return
            request.paid_tokens = cost
            self.credit -= cost
