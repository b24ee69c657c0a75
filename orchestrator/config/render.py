"""Writes a new configuration: the main file from the types, the agents from the shipped examples.

The main file names every key there is, with its default, commented out: only what this instance
needs stands in it uncommented, its folder and its socket.
"""

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import msgspec
import tomli_w

from orchestrator.config.loader import MAIN_FILE
from orchestrator.config.own import AGENTS_FOLDER
from orchestrator.config.types import AgentConfig, ClientConfig, Config, Key, ModelConfig, keys_of
from orchestrator.config.units import render_duration, render_size
from orchestrator.config.wording import bare_type

COMMENT_COLUMNS: Final = 96

STATE_FOLDER: Final = "state"
SOCKET_FILE: Final = "agentd.sock"
CLIENT_EXAMPLE: Final = "client.program"
"""A client has another name than any agent."""

_HEAD: Final = f"""\
# The configuration of agentd. Every key there is stands here with its default, commented out.
# `agentd check --config` finds mistakes in it. Relative paths are relative to this file.
# Agents have files of their own in {AGENTS_FOLDER}/. A file in prompts/ overrides the prompt of
# that name for all agents, a file in prompts/NAME/ for one.
"""

_AGENT_HEAD: Final = f"""
# Every key of an agent. The agents in {AGENTS_FOLDER}/ use those that they need.
"""


def plan(folder: Path, state: Path | None = None, socket: Path | None = None) -> dict[Path, str]:
    """The files of a new configuration in `folder`, and their texts. Writes nothing."""
    files = {
        folder / MAIN_FILE: main_text(
            state or folder / STATE_FOLDER, socket or folder / SOCKET_FILE
        )
    }
    for example in sorted(_examples().iterdir(), key=lambda one: one.name):
        if example.name.endswith(".toml"):
            files[folder / AGENTS_FOLDER / example.name] = example.read_text("utf-8")
    return files


def write(files: Mapping[Path, str]) -> None:
    """Write new files. Raises `FileExistsError` before the first one when any of them exists."""
    for path in files:
        if path.exists():
            raise FileExistsError(str(path))
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)


def main_text(state: Path, socket: Path) -> str:
    """The main file for an instance with its state in `state`, reached at `socket`."""
    given: dict[tuple[str, str], Any] = {
        ("daemon", "state"): str(state.absolute()),
        ("daemon", "socket"): str(socket.absolute()),
    }
    lines = [_HEAD.rstrip("\n")]
    for section in keys_of(Config):
        if section.derived or section.name == "agent":
            continue
        kind = section.extra.get("of") or bare_type(section.type)
        if kind is ClientConfig:  # there need be none
            lines += ["", *_comment(inspect.getdoc(kind) or ""), *_reference(kind, CLIENT_EXAMPLE)]
            continue
        header = "model.default" if kind is ModelConfig else section.name
        lines += ["", *_comment(inspect.getdoc(kind) or ""), f"[{header}]"]
        for key in keys_of(kind):
            if not key.derived:
                lines += _key(key, given.get((section.name, key.name)))
    lines += _AGENT_HEAD.rstrip("\n").split("\n")
    lines += _reference(AgentConfig, "agent.name")
    return "\n".join(lines) + "\n"


def _reference(kind: type[msgspec.Struct], header: str) -> Iterator[str]:
    """A table as an example, commented out, and those within it."""
    yield f"#[{header}]"
    tables = []
    for key in keys_of(kind):
        bare = bare_type(key.type)
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            tables.append((bare, key))
        elif not key.derived:
            yield from _key(key, None)
    for table, key in tables:
        yield ""
        yield from _comment(key.description)
        yield from _reference(table, f"{header}.{key.name}")


def _key(key: Key, given: object | None) -> Iterator[str]:
    if key.description:
        yield from _comment(key.description)
    value = given if given is not None else _written(key)
    text = tomli_w.dumps({key.name: value}).rstrip("\n")
    yield text if given is not None else "\n".join(f"#{line}" for line in text.split("\n"))


def _written(key: Key) -> object:
    """The default as it stands in a file."""
    if key.default is None or key.required:
        return key.example
    unit = key.extra.get("unit")
    if unit is not None:
        return render_duration(key.default) if unit == "duration" else render_size(key.default)
    return str(key.default) if isinstance(key.default, Path) else key.default


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, COMMENT_COLUMNS, break_on_hyphens=False)]


def _examples() -> Traversable:
    return resources.files("orchestrator.config") / "examples"
