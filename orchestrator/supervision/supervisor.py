"""Keeps one child alive: runs it, hears of its death, waits as the policy says, runs it again.

The shell around `restart` and `child`. What a child is, is the business of the coroutine that is
given to `run`: it starts the child, calls `ready` when the child works, and returns how it died.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ipc_protocol.errors import Failure
from orchestrator.supervision.child import EVENT_OF, ChildEvent, ChildState, advance
from orchestrator.supervision.restart import (
    Died,
    Finish,
    Quarantine,
    Ready,
    Released,
    Restart,
    RestartPolicy,
    RestartState,
    Run,
    decide,
)

log = logging.getLogger(__name__)

TOLERANT: Final = RestartPolicy(deaths_max=1_000_000)
"""For programs that everybody needs: they are started again with backoff, for ever."""

Live = Callable[[], Awaitable[Died]]
"""Live once. A `Failure` or an `OSError` is a death with that explanation."""


class Supervisor:
    """One child's place in the tree. `state`, `restarts` and `detail` are for reading."""

    def __init__(
        self,
        name: str,
        policy: RestartPolicy,
        clock_us: Callable[[], int],
        on_quarantine: Callable[[Quarantine], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.state = ChildState.STOPPED
        self.restarts = 0
        self.detail = ""
        self._policy = policy
        self._clock_us = clock_us
        self._on_quarantine = on_quarantine
        self._restart = RestartState()
        self._released = asyncio.Event()
        self._renewed = False
        """Since the last quarantine began."""
        self._held = False

    async def run(self, live: Live) -> None:
        """Until the policy says that it has ended for good."""
        if self._held:
            self._to(ChildEvent.HOLD)
            await self._wait_released()
        while True:
            self._to(ChildEvent.START)
            died = await self._live_once(live)
            self._restart, decision = decide(self._policy, self._restart, died, self._clock_us())
            assert not isinstance(decision, Run)
            self._to(EVENT_OF[type(decision)])
            match decision:
                case Restart(delay_us=delay_us):
                    self.restarts += 1
                    if delay_us:  # else somebody else ended it, and says so
                        log.info("%s starts again in %.1f s", self.name, delay_us / 1e6)
                    await asyncio.sleep(delay_us / 1e6)
                case Quarantine():
                    await self._quarantine(decision)
                case Finish():
                    return

    def ready(self, detail: str = "") -> None:
        """The child works."""
        self.detail = detail
        self._to(ChildEvent.READY)
        self._restart, _ = decide(self._policy, self._restart, Ready(), self._clock_us())

    def hold(self, detail: str) -> None:
        """Before `run`: begin in quarantine, where it was when the daemon was stopped."""
        assert self.state is ChildState.STOPPED
        self._held, self.detail = True, detail

    def release(self) -> None:
        """A person says that the reason for the quarantine is removed."""
        self._released.set()

    def renew(self) -> None:
        """Another child is to live here: what the last one was quarantined for holds no more, even
        while that is still written down."""
        self._renewed = True
        self._released.set()

    async def _live_once(self, live: Live) -> Died:
        try:
            return await live()
        except (Failure, OSError) as error:
            self.detail = str(error)
            log.warning("%s failed: %s", self.name, error)
            return Died()

    async def _quarantine(self, quarantine: Quarantine) -> None:
        log.error("%s died %d times and is quarantined", self.name, quarantine.deaths)
        self._renewed = False
        if self._on_quarantine is not None:
            await self._on_quarantine(quarantine)
        if not self._renewed:
            # Only now there is a question, so nobody can have answered it yet.
            self._released.clear()
        await self._wait_released()

    async def _wait_released(self) -> None:
        await self._released.wait()
        self._restart, _ = decide(self._policy, self._restart, Released(), self._clock_us())

    def _to(self, event: ChildEvent) -> None:
        self.state = advance(self.state, event)
