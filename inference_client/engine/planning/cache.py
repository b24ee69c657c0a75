"""What is kept of the KV cache and what has to go: slots and host memory as one cache.

Every resident has a *worth*: the tokens that would be computed again without it, over the time in
which they are expected to be needed, doubled for each class of urgency. What is worth least goes
first. It goes to host memory if the way there and back is cheaper than computing it again, as far
as both were measured, and if nothing that lies there already is worth more.

Pure: it decides and collects the operations that make the cache follow.
"""

from typing import Final

from inference_client.engine.planning.agents import Agents
from inference_client.engine.planning.pacing import Pacing
from inference_client.engine.planning.policy import URGENT, Counters
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import (
    Choice,
    Forget,
    Operation,
    Slot,
    SlotTable,
    SwapOut,
)
from inference_client.engine.planning.swap import SwapArea, Swapped
from ipc_protocol.values import PRIORITIES

WAITS_US: Final = 1_000_000
"""In how long a waiting request is expected to need its sequence: far sooner than any agent
returns, so that it is kept before residents of less than five more urgent classes."""

RETURN_LIKELY: Final = 0.75
RETURN_UNKNOWN: Final = 0.25
"""How likely an agent is taken to return that did so before, and one that came once."""

HURRIED_US: Final = 50_000
"""What keeping a sequence may take before the first token of an urgent request: what a reader does
not notice. Above it, what stands in the way is dropped."""


