"""The daemon: everything is put together here, started in order, and stopped in reverse.

Theory of operation. The control socket listens before anything is read or written, so that a
daemon whose socket is in use changes nothing; who connects early waits until the store is open, and
what is asked while agents start is taken in and waits. The store is closed last. Engines and the
zygote start side by side; drivers lease nothing before their worker is up. Every task lives in
one task group: when one of them fails for good the daemon stops, and the next start takes up what
is on disk.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Final

import uvloop

from ipc_protocol import control
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import HEALTH, METRICS
from orchestrator import assembly
from orchestrator.bus.leasing import ReleaseLeases, ResumeDue, release_leases, resume_due
from orchestrator.bus.observations import HealthEvent, report_health
from orchestrator.bus.registration import RegisterAgents, register_agents
from orchestrator.bus.routing import BUS
from orchestrator.components.upgrading import Upgrading
from orchestrator.components.versions import Keeping, in_use
from orchestrator.config.own import OwnFiles
from orchestrator.config.types import Config
from orchestrator.control.bus import BusControl
from orchestrator.control.changing import Changing
from orchestrator.control.deliveries import Deliveries
from orchestrator.control.routing_table import RoutingTable
from orchestrator.control.server import listening, serve_control
from orchestrator.control.service import Service
from orchestrator.control.views import Counts, Views
from orchestrator.driver import Driver
from orchestrator.egress_process import Egress, grants_of
from orchestrator.endpoint import Endpoint
from orchestrator.engine_life import Engine
from orchestrator.engines import EmbeddingEngine, LanguageEngine
from orchestrator.enrolment import Enrolment
from orchestrator.gateway_process import Gateway, listens
from orchestrator.intake import Intake
from orchestrator.janitor import Janitor
from orchestrator.logs import configure_logging
from orchestrator.metrics import Metrics
from orchestrator.ring_breaker import RingBreaker
from orchestrator.roster import Roster
from orchestrator.screener import Screener
from orchestrator.sockets import ListenError
from orchestrator.store.audit import first_broken
from orchestrator.store.changes import LAGGED
from orchestrator.store.database import DATABASE_FILE
from orchestrator.store.store import Store
from orchestrator.supervision.restart import releases
from orchestrator.tools.catalogue import CATALOGUE
from orchestrator.version import VERSION
from orchestrator.workers import Zygote

log = logging.getLogger(__name__)

CHANGES_MAX: Final = 65_536
"""Changes not yet followed by the daemon itself, minutes at full load."""

FOLLOWED: Final = frozenset(
    {
        "delivery.waiting",
        "delivery.parked",
        "messages.published",
        "deadletter",
        "conversations.answered",
        "attention.answered",
    }
)
"""What the daemon itself wants to know. Nothing else is made unless somebody watches."""

EXIT_FAILED: Final = 1

RESUME_SECONDS_MAX: Final = 600.0
"""A message that came since may live shorter than all before it. Times to live are hours."""

SWITCH_SECONDS: Final = 0.0005
"""How long a thread that computes keeps the interpreter while another one waits for it. The store's
writer gives it up at each statement; the 5 ms of the default would be most of a commit."""

PRIVATE_UMASK: Final = 0o077
"""What the daemon writes, its programs' files too, is its user's alone."""


def clock_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class Stopping(Exception):
    """Somebody asked the daemon to stop; ends the task group in order."""


class Daemon:
    """One running instance. Made by `run`; answers what operators ask about it."""

    def __init__(
        self,
        config: Config,
        store: Store,
        views: Views,
        metrics: Metrics,
        zygote: Zygote,
        languages: dict[str, LanguageEngine],
        embedding: EmbeddingEngine,
        drivers: Mapping[str, Driver],
        withheld: Collection[str] = (),
        egress: Egress | None = None,
    ) -> None:
        """`egress` is there if something may be dialled."""
        self._config = config
        self._store = store
        self._views = views
        self._metrics = metrics
        self._zygote = zygote
        self._languages = languages
        self._engines: list[Engine] = [*languages.values(), embedding]
        self._egress = egress
        self._endpoint = Endpoint(config, languages, embedding)
        self._drivers = drivers
        self._withheld = withheld
        self._started_us = clock_us()
        self._due = asyncio.Event()

    # -- what operators ask

    @property
    def agent_names(self) -> list[str]:
        return list(self._drivers)

    async def agents(self) -> control.Agents:
        agents = self._agent_statuses(await self._views.counts())
        return control.Agents(agents=agents, retired=sorted(self._withheld))

    async def engines(self) -> list[control.EngineSummary]:
        return list(await asyncio.gather(*(engine.summary() for engine in self._engines)))

    async def status(self) -> control.Status:
        counts = await self._views.counts()
        agents, engines = self._agent_statuses(counts), await self.engines()
        return control.Status(
            version=VERSION,
            pid=os.getpid(),
            started_us=self._started_us,
            now_us=clock_us(),
            healthy=_healthy(agents, engines),
            sandbox=self._config.daemon.sandbox,
            agents=agents,
            engines=engines,
            deliveries=counts.deliveries,
            conversations=counts.conversations,
            attention_open=counts.attention_open,
            dead_letters=counts.dead_letters,
            retired=sorted(self._withheld),
        )

    async def recall(self, agent: str, query: str, limit: int) -> list[control.OwnedMemory]:
        found = await self._drivers[agent].effects.recall(query, limit)
        return [control.OwnedMemory(agent=agent, memory=memory) for memory in found]

    def _agent_statuses(self, counts: Counts) -> list[control.AgentStatus]:
        return [
            driver.status(*counts.agents.get(name, (0, 0, 0)), counts.memories.get(name, 0))
            for name, driver in self._drivers.items()
        ]

    # -- what the gateway asks

    def gateway_handlers(self) -> Handlers:
        handlers = Handlers().add(METRICS, self._on_metrics).add(HEALTH, self._on_health)
        return self._endpoint.add_to(handlers)

    async def _on_metrics(self, _: Nothing, __: Call) -> control.Exposition:
        counts = await self._views.counts()
        metrics = self._metrics
        metrics.deliveries(counts.deliveries)
        metrics.queued(counts.queued)
        metrics.parked(counts.parked)
        metrics.conversations(counts.conversations)
        metrics.attention_open(counts.attention_open)
        states: dict[str, int] = {}
        for driver in self._drivers.values():
            states[driver.state] = states.get(driver.state, 0) + 1
        metrics.agents(states)
        store = self._store.condition
        metrics.store(log=store.log, free=store.free, reserve=store.reserve, intake=store.intake)
        metrics.sandbox([driver.layers for driver in self._drivers.values() if driver.layers])
        engines = (engine.summary() for engine in self._languages.values())
        for engine in await asyncio.gather(*engines):
            metrics.engine(engine.name, engine.status, engine.pid)
        return control.Exposition(text=await asyncio.to_thread(metrics.render))

    async def _on_health(self, _: Nothing, __: Call) -> control.Health:
        status = await self.status()
        away = [agent.name for agent in status.agents if not _is_up(agent)]
        away += [f"engine/{engine.name}" for engine in status.engines if not _answers(engine)]
        detail = f"not up: {', '.join(away)}" if away else ""
        return control.Health(healthy=status.healthy, detail=detail)

    # -- the tasks

    async def run(
        self,
        roster: Roster,
        enrolment: Enrolment,
        screener: Screener,
        intake: Intake,
        table: RoutingTable,
        listener: socket.socket,
        handlers: Handlers,
    ) -> None:
        """Until `Stopping`, or until something fails for good."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._stop_on_signal())
            tasks.create_task(self._stop_on_store_failure())
            tasks.create_task(self._report_alarms())
            tasks.create_task(self._follow_changes())
            tasks.create_task(self._resume())
            tasks.create_task(serve_control(listener, handlers))
            if self._egress is not None:
                tasks.create_task(self._egress.run())
            for engine in self._engines:
                tasks.create_task(engine.run())
            tasks.create_task(self._zygote.run())
            tasks.create_task(screener.run())
            tasks.create_task(intake.run())
            tasks.create_task(table.run())
            tasks.create_task(self._ring_breaker().run())
            tasks.create_task(self._janitor().run())
            tasks.create_task(roster.run())
            tasks.create_task(enrolment.run())
            if listens(self._config):
                gateway = Gateway(
                    self._config, self.gateway_handlers(), clock_us, self._metrics.program_restarted
                )
                tasks.create_task(gateway.run())

    def _ring_breaker(self) -> RingBreaker:
        return RingBreaker(self._store, self._store.reader("rings"), clock_us)

    def _janitor(self) -> Janitor:
        retention_us = self._config.bus.retention_us
        return Janitor(self._store, retention_us, clock_us, self._metrics.rows_deleted)

    async def _stop_on_signal(self) -> None:
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        await asked.wait()
        log.info("stopping")
        raise Stopping

    async def _stop_on_store_failure(self) -> None:
        raise await self._store.wait_failed()

    async def _report_alarms(self) -> None:
        """Note what the store says of itself."""
        while True:
            alarm = await self._store.alarms.get()
            data = {**alarm.data, "over": alarm.over}
            event = HealthEvent(kind=alarm.kind, detail=alarm.detail, data=data)
            await self._store.apply_when_room(report_health, BUS, event)

    async def _follow_changes(self) -> None:
        """Tell drivers what is urgent, let out whom a person releases, and count what happened."""
        with self._store.changes.subscribe(FOLLOWED, CHANGES_MAX) as changes:
            async for change in changes:
                match change.kind:
                    case "delivery.waiting":
                        self._urge(change.data["agent"], change.data["rank"])
                    case "delivery.parked":
                        self._due.set()
                    case "messages.published":
                        self._metrics.published(change.data["priority"], change.data["count"])
                    case "deadletter":
                        self._metrics.dead_letter(change.data["code"])
                        log.error("dead letter: %s", change.data["reason"])
                    case "conversations.answered":
                        for opened_us in change.data["opened_us"]:
                            self._metrics.conversation_answered((change.at_us - opened_us) / 1e6)
                    case "attention.answered" if change.data["delivery"] is None:
                        self._release(change.data["agent"], change.data["summary"])
                    case kind if kind == LAGGED:
                        self._due.set()
                        for agent, rank in (await self._views.most_urgent()).items():
                            self._urge(agent, rank)
                        await self._release_answered()

    def _urge(self, agent: str, rank: int) -> None:
        if agent in self._drivers:
            self._drivers[agent].urge(rank)

    def _release(self, agent: str, answer: str) -> None:
        """The answer may be about an agent that is no longer configured, and it may be no."""
        driver = self._drivers.get(agent)
        if driver is not None and releases(answer):
            driver.release()

    async def _release_answered(self) -> None:
        """Whose answer may have been among the changes that were lost."""
        answers = await self._views.quarantines()
        for name, driver in self._drivers.items():
            if driver.state == "quarantined" and (answer := answers.get(name)) is not None:
                self._release(name, answer)

    async def _resume(self) -> None:
        """Queue parked deliveries again when they are due."""
        while True:
            self._due.clear()
            resumed = await self._store.apply_when_room(resume_due, BUS, ResumeDue())
            until_s = RESUME_SECONDS_MAX
            if resumed.next_due_us is not None:
                until_s = min(until_s, max(0, resumed.next_due_us - clock_us()) / 1e6)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_s):
                    await self._due.wait()


