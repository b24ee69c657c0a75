"""The contract as it is shipped: every version of `agent-net:core` that this program offers."""

import functools
from pathlib import Path
from typing import Final

from agent_runtime.component.contract import Contract
from agent_runtime.component.wit import Package, parse

FOLDER: Final = Path(__file__).parent / "contracts"
"""One folder for each version, named after it."""


@functools.cache
def load() -> Contract:
    """Read once, by the zygote before it forks: a sealed worker reads no files."""
    packages = [parse(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*/agent-net.wit")]
    return Contract(tuple(sorted(packages, key=_age)))


def _age(package: Package) -> tuple[int, ...]:
    return tuple(map(int, package.version.split(".")))
