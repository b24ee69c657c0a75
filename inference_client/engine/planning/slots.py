"""The slot table: which sequence holds which tokens, and who may have which slot.

A slot is a llama.cpp sequence. When its request ends, its tokens stay in the KV cache as a
resident, for the next request that begins with the same ones. Reuse is by identical tokens only:
what is kept of a slot is at most the common prefix with the new prompt, so nothing an agent wrote
is ever in the context of another agent that did not send the very same tokens.

Two layouts. *unified*: the cells are one pool, and a prefix that is copied shares them; they are
counted by reference, as llama.cpp does, so that running out is foreseen. *streams*: every slot has
cells of its own, and a prefix is copied with its whole stream.

llama.cpp puts off copies between streams until it decodes. Until then, `settled`, no slot is moved
to the host that was copied to, none swapped into that was copied from or to, and none copied from
that was swapped into; so that each operation finds what the table believes to be there.

Pure: it decides and returns the operations that make the cache follow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from inference_client.engine.planning.cells import Cells
from inference_client.engine.planning.prefixes import (
    BLOCK_TOKENS,
    PrefixIndex,
    common_prefix,
    extend_hashes,
)
from inference_client.engine.planning.request import Request
from ipc_protocol.inference import KvLayout


@dataclass(frozen=True)
class Keep:
    """Keep the first `length` tokens of the slot's sequence and remove the rest."""

    slot: int
    length: int


