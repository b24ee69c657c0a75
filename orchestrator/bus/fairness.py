"""Whose messages are written next, so that one publisher that floods keeps no other waiting. Pure.

Deficit round robin (M. Shreedhar and G. Varghese, Efficient Fair Queuing Using Deficit Round Robin,
IEEE/ACM Transactions on Networking 4(3), 1996): who has something waiting comes round in turn, is
given a quantum each time, and may send what that and its savings pay for. Savings end with the
queue, so nobody collects a right to a burst. A publisher's own order is kept. Each decision costs
the same however many wait, as long as a quantum pays for an ordinary request; a large one costs a
turn for each quantum of it.

What is shared out is the time of the store's writer, so that is what requests cost: `cost_of`.
"""

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from ipc_protocol.errors import Failure
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from orchestrator.bus.limits import PAYLOADS_MAX

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

PAGE_BYTES: Final = 4096
"""Of the database: writing one more of them takes about as long as one more row."""

COST_MAX: Final = PAYLOADS_MAX + FRAME_BODY_BYTES_MAX // PAGE_BYTES
"""The dearest request there is: as many messages as one may have, in the largest frame."""

QUANTUM: Final = 64
"""One turn: a millisecond of the writer, and as many messages as publishers like to put into a
frame. Thirty others that flood hold up a single message by thirty milliseconds."""

SHARE_MAX: Final = 2 * COST_MAX
"""What may wait for one publisher: the next request can come in while one of the largest waits."""

assert QUANTUM <= COST_MAX <= SHARE_MAX


def cost_of(messages: int, payload_bytes: int) -> int:
    """What it costs to write so many messages: one for each, and one for each page they fill."""
    return messages + payload_bytes // PAGE_BYTES


class _Share(Generic[T]):
    """What waits for one key. `deficit` is what it may still spend, as the algorithm calls it."""

    __slots__ = ("cost", "deficit", "items")

    def __init__(self) -> None:
        self.items: deque[tuple[int, T]] = deque()  # bound: each costs 1 or more, all `share_max`
        self.cost = 0
        self.deficit = 0


class FairQueue(Generic[K, T]):
    """Items of many keys. `push` takes one in or refuses it, `take` gives out the next ones."""

    def __init__(self, *, quantum: int = QUANTUM, share_max: int = SHARE_MAX) -> None:
        assert 0 < quantum <= share_max
        self._quantum = quantum
        self._share_max = share_max
        self._shares: dict[K, _Share[T]] = {}
        self._turns: deque[K] = deque()  # bound: the keys of `_shares`
        self._paid = False
        """Whoever's turn it is has its quantum for it."""
        self._count = 0

    def __len__(self) -> int:
        """Items that wait."""
        return self._count

    def waiting(self, key: K) -> int:
        """What the items of `key` that wait cost together."""
        share = self._shares.get(key)
        return 0 if share is None else share.cost

    def push(self, key: K, cost: int, item: T) -> None:
        """Put `item` behind the others of `key`. Raises `bus.busy` if too much of it waits."""
        assert 0 < cost <= self._share_max, "nothing is free, and nothing dearer than a share"
        share = self._shares.get(key)
        if share is not None and share.cost + cost > self._share_max:
            raise Failure(
                "bus.busy",
                "Too much of what this publisher sent before waits to be written.",
                "Wait for the receipts of some of it, then send more.",
                waiting=share.cost,
                waiting_max=self._share_max,
            )
        if share is None:
            share = self._shares[key] = _Share()
            self._turns.append(key)
        share.items.append((cost, item))
        share.cost += cost
        self._count += 1

    def take(self, budget: int) -> list[T]:
        """The next items, until they have cost `budget` or nothing is left.

        The last one may cost more than what was left of it: what is too dear for one call would be
        so for every one. The next call goes on where this one ended.
        """
        taken: list[T] = []
        while budget > 0 and self._turns:
            key = self._turns[0]
            share = self._shares[key]
            if not self._paid:
                share.deficit += self._quantum
                self._paid = True
            while budget > 0 and share.items and share.items[0][0] <= share.deficit:
                cost, item = share.items.popleft()
                share.deficit -= cost
                share.cost -= cost
                budget -= cost
                taken.append(item)
            if not share.items:
                del self._shares[key]
                self._turns.popleft()
                self._paid = False
            elif share.items[0][0] > share.deficit:
                self._turns.rotate(-1)
                self._paid = False
        self._count -= len(taken)
        return taken
