"""Leasing one delivery, for tests that play the worker."""

from ipc_protocol.work import Setting
from orchestrator.bus.handing import Leased
from orchestrator.bus.leasing import Grant, grant
from orchestrator.bus.routing import BUS
from orchestrator.store.store import Store

LOOP = Setting(loop=1)


async def lease_one(
    store: Store, agent: str, incarnation: str = "w", setting: Setting = LOOP
) -> Leased | None:
    """The next delivery, for a worker that takes this one and then no more."""
    handed: list[Leased] = []
    with store.receiving(incarnation, handed.append):
        for window in (1, 0):
            wanted = Grant(agent=agent, incarnation=incarnation, window=window, setting=setting)
            await store.apply(grant, BUS, wanted)
    return handed[0] if handed else None