def _healthy(agents: list[control.AgentStatus], engines: list[control.EngineSummary]) -> bool:
    return all(map(_is_up, agents)) and all(map(_answers, engines))


def _is_up(agent: control.AgentStatus) -> bool:
    return agent.state in ("idle", "busy")


def _answers(engine: control.EngineSummary) -> bool:
    """One that is up and has no status is stuck; one that nobody needs now is fine."""
    if engine.state == "unloaded":
        return True
    return engine.state == "ready" and engine.status is not None


@contextlib.asynccontextmanager
async def opened(config: Config, metrics: Metrics) -> AsyncIterator[tuple[Store, list[str]]]:
    """The store of this instance, with the agents of the configuration and no leases; and those of
    them that the operator has retired."""
    store = await Store.open(
        config.daemon.state / DATABASE_FILE, clock_us=clock_us, on_commit=metrics.committed
    )
    try:
        registrations = [assembly.registration(agent) for agent in config.agents.values()]
        own = OwnFiles(config.source, config.daemon.state)
        joining = RegisterAgents(agents=registrations, added=own.names())
        registered = await store.apply(register_agents, BUS, joining)
        released = await store.apply(release_leases, BUS, ReleaseLeases())
        if released:
            log.info("%d deliveries go on from their journals", released)
        await _check_audit(store)
        yield store, registered.withheld
    finally:
        await store.close()


