"""The prompts of each agent: the shipped texts, under those for all agents, under its own.

The shipped files lie in `agent_runtime/prompts`; an operator overrides one by a file of the same
name in `prompts/` beside the configuration, or in `prompts/NAME/` for one agent.
"""

import importlib.util
from pathlib import Path

from ipc_protocol.errors import Failure


def shipped_folder() -> Path:
    """Where the prompts lie that come with the program. Finds the package without importing it."""
    spec = importlib.util.find_spec("agent_runtime")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "prompts"


def load(agent: str, overrides: Path) -> dict[str, str]:
    """Name to text for one agent. `overrides` need not exist; a foreign name is a `Failure`."""
    shipped = _read(shipped_folder())
    own = {**_read(overrides), **_read(overrides / agent)}
    for name in own.keys() - shipped.keys():
        raise Failure(
            "request.invalid",
            f"{overrides} overrides a prompt {name!r} that does not exist.",
            f"The prompts are {', '.join(sorted(shipped))}.",
        )
    return {**shipped, **own}


def _read(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("*.md"))}
