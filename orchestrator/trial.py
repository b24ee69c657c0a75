"""The trial of one agent's newest version: from its handover until it is kept, or goes back.

What a version has shown so far, and what follows from it, `components.probation` decides; here that
is fed with what becomes of the agent's messages and workers, and carried out: in the database, and
to whoever operates the daemon. The driver runs whichever version comes of it.
"""

import logging
from collections.abc import Callable

import msgspec

from ipc_protocol.control import OnProbation
from orchestrator.batch import Ending
from orchestrator.bus.observations import HealthEvent, report_health
from orchestrator.bus.routing import BUS
from orchestrator.bus.versions import Version
from orchestrator.components.probation import (
    Degraded,
    Event,
    Failed,
    Handled,
    Probation,
    Refused,
    Terms,
    TimePassed,
    observe,
)
from orchestrator.components.versions import Change, ComponentVersions
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store

log = logging.getLogger(__name__)


class _Tried(msgspec.Struct):
    version: Version
    before: Version
    """What works again if this one does not do."""
    probation: Probation


class Trial:
    """Whether a version of one agent is on probation, and how it does. There may be none."""

    def __init__(
        self,
        agent: str,
        versions: ComponentVersions | None,
        *,
        store: Store,
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        self._agent = agent
        self._versions = versions
        self._store = store
        self._metrics = metrics
        self._clock_us = clock_us
        self._tried: _Tried | None = None

    # -- for reading

    @property
    def is_on(self) -> bool:
        return self._tried is not None

    @property
    def has_failed(self) -> bool:
        """The version has to go back."""
        return self._tried is not None and self._tried.probation.state == "reverted"

    @property
    def due_us(self) -> int | None:
        """When it is over if nothing happens; None where that would not end it."""
        return None if self._tried is None else self._tried.probation.due_us

    @property
    def told(self) -> OnProbation | None:
        """How far the version is."""
        if self._tried is None:
            return None
        probation = self._tried.probation
        return OnProbation(
            since_us=probation.since_us,
            handled=probation.handled,
            messages=probation.terms.messages,
            us=probation.terms.us,
        )

    # -- what happens

    async def begin(self, version: Version, before: Version, terms: Terms) -> None:
        """`version` has the messages from now on, and `before` stays at hand."""
        self._tried = _Tried(version, before, Probation(terms=terms, since_us=self._clock_us()))
        await self.time_passed()

    def drop(self) -> None:
        """Another version takes over, whatever became of this one."""
        self._tried = None

    async def time_passed(self) -> None:
        await self._observe(TimePassed())

    async def failed(self, why: str) -> None:
        """It did not start, or its worker is dead."""
        await self._observe(Failed(why))

    async def ended(self, ending: Ending) -> None:
        """A message has left the hands of its worker."""
        if ending.exceeded:
            await self._observe(Failed(ending.exceeded))
        elif ending.condition is not None:
            condition = ending.condition
            assert condition.condition != "healthy"
            await self._observe(Degraded(condition.condition, condition.detail))
        elif ending.completed:
            for _ in range(ending.completed):
                await self._observe(Handled())
        elif ending.kind == "refused" and not ending.left:
            await self._observe(Refused())

    async def _observe(self, event: Event) -> None:
        tried = self._tried
        if tried is None or tried.probation.over:
            return
        tried.probation = observe(tried.probation, event, self._clock_us())
        if tried.probation.state == "kept":
            assert self._versions is not None
            log.info("worker/%s: version %d is kept", self._agent, tried.version.number)
            await self._versions.settle(tried.version)
            self._tried = None

    async def go_back(self) -> Version:
        """The version before is the agent's again, and whoever operates it hears why."""
        tried = self._tried
        assert tried is not None and self._versions is not None
        failed, before, probation = tried.version, tried.before, tried.probation
        detail = (
            f"Version {failed.number} of {self._agent} was rolled back to that of version "
            f"{before.number}, after {probation.handled} messages: {probation.reason}"
        )
        log.error("worker/%s: %s", self._agent, detail)
        change = Change(source="rollback", by=BUS, ends="rolled-back", reason=probation.reason)
        again, _ = await self._versions.take_over(before.sha256, change)
        self._tried = None
        self._metrics.rolled_back(self._agent)
        event = HealthEvent(
            kind="rollback",
            detail=detail,
            agent=self._agent,
            data={"from": failed.number, "to": again.number, "sha256": failed.sha256},
        )
        await self._store.apply_when_room(report_health, BUS, event)
        return again
