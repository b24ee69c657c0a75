"""Reads a configuration: `agentd.toml`, the files of `agents.d/` beside it, identities, overrides.

All files are merged into one tree before it is read; a key may stand in one of them only. Files in
`agents.d` hold agents and what screening compares with them: the rest stands in the main file.
"""

import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from orchestrator.config.checks import check
from orchestrator.config.own import AGENTS_FOLDER, is_shared
from orchestrator.config.positions import KeyPath, lines_of
from orchestrator.config.problems import ConfigErrors, did_you_mean, one_of
from orchestrator.config.reader import Findings, Place, read_section
from orchestrator.config.types import AgentConfig, Config, DaemonConfig, names_file

MAIN_FILE: Final = "agentd.toml"
PROMPTS_FOLDER: Final = "prompts"

AGENT_FILE_TABLES: Final = ("agent", "screening")

FILE_BYTES_MAX: Final = 4 * 1024 * 1024
"""A thousand agents in one file; more is not a configuration."""

COMPONENT_CONFIG_BYTES_MAX: Final = FRAME_BODY_BYTES_MAX // 4
"""It reaches the worker in one frame, with the identity and the tools of its agent."""

_TOML_POSITION = re.compile(r"^(.*?) ?\(at (?:line (\d+), column \d+|end of document)\)$")


