"""Finds the facts about this machine. The engine is asked as a program: the orchestrator never
loads a model's library."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from orchestrator.doctor import nvidia
from orchestrator.doctor.judging import Facts, Llama

DEVICES: Final = (sys.executable, "-m", "inference_client.engine", "--devices")
"""Prints what llama.cpp was built for and finds, as JSON."""

DEVICES_SECONDS_MAX: Final = 120.0
"""It imports the library, which takes 20 s from a cold disk, and wakes the cards."""


def probe() -> Facts:
    version = sys.version_info
    return Facts(
        python=(version.major, version.minor, version.micro),
        llama=ask_llama(DEVICES, DEVICES_SECONDS_MAX),
        nvidia=nvidia.look(),
        pins=nvidia.pins(),
    )


def ask_llama(command: Sequence[str], timeout_s: float) -> Llama | str:
    """What it says, or what went wrong in one line."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it has not said within {timeout_s:g} s what it runs on"
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"it ended with status {done.returncode}"
    try:
        return msgspec.json.decode(done.stdout, type=Llama)
    except msgspec.DecodeError as error:
        return f"what it says of itself cannot be read: {error}"
