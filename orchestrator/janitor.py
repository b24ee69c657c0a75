"""Keeps the store from growing for ever: has what is old deleted, a little at a time.

The shell around `bus/retention.py`. Between two of its transactions it rests for a multiple of the
time that the last one took, waiting for the writer included: the busier the store, the longer.

The pages that become free are used again, and the file does not shrink. With an incremental vacuum
after every ten thousand messages of a steady stream it was 22 MB instead of 23, for 3 % more that
was written and pauses of up to 5 ms.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from orchestrator.bus.retention import Clean, Cleaned, Place, clean
from orchestrator.bus.routing import BUS
from orchestrator.store.store import Store

log = logging.getLogger(__name__)

REST_FACTOR: Final = 9
"""Cleaning takes a tenth of the writer's time."""
REST_FACTOR_BEHIND: Final = 1
"""Where more grows old than a tenth of the time can delete, it takes half of it."""
BEHIND_PART: Final = 10
"""Being late by a tenth of the window is being behind."""

REST_SECONDS_MIN: Final = 0.005
REST_SECONDS_MAX: Final = 1.0
"""A disk that is stuck for a minute is no reason to rest for ten."""

SWEEP_SECONDS_MIN: Final = 60.0
"""Between two sweeps, so that many rows that grow old one by one are deleted together."""
SWEEP_SECONDS_MAX: Final = 3600.0
"""What was passed over, a conversation that was still going on, is looked at again in an hour."""


def rest_seconds(took_seconds: float, late_us: int, retention_us: int) -> float:
    """How long to rest after a transaction; `late_us` is by how much the oldest is too old."""
    factor = REST_FACTOR_BEHIND if late_us * BEHIND_PART > retention_us else REST_FACTOR
    return min(max(took_seconds * factor, REST_SECONDS_MIN), REST_SECONDS_MAX)


def sweep_seconds(oldest_us: int | None, before_us: int) -> float:
    """How long nothing is old enough; `oldest_us` is the time of the first that is not yet."""
    until_s = SWEEP_SECONDS_MAX if oldest_us is None else (oldest_us - before_us) / 1e6
    return min(max(until_s, SWEEP_SECONDS_MIN), SWEEP_SECONDS_MAX)


def place_after(place: Place, since_beginning_seconds: float) -> Place:
    """Where the next sweep begins: it goes on, or after long enough it starts over."""
    return Place() if since_beginning_seconds >= SWEEP_SECONDS_MAX else place


class Janitor:
    """`run` cleans until it is cancelled. `on_cleaned` hears of the rows deleted, by table."""

    def __init__(
        self,
        store: Store,
        retention_us: int,
        clock_us: Callable[[], int],
        on_cleaned: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._store = store
        self._retention_us = retention_us
        self._clock_us = clock_us
        self._on_cleaned = on_cleaned

    async def run(self) -> None:
        """Sweep after sweep. What one sweep passed over is seen by one an hour later."""
        loop = asyncio.get_running_loop()
        place, began_s = Place(), loop.time()
        while True:
            place, pause_s = await self.sweep(place)
            await asyncio.sleep(pause_s)
            place = place_after(place, loop.time() - began_s)
            if place == Place():
                began_s = loop.time()

    async def sweep(self, place: Place) -> tuple[Place, float]:
        """Delete all that is old from `place` on. Returns where that ended, and for how many
        seconds there is nothing more to do."""
        total: Counter[str] = Counter()
        while True:
            before_us = self._clock_us() - self._retention_us
            cleaned, took_s = await self._clean(Clean(before_us=before_us, after=place))
            place = cleaned.after
            total.update(cleaned.rows)
            if cleaned.done:
                break
            late_us = before_us - (cleaned.oldest_us or before_us)
            await asyncio.sleep(rest_seconds(took_s, late_us, self._retention_us))
        if total:
            log.info(
                "%d messages and %d conversations were older than the retention window",
                total["message"],
                total["conversation"],
            )
        return place, sweep_seconds(cleaned.oldest_us, before_us)

    async def _clean(self, arguments: Clean) -> tuple[Cleaned, float]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        cleaned = await self._store.apply_when_room(clean, BUS, arguments)
        self._on_cleaned(cleaned.rows)
        return cleaned, loop.time() - began_s
