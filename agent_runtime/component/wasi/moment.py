"""What a call of a component learns of the time and of chance: the same each time it is repeated.

Time stands at the beginning of the delivery. The wall clock does not move; the monotonic clock
starts there and moves by a microsecond with each reading, and to the end of whatever is slept or
waited for. Chance is SHA-256 in counter mode over the seed. So a delivery that is handled again
learns the same again, and no component can sleep at the expense of the others.
"""

import hashlib
from typing import Final

READING_NS: Final = 1000
MONOTONIC_NS_MAX: Final = 2**63
"""Nobody sleeps longer, and 64 bits hold what comes after it."""


class Moment:
    def __init__(self, now_us: int, seed: bytes) -> None:
        self.wall_ns: Final = now_us * 1000
        self._monotonic_ns = self.wall_ns
        self._seed = seed
        self._blocks = 0

    def monotonic_ns(self) -> int:
        self._monotonic_ns += READING_NS
        return self._monotonic_ns

    def sleep_until(self, monotonic_ns: int) -> None:
        self._monotonic_ns = max(self._monotonic_ns, min(monotonic_ns, MONOTONIC_NS_MAX))

    def random(self, length: int) -> bytes:
        """The next `length` bytes. What is left of the last block is thrown away."""
        blocks: list[bytes] = []
        for _ in range(0, length, hashlib.sha256().digest_size):
            self._blocks += 1
            blocks.append(hashlib.sha256(self._seed + self._blocks.to_bytes(8, "big")).digest())
        return b"".join(blocks)[:length]