class Document(msgspec.Struct, frozen=True):
    """One file as it was read, with the line of each of its keys."""

    file: Path
    table: dict[str, Any]
    lines: dict[KeyPath, int]

    def place(self, path: KeyPath) -> Place:
        return Place(self.file, self.lines.get(path))


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says instead of the files, for a daemon that is to run."""

    state: Path | None = None
    socket: Path | None = None
    sandbox_off: bool = False
    require_components: bool = False
    """That the file of each component is there. A daemon has kept what it has run before, and one
    agent that it cannot run is no reason to run none; for who only asks it is a mistake."""


NO_OVERRIDES: Final = Overrides(require_components=True)


def load(path: Path, overrides: Overrides = NO_OVERRIDES) -> Config:
    """Read the configuration at `path`, a file or the folder of one. Raises `ConfigErrors`."""
    return settled(*read(path, overrides))


def read(path: Path, overrides: Overrides) -> tuple[Config, Findings]:
    """What can be made of a configuration, and all that is wrong with it; nothing is raised."""
    main = main_file(path)
    findings = Findings(main)
    tree: dict[str, Any] = {}
    document = _read_file(main, findings)
    merge(tree, document, findings)
    state = _state_folder(tree, main, overrides)
    for folder in (main.parent,) if is_shared(main, state) else (main.parent, state):
        for file in agent_files(folder / AGENTS_FOLDER):
            document = _read_file(file, findings)
            refuse_foreign_tables(document, findings)
            merge(tree, document, findings)
    config = read_section(
        tree, Config, (), findings, source=main, prompts=main.parent / PROMPTS_FOLDER
    )
    config = _complete(config, overrides, findings)
    if "model" not in tree and config.agents and not config.needs_model:
        config = msgspec.structs.replace(config, models={})
    check(config, findings)
    return config, findings


def settled(config: Config, findings: Findings) -> Config:
    """The configuration with its warnings. Raises `ConfigErrors` where there are problems."""
    problems, warnings = findings.in_order()
    if problems:
        raise ConfigErrors(problems, warnings)
    return msgspec.structs.replace(config, warnings=warnings)


def main_file(path: Path) -> Path:
    """The absolute path of the main file, given it or its folder."""
    return (path / MAIN_FILE if path.is_dir() else path).absolute()


def load_daemon(path: Path) -> DaemonConfig:
    """The `[daemon]` table alone, for those who only look for the daemon. Raises `ConfigErrors`."""
    main = main_file(path)
    findings = Findings(main)
    tree: dict[str, Any] = {}
    document = _read_file(main, findings)
    merge(tree, document, findings)
    daemon = read_section(tree.get("daemon", {}), DaemonConfig, ("daemon",), findings)
    problems, warnings = findings.in_order()
    if problems:
        raise ConfigErrors(problems, warnings)
    return daemon


# ---- Files --------------------------------------------------------------------------------------


def agent_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.toml") if not file.name.startswith("."))


def _state_folder(tree: Mapping[str, Any], main: Path, overrides: Overrides) -> Path:
    """Where the daemon keeps the files of agents that were added while it ran. What is wrong with
    the key is said when it is read."""
    daemon = tree.get("daemon")
    state = daemon.get("state") if isinstance(daemon, dict) else None
    configured = main.parent / state if isinstance(state, str) else DaemonConfig().state
    return overrides.state or configured


def _read_bytes(
    file: Path,
    what: str,
    findings: Findings,
    key: KeyPath = (),
    bytes_max: int = FILE_BYTES_MAX,
) -> bytes | None:
    """What a file holds. A problem of the key that names it, or of the file itself, else None."""
    at = None if key else Place(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(bytes_max + 1)
    except OSError as error:
        found = _said(error)
        findings.problem(key, f"{found}: {file}" if key else found, what, at=at)
        return None
    if len(data) > bytes_max:
        findings.problem(key, "a larger file", f"at most {bytes_max} bytes", at=at)
        return None
    return data


def _said(error: OSError) -> str:
    found = error.strerror or str(error)
    return f"{found[0].lower()}{found[1:]}"


def _read_text(file: Path, what: str, findings: Findings, key: KeyPath = ()) -> str | None:
    """As `_read_bytes`, for a text."""
    data = _read_bytes(file, what, findings, key)
    if data is None:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        findings.problem((), "bytes that are no UTF-8", "UTF-8 text", at=Place(file, line))
    return None


def _read_file(file: Path, findings: Findings) -> Document:
    text = _read_text(file, "a configuration file", findings)
    if text is None:
        if not file.exists() and file.name == MAIN_FILE:
            cure = f"`agentd init {file.parent}` writes one."
            findings.problems[-1] = msgspec.structs.replace(findings.problems[-1], cure=cure)
        return Document(file, {}, {})
    return parsed(file, text, findings)


def parsed(file: Path, text: str, findings: Findings) -> Document:
    """The text of a file as a document; an empty one where it is no TOML, which is a problem."""
    try:
        return Document(file, tomllib.loads(text), lines_of(text))
    except tomllib.TOMLDecodeError as error:
        match = _TOML_POSITION.match(str(error))
        said = match[1] if match else str(error)
        line = int(match[2]) if match and match[2] else text.count("\n") + 1
        findings.problem((), f"{said[:1].lower()}{said[1:]}", "valid TOML", at=Place(file, line))
    except RecursionError:
        findings.problem((), "values nested without end", "valid TOML", at=Place(file))
    return Document(file, {}, {})


def refuse_foreign_tables(document: Document, findings: Findings) -> None:
    for name in document.table.keys() - set(AGENT_FILE_TABLES):
        del document.table[name]
        findings.problem(
            (name,),
            "a key that does not belong here",
            f"{one_of(AGENT_FILE_TABLES)} in a file of {AGENTS_FOLDER}",
            did_you_mean(name, AGENT_FILE_TABLES) or f"Write it into {MAIN_FILE}.",
            at=document.place((name,)),
        )


def merge(tree: dict[str, Any], document: Document, findings: Findings) -> None:
    """Add the keys of one file to the tree. A second value for a key is a problem."""
    _merge(tree, document.table, (), document, findings)


def _merge(
    tree: dict[str, Any],
    table: Mapping[str, Any],
    path: KeyPath,
    document: Document,
    findings: Findings,
) -> None:
    for name, value in table.items():
        here = (*path, name)
        if name not in tree:
            tree[name] = {} if isinstance(value, dict) else value
        elif not (isinstance(value, dict) and isinstance(tree[name], dict)):
            first = findings.place(here)
            findings.problem(
                here,
                "a second value",
                f"one, and {first.file.name}:{first.line} has it",
                at=document.place(here),
            )
            continue
        findings.note(here, document.place(here))
        if isinstance(value, dict):
            _merge(tree[name], value, here, document, findings)
        elif isinstance(value, list):
            for index in range(len(value)):
                findings.note((*here, index), document.place((*here, index)))


# ---- What the files leave to be filled in -------------------------------------------------------


def _complete(config: Config, overrides: Overrides, findings: Findings) -> Config:
    daemon = _override(config.daemon, overrides, findings)
    required = overrides.require_components
    agents = {
        name: complete_agent(name, agent, findings, require_component=required)
        for name, agent in config.agents.items()
    }
    conductor = next((name for name, one in agents.items() if one.role == "conductor"), None)
    replace = msgspec.structs.replace
    models = {
        name: replace(
            model,
            file=_beside(model.file, ("model", name, "file"), findings),
            key=_key_place(model.key, ("model", name, "key"), findings),
        )
        for name, model in config.models.items()
    }
    clients = {name: replace(client, name=name) for name, client in config.clients.items()}
    engine = _beside(config.embedding.engine, ("embedding", "engine"), findings)
    return replace(
        config,
        daemon=daemon,
        gateway=replace(config.gateway, listen=_in_state(config.gateway.listen, daemon)),
        models=models,
        endpoint=replace(config.endpoint, listen=_in_state(config.endpoint.listen, daemon)),
        clients=clients,
        embedding=replace(config.embedding, engine=engine),
        agents=agents,
        conversation=replace(config.conversation, conductor=conductor),
    )


def _override(daemon: DaemonConfig, overrides: Overrides, findings: Findings) -> DaemonConfig:
    if daemon.sandbox == "off":
        findings.problem(
            ("daemon", "sandbox"),
            '"off"',
            one_of(("strict", "standard")),
            "Only `agentd run --sandbox-off` switches it off.",
        )
    return msgspec.structs.replace(
        daemon,
        state=(overrides.state or daemon.state).absolute(),
        socket=(overrides.socket or daemon.socket).absolute(),
        sandbox="off" if overrides.sandbox_off else daemon.sandbox,
    )


def complete_agent(
    name: str, agent: AgentConfig, findings: Findings, *, require_component: bool = True
) -> AgentConfig:
    _look_for_component(name, agent, findings, required=require_component)
    return msgspec.structs.replace(
        agent,
        name=name,
        identity=_identity(name, agent, findings),
        component_config=_component_config(name, agent, findings),
    )


def _identity(name: str, agent: AgentConfig, findings: Findings) -> str:
    path: KeyPath = ("agent", name)
    identity = agent.identity.strip()
    if agent.identity_file is not None:
        key = (*path, "identity_file")
        if identity:
            findings.problem(key, "both `identity` and `identity_file`", "one of the two")
        file = findings.place(key).file.parent / agent.identity_file
        text = _read_text(file, "a file with the identity", findings, key)
        identity = identity or (text or "").strip()
        if text is not None and not identity:
            findings.problem(key, "an empty file", "an identity, in one or two sentences")
    elif not identity and (agent.component is not None or agent.brain == "echo"):
        identity = f"You are {name}."
    elif not identity:
        expected = f"`identity` or `identity_file`: who {name} is, in one or two sentences"
        findings.problem(path, "no identity", expected)
    return identity


def _look_for_component(
    name: str, agent: AgentConfig, findings: Findings, *, required: bool
) -> None:
    """The file is there. What is in it, the compiler says."""
    if agent.component is None:
        return
    found = ""
    try:
        if not stat.S_ISREG(agent.component.stat().st_mode):
            found = "no regular file"
    except OSError as error:
        found = _said(error)
    if found:
        tell = findings.problem if required else findings.warning
        expected = "the file of a WebAssembly component"
        tell(("agent", name, "component"), f"{found}: {agent.component}", expected)


def _component_config(name: str, agent: AgentConfig, findings: Findings) -> bytes:
    """A text as it is, a table as JSON, or a file as it is."""
    key: KeyPath = ("agent", name, "config_file")
    if agent.config_file is not None:
        if agent.config is not None:
            findings.problem(key, "both `config` and `config_file`", "one of the two")
        file = findings.place(key).file.parent / agent.config_file
        what = "a file with the configuration of the component"
        return _read_bytes(file, what, findings, key, COMPONENT_CONFIG_BYTES_MAX) or b""
    if isinstance(agent.config, str):
        config = agent.config.encode()
    else:
        config = b"" if agent.config is None else msgspec.json.encode(agent.config)
    if len(config) > COMPONENT_CONFIG_BYTES_MAX:
        found, expected = f"{len(config)} bytes", f"at most {COMPONENT_CONFIG_BYTES_MAX}"
        findings.problem(("agent", name, "config"), found, expected)
    return config


def _in_state(listen: str, daemon: DaemonConfig) -> str:
    """The path of a socket is relative to the state folder; other addresses are left alone."""
    if not listen.startswith("unix:"):
        return listen
    return f"unix:{daemon.state / listen.removeprefix('unix:')}"


def _key_place(place: str, key: KeyPath, findings: Findings) -> str:
    """A path is relative to the file it stands in; other places are left alone."""
    if not place.startswith("file:"):
        return place
    return f"file:{findings.place(key).file.parent / place.removeprefix('file:')}"


def _beside(model: str, key: KeyPath, findings: Findings) -> str:
    """A path is relative to the file it stands in; a name in the registry is left alone."""
    return str(findings.place(key).file.parent / model) if names_file(model) else model