class Cache:
    """Slots and swap area. Collects operations until the next step takes them."""

    def __init__(
        self, slots: SlotTable, swap: SwapArea, agents: Agents, pacing: Pacing, counters: Counters
    ) -> None:
        self.slots = slots
        self.swap = swap
        self.operations: list[Operation] = []
        self._agents = agents
        self._pacing = pacing
        self._counters = counters
        self._worth: dict[int, float] = {}
        self._now_us = 0

    def begin(self, now_us: int) -> None:
        """A new step: what residents are worth is weighed anew."""
        self._now_us = now_us
        self._worth.clear()

    def collect(self) -> list[Operation]:
        operations, self.operations = self.operations, []
        return operations

    # -- worth

    def worth(self, slot: Slot) -> float:
        """What would be lost with the resident, in tokens per microsecond."""
        if not slot.tokens:
            return 0.0
        if slot.index not in self._worth:
            tokens = self._wanted(slot, slot.owner)
            value = tokens * self._urgency(slot.agent, slot.rank, slot.owner)
            self._worth[slot.index] = value
        return self._worth[slot.index]

    def _wanted(self, slot: Slot, owner: Request | None) -> float:
        """Tokens that are expected to be needed again, and would have to be computed for it."""
        part = 1.0 if owner is not None else self._agents.reuse(slot.agent)
        return max(part * len(slot.tokens) - self.slots.shared_prefix(slot), 0.0)

    def _urgency(self, agent: str, rank: int, owner: Request | None) -> float:
        wait = WAITS_US if owner is not None else self._agents.return_us(agent, self._now_us)
        return float(2 ** (len(PRIORITIES) - 1 - rank)) / wait

    def _swapped_worth(self, entry: Swapped) -> float:
        """Of a byte in host memory."""
        return (
            len(entry.tokens) * self._urgency(entry.agent, entry.rank, entry.request) / entry.size
        )

    # -- a place for a request

    def choose(self, request: Request, *, swapped: bool = True) -> Choice:
        """The best free slot, and the longest prefix that is cheap to have.

        One from host memory, if `swapped` ones are wanted, is held there until the next choice.
        """
        self.swap.hold(None)
        choice = self.slots.choose(request, self.worth)
        if not swapped:
            return choice
        length, entry = self.swap.longest(request, partial=self.slots.partial)
        if entry is None or length <= choice.length:
            return choice
        target = self._target_of_swap()
        if target is None or len(entry.tokens) > self.slots.capacity:
            return choice
        gained = (length - choice.length) * self._pacing.prefill_us
        if gained <= self._pacing.swap_us(entry.size):
            return choice
        self.swap.hold(entry)
        return Choice(target.index, target.index, length, entry.handle)

    def found(self, request: Request) -> int:
        """The most tokens that the request would not have to compute."""
        length, _ = self.slots.longest(request)
        swapped, _ = self.swap.longest(request, partial=self.slots.partial)
        return max(length, swapped)

    def place(self, choice: Choice, request: Request, now_us: int) -> None:
        """Give the request its slot, with what the choice found for it."""
        slot = self.slots.slots[choice.slot]
        if choice.handle is None:
            length = choice.length if choice.source == choice.slot else 0
            self.displace(slot, length, request, hurried=request.rank == URGENT)
        else:
            entry = self.swap.get(choice.handle)
            assert entry is not None, "what was chosen in this step is still there"
            self.displace(slot, 0, request, hurried=request.rank == URGENT)
            self.swap.hold(None)
            self.swap.remove(entry.handle)
            self.operations += self.slots.swap_in(slot, entry.tokens, entry.handle)
        self.swap.disown(request)
        self._disown(request)
        self.operations += self.slots.take(choice, request, now_us)

    def _disown(self, request: Request) -> None:
        for slot in self.slots.slots:
            if slot.owner is request:
                slot.owner = None

    def forget(self, request: Request) -> None:
        """The request will not resume; what it left is its agent's."""
        self.swap.disown(request)
        self._disown(request)

    def _target_of_swap(self) -> Slot | None:
        free = [
            slot
            for slot in self.slots.slots
            if slot.request is None and self.slots.may_swap_in(slot)
        ]
        return min(free, key=self.worth, default=None)

    # -- making way

    def displace(
        self,
        slot: Slot,
        length: int = 0,
        taker: Request | None = None,
        *,
        hurried: bool = False,
    ) -> None:
        """Cut what lies in the slot to `length`, and keep the rest elsewhere if that is worth it.

        `taker` is the request that goes on with it, if any. Where an agent continues its own text
        differently, the old end is not kept: it was an earlier turn. Where the room is for an
        urgent request it is `hurried`, and nothing is kept that takes long to move.
        """
        if not slot.tokens or length == len(slot.tokens):
            return
        owner = slot.owner if slot.owner is not taker else None
        continued = length > 0 and taker is not None and taker.agent == slot.agent
        swapped = not continued and self._swap_out(slot, length, owner, hurried=hurried)
        if owner is not None:
            self._counters.preemptions["swapped" if swapped else "dropped"] += 1
        self.operations += self.slots.keep(slot, length)
        slot.owner = None if owner is not None else slot.owner
        if not slot.tokens:
            slot.agent = ""
        self._worth.pop(slot.index, None)

    def evict(self, spared: int | None = None, *, hurried: bool = False) -> bool:
        """Free the cells of the resident that is worth least for each of them; see `displace`."""
        idle = [slot for slot in self.slots.residents() if slot.index != spared]
        if not idle:
            return False
        self.displace(
            min(idle, key=lambda slot: self.worth(slot) / max(self.slots.own_cells(slot), 1)),
            hurried=hurried,
        )
        return True

    def evictable_cells(self, spared: int | None = None) -> int:
        """Cells that eviction frees at the least."""
        return sum(
            self.slots.own_cells(slot) for slot in self.slots.residents() if slot.index != spared
        )

    def settle(self, handle: int, size: int) -> None:
        """The shell has kept a sequence of `size` bytes; 0: it could not."""
        self.swap.settle(handle, size)

    def _swap_out(self, slot: Slot, length: int, owner: Request | None, *, hurried: bool) -> bool:
        size = self.swap.size_of(len(slot.tokens))
        if hurried and self._pacing.swap_us(size) > HURRIED_US:
            return False
        if size > self.swap.bytes_max or not self.slots.may_swap_out(slot):
            return False
        lost = min(len(slot.tokens) - length, self._wanted(slot, owner))
        if lost <= 0 or not self._pays(slot.agent, lost, size, owner):
            return False
        outdated = self.swap.outdated(slot.agent, slot.tokens)
        limit = lost * self._urgency(slot.agent, slot.rank, owner) / size
        leaving = self.swap.make_room(
            size, lambda entry: 0.0 if entry in outdated else self._swapped_worth(entry), limit
        )
        if leaving is None:
            return False
        self._drop([*leaving, *(entry for entry in outdated if entry not in leaving)])
        entry = self.swap.put(slot.agent, slot.rank, slot.tokens, owner, self._now_us)
        self.operations.append(SwapOut(slot.index, entry.handle, entry.size))
        return True

    def _pays(self, agent: str, lost: float, size: int, owner: Request | None) -> bool:
        """Whether the way to the host and, if it is needed, back is cheaper than computing."""
        likely = RETURN_LIKELY if self._agents.has_returned(agent) else RETURN_UNKNOWN
        if owner is not None:
            likely = 1.0
        move = self._pacing.swap_us(size)
        return likely * (lost * self._pacing.prefill_us - move) > move

    def _drop(self, entries: list[Swapped]) -> None:
        for entry in entries:
            self.swap.remove(entry.handle)
            self.operations.append(Forget(entry.handle))
