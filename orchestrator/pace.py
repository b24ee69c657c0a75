"""How many deliveries a worker is given at once. Pure.

One that takes microseconds for each is kept busy by many, so that the way back and forth costs no
throughput. One that asks a model gets one: what waits in the queue can still be overtaken.
"""

from typing import Final

import msgspec

WINDOW_SECONDS: Final = 0.02
"""Work in the hands of one worker: ten times what the way from one delivery to the next takes on a
busy machine, and no delay that anybody notices."""

WINDOW_MAX: Final = 256
"""As many as the store commits at once."""

WEIGHT: Final = 0.25
"""Of the latest batch in the mean: after five the first ones hardly count."""

BATCH_MAX: Final = 128
"""Deliveries of one frame: with half a window the worker never runs dry."""

BATCH_BYTES_MAX: Final = 1024 * 1024
"""Payloads of one frame, of the four that it may have."""

assert 2 * BATCH_MAX <= WINDOW_MAX


class Pace(msgspec.Struct, frozen=True):
    """How long deliveries have taken lately, and the window that follows from it."""

    seconds: float | None = None
    window: int = 1

    def after(self, deliveries: int, seconds: float) -> "Pace":
        """`deliveries` took `seconds` together. The window grows by steps, and shrinks at once."""
        each = seconds / max(1, deliveries)
        mean = each if self.seconds is None else self.seconds + WEIGHT * (each - self.seconds)
        fitting = WINDOW_MAX if mean <= 0 else int(WINDOW_SECONDS / mean)
        wanted = max(1, min(WINDOW_MAX, fitting))
        if wanted < self.window:
            return Pace(mean, wanted)
        grown = self.window
        while 2 * grown <= wanted:
            grown *= 2
        return Pace(mean, grown)