async def _check_audit(store: Store) -> None:
    """Say so when somebody has changed what was done."""
    broken = await store.reader("audit").view(first_broken)
    if broken is None:
        return
    detail = f"Entry {broken} of the audit trail does not follow from the one before it."
    log.error("%s", detail)
    await store.apply_when_room(report_health, BUS, HealthEvent(kind="audit", detail=detail))


async def _run(config: Config, listener: socket.socket) -> None:
    metrics = Metrics(VERSION, CATALOGUE.names, agents_max=config.gateway.agents_max)
    async with opened(config, metrics) as (store, withheld):
        agents = [agent for name, agent in config.agents.items() if name not in withheld]
        views = Views(store.reader("control"))
        zygote = Zygote(clock_us, metrics.program_restarted)
        grants = await asyncio.to_thread(grants_of, config.models, os.environ)
        egress = Egress(grants, clock_us, metrics.program_restarted) if grants else None
        languages = assembly.language_engines(config, clock_us, metrics, egress)
        embedding = assembly.embedding_engine(config, clock_us, metrics)
        keeping = assembly.keeping(config, zygote, metrics)
        await _remove_unused_components(config, keeping, views)
        assembler = assembly.Assembler(
            config, store, zygote, languages, embedding, keeping, metrics, clock_us
        )
        screener = Screener(
            agents, config.screening.ignores, store, store.reader("screening"), embedding
        )
        roster = Roster(assembler.driver, (assembler.know, screener.know), agents)
        enrolment = Enrolment(
            config,
            roster,
            keeping,
            store=store,
            reader=store.reader("enrolment"),
            views=views,
            metrics=metrics,
        )
        await enrolment.resume(withheld)
        for name, answer in (await views.quarantines()).items():
            if answer is None and name in roster:
                roster[name].hold()
        daemon = Daemon(
            config,
            store,
            views,
            metrics,
            zygote,
            languages,
            embedding,
            roster,
            enrolment.withheld,
            egress,
        )
        intake = Intake(store, store.reader("intake"), metrics)
        service = Service(
            daemon, store, intake, views, config.conversation.time_to_live_us, clock_us
        )
        upgrading = Upgrading(roster, keeping.files, store, views)
        handlers = Changing(upgrading, enrolment).add_to(service.handlers())
        deliveries = Deliveries(store.reader("deliveries"), roster, assembler.profile)
        bus_reader = store.reader("bus")
        table = RoutingTable(store.changes, bus_reader, roster, clock_us)
        control_of_bus = BusControl(store, bus_reader, table, clock_us)
        handlers = control_of_bus.add_to(deliveries.add_to(handlers))
        await daemon.run(roster, enrolment, screener, intake, table, listener, handlers)


