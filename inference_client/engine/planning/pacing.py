"""What a step costs, learned from the steps: the budgets of prefill, the width of the device, and
whether it is cheaper to move a sequence or to compute it again.

The model is small, so that a few steps settle it: the time of a step that only decodes, by the
number of its sequences in powers of two, and what each token of prefill adds. Each is a moving
mean. An observation counts at most as `SURPRISE_MAX` times what was expected, so that one stall of
the machine changes little and a real change is followed within some ten steps.

Pure: times are given to it.
"""

from typing import Final

WEIGHT: Final = 0.2
"""Of a new observation: ten steps forget nine tenths of what was known."""

SURPRISE_MAX: Final = 4.0
"""An observation is cut to a fourth and to four times of what was expected."""

PRIOR_DECODE_US: Final = 10_000.0
"""A step that decodes one sequence, before any was measured: between a processor core and a GPU."""

PRIOR_PREFILL_US: Final = 4_000.0
"""A token of prefill, before any was measured: that of a processor core, so that the first chunk is
rather too small than too large."""

PRIOR_SWAP_US: Final = 0.00025
"""A byte moved to or from host memory, before any was measured: 4 GB/s."""

PREFILL_OBSERVED_MIN: Final = 4
"""A step with fewer tokens of prefill says little about their cost, only what it is at most."""

WIDTH_SLOWDOWN: Final = 1.5
"""A step that decodes several sequences takes at most this many times as long as one with a single
sequence, for them to count as decoded at about the speed of one."""

CHUNK_UNIT: Final = 8
"""Larger chunks are multiples of it, so that the backend meets few different batch shapes."""


class Pacing:
    """Moving means of measured times, in microseconds."""

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}
        self._prefill: float | None = None
        self._swap: float | None = None

    def observe(self, decodes: int, prefill: int, elapsed_us: int) -> None:
        """A step with so many decoded sequences and tokens of prefill took so long."""
        if not prefill and decodes:
            bucket = _bucket(decodes)
            self._decode[bucket] = _moved(self._decode.get(bucket), elapsed_us)
        elif prefill >= PREFILL_OBSERVED_MIN:
            rest = elapsed_us - (self.decode_us(decodes) if decodes else 0.0)
            self._prefill = _moved(self._prefill, max(rest, 0.0) / prefill)
        elif prefill and self._prefill is not None and elapsed_us / prefill < self._prefill:
            self._prefill = _moved(self._prefill, elapsed_us / prefill)

    def observe_swap(self, size: int, elapsed_us: int) -> None:
        """So many bytes were moved to or from host memory."""
        self._swap = _moved(self._swap, elapsed_us / max(size, 1))

    @property
    def measured(self) -> bool:
        """Whether anything was seen of both kinds of work, so that estimates mean something."""
        return self._prefill is not None and bool(self._decode)

    @property
    def prefill_us(self) -> float:
        """What one token of prefill adds to a step."""
        return PRIOR_PREFILL_US if self._prefill is None else max(self._prefill, 0.01)

    def decode_us(self, sequences: int) -> float:
        """How long a step takes that decodes so many sequences.

        Between measured numbers by interpolation; below the least of them like that one; above the
        largest in proportion, which is the worst it can be. No step is taken to be slower than one
        with more sequences: what was measured of it is out of date.
        """
        if not self._decode:
            return PRIOR_DECODE_US
        bucket = _bucket(sequences)
        below = max((known for known in self._decode if known <= bucket), default=None)
        above = min((known for known in self._decode if known >= bucket), default=None)
        if below is None:
            return self._at_most(bucket)
        if above is None:
            return self._decode[below] * bucket / below
        low, high = self._at_most(below), self._at_most(above)
        return low + (high - low) * (bucket - below) / max(above - below, 1)

    def _at_most(self, bucket: int) -> float:
        """What was measured of so many sequences, or of more if those were faster."""
        return min(took for known, took in self._decode.items() if known >= bucket)

    def swap_us(self, size: int) -> float:
        """How long moving so many bytes in one direction takes."""
        return size * (PRIOR_SWAP_US if self._swap is None else self._swap)

    def width(self, prior: int) -> int:
        """How many sequences are decoded at about the speed of one.

        `prior` until a step with one sequence and one with several were measured. Beyond what was
        measured it is as wide as that, if all of that is fast.
        """
        single = self._decode.get(1)
        several = [known for known in self._decode if known > 1]
        if single is None or not several:
            return prior
        fast = [known for known in several if self._decode[known] <= WIDTH_SLOWDOWN * single]
        if len(fast) == len(several):
            return max(prior, *fast)
        return max(fast, default=1)

    def chunk(self, limit_us: float, decodes: int, tokens_min: int, tokens_max: int) -> int:
        """Tokens of prefill that fit into a step of `limit_us` beside so many decodes."""
        rest = limit_us - (self.decode_us(decodes) if decodes else 0.0)
        tokens = int(rest / self.prefill_us)
        if tokens >= CHUNK_UNIT:
            tokens -= tokens % CHUNK_UNIT
        return min(max(tokens, tokens_min), tokens_max)


def _bucket(sequences: int) -> int:
    """The power of two that is not less."""
    return 1 << max(sequences - 1, 0).bit_length()


def _moved(before: float | None, observed: float) -> float:
    if before is None:
        return observed
    observed = min(max(observed, before / SURPRISE_MAX), before * SURPRISE_MAX)
    return before + WEIGHT * (observed - before)
