"""A daemon's insides with real workers that run real components, without its socket and engines."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import wasmtime

from ipc_protocol import control
from ipc_protocol.inference import EngineStart
from orchestrator import assembly
from orchestrator.bus.leasing import ReleaseLeases, release_leases
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.components.upgrading import Upgrading
from orchestrator.config.types import AgentConfig, Config, DaemonConfig, LimitsConfig
from orchestrator.control.views import Views
from orchestrator.daemon import Daemon, _remove_unused_components
from orchestrator.engines import EmbeddingEngine
from orchestrator.enrolment import Enrolment
from orchestrator.metrics import Metrics
from orchestrator.roster import Roster
from orchestrator.store.store import Store
from orchestrator.workers import Zygote

SECONDS_MAX: Final = 60.0
AGENT: Final = "sensor"
SINK: Final = "sink"


def clock_us() -> int:
    return time.time_ns() // 1000


class Bench:
    """Agents that answer what comes on `in.>` on `out.echo`, to a sink that nobody drives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        (self.state / "work").mkdir(exist_ok=True)
        self.told: list[control.AgentChange] = []
        self._heard = asyncio.Event()
        self._published = 0

    def wasm(self, text: str, name: str = "a") -> Path:
        """A component as a file of somebody's."""
        path = self.folder / f"{name}.wasm"
        path.write_bytes(wasmtime.wat2wasm(text))
        return path

    def agent(self, text: str, **keys: Any) -> AgentConfig:
        return AgentConfig(
            **{
                "name": AGENT,
                "identity": "x",
                "component": self.wasm(text, keys.get("name", AGENT)),
                "component_config": b"out.echo",
                "consumes": ["in.>"],
                "publishes": ["out.>"],
                "limits": LimitsConfig(inbox=100_000),
                **keys,
            }
        )

    async def start(self, *agents: AgentConfig, hold: Sequence[str] = ()) -> None:
        self.config = Config(
            source=self.folder / "agentd.toml",
            prompts=self.folder / "prompts",
            daemon=DaemonConfig(state=self.state),
            models={},
            agents={agent.name: agent for agent in agents},
        )
        self.metrics = Metrics("0", ())
        self.store = await Store.open(self.state / "agentd.db", clock_us=clock_us)
        self.views = Views(self.store.reader("control"))
        self.zygote = Zygote(clock_us, lambda name: None)
        embedding = EmbeddingEngine(EngineStart(name="embed", path=""), clock_us, lambda name: None)
        keeping = assembly.keeping(self.config, self.zygote, self.metrics)
        await _remove_unused_components(self.config, keeping, self.views)
        assembler = assembly.Assembler(
            self.config, self.store, self.zygote, {}, embedding, keeping, self.metrics, clock_us
        )
        registrations = [assembly.registration(agent) for agent in agents]
        sink = Registration(name=SINK, consumes=["out.>"], inbox=100_000, screened=False)
        registered = await self.store.apply(
            register_agents, BUS, RegisterAgents(agents=[*registrations, sink])
        )
        await self.store.apply(release_leases, BUS, ReleaseLeases())
        here = [agent for agent in agents if agent.name not in registered.withheld]
        self.roster = Roster(assembler.driver, (assembler.know,), here)
        for name in hold:
            self.roster[name].hold()
        self.enrolment = Enrolment(
            self.config,
            self.roster,
            keeping,
            store=self.store,
            reader=self.store.reader("enrolment"),
            views=self.views,
            metrics=self.metrics,
        )
        await self.enrolment.resume(registered.withheld)
        self.files = keeping.files
        self.upgrading = Upgrading(self.roster, keeping.files, self.store, self.views)
        daemon = Daemon(
            self.config,
            self.store,
            self.views,
            self.metrics,
            self.zygote,
            {},
            cast(Any, embedding),
            self.roster,
        )
        self._tasks = [
            asyncio.create_task(each)
            for each in (
                daemon._follow_changes(),
                daemon._resume(),
                self.zygote.run(),
                self.roster.run(),
                self.enrolment.run(),
            )
        ]

    async def stop(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.close()

    # -- what operators do

    async def report(self, change: control.AgentChange) -> None:
        self.told.append(change)
        self._heard.set()

    async def until_told(self, stage: str) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            while not any(change.stage == stage for change in self.told):
                self._heard.clear()
                await self._heard.wait()

    async def upload(self, text: str) -> str:
        file = await asyncio.to_thread(self.files.add, self.wasm(text, "upload"))
        return file.sha256

    async def upgrade(self, text: str, messages: int = 0, us: int = 0) -> control.AgentUpgraded:
        sha256 = await self.upload(text)
        asked = control.UpgradeAgent(agent=AGENT, sha256=sha256, messages=messages, us=us)
        return await self.upgrading.upgrade(asked, self.report)

    async def rollback(self, to: int | None = None) -> control.AgentUpgraded:
        asked = control.RollBackAgent(agent=AGENT, to=to)
        return await self.upgrading.rollback(asked, self.report)

    async def publish(self, count: int = 1, topic: str = "in.x") -> None:
        for _ in range(count):
            self._published += 1
            await self.store.apply(
                publish,
                OPERATOR,
                Publish(
                    topic=topic,
                    payloads=[str(self._published).encode()],
                    correlation=f"c{self._published}",
                ),
            )

    # -- what came of it

    @property
    def expected(self) -> list[str]:
        return [str(number + 1) for number in range(self._published)]

    async def echoed(self) -> list[str]:
        """The payloads that came out, in order."""
        rows = await self.rows("SELECT payload FROM message WHERE topic = 'out.echo'")
        return sorted((row[0].decode() for row in rows), key=int)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        reader = self.store.reader("rows")
        return list(await reader.fetch(sql))

    async def history(self) -> list[tuple[int, str, str]]:
        """Number, state and source of each version, the oldest first."""
        told = await self.upgrading.history(AGENT)
        return [(each.number, each.state, each.source) for each in reversed(told.versions)]

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                if await condition():
                    return
                await asyncio.sleep(0.02)

    async def until_finished(self, name: str = AGENT) -> None:
        async def finished() -> bool:
            return (await self.views.undone(name)).pending == 0

        await self.until(finished)

    async def until_state(self, state: str, name: str = AGENT) -> control.AgentStatus:
        async def reached() -> bool:
            return self.roster[name].state == state

        await self.until(reached)
        return self.roster[name].status(0, 0, 0, 0)
