"""From a configuration to the parts of a daemon: what each agent is granted, and who serves it.

The one place that knows the configuration and the parts at once. It makes things; `daemon` runs
them. Raises `Failure` for what the configuration names and this machine does not have, before
anything is started.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from inference_client.models import Registry
from ipc_protocol.aio import Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart
from ipc_protocol.methods import WORK_EFFECT
from ipc_protocol.work import AgentProfile, Fork
from orchestrator import prompts
from orchestrator.bus import topics
from orchestrator.bus.registration import Registration
from orchestrator.components.cache import NativeCache
from orchestrator.components.compiling import CompileLimits, Compiler, Confinement
from orchestrator.components.files import ComponentFiles
from orchestrator.components.versions import ComponentVersions, Keeping
from orchestrator.config.installed import embedding_file, model_file
from orchestrator.config.types import EMBEDDING_NAME, AgentConfig, Config, ModelConfig
from orchestrator.driver import Driver
from orchestrator.effects import Effects
from orchestrator.egress_process import Egress
from orchestrator.engines import EmbeddingEngine, LanguageEngine, RemoteEngine
from orchestrator.incarnations import Incarnations
from orchestrator.lane import Lane
from orchestrator.metrics import Metrics
from orchestrator.model_memory import ModelMemory, may_have_devices
from orchestrator.preferences import Preferences
from orchestrator.store.store import Store
from orchestrator.tools.attention import ATTENTION_REQUEST
from orchestrator.tools.catalogue import CATALOGUE
from orchestrator.tools.folder import FolderLimits, WorkFolder
from orchestrator.tools.tool import Grants, ToolContext
from orchestrator.verdict import NOBODY
from orchestrator.workers import WORKER_UID_MIN, Zygote, worker_uid

WORKERS_MAX: Final = 4096
"""Agents at once: as many of these user ids as they may take, with all others left over."""

COMPILER_NUMBER: Final = WORKERS_MAX
"""Compilers share the id behind those of all workers."""

assert WORKER_UID_MIN + COMPILER_NUMBER <= 65_519

COMPONENTS_FOLDER: Final = "components"
"""Within the state folder."""


def registration(agent: AgentConfig) -> Registration:
    """The agent as the bus knows it."""
    return Registration(
        name=agent.name,
        role=agent.role,
        consumes=agent.consumes,
        publishes=agent.publishes,
        delegates=agent.delegate,
        inbox=agent.limits.inbox,
        priority=agent.priority,
        screened=agent.screened,
        state_max=agent.limits.state_bytes if "state" in agent.imports else 0,
    )


def language_engines(
    config: Config,
    clock_us: Callable[[], int],
    metrics: Metrics,
    egress: Egress | None,
) -> dict[str, LanguageEngine]:
    """An engine for each configured model. `egress` is there if one of them is remote. Those that
    agents need are loaded from the start, as far as there is room. Raises `model.unknown`."""
    registry = Registry(config.models_folder)
    memory = ModelMemory(config.inference.memory_bytes, devices=may_have_devices())
    needed = {agent.model for agent in config.agents.values() if agent.needs_model}
    engines: dict[str, LanguageEngine] = {}
    for name, model in config.models.items():
        if model.is_remote:
            if egress is None:
                raise Failure(
                    "model.unavailable",
                    f"The model {name} is remote, and nothing may be dialled here.",
                    "Ask a running daemon.",
                )
            engines[name] = RemoteEngine(
                EngineStart(name=name, slots=model.slots, remote_model=model.remote_model or name),
                clock_us,
                metrics.program_restarted,
                residence=memory.residence(name, pinned=True),  # and it takes no memory
                handlers=egress.dialling(name),
            )
            continue
        engines[name] = LanguageEngine(
            _engine_start(name, model, model_file(model, registry)),
            clock_us,
            metrics.program_restarted,
            residence=memory.residence(name, pinned=model.pin, wished=name in needed),
        )
    return engines


def _engine_start(name: str, model: ModelConfig, path: Path) -> EngineStart:
    return EngineStart(
        name=name,
        path=str(path),
        slots=model.slots,
        context=model.context,
        threads=model.threads_on(len(os.sched_getaffinity(0))),
        gpu_layers=model.offloaded_layers,
        devices=model.devices,
        kv_type=model.kv_type,
        kv_layout=model.kv_layout,
        flash_attention=model.flash_attention,
        swap_bytes=model.swap_bytes,
    )


def embedding_engine(
    config: Config, clock_us: Callable[[], int], metrics: Metrics
) -> EmbeddingEngine:
    file = embedding_file(config)
    start = EngineStart(name=EMBEDDING_NAME, path="" if file is None else str(file))
    return EmbeddingEngine(start, clock_us, metrics.program_restarted)


def keeping(config: Config, zygote: Zygote, metrics: Metrics) -> Keeping:
    """Where the components of agents are kept and compiled, below the state folder."""
    folder = config.daemon.state / COMPONENTS_FOLDER
    files = ComponentFiles(folder)
    cache = NativeCache(folder, metrics.cache_refused)
    compiler = Compiler(
        zygote,
        files,
        cache,
        Confinement(sandbox=config.daemon.sandbox, uid=worker_uid(COMPILER_NUMBER)),
        metrics.compiled,
        CompileLimits.of(config.components),
    )
    return Keeping(files, cache, compiler)


class Assembler:
    """Makes the driver of an agent, at the start or later."""

    def __init__(
        self,
        config: Config,
        store: Store,
        zygote: Zygote,
        languages: Mapping[str, LanguageEngine],
        embedding: EmbeddingEngine,
        keeping: Keeping,
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._zygote = zygote
        self._languages = languages
        self._embedding = embedding
        self._keeping = keeping
        self._metrics = metrics
        self._clock_us = clock_us
        self._reader = store.reader("effects")
        self._agents = config.agents
        self._preferences = {
            name: Preferences(engine, duties(config), metrics) for name, engine in languages.items()
        }

    def know(self, agents: Mapping[str, AgentConfig]) -> None:
        """These are the agents from now on: whose duties are asked about, and who may be delegated
        to by workers that start later."""
        self._agents = dict(agents)
        joined = msgspec.structs.replace(self._config, agents=self._agents)
        for preferences in self._preferences.values():
            preferences.know(duties(joined))

    def profile(self, agent: AgentConfig) -> AgentProfile:
        """What the agent's own process is told about it now."""
        return profile(agent, self._config, self._agents)

    def driver(self, agent: AgentConfig, number: int) -> Driver:
        """The driver of one agent. `number` is that of no other agent: it makes a user id."""
        config, store, metrics, clock_us = self._config, self._store, self._metrics, self._clock_us
        needs_model = agent.needs_model
        effects = Effects(
            agent,
            store=store,
            reader=self._reader,
            language=self._languages[agent.model] if needs_model else None,
            preferences=self._preferences[agent.model] if needs_model else None,
            preference_weight=preference_weight(agent, config),
            embedding=self._embedding,
            tools=_tools(agent, config),
            metrics=metrics,
            clock_us=clock_us,
        )
        lane = Lane(
            agent.name,
            store=store,
            effects=effects,
            embedding=self._embedding,
            metrics=metrics,
            clock_us=clock_us,
        )
        versions = None
        if agent.component is not None:
            versions = ComponentVersions(agent, self._keeping, store, self._reader)
        incarnations = Incarnations(
            agent.name,
            _fork(agent, config, number),
            lambda: self.profile(agent),
            agent.echoes_on,
            versions,
            Handlers().add(WORK_EFFECT, lane.on_effect),
            store=store,
            zygote=self._zygote,
            metrics=metrics,
            clock_us=clock_us,
        )
        return Driver(
            agent,
            prompts.load(agent.name, config.prompts),
            lane,
            effects,
            incarnations,
            versions,
            store=store,
            metrics=metrics,
            clock_us=clock_us,
        )


