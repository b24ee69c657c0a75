"""A real store in a temporary folder with agents on its bus, and a clock that moves when told."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipc_protocol.values import Receipt
from ipc_protocol.work import Completion, Outgoing, Setting
from orchestrator.bus.completion import Complete, Completed, complete
from orchestrator.bus.handing import Leased
from orchestrator.bus.leasing import Grant, grant
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store
from tests.leasing import lease_one

OPSCLAW = Registration(
    name="opsclaw",
    consumes=["user.request", "ops.>"],
    publishes=["user.reply", "ops.report"],
    delegates=["devclaw"],
    inbox=3,
    priority="high",
)
DEVCLAW = Registration(
    name="devclaw", consumes=["user.request", "dev.*"], publishes=["user.reply"], inbox=3
)
CONDUCTOR = Registration(name="conductor", role="conductor", publishes=["user.reply"])


SETTING = Setting(loop=1, prompts={"triage": "Is it yours?"})


class Bus:
    """The bus as its drivers use it, with the arguments that a test does not care about."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_us = 1_800_000_000_000_000
        self.store: Store
        self.reader: Reader

    async def open(self) -> None:
        self.store = await Store.open(self.path, clock_us=lambda: self.now_us)
        self.reader = self.store.reader("test")

    async def register(self, *agents: Registration) -> None:
        await self.store.apply(register_agents, BUS, RegisterAgents(agents=list(agents)))

    async def ask(
        self, text: str = "disk full", topic: str = "user.request", **more: object
    ) -> Receipt:
        given = {"correlation": "c1", "screened": True, "asked": True, **more}
        message = Publish(topic=topic, payloads=[text.encode()], **given)  # type: ignore[arg-type]
        accepted = await self.store.apply(publish, OPERATOR, message)
        return accepted.receipt

    async def grant(self, agent: str, incarnation: str, window: int) -> None:
        wanted = Grant(agent=agent, incarnation=incarnation, window=window, setting=SETTING)
        await self.store.apply(grant, BUS, wanted)

    async def lease(
        self, agent: str, incarnation: str = "w1", setting: Setting = SETTING
    ) -> Leased | None:
        return await lease_one(self.store, agent, incarnation, setting)

    async def leased(self, agent: str, incarnation: str = "w1") -> int:
        lease = await self.lease(agent, incarnation)
        assert lease is not None
        return lease.handle.delivery

    async def complete(
        self,
        agent: str,
        delivery: int,
        *outputs: tuple[str, str] | Outgoing,
        outcome: str = "acted",
        incarnation: str = "w1",
        **more: object,
    ) -> Completed:
        completion = Completion(
            outcome=outcome,  # type: ignore[arg-type]
            reason="as told",
            outputs=[
                each
                if isinstance(each, Outgoing)
                else Outgoing(topic=each[0], payload=each[1].encode())
                for each in outputs
            ],
            **more,  # type: ignore[arg-type]
        )
        arguments = Complete(
            delivery=delivery, incarnation=incarnation, completion=completion, screened=True
        )
        return await self.store.apply(complete, agent, arguments)

    async def do_next(
        self, agent: str, *outputs: tuple[str, str] | Outgoing, **more: object
    ) -> Completed:
        return await self.complete(agent, await self.leased(agent), *outputs, **more)  # type: ignore[arg-type]

    async def value(self, sql: str, *bindings: object) -> object:
        rows = await self.reader.fetch(sql, bindings)  # type: ignore[arg-type]
        return rows[0][0] if rows else None

    async def state(self, correlation: str = "c1") -> object:
        return await self.value("SELECT state FROM conversation WHERE correlation = ?", correlation)


@pytest.fixture
async def empty_bus(tmp_path: Path) -> AsyncIterator[Bus]:
    bus = Bus(tmp_path / "agentd.db")
    await bus.open()
    yield bus
    await bus.store.close()


@pytest.fixture
async def bus(empty_bus: Bus) -> Bus:
    await empty_bus.register(OPSCLAW, DEVCLAW, CONDUCTOR)
    return empty_bus
