"""An agent that is added while the daemon runs: its file, held against the configuration that runs.

The file is read as one of `agents.d`, with the same mistakes on the same lines. What it names
belongs to whoever adds it and comes along; so the table that is kept stands for itself, and can be
written to the daemon's own folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import tomli_w

from orchestrator.config.checks import check_joining
from orchestrator.config.loader import (
    Document,
    complete_agent,
    merge,
    parsed,
    refuse_foreign_tables,
)
from orchestrator.config.own import AGENTS_FOLDER
from orchestrator.config.positions import KeyPath
from orchestrator.config.problems import ConfigErrors, ConfigProblem
from orchestrator.config.reader import Findings, read_section
from orchestrator.config.types import AgentConfig, Config
from orchestrator.config.wording import dotted

INLINED: Final = {"identity_file": "identity", "config_file": "config"}
"""Keys that name a text, and those that hold it instead."""


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that may be added. `text` is its file as the daemon keeps it."""

    agent: AgentConfig
    text: str
    warnings: list[ConfigProblem]


def read_added(
    config: Config,
    file: Path,
    text: str,
    contents: Mapping[str, bytes],
    components: Mapping[str, Path],
) -> Added:
    """Read the file of one agent that is to join those of `config`. Raises `ConfigErrors`.

    `contents` and `components` have what the file names, by the names that stand in it.
    """
    findings = Findings(file)
    document = parsed(file, text, findings)
    refuse_foreign_tables(document, findings)
    name = _only_agent(document, findings)
    tree: dict[str, Any] = {}
    merge(tree, document, findings)
    if name is None:
        raise ConfigErrors(*findings.in_order())
    table = tree["agent"][name]
    if isinstance(table, dict):
        _inline(table, ("agent", name), contents, components, findings)
    agent = read_section(table, AgentConfig, ("agent", name), findings)
    agent = complete_agent(name, agent, findings)
    conductor = config.conversation
    if agent.role == "conductor" and conductor.conductor is None:
        conductor = msgspec.structs.replace(conductor, conductor=name)
    joined = msgspec.structs.replace(
        config, agents={**config.agents, name: agent}, conversation=conductor
    )
    check_joining(agent, joined, findings)
    problems, warnings = findings.in_order()
    if problems:
        raise ConfigErrors(problems, warnings)
    own = dotted(("agent", name))
    return Added(
        agent=agent,
        text=tomli_w.dumps({"agent": {name: table}}),
        warnings=[each for each in warnings if each.key == own or each.key.startswith(f"{own}.")],
    )


def _only_agent(document: Document, findings: Findings) -> str | None:
    """The name of the one agent in the file; a problem where there is none, or another."""
    agents = document.table.get("agent")
    if document.table.pop("screening", None) is not None:
        at = document.place(("screening",))
        findings.problem(("screening",), "what all agents share", "one table [agent.NAME]", at=at)
    names: list[str] = list(agents) if isinstance(agents, dict) else []
    if len(names) == 1:
        return names[0]
    if names:
        cure = f"In {AGENTS_FOLDER} a file may have more."
        at = document.place(("agent", names[-1]))
        findings.problem((), f"{len(names)} agents", "one table [agent.NAME]", cure, at=at)
    elif not findings.problems:
        findings.problem((), "no agent", "one table [agent.NAME]", at=document.place(()))
    return None


def _inline(
    table: dict[str, Any],
    path: KeyPath,
    contents: Mapping[str, bytes],
    components: Mapping[str, Path],
    findings: Findings,
) -> None:
    """Put into the table what it names. What is of another type is found when it is read."""
    for key, target in INLINED.items():
        named = table.get(key)
        if not isinstance(named, str):
            continue
        del table[key]
        if target in table:
            findings.problem((*path, key), f"both `{target}` and `{key}`", "one of the two")
        elif named not in contents:
            findings.problem((*path, key), f"{named}, which did not come along", "its content too")
            table[target] = named
        else:
            text = _text(contents[named])
            if text is None:
                found = "bytes that are no UTF-8"
                cure = f"An agent with such a file needs a file of its own in {AGENTS_FOLDER}."
                findings.problem((*path, key), found, "UTF-8 text", cure)
            else:
                table[target] = text
    named = table.get("component")
    if isinstance(named, str):
        if named in components:
            table["component"] = str(components[named])
        else:
            found = f"{named}, which did not come along"
            findings.problem((*path, "component"), found, "a component that was uploaded")


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
