"""Looks for agents that wait for room with each other, and breaks what can never move again.

The shell around `bus/rings.py`. It sleeps until a delivery is parked by backpressure, looks at the
inboxes twice a second as long as one is, on a connection of its own, and then sleeps again.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from ipc_protocol.errors import Failure
from orchestrator.bus.breaking import break_ring, held_up
from orchestrator.bus.limits import BACKPRESSURE_RETRY_US
from orchestrator.bus.rings import Watch
from orchestrator.bus.routing import BUS
from orchestrator.store.changes import LAGGED
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
"""Between two looks: twice for each retry, so that a parked delivery is seen parked in between."""

UNREAD_CHANGES_MAX: Final = 1
"""One says as much as many: look."""

assert 2 * LOOK_SECONDS * 1e6 <= BACKPRESSURE_RETRY_US


class RingBreaker:
    """`run` finds rings and breaks them."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        clock_us: Callable[[], int],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store = store
        self._reader = reader
        self._clock_us = clock_us
        self._look_seconds = look_seconds
        self._watch = Watch()

    async def run(self) -> None:
        """Until cancelled."""
        changes = self._store.changes.subscribe({"delivery.parked"}, UNREAD_CHANGES_MAX)
        with changes:
            await self._look_while_needed()
            async for change in changes:
                if change.kind == LAGGED or change.data["reason"] == "backpressure":
                    await self._look_while_needed()

    async def _look_while_needed(self) -> None:
        while True:
            if not await self.look():
                return
            await asyncio.sleep(self._look_seconds)

    async def look(self) -> bool:
        """Look once, and break a ring that is there for certain. False if nobody is held up."""
        try:
            held = await self._reader.view(held_up, self._watch.agents)
        except Failure as failure:
            if failure.code != "store.slow-reader":
                raise
            return True  # The log has to be made small first: look again.
        if not held:
            return False
        ring = self._watch.look(held, self._clock_us())
        if ring is not None:
            broken = await self._store.apply_when_room(break_ring, BUS, ring)
            if broken is not None:
                log.error("%s", broken.detail)
        return True
