"""What no single value can be blamed for: names that must exist elsewhere, topics nobody hears.

`check` adds to the findings. Problems keep the daemon from starting; a warning is something that
works as it is written and is probably not what was meant.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from ipc_protocol.inference import Sampling
from ipc_protocol.limits import ECHO_TOPICS_MAX
from orchestrator import prompts
from orchestrator.bus import topics
from orchestrator.config.inference_checks import check_inference
from orchestrator.config.own import OwnFiles
from orchestrator.config.positions import KeyPath
from orchestrator.config.problems import did_you_mean, one_of
from orchestrator.config.reader import Findings, Place
from orchestrator.config.types import (
    HOST_REPORTS,
    AgentConfig,
    Config,
    LimitsConfig,
    keys_of,
)
from orchestrator.config.units import render_size
from orchestrator.config.value_checks import (
    check_list,
    check_listen,
    check_name,
    check_socket_path,
)
from orchestrator.config.wording import quoted

SAMPLING_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0.0, 5.0),
    "top_k": (0, 1_000_000),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.1, 10.0),
    "seed": (0, 2**32 - 1),
}
"""Beyond these llama.cpp gives noise, or nothing."""

COMPONENT_KEYS: Final = ("config", "config_file", "imports", "strict_imports", "preopen_scratch")
COMPONENT_LIMITS: Final = ("fuel", "call", "linear_memory", "tables", "state")
"""Keys of an agent, and of its limits, that say something about its component only."""

LISTS: Final = (
    "duties",
    "ignores",
    "consumes",
    "publishes",
    "delegate",
    "tools",
    "host_read",
    "imports",
)
"""Keys of an agent in which nothing may be empty or stand twice."""


def check(config: Config, findings: Findings) -> None:
    """Hold the parts of a configuration against each other."""
    check_socket_path(("daemon", "socket"), config.daemon.socket, findings)
    check_listen(("gateway", "listen"), config.gateway.listen, findings)
    check_inference(config, findings)
    if not config.agents:
        findings.warning((), "no agents", "at least one table [agent.NAME]")
    elif config.conversation.conductor is None:
        findings.warning(
            (), "no conductor", 'one agent with role = "conductor", who composes the replies'
        )
    retired = _retired(config)
    for agent in config.agents.values():
        _check_agent(agent, config, retired, findings)
    _check_topics(config, findings)
    _check_prompts(config, retired, findings)


def check_joining(agent: AgentConfig, config: Config, findings: Findings) -> None:
    """Hold an agent that is to join the others against them; they were held against each other
    when the daemon started. `config` has it already."""
    _check_agent(agent, config, _retired(config), findings)
    _check_topics(config, findings)
    _check_prompt_files([config.prompts / agent.name], findings)


def _retired(config: Config) -> list[str]:
    """Those who are no mistake where they are named: they were there, and may come back."""
    return OwnFiles(config.source, config.daemon.state).retired()


# ---- One agent ----------------------------------------------------------------------------------


def _check_agent(
    agent: AgentConfig, config: Config, retired: Collection[str], findings: Findings
) -> None:
    path: KeyPath = ("agent", agent.name)
    check_name(path, agent.name, findings)
    if agent.name in config.clients:
        expected = "another name: what is spent is counted by name"
        findings.problem(path, "the name of a client of the endpoint", expected)
    if agent.needs_model and agent.model not in config.models:
        findings.problem(
            (*path, "model"),
            f"no model {quoted(agent.model)}",
            one_of(config.models),
            did_you_mean(agent.model, config.models) or f"Add a table [model.{agent.model}].",
        )
    _check_role(agent, config, findings)
    _check_component(agent, findings)
    _check_echo(agent, findings)
    _check_delegates(agent, config, retired, findings)
    _check_host_read(agent, findings)
    _check_sampling(agent.sampling, (*path, "sampling"), findings)
    for key in LISTS:
        check_list(getattr(agent, key), (*path, key), findings)


def _check_role(agent: AgentConfig, config: Config, findings: Findings) -> None:
    path: KeyPath = ("agent", agent.name)
    if agent.role == "agent":
        if not agent.duties and agent.component is None and agent.brain == "loop":
            cure = "Without them screening never finds it responsible."
            findings.warning(path, "no duties", "at least a few short phrases", cure)
        return
    conductor = config.conversation.conductor
    if agent.name != conductor:
        found = f"a second conductor beside {conductor}"
        findings.problem((*path, "role"), found, "one agent with this role")
    if agent.duties:
        expected = "none, for the conductor takes no part in triage"
        findings.warning((*path, "duties"), "duties", expected)


def _check_component(agent: AgentConfig, findings: Findings) -> None:
    path: KeyPath = ("agent", agent.name)
    if agent.component is None:
        if findings.is_wrong((*path, "component")):
            return
        said = [
            *((*path, key) for key in _said(agent, COMPONENT_KEYS)),
            *((*path, "limits", key) for key in _said(agent.limits, COMPONENT_LIMITS)),
        ]
        for key in said:
            findings.problem(key, "a key for a component, and there is none", "`component` too")
        return
    if agent.role == "conductor":
        found = "a component for the conductor"
        expected = "none, for the conductor composes its replies with a model"
        findings.problem((*path, "component"), found, expected)
    limits = agent.limits
    if limits.linear_memory_bytes >= limits.memory_bytes:
        findings.problem(
            (*path, "limits", "linear_memory"),
            render_size(limits.linear_memory_bytes),
            f"less than `memory`, which is {render_size(limits.memory_bytes)}",
            "The worker needs up to 64 MiB besides.",
        )


def _check_echo(agent: AgentConfig, findings: Findings) -> None:
    path: KeyPath = ("agent", agent.name)
    if agent.brain != "echo":
        return
    if agent.role == "conductor":
        findings.problem((*path, "brain"), "echo, for the conductor", "loop: it composes replies")
    if len(agent.echoes_on or ()) > ECHO_TOPICS_MAX:
        findings.problem(
            (*path, "publishes"),
            f"{len(agent.echoes_on or ())} topics for an echo",
            f"at most {ECHO_TOPICS_MAX}",
        )
    for key in _said(agent, ("component", "duties", "ignores", "tools", "delegate")):
        findings.problem((*path, key), 'a key that `brain = "echo"` has no use for', "no such key")


def _said(section: AgentConfig | LimitsConfig, names: Sequence[str]) -> list[str]:
    """Those keys of a table that have another value than their default."""
    keys = {key.name: key for key in keys_of(type(section))}
    return [name for name in names if getattr(section, keys[name].field) != keys[name].default]


def _check_delegates(
    agent: AgentConfig, config: Config, retired: Collection[str], findings: Findings
) -> None:
    others = [name for name, one in config.agents.items() if one.role == "agent"]
    others = [name for name in others if name != agent.name]
    for index, name in enumerate(agent.delegate):
        key = ("agent", agent.name, "delegate", index)
        if name == agent.name:
            findings.problem(key, "the agent itself", one_of(others))
        elif name in config.agents and name not in others:
            findings.problem(key, f"{quoted(name)}, the conductor", one_of(others))
        elif name not in config.agents and name in retired:
            cure = "`agentd ctl agents add` brings it back."
            findings.warning(key, f"{quoted(name)}, which was retired", one_of(others), cure)
        elif name not in config.agents:
            cure = did_you_mean(name, others)
            findings.problem(key, f"no agent {quoted(name)}", one_of(others), cure)


def _check_host_read(agent: AgentConfig, findings: Findings) -> None:
    path: KeyPath = ("agent", agent.name)
    for index, target in enumerate(agent.host_read):
        parts = target.split("/")
        if target in HOST_REPORTS or (target.startswith("/") and not {".", ".."} & set(parts)):
            continue
        findings.problem(
            (*path, "host_read", index),
            quoted(target),
            f"an absolute path without . and .., or {one_of(sorted(HOST_REPORTS))}",
            did_you_mean(target, HOST_REPORTS),
        )
    if bool(agent.host_read) != ("host.read" in agent.tools):
        key = "host_read" if agent.host_read else "tools"
        expected = "both, for one is nothing without the other"
        found = "`host_read` without the tool host.read"
        if not agent.host_read:
            found = "the tool host.read without `host_read`"
        findings.warning((*path, key), found, expected)


def _check_sampling(sampling: Sampling, path: KeyPath, findings: Findings) -> None:
    for key, (low, high) in SAMPLING_BOUNDS.items():
        value = getattr(sampling, key)
        if not low <= value <= high:
            findings.problem((*path, key), str(value), f"a number from {low:g} to {high:g}")


# ---- Topics -------------------------------------------------------------------------------------


def _check_topics(config: Config, findings: Findings) -> None:
    """A topic that no one hears, or that no one but an operator sends, is probably misspelt."""
    consumed = [topics.USER_REPLY, *(topics.agent_topic(name) for name in config.agents)]
    published = [topics.USER_REQUEST]
    for agent in config.agents.values():
        consumed += agent.consumes
        published += agent.publishes
    for agent in config.agents.values():
        path: KeyPath = ("agent", agent.name)
        for index, topic in enumerate(agent.publishes):
            if not any(overlap(topic, other) for other in consumed):
                found = f"{quoted(topic)}, which nobody consumes"
                cure = did_you_mean(topic, consumed)
                findings.warning((*path, "publishes", index), found, "a subscriber", cure)
        for index, topic in enumerate(agent.consumes):
            if not any(overlap(topic, other) for other in published):
                found = f"{quoted(topic)}, which no agent publishes"
                cure = did_you_mean(topic, published) or "Only `agentd ctl send` reaches it."
                findings.warning((*path, "consumes", index), found, "a publisher", cure)


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both patterns."""
    return _overlap(one.split("."), other.split("."))