def preference_weight(agent: AgentConfig, config: Config) -> float:
    """What its model's preference counts; nothing, where it has none that can be asked for it."""
    if not agent.needs_model or config.models[agent.model].is_remote:
        return 0.0
    return config.models[agent.model].preference_weight


def duties(config: Config) -> dict[str, list[str]]:
    """Each owner's list of duties; nobody is an owner too."""
    owned = {agent.name: agent.duties for agent in config.agents.values() if agent.duties}
    return {**owned, NOBODY: config.screening.ignores}


def grants(agent: AgentConfig) -> Grants:
    """What its tools may reach."""
    return Grants(
        agent=agent.name,
        tools=tuple(agent.tools),
        publishes=tuple(agent.publishes),
        delegates=tuple(agent.delegate),
        host_read=tuple(agent.host_read),
    )


def reach(agent: AgentConfig) -> Grants:
    """What its tool calls may reach: its tools, and what its component is granted that is one."""
    granted = grants(agent)
    if "attention" not in agent.imports or ATTENTION_REQUEST.name in granted.tools:
        return granted
    return msgspec.structs.replace(granted, tools=(*granted.tools, ATTENTION_REQUEST.name))


def profile(agent: AgentConfig, config: Config, agents: Mapping[str, AgentConfig]) -> AgentProfile:
    """What the agent's own process is told about it. `agents` are those there are now."""
    return AgentProfile(
        name=agent.name,
        role=agent.role,
        identity=agent.identity,
        duties=agent.duties,
        delegates={name: agents[name].identity for name in agent.delegate if name in agents},
        tools=CATALOGUE.describe(grants(agent)),
        publishes=agent.publishes,
        steps_max=agent.limits.steps,
        tokens_max=agent.limits.tokens,
        sampling=agent.sampling,
        preference_weight=preference_weight(agent, config),
    )


def _tools(agent: AgentConfig, config: Config) -> Callable[[Effects], ToolContext]:
    folder = config.daemon.state / "work" / agent.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    limits = FolderLimits(bytes_max=agent.limits.work_bytes)

    def may_publish(topic: str) -> bool:
        return any(topics.matches(pattern, topic) for pattern in agent.publishes)

    return lambda effects: ToolContext(
        grants=reach(agent),
        folder=WorkFolder(folder, limits),
        may_publish=may_publish,
        recall=effects.recall,
        unfinished_tasks=effects.unfinished_tasks,
        calls_in_flight=effects.calls_in_flight,
    )


def _fork(agent: AgentConfig, config: Config, number: int) -> Callable[[int], Fork]:
    uid = worker_uid(number)
    return lambda token: Fork(
        token=token,
        agent=agent.name,
        sandbox=config.daemon.sandbox,
        uid=uid,
        memory_bytes_max=agent.limits.memory_bytes,
        scratch_bytes_max=agent.limits.scratch_bytes,
    )
