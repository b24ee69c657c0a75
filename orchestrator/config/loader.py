"""Reads a configuration: `agentd.toml`, the files of `agents.d/` beside it, identities, overrides.

All files are merged into one tree before it is read; a key may stand in one of them only. Files in
`agents.d` hold agents and what screening compares with them: the rest stands in the main file.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestrator.config.checks import check
from orchestrator.config.positions import KeyPath, lines_of
from orchestrator.config.problems import ConfigErrors, did_you_mean, one_of
from orchestrator.config.reader import Findings, Place, read_section
from orchestrator.config.types import AgentConfig, Config, DaemonConfig, names_file

MAIN_FILE: Final = "agentd.toml"
AGENTS_FOLDER: Final = "agents.d"
PROMPTS_FOLDER: Final = "prompts"

AGENT_FILE_TABLES: Final = ("agent", "screening")

FILE_BYTES_MAX: Final = 4 * 1024 * 1024
"""A thousand agents in one file; more is not a configuration."""

_TOML_POSITION = re.compile(r"^(.*?) ?\(at (?:line (\d+), column \d+|end of document)\)$")


class _Document(msgspec.Struct, frozen=True):
    """One file as it was read, with the line of each of its keys."""

    file: Path
    table: dict[str, Any]
    lines: dict[KeyPath, int]

    def place(self, path: KeyPath) -> Place:
        return Place(self.file, self.lines.get(path))


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says instead of the files."""

    state: Path | None = None
    socket: Path | None = None
    sandbox_off: bool = False


NO_OVERRIDES: Final = Overrides()


def load(path: Path, overrides: Overrides = NO_OVERRIDES) -> Config:
    """Read the configuration at `path`, a file or the folder of one. Raises `ConfigErrors`."""
    return settled(*read(path, overrides))


def read(path: Path, overrides: Overrides) -> tuple[Config, Findings]:
    """What can be made of a configuration, and all that is wrong with it; nothing is raised."""
    main = main_file(path)
    findings = Findings(main)
    tree: dict[str, Any] = {}
    for file in [main, *_agent_files(main)]:
        document = _read_file(file, findings)
        if file != main:
            _refuse_foreign_tables(document, findings)
        _merge(tree, document.table, (), document, findings)
    config = read_section(
        tree, Config, (), findings, source=main, prompts=main.parent / PROMPTS_FOLDER
    )
    config = _complete(config, overrides, findings)
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
    _merge(tree, document.table, (), document, findings)
    daemon = read_section(tree.get("daemon", {}), DaemonConfig, ("daemon",), findings)
    problems, warnings = findings.in_order()
    if problems:
        raise ConfigErrors(problems, warnings)
    return daemon


# ---- Files --------------------------------------------------------------------------------------


def _agent_files(main: Path) -> list[Path]:
    files = (main.parent / AGENTS_FOLDER).glob("*.toml")
    return sorted(file for file in files if not file.name.startswith("."))


def _read_text(file: Path, what: str, findings: Findings, key: KeyPath = ()) -> str | None:
    """The text of a file. A problem of the key that names it, or of the file itself, else None."""
    at = None if key else Place(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            findings.problem(key, "a larger file", f"at most {FILE_BYTES_MAX} bytes", at=at)
            return None
        return data.decode("utf-8")
    except OSError as error:
        found = error.strerror or str(error)
        findings.problem(
            key, f"{found[0].lower()}{found[1:]}: {file}" if key else found, what, at=at
        )
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        findings.problem((), "bytes that are no UTF-8", "UTF-8 text", at=Place(file, line))
    return None


def _read_file(file: Path, findings: Findings) -> _Document:
    text = _read_text(file, "a configuration file", findings)
    if text is None:
        if not file.exists() and file.name == MAIN_FILE:
            cure = f"`agentd init {file.parent}` writes one."
            findings.problems[-1] = msgspec.structs.replace(findings.problems[-1], cure=cure)
        return _Document(file, {}, {})
    try:
        return _Document(file, tomllib.loads(text), lines_of(text))
    except tomllib.TOMLDecodeError as error:
        match = _TOML_POSITION.match(str(error))
        said = match[1] if match else str(error)
        line = int(match[2]) if match and match[2] else text.count("\n") + 1
        findings.problem((), f"{said[:1].lower()}{said[1:]}", "valid TOML", at=Place(file, line))
    except RecursionError:
        findings.problem((), "values nested without end", "valid TOML", at=Place(file))
    return _Document(file, {}, {})


def _refuse_foreign_tables(document: _Document, findings: Findings) -> None:
    for name in document.table.keys() - set(AGENT_FILE_TABLES):
        del document.table[name]
        findings.problem(
            (name,),
            "a key that does not belong here",
            f"{one_of(AGENT_FILE_TABLES)} in a file of {AGENTS_FOLDER}",
            did_you_mean(name, AGENT_FILE_TABLES) or f"Write it into {MAIN_FILE}.",
            at=document.place((name,)),
        )


def _merge(
    tree: dict[str, Any],
    table: Mapping[str, Any],
    path: KeyPath,
    document: _Document,
    findings: Findings,
) -> None:
    """Add the keys of one file to the tree. A second value for a key is a problem."""
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
    agents = {name: _complete_agent(name, agent, findings) for name, agent in config.agents.items()}
    conductor = next((name for name, one in agents.items() if one.role == "conductor"), None)
    replace = msgspec.structs.replace
    listen = config.gateway.listen
    if listen.startswith("unix:"):
        listen = f"unix:{daemon.state / listen.removeprefix('unix:')}"
    models = {
        name: replace(model, file=_beside(model.file, ("model", name, "file"), findings))
        for name, model in config.models.items()
    }
    engine = _beside(config.embedding.engine, ("embedding", "engine"), findings)
    return replace(
        config,
        daemon=daemon,
        gateway=replace(config.gateway, listen=listen),
        models=models,
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


def _complete_agent(name: str, agent: AgentConfig, findings: Findings) -> AgentConfig:
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
    elif not identity:
        expected = f"`identity` or `identity_file`: who {name} is, in one or two sentences"
        findings.problem(path, "no identity", expected)
    return msgspec.structs.replace(agent, name=name, identity=identity)


def _beside(model: str, key: KeyPath, findings: Findings) -> str:
    """A path is relative to the file it stands in; a name in the registry is left alone."""
    return str(findings.place(key).file.parent / model) if names_file(model) else model
