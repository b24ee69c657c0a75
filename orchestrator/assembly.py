"""From a configuration to the parts of a daemon: what each agent is granted, and who serves it.

The one place that knows the configuration and the parts at once. It makes things; `daemon` runs
them. Raises `Failure` for what the configuration names and this machine does not have, before
anything is started.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final

from inference_client.models import Registry
from ipc_protocol.inference import EngineStart
from ipc_protocol.work import AgentProfile, Fork
from orchestrator import prompts
from orchestrator.bus import topics
from orchestrator.bus.registration import Registration
from orchestrator.config.installed import embedding_file, model_file
from orchestrator.config.types import AgentConfig, Config
from orchestrator.driver import Driver
from orchestrator.effects import Effects
from orchestrator.engines import EmbeddingEngine, LanguageEngine
from orchestrator.lane import Lane
from orchestrator.metrics import Metrics
from orchestrator.preferences import Preferences
from orchestrator.store.store import Store
from orchestrator.tools.catalogue import CATALOGUE
from orchestrator.tools.folder import FolderLimits, WorkFolder
from orchestrator.tools.tool import Grants, ToolContext
from orchestrator.verdict import NOBODY
from orchestrator.workers import Zygote

WORKER_UID_MIN: Final = 61_184
"""The first of the user ids that systemd keeps for services without a name (61184 to 65519): no
file of the host belongs to them. Used where the daemon is root; else workers have its own id."""


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
    )


def language_engines(
    config: Config, clock_us: Callable[[], int], metrics: Metrics
) -> dict[str, LanguageEngine]:
    """An engine for each configured model. Raises `model.unknown`."""
    registry = Registry(config.models_folder)
    engines = {}
    for name, model in config.models.items():
        path = model_file(model, registry)
        start = EngineStart(
            name=name,
            path=str(path),
            slots=model.slots,
            context=model.context,
            threads=model.threads_on(os.cpu_count() or 1),
            gpu_layers=model.gpu_layers,
        )
        engines[name] = LanguageEngine(start, clock_us, metrics.program_restarted)
    return engines


def embedding_engine(
    config: Config, clock_us: Callable[[], int], metrics: Metrics
) -> EmbeddingEngine:
    file = embedding_file(config)
    start = EngineStart(name="embed", path="" if file is None else str(file))
    return EmbeddingEngine(start, clock_us, metrics.program_restarted)


def drivers(
    config: Config,
    store: Store,
    zygote: Zygote,
    languages: Mapping[str, LanguageEngine],
    embedding: EmbeddingEngine,
    metrics: Metrics,
    clock_us: Callable[[], int],
) -> dict[str, Driver]:
    """A driver for each agent, in the order of the configuration."""
    reader = store.reader("effects")
    preferences = {
        name: Preferences(engine, duties(config), metrics) for name, engine in languages.items()
    }
    made = {}
    for index, agent in enumerate(config.agents.values()):
        effects = Effects(
            agent,
            store=store,
            reader=reader,
            language=languages[agent.model],
            preferences=preferences[agent.model],
            preference_weight=config.models[agent.model].preference_weight,
            embedding=embedding,
            tools=_tools(agent, config),
            metrics=metrics,
            clock_us=clock_us,
        )
        lane = Lane(
            agent.name,
            store=store,
            effects=effects,
            embedding=embedding,
            metrics=metrics,
            clock_us=clock_us,
        )
        made[agent.name] = Driver(
            agent,
            profile(agent, config),
            prompts.load(agent.name, config.prompts),
            _fork(agent, config, index),
            lane,
            effects,
            store=store,
            zygote=zygote,
            metrics=metrics,
            clock_us=clock_us,
        )
    return made


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


def profile(agent: AgentConfig, config: Config) -> AgentProfile:
    """What the agent's own process is told about it."""
    return AgentProfile(
        name=agent.name,
        role=agent.role,
        identity=agent.identity,
        duties=agent.duties,
        delegates={name: config.agents[name].identity for name in agent.delegate},
        tools=CATALOGUE.describe(grants(agent)),
        publishes=agent.publishes,
        steps_max=agent.limits.steps,
        tokens_max=agent.limits.tokens,
        sampling=agent.sampling,
        preference_weight=config.models[agent.model].preference_weight,
    )


def _tools(agent: AgentConfig, config: Config) -> Callable[[Effects], ToolContext]:
    folder = config.daemon.state / "work" / agent.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    limits = FolderLimits(bytes_max=agent.limits.work_bytes)

    def may_publish(topic: str) -> bool:
        return any(topics.matches(pattern, topic) for pattern in agent.publishes)

    return lambda effects: ToolContext(
        grants=grants(agent),
        folder=WorkFolder(folder, limits),
        may_publish=may_publish,
        recall=effects.recall,
        unfinished_tasks=effects.unfinished_tasks,
    )


def _fork(agent: AgentConfig, config: Config, index: int) -> Callable[[int], Fork]:
    uid = WORKER_UID_MIN + index if os.geteuid() == 0 else None
    return lambda token: Fork(
        token=token,
        agent=agent.name,
        sandbox=config.daemon.sandbox,
        uid=uid,
        memory_bytes_max=agent.limits.memory_bytes,
        scratch_bytes_max=agent.limits.scratch_bytes,
    )
