"""One delivery as it is on record: all that it takes to repeat it somewhere else.

What the worker was handed and what it was answered are those of the delivery's present run. The
configuration is the agent's of now, which is the same unless somebody has changed it since.
"""

from collections.abc import Callable, Mapping

import msgspec

from ipc_protocol.aio import Call, Handlers
from ipc_protocol.control import DeliveryRecord, JournaledEffect, OfDelivery
from ipc_protocol.errors import Failure
from ipc_protocol.methods import DELIVERY
from ipc_protocol.work import AgentProfile, Effect, EffectResult, Handle, WorkerStart
from orchestrator.bus.journal import BEGINNING_STEP
from orchestrator.bus.leasing import handle_of
from orchestrator.bus.rows import DeliveryRow, delivery_of, unknown_delivery
from orchestrator.components.starting import component_start
from orchestrator.config.types import AgentConfig
from orchestrator.driver import Driver
from orchestrator.store.database import Query
from orchestrator.store.reader import Reader


class Deliveries:
    def __init__(
        self,
        reader: Reader,
        drivers: Mapping[str, Driver],
        profile: Callable[[AgentConfig], AgentProfile],
    ) -> None:
        self._reader = reader
        self._drivers = drivers
        self._profile = profile

    def add_to(self, handlers: Handlers) -> Handlers:
        return handlers.add(DELIVERY, self._delivery)

    async def _delivery(self, of: OfDelivery, call: Call) -> DeliveryRecord:
        """The journal goes entry by entry, since all of it may be MiBs long."""
        row, handle = await self._reader.view(_handed, of.delivery)
        start = self._start(row.agent, handle.beginning.component)
        step = BEGINNING_STEP
        while (entry := await self._reader.view(_next_entry, row, step)) is not None:
            await call.send_item(entry)
            step = entry.step
        return DeliveryRecord(agent=row.agent, state=row.state, start=start, handle=handle)

    def _start(self, agent: str, sha256: str) -> WorkerStart:
        if agent not in self._drivers:
            raise Failure(
                "agent.unknown",
                f"{agent}, which had the delivery, is not there any more.",
                "Add it again with `agentd ctl agents add`, or hand over the message yourself.",
            )
        config = self._drivers[agent].config
        if not sha256 or config.component is None:
            raise Failure(
                "component.unknown",
                f"{agent} had no component when it began with the delivery, or has none now.",
                "Only what a component did can be repeated in isolation.",
            )
        return WorkerStart(profile=self._profile(config), component=component_start(config, sha256))


def _handed(query: Query, delivery: int) -> tuple[DeliveryRow, Handle]:
    row = delivery_of(query, delivery)
    if row is None:
        raise unknown_delivery(delivery)
    handle = handle_of(query, row)
    if handle is None:
        raise Failure(
            "work.unknown-delivery",
            f"Nobody has begun to handle delivery {delivery}, so there is nothing to repeat.",
            f"It is {row.state}; wait until {row.agent} has taken it.",
        )
    return row, handle


def _next_entry(query: Query, row: DeliveryRow, after: int) -> JournaledEffect | None:
    found = query.row(
        "SELECT step, request, result FROM journal WHERE delivery = ? AND run = ? AND step > ?"
        " ORDER BY step LIMIT 1",
        (row.id, row.run, after),
    )
    if found is None:
        return None
    step, request, result = found
    return JournaledEffect(
        step=step,
        effect=msgspec.json.decode(request, type=Effect),
        result=msgspec.json.decode(result, type=EffectResult),
    )
