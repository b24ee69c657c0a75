"""The slot table: which sequence holds which tokens, and who may have which slot.

A slot is a llama.cpp sequence. When its request ends, its tokens stay in the KV cache as a
resident, for the next request that begins with the same ones. Reuse is by identical tokens only:
what is kept of a slot is at most the common prefix with the new prompt, so nothing an agent wrote
is ever in the context of another agent that did not send the very same tokens.

The KV cache is unified: cells belong to one pool, and a prefix copied from another slot shares its
cells. The table counts them by reference, as llama.cpp does, so that running out is foreseen.

Pure: it decides and returns the operations that make the cache follow.
"""

from collections import Counter
from dataclasses import dataclass, field

from inference_client.engine.queue import Request


@dataclass(frozen=True)
class Keep:
    """Keep the first `length` tokens of the slot's sequence and remove the rest."""

    slot: int
    length: int


@dataclass(frozen=True)
class Copy:
    """Let the empty sequence `target` share the first `length` tokens of `source`."""

    source: int
    target: int
    length: int


Operation = Keep | Copy


@dataclass(eq=False)
class Slot:
    """`tokens` lie in the KV cache, whoever left them; `agent` is who did."""

    index: int
    agent: str = ""
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    request: Request | None = None
    used_step: int = 0


@dataclass(frozen=True)
class Choice:
    """Where a request would go: the slot, and whose first `length` tokens it starts with."""

    slot: int
    source: int
    length: int


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many leading tokens are the same. Bisects, since lists compare at the speed of C."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class SlotTable:
    """`slots` sequences over `cells` cells. With `partial`, a sequence may lose its end.

    Models with recurrent or sliding-window layers cannot: for them a prefix is reused whole or not
    at all, and never shared.
    """

    def __init__(self, slots: int, cells: int, *, partial: bool) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self.cells = cells
        self._partial = partial
        self._references: Counter[int] = Counter()
        self._next_cell = 0

    @property
    def cells_used(self) -> int:
        return len(self._references)

    @property
    def cells_free(self) -> int:
        return self.cells - len(self._references)

    def running(self) -> list[Request]:
        """The requests that hold a slot, the most urgent and oldest first."""
        held = [slot.request for slot in self.slots if slot.request is not None]
        return sorted(held, key=lambda request: request.order)

    def choose(self, request: Request) -> Choice | None:
        """The best free slot: the longest cached prefix, and the agent's own where that is equal.

        A longer prefix in a slot that is taken or another agent's is shared into the least valuable
        free slot, so that nobody's resident is lost to a common preamble.
        """
        free = [slot for slot in self.slots if slot.request is None]
        if not free:
            return None
        lengths = [self._reusable(slot, request) for slot in self.slots]
        own = [slot for slot in free if slot.agent == request.agent and lengths[slot.index]]
        best_own = max(own, key=lambda slot: lengths[slot.index], default=None)
        sources = self.slots if self._partial else free
        best = max(sources, key=lambda slot: (lengths[slot.index], slot.request is None))
        if best_own is not None and lengths[best_own.index] >= lengths[best.index]:
            return Choice(best_own.index, best_own.index, lengths[best_own.index])
        if not self._partial and lengths[best.index]:
            return Choice(best.index, best.index, lengths[best.index])
        target = best_own or min(free, key=lambda slot: (bool(slot.tokens), slot.used_step))
        return Choice(target.index, best.index, lengths[best.index])

    def take(self, choice: Choice, request: Request, step: int) -> list[Operation]:
        """Give the slot to the request, its prefix in place. Returns what the cache must do."""
        slot = self.slots[choice.slot]
        assert slot.request is None, "a slot is taken once"
        operations: list[Operation] = []
        if choice.source == choice.slot:
            operations += self.keep(slot, choice.length)
        else:
            operations += self.keep(slot, 0)
            operations += self._share(self.slots[choice.source], slot, choice.length)
        slot.request = request
        slot.agent = request.agent
        slot.used_step = step
        request.slot = slot.index
        return operations

    def release(self, request: Request, step: int) -> None:
        """The request lets go of its slot; what it left there stays as a resident."""
        assert request.slot is not None
        slot = self.slots[request.slot]
        assert slot.request is request
        slot.request = None
        slot.used_step = step
        request.slot = None

    def extend(self, slot: Slot, tokens: list[int]) -> None:
        """Note that `tokens` were decoded at the end of the slot's sequence."""
        fresh = range(self._next_cell, self._next_cell + len(tokens))
        self._next_cell += len(tokens)
        slot.tokens += tokens
        slot.cells += fresh
        self._references.update(fresh)

    def keep(self, slot: Slot, length: int) -> list[Operation]:
        """Drop what lies behind the first `length` tokens, or everything if that cannot be."""
        if length == len(slot.tokens):
            return []
        if not self._partial:
            length = 0
        for cell in slot.cells[length:]:
            self._references[cell] -= 1
            if not self._references[cell]:
                del self._references[cell]
        del slot.tokens[length:], slot.cells[length:]
        return [Keep(slot.index, length)]

    def evict(self, spared: int | None = None) -> list[Operation]:
        """Drop the resident that was used longest ago; nothing to do means nothing is idle."""
        idle = [
            slot
            for slot in self.slots
            if slot.request is None and slot.tokens and slot.index != spared
        ]
        if not idle:
            return []
        oldest = min(idle, key=lambda slot: slot.used_step)
        oldest.agent = ""
        return self.keep(oldest, 0)

    def _reusable(self, slot: Slot, request: Request) -> int:
        """Tokens of the slot that can start the request; the last one is always decoded anew,
        because its logits are what the request is waiting for."""
        length = common_prefix(slot.tokens, request.tokens[:-1])
        if not self._partial and length < len(slot.tokens):
            return 0
        return length

    def _share(self, source: Slot, target: Slot, length: int) -> list[Operation]:
        if not length:
            return []
        target.tokens = source.tokens[:length]
        target.cells = source.cells[:length]
        self._references.update(target.cells)
        return [Copy(source.index, target.index, length)]
