"""Which sequence begins like this prompt? Found without comparing every sequence with it.

Tokens are hashed in blocks, each hash over the block and the hash before it, so that one number
stands for a whole beginning. An index from these numbers to their owners is searched by bisection.
A hash is a hint only: what it finds is compared token by token before anything is reused, because
two agents could otherwise be brought together by a collision. Every chain begins with a number
that is drawn anew in each process, so that nobody can prepare one.

Pure: no clock, no socket, no model.
"""

from typing import Final

SALT: Final = hash("what stands before the first block")
"""An agent chooses its tokens, and the hashes of numbers are the same everywhere; that of a text is
another one in each process."""

BLOCK_TOKENS: Final = 16
"""Tokens of a block. A beginning shorter than one is not looked for: computing 16 tokens costs
70 ms on one processor core and nothing on a GPU, and the index grows with smaller blocks."""


def common_prefix(one: list[int], other: list[int], start: int = 0) -> int:
    """How many leading tokens are the same, of which `start` are known to be.

    Bisects, since lists compare at the speed of C.
    """
    low, high = start, min(len(one), len(other))
    if one[low:high] == other[low:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def extend_hashes(hashes: list[int], tokens: list[int], block: int) -> None:
    """Append the hashes of the whole blocks of `tokens` that have none yet."""
    for end in range((len(hashes) + 1) * block, len(tokens) + 1, block):
        before = hashes[-1] if hashes else SALT
        hashes.append(hash((before, *tokens[end - block : end])))


class PrefixIndex:
    """Owners, which are small integers, by the hashes of what they begin with."""

    def __init__(self) -> None:
        self._owners: dict[int, set[int]] = {}

    def add(self, owner: int, hashes: list[int], start: int = 0) -> None:
        for value in hashes[start:]:
            self._owners.setdefault(value, set()).add(owner)

    def remove(self, owner: int, hashes: list[int], start: int = 0) -> None:
        """Where two blocks have the same hash by chance, the owner is found at neither of them."""
        for value in hashes[start:]:
            owners = self._owners.get(value, set())
            owners.discard(owner)
            if not owners:
                self._owners.pop(value, None)

    def longest(self, hashes: list[int]) -> tuple[int, set[int]]:
        """The most blocks that any owner begins with, and who does."""
        low = self._bisect(hashes, 1)
        return low, self._owners[hashes[low - 1]] if low else set()

    def shared(self, hashes: list[int]) -> int:
        """Of an owner's blocks, those that some other owner begins with as well."""
        return self._bisect(hashes, 2)

    def _bisect(self, hashes: list[int], owners_min: int) -> int:
        """Whoever begins with n blocks begins with n - 1 of them."""
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._owners.get(hashes[middle - 1], ())) >= owners_min:
                low = middle
            else:
                high = middle - 1
        return low