@dataclass(frozen=True)
class Copy:
    """Give the empty sequence `target` the first `length` tokens of `source`: unified by reference,
    between streams by copying all of the source and then cutting the target to `length`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class SwapOut:
    """Keep a copy of the slot's whole sequence in host memory. It may not need more than
    `bytes_max`; then nothing is kept, and a size of 0 is reported."""

    slot: int
    handle: int
    bytes_max: int


@dataclass(frozen=True)
class SwapIn:
    """Put a copy from host memory into the empty sequence `slot`."""

    handle: int
    slot: int


@dataclass(frozen=True)
class Forget:
    """Free a copy in host memory. It may be one that was never made."""

    handle: int


Operation = Keep | Copy | SwapOut | SwapIn | Forget


@dataclass(eq=False)
class Slot:
    """`tokens` lie in the KV cache, whoever left them; `agent` of the class `rank` is who did.

    `owner` is the waiting request to which they belong, if it had to make way.
    """

    index: int
    agent: str = ""
    rank: int = 0
    tokens: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    request: Request | None = None
    owner: Request | None = None
    used_us: int = 0


@dataclass(frozen=True)
class Choice:
    """Where a request would go: the slot, and whose first `length` tokens it starts with.

    With a `handle` they come from host memory.
    """

    slot: int
    source: int
    length: int
    handle: int | None = None


class SlotTable:
    """`slots` sequences over `cells` cells. With `partial`, a sequence may lose its end.

    Models with recurrent or sliding-window layers cannot: for them a prefix is reused or copied
    whole, or not at all. Prefixes are found in steps of `block` tokens.
    """

    def __init__(
        self,
        slots: int,
        cells: int,
        *,
        layout: KvLayout = "unified",
        partial: bool = True,
        block: int = BLOCK_TOKENS,
    ) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self.cells = cells
        self.layout = layout
        self.partial = partial
        self.block = block
        self.capacity = cells if layout == "unified" else cells // slots
        """The most tokens of one sequence."""
        self._cells = Cells(slots)
        self._tokens = 0
        self._index = PrefixIndex()
        self._running: dict[int, Request] = {}
        self._copied_to: set[int] = set()
        self._copied_from: set[int] = set()
        self._swapped_in: set[int] = set()

    @property
    def cells_used(self) -> int:
        return self._cells.used if self.layout == "unified" else self._tokens

    @property
    def cells_free(self) -> int:
        return self.cells - self.cells_used

    @property
    def full(self) -> bool:
        """Every slot has a request."""
        return len(self._running) == len(self.slots)

    @property
    def busy(self) -> int:
        return len(self._running)

    def requests(self) -> list[Request]:
        """The requests that hold a slot, in no order."""
        return list(self._running.values())

    def running(self) -> list[Request]:
        """The requests that hold a slot, the most urgent and oldest first."""
        return sorted(self._running.values(), key=lambda request: request.order)

    def residents(self) -> list[Slot]:
        """Slots without a request that hold tokens."""
        return [slot for slot in self.slots if slot.request is None and slot.tokens]

    def own_cells(self, slot: Slot) -> int:
        """Cells that would be free without what lies in the slot."""
        return self._cells.own(slot.index) if self.layout == "unified" else len(slot.tokens)

    def shared_tokens(self, slot: Slot) -> int:
        """Tokens of the slot that lie in cells which other slots use as well."""
        return self._cells.shared(slot.index) if self.layout == "unified" else 0

    def shared_prefix(self, slot: Slot) -> int:
        """Tokens of the slot with which another one begins as well, in whole blocks."""
        return self._index.shared(slot.hashes) * self.block

    # -- looking for a slot

    def longest(self, request: Request) -> tuple[int, list[Slot]]:
        """The most tokens that the request can take over, and the slots that hold them.

        Each of them is compared token by token: a hash that is the same by chance finds nothing.
        """
        extend_hashes(request.hashes, request.target, self.block)
        candidates = self._candidates(request) if self.partial else self._whole(request)
        for best in sorted({length for length, _ in candidates if length}, reverse=True):
            wanted = request.target[:best]
            slots = [
                slot
                for length, slot in candidates
                if length == best and slot.tokens[:best] == wanted
            ]
            if slots:
                return best, slots
        return 0, []

    def choose(self, request: Request, worth: Callable[[Slot], float]) -> Choice:
        """The best free slot, of which there is one, and the longest prefix to start from.

        A prefix is taken over in its place where little else is lost; otherwise it is copied into
        the free slot of the least `worth`, so that nobody's resident is lost to a preamble that
        many have in common.
        """
        free = [slot for slot in self.slots if slot.request is None]
        assert free, "a request waits until there is a slot for it"
        length, sources = self.longest(request)
        cheapest = min(free, key=worth)
        best = Choice(cheapest.index, cheapest.index, 0)
        cost = float("inf")
        for source in sources:
            if source.request is None and source.owner in (None, request):
                loss = worth(source) * (len(source.tokens) - length) / len(source.tokens)
                choice = Choice(source.index, source.index, length)
            elif source is cheapest:
                loss, choice = worth(source), Choice(source.index, source.index, length)
            else:
                continue
            own = source.agent == request.agent
            if loss <= worth(cheapest) and (loss < cost or (loss == cost and own)):
                best, cost = choice, loss
        copyable = [slot for slot in sources if self.may_copy(slot)]
        if not best.length and copyable and copyable[0] is not cheapest:
            best = Choice(cheapest.index, copyable[0].index, length)
        return best

    def _candidates(self, request: Request) -> list[tuple[int, Slot]]:
        """Who begins with the most blocks of the request, and how far behind those."""
        blocks, owners = self._index.longest(request.hashes)
        known = blocks * self.block
        end = request.reusable_max
        candidates = []
        for owner in owners:
            slot = self.slots[owner]
            near = slot.tokens[known : known + self.block]
            behind = common_prefix(near, request.target[known : known + self.block])
            candidates.append((min(known + behind, end), slot))
        return candidates

    def _whole(self, request: Request) -> list[tuple[int, Slot]]:
        """Who holds nothing but the beginning of the request."""
        candidates = []
        for slot in self.slots:
            length, blocks = len(slot.tokens), len(slot.hashes)
            if not 0 < length <= request.reusable_max:
                continue
            rest = blocks * self.block
            if slot.hashes[-1:] == request.hashes[:blocks][-1:] and (
                slot.tokens[rest:] == request.target[rest:length]
            ):
                candidates.append((length, slot))
        return candidates

    # -- changes

    def take(self, choice: Choice, request: Request, now_us: int) -> list[Operation]:
        """Give the slot to the request, its prefix in place. Returns what the cache must do.

        A prefix from host memory is put there before, by `swap_in`.
        """
        slot = self.slots[choice.slot]
        assert slot.request is None, "a slot is taken once"
        operations: list[Operation] = []
        if choice.source == choice.slot:
            operations += self.keep(slot, choice.length)
        else:
            operations += self.keep(slot, 0)
            operations += self._copy(self.slots[choice.source], slot, choice.length)
        slot.request = request
        slot.owner = None
        slot.agent, slot.rank, slot.used_us = request.agent, request.rank, now_us
        request.slot = slot.index
        self._running[slot.index] = request
        return operations

    def release(self, request: Request, now_us: int, *, owned: bool = False) -> Slot:
        """The request lets go of its slot; what it left there stays, as its own if it returns."""
        assert request.slot is not None
        slot = self.slots[request.slot]
        assert slot.request is request
        del self._running[slot.index]
        slot.request = None
        slot.owner = request if owned and slot.tokens else None
        slot.used_us = now_us
        request.slot = None
        return slot

    def extend(self, slot: Slot, tokens: list[int]) -> None:
        """Note that `tokens` were decoded at the end of the slot's sequence."""
        assert len(slot.tokens) + len(tokens) <= self.capacity
        slot.tokens += tokens
        blocks = len(slot.hashes)
        extend_hashes(slot.hashes, slot.tokens, self.block)
        self._index.add(slot.index, slot.hashes, blocks)
        self._tokens += len(tokens)
        if self.layout == "unified":
            self._cells.extend(slot.index, len(tokens))

    def keep(self, slot: Slot, length: int) -> list[Operation]:
        """Drop what lies behind the first `length` tokens, or everything if that cannot be."""
        if length == len(slot.tokens):
            return []
        if not self.partial:
            length = 0
        self._tokens -= len(slot.tokens) - length
        blocks = length // self.block
        self._index.remove(slot.index, slot.hashes, blocks)
        del slot.tokens[length:], slot.hashes[blocks:]
        if self.layout == "unified":
            self._cells.cut(slot.index, length)
        if not length:
            slot.owner = None
        return [Keep(slot.index, length)]

    def may_swap_out(self, slot: Slot) -> bool:
        return slot.index not in self._copied_to

    def may_swap_in(self, slot: Slot) -> bool:
        return slot.index not in self._copied_from and slot.index not in self._copied_to

    def may_copy(self, slot: Slot) -> bool:
        return slot.index not in self._swapped_in

    def swap_in(self, slot: Slot, tokens: list[int], handle: int) -> list[Operation]:
        """Put what lies in host memory into the slot, which is then cut by `take`."""
        operations = self.keep(slot, 0)
        self.extend(slot, tokens)
        self._swapped_in.add(slot.index)
        return [*operations, SwapIn(handle, slot.index), Forget(handle)]

    def settled(self) -> None:
        """A batch has been decoded, and with it every copy that was put off."""
        self._copied_to.clear()
        self._copied_from.clear()
        self._swapped_in.clear()

    def _copy(self, source: Slot, target: Slot, length: int) -> list[Operation]:
        assert length, "there is something to copy"
        target.tokens = source.tokens[:length]
        target.hashes = source.hashes[: length // self.block]
        self._index.add(target.index, target.hashes)
        self._tokens += length
        if self.layout == "unified":
            self._cells.share(source.index, target.index, length)
        self._copied_from.add(source.index)
        self._copied_to.add(target.index)
        return [Copy(source.index, target.index, length)]
