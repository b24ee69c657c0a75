"""The routing table: who can reach whom, and how much goes there. Counted from the first message.

It is logged once all agents are up, with a warning for each topic that leads nowhere: a name that
is spelt in two ways is found before a message is missed.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from ipc_protocol.bus import Topic
from orchestrator.bus.registration import load_directory
from orchestrator.bus.topology import Declared, Lag, Use, lines, topology, warnings
from orchestrator.bus.traffic import Traffic
from orchestrator.store.changes import LAGGED, Changes
from orchestrator.store.database import Query
from orchestrator.store.reader import Reader

log = logging.getLogger(__name__)

CHANGES_MAX: Final = 4096
"""Counts not yet taken, one for each topic and class of a batch: seconds at full load. What is lost
beyond that is missing in the numbers, which are there to be looked at."""

STORED_MAX: Final = 100_000
"""The newest messages whose topics count as used: a tenth of a second to look through."""

LOOK_SECONDS: Final = 0.25
"""Between two looks whether all agents are up. Nothing is written down when a worker comes up, and
it is over after the first seconds."""

UP: Final = frozenset({"idle", "busy"})
GIVEN_UP: Final = frozenset({"quarantined"})
"""Nobody waits for one that a person has to release first."""


class Agent(Protocol):
    """The part of a driver that is looked at."""

    @property
    def state(self) -> str: ...


class RoutingTable:
    """Counts what is published, and knows the table. `run` is one task of the daemon."""

    def __init__(
        self,
        changes: Changes,
        reader: Reader,
        agents: Mapping[str, Agent],
        clock_us: Callable[[], int],
    ) -> None:
        self._changes = changes
        self._reader = reader
        self._agents = agents
        self._clock_us = clock_us
        self._traffic = Traffic(clock_us())

    async def run(self) -> None:
        """Until cancelled."""
        with self._changes.subscribe({"messages.published"}, CHANGES_MAX) as published:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._log_once_up())
                async for change in published:
                    if change.kind != LAGGED:
                        data = change.data
                        self._traffic.count(data["topic"], data["count"], change.at_us)

    @property
    def since_us(self) -> int:
        """When counting began."""
        return self._traffic.since_us

    async def table(self) -> list[Topic]:
        """The table as it is now."""
        declared, lags, stored = await self._reader.view(_read)
        use = Use(
            messages=self._traffic.messages(),
            rates=self._traffic.rates(self._clock_us()),
            lags=lags,
            stored=stored,
        )
        # With thousands of topics that are only reached by patterns this takes a while.
        return await asyncio.to_thread(topology, declared, use)

    async def _log_once_up(self) -> None:
        seen: set[str] = set()
        while True:
            states = {name: agent.state for name, agent in self._agents.items()}
            seen |= {name for name, state in states.items() if state in UP}
            if all(name in seen or state in GIVEN_UP for name, state in states.items()):
                break
            await asyncio.sleep(LOOK_SECONDS)
        table = await self.table()
        log.info(
            "%s", "\n".join(["all agents are up, and this is who reaches whom:", *lines(table)])
        )
        for warning in warnings(table):
            log.warning("%s", warning)


def _read(query: Query) -> tuple[Declared, list[Lag], frozenset[str]]:
    directory = load_directory(query)
    subscriptions: list[Any] = query.rows("SELECT agent, pattern FROM topic_subscription")
    rows = query.rows(
        "SELECT d.agent, m.topic, count(*), min(d.queued_us) FROM delivery d"
        " JOIN message m ON m.id = d.message WHERE d.finished_us IS NULL GROUP BY 1, 2"
    )
    stored = query.rows(
        "SELECT DISTINCT topic FROM (SELECT topic FROM message ORDER BY id DESC LIMIT ?)",
        (STORED_MAX,),
    )
    declared = Declared(
        members=tuple(directory.members.values()), subscriptions=tuple(subscriptions)
    )
    return declared, [Lag(*row) for row in rows], frozenset(topic for (topic,) in stored)
