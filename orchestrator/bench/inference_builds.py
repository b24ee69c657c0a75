"""Where llama.cpp's own programs are kept once `make bench-peers` has built them.

They are kept by the version of llama-cpp-python and by what they were built for, as its wheels are:
`0.3.36` for the processor, `0.3.36-cuda13.0-sm90` for a card.
"""

import os
from pathlib import Path
from typing import Final

from orchestrator.bench.inference_rows import CEILING, SERVER

PROGRAMS: Final = (SERVER, CEILING)


def builds_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "agentd" / "peers"


def name_of(version: str, cuda: str) -> str:
    """Of the folder of one build. `cuda` names the toolkit and the cards, empty for none."""
    return f"{version}-{cuda}" if cuda else version


def folders(version: str, *, gpu: bool) -> list[Path]:
    """Those that serve a kind of device, the best first. A build for a card serves the processor
    as well."""
    for_cards = sorted(builds_folder().glob(f"{version}-*"))
    return for_cards if gpu else [builds_folder() / version, *for_cards]
