"""CUDA for llama.cpp: which versions work, and how it is built for the cards that are there. Pure.

Standard library alone: the installation uses this before anything is installed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

CPU_FLAGS: Final = ("-DGGML_CUDA=OFF",)
"""Said, so that what is exported in the environment cannot make a GPU build of it."""

_RELEASE: Final = re.compile(r"release (\d+\.\d+)")
_DRIVER_CUDA: Final = re.compile(r"CUDA Version: *(\d+\.\d+)")


class CudaRefused(Exception):
    """Why llama.cpp is not built for the GPU of this machine, and what to do about it."""

    def __init__(self, found: str, cure: str) -> None:
        super().__init__(f"{found} {cure}")
        self.found = found
        self.cure = cure


@dataclass(frozen=True)
class Pin:
    """A version of the toolkit that works, from the oldest card that it makes code for."""

    version: str
    card_min: str


@dataclass(frozen=True)
class Card:
    """`capability` is the compute capability, such as 9.0."""

    name: str
    capability: str
    driver: str


@dataclass(frozen=True)
class Nvidia:
    """What a machine has. `driver_cuda` is the newest CUDA that its driver runs, `trouble` what
    `nvidia-smi` says when it is there and fails, `nvcc` the compiler, `toolkit` its version."""

    cards: tuple[Card, ...] = ()
    driver_cuda: str | None = None
    trouble: str = ""
    nvcc: str | None = None
    toolkit: str | None = None


@dataclass(frozen=True)
class Build:
    """How llama.cpp is built for the cards of a machine."""

    toolkit: str
    capabilities: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the folder that keeps the wheel: one for each toolkit and kind of card."""
        return f"cuda{self.toolkit}-sm{'-'.join(map(_architecture, self.capabilities))}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Of CMake."""
        architectures = ";".join(map(_architecture, self.capabilities))
        return ("-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")


def pins_of(table: Mapping[str, Any]) -> list[Pin]:
    """Those of `cuda.toml`."""
    return [Pin(one["version"], one["card_min"]) for one in table["toolkit"]]


def toolkit_of(said: str) -> str | None:
    """The version in what `nvcc --version` says."""
    match = _RELEASE.search(said)
    return match[1] if match else None


def driver_cuda_of(said: str) -> str | None:
    """The newest CUDA that the driver runs, in what `nvidia-smi` says."""
    match = _DRIVER_CUDA.search(said)
    return match[1] if match else None


def cards_of(said: str) -> list[Card]:
    """Those in the lines of `nvidia-smi --query-gpu=name,compute_cap,driver_version`, as CSV.

    A line without a compute capability is no card that CUDA can use.
    """
    rows = [[cell.strip() for cell in line.rsplit(",", 2)] for line in said.splitlines()]
    rows = [row for row in rows if len(row) == 3 and re.fullmatch(r"\d+\.\d+", row[1])]
    return [Card(*row) for row in rows]


def pinned(toolkit: str, pins: Sequence[Pin]) -> Pin | None:
    return next((pin for pin in pins if pin.version == toolkit), None)


def is_older(one: str, other: str) -> bool:
    """Of two versions, such as 7.5 and 10.0."""
    return _numbers(one) < _numbers(other)


def plan(
    cards: Sequence[Card], toolkit: str | None, pins: Sequence[Pin], *, force: bool = False
) -> Build:
    """How to build. Raises `CudaRefused`; with `force` a version that is not pinned is taken."""
    works = ", ".join(pin.version for pin in pins)
    if not cards:
        raise CudaRefused(
            "There is no NVIDIA card that `nvidia-smi` lists.",
            "Install its driver, or leave CUDA out: the processor does as well.",
        )
    if toolkit is None:
        raise CudaRefused(
            "There is no `nvcc` that says its version.",
            f"Install the CUDA toolkit ({works}), and put its bin folder into PATH or name the "
            "toolkit in CUDA_HOME.",
        )
    pin = pinned(toolkit, pins)
    if pin is None and not force:
        raise CudaRefused(
            f"CUDA {toolkit} is none of the versions that are known to work ({works}).",
            "Install one of these, or try this one with `make install CUDA=force`.",
        )
    for card in cards:
        if pin is not None and is_older(card.capability, pin.card_min):
            raise CudaRefused(
                f"{card.name} has compute capability {card.capability}, and CUDA {toolkit} makes "
                f"code from {pin.card_min} on.",
                "Leave CUDA out: the processor does as well.",
            )
    capabilities = sorted({card.capability for card in cards}, key=_numbers)
    return Build(toolkit, tuple(capabilities))


def _architecture(capability: str) -> str:
    return capability.replace(".", "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
