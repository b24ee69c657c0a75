"""An agent's desk: real effects over a real store, for a worker that the test plays."""

from pathlib import Path
from typing import Any

from ipc_protocol.inference import EngineStart
from ipc_protocol.work import Effect, EffectRequest, EffectResult, Evidence, Setting
from orchestrator.bus.handing import Leased
from orchestrator.bus.leasing import Grant, ReleaseLeases, grant, release_leases
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.config.types import AgentConfig, LimitsConfig
from orchestrator.effects import Attempt, Effects
from orchestrator.engines import EmbeddingEngine, LanguageEngine
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store
from orchestrator.tools.folder import FolderLimits, WorkFolder
from orchestrator.tools.tool import Grants, ToolContext

AGENT = "gate"


class Desk:
    """A delivery in the hands of a worker that the test plays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_us = 1_800_000_000_000_000
        self.incarnations = 0

    def clock_us(self) -> int:
        self.now_us += 1
        return self.now_us

    async def open(self) -> None:
        self.store = await Store.open(self.folder / "agentd.db", clock_us=self.clock_us)
        self.reader = self.store.reader("test")
        agents = [Registration(name=AGENT, consumes=["ops.>"], publishes=["user.reply"])]
        await self.store.apply(register_agents, BUS, RegisterAgents(agents=agents))

    async def ask(self) -> None:
        question = Publish(topic="ops.disk", payloads=[b"x"], correlation="c1", screened=True)
        await self.store.apply(publish, OPERATOR, question)

    def effects(
        self,
        *imports: Any,
        component: bool = True,
        tools: tuple[str, ...] = (),
        steps: int = 1,
        language: LanguageEngine | None = None,
    ) -> Effects:
        """As the agent has them with these grants. Its work folder is `work`."""
        work = self.folder / "work"
        work.mkdir(exist_ok=True)

        async def nothing(*_: object) -> list[Any]:
            return []

        config = AgentConfig(
            name=AGENT,
            component=Path("gate.wasm") if component else None,
            imports=list(imports),
            limits=LimitsConfig(steps=steps, tokens=64, weight=3, requests=2),
        )
        return Effects(
            config,
            store=self.store,
            reader=self.reader,
            language=language,
            preferences=None,
            preference_weight=1.0,
            embedding=EmbeddingEngine(
                EngineStart(name="embed", path=""), self.clock_us, lambda name: None
            ),
            tools=lambda effects: ToolContext(
                Grants(agent=AGENT, tools=tools),
                WorkFolder(work, FolderLimits()),
                lambda topic: False,
                nothing,
                nothing,
                effects.calls_in_flight,
            ),
            metrics=Metrics("0", ()),
            clock_us=self.clock_us,
        )

    async def attempt(self, evidence: Evidence | None = None) -> Attempt:
        """The next attempt at the delivery, by a worker of its own."""
        before = f"w{self.incarnations}" if self.incarnations else None
        await self.store.apply(release_leases, BUS, ReleaseLeases(incarnation=before))
        self.incarnations += 1
        incarnation = f"w{self.incarnations}"
        handed: list[Leased] = []
        with self.store.receiving(incarnation, handed.append):
            credit = Grant(agent=AGENT, incarnation=incarnation, window=1, setting=Setting(loop=1))
            await self.store.apply(grant, BUS, credit)
        (leased,) = handed
        return Attempt(
            delivery=leased.delivery.delivery,
            incarnation=incarnation,
            priority="normal",
            message="x",
            evidence=evidence,
            spent=leased.spent,
        )


async def ask(effects: Effects, attempt: Attempt, effect: Effect) -> EffectResult:
    request = EffectRequest(delivery=attempt.delivery, step=attempt.steps + 1, effect=effect)
    return await effects.perform(attempt, request)