async def _remove_unused_components(config: Config, keeping: Keeping, views: Views) -> None:
    """Those that no version of an agent needs, and no file names."""
    used = in_use(await views.versions())
    for agent in config.agents.values():
        if agent.component is not None:
            used.add(agent.component.stem)
    removed = await asyncio.to_thread(keeping.files.remove_unused, used)
    removed += await asyncio.to_thread(keeping.cache.remove_unused, used)
    if removed:
        log.info("%d components that nobody uses were removed", len(set(removed)))


def run(config: Config) -> int:
    """Run in the foreground until SIGTERM or SIGINT. Returns the exit status."""
    configure_logging(config.daemon.log, config.daemon.log_level)
    os.umask(PRIVATE_UMASK)
    sys.setswitchinterval(SWITCH_SECONDS)
    status = 0
    try:
        config.daemon.socket.parent.mkdir(parents=True, exist_ok=True)
        with listening(config.daemon.socket) as listener:
            for warning in config.warnings:
                log.warning("%s", warning)
            _make_folders(config)
            uvloop.run(_run(config, listener))
    except* Stopping:
        pass
    except* (Failure, ListenError, OSError) as failed:
        for error in _leaves(failed):
            log.error("%s", error)
        status = EXIT_FAILED
    return status


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[BaseException]:
    """The failures themselves: those of a task group within another one come nested."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _make_folders(config: Config) -> None:
    for folder in (config.daemon.state, config.daemon.state / "work"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