def _overlap(one: list[str], other: list[str]) -> bool:
    for mine, theirs in zip(one, other, strict=False):
        if ">" in (mine, theirs):
            return True
        if mine != theirs and "*" not in (mine, theirs):
            return False
    return len(one) == len(other)


# ---- Prompts ------------------------------------------------------------------------------------


def _check_prompts(config: Config, retired: Collection[str], findings: Findings) -> None:
    """Overrides that override nothing are misspelt."""
    folders = [path for path in _entries(config.prompts) if path.is_dir()]
    for folder in folders:
        if folder.name not in config.agents and folder.name not in retired:
            cure = did_you_mean(folder.name, config.agents)
            found = f"prompts for an agent {quoted(folder.name)} that does not exist"
            findings.problem((), found, one_of(config.agents), cure, at=Place(folder))
    _check_prompt_files([config.prompts, *folders], findings)


def _check_prompt_files(folders: Sequence[Path], findings: Findings) -> None:
    shipped = {file.stem for file in prompts.shipped_folder().glob("*.md")}
    for file in [path for folder in folders for path in _entries(folder)]:
        if file.suffix == ".md" and file.stem not in shipped:
            cure = did_you_mean(file.stem, shipped)
            found = f"a prompt {quoted(file.stem)} that does not exist"
            findings.problem((), found, one_of(sorted(shipped)), cure, at=Place(file))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
