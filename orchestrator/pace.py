"""How many deliveries a worker is given at once. Pure.

One that takes microseconds for each is kept busy by many, so that the way back and forth costs no
throughput. One that asks a model gets one: what waits in the queue can still be overtaken.
"""

from typing import Final

import msgspec

WINDOW_SECONDS: Final = 0.1
"""Work in the hands of one worker: what is published meanwhile is leased as it is written, and not
queued first. What is more urgent does not wait for it, since what is not begun is given back."""

WINDOW_MAX: Final = 1024
"""Four commits of the store: what is published meanwhile is leased as it is written."""

WEIGHT: Final = 0.25
"""Of the latest batch in the mean: after five the first ones hardly count."""

BATCH_MAX: Final = 256
"""Deliveries of one frame: with a quarter of the largest window the worker never runs dry."""

BATCH_BYTES_MAX: Final = 1024 * 1024
"""Payloads of one frame, of the four that it may have."""

assert 2 * BATCH_MAX <= WINDOW_MAX


class Pace(msgspec.Struct, frozen=True):
    """How long deliveries have taken lately, and the window that follows from it."""

    seconds: float | None = None
    window: int = 1

    def after(self, deliveries: int, seconds: float) -> "Pace":
        """`deliveries` took `seconds` together. The window follows where what fits is twice as much
        or half as much: what only varies does not change it."""
        each = seconds / max(1, deliveries)
        mean = each if self.seconds is None else self.seconds + WEIGHT * (each - self.seconds)
        fitting = WINDOW_MAX if mean <= 0 else int(WINDOW_SECONDS / mean)
        wanted = max(1, min(WINDOW_MAX, fitting))
        if self.window < 2 * wanted and wanted < 2 * self.window:
            return Pace(mean, self.window)
        return Pace(mean, wanted)
