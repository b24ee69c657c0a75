"""llama.cpp's own programs beside the pool: where they are, their settings, and their runs.

`make bench-peers` builds them from the source inside the very distribution of llama-cpp-python that
is installed, so that both sides compute with the same code.
"""

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.bench import inference_builds
from orchestrator.bench.bus_processes import running, tail
from orchestrator.bench.inference_builds import PROGRAMS
from orchestrator.bench.inference_load import Target
from orchestrator.bench.inference_measures import TOTAL, Figure, Figures
from orchestrator.bench.inference_rows import CEILING, SERVER
from orchestrator.bench.inference_scenarios import CELLS_STEP
from orchestrator.bench.inference_servers import Device, free_port, wait_listening
from orchestrator.bench.inference_sizes import Sizes

BUILD: Final = "make bench-peers"

CEILING_SECONDS_MAX: Final = 600.0
UNIFIED: Final[tuple[str, ...]] = ("-kvu",)
STREAMS: Final[tuple[str, ...]] = ("-no-kvu",)
ON_DEVICE: Final[tuple[str, ...]] = ("-bs",)
STEPS: Final = (512, 128)
"""For one long prompt beside decodes: what is read of it in a step is what the decodes wait for."""


class Peers(NamedTuple):
    """The programs that are there; None for one that is not."""

    server: Path | None
    ceiling: Path | None
    missing: list[str]
    """What to do about the others."""


class Setting(NamedTuple):
    """One way to run llama-server. `label` is what differs from its defaults."""

    label: str
    flags: tuple[str, ...]


def version() -> str:
    """Of llama-cpp-python, and so of the source of both sides."""
    return importlib.metadata.version("llama-cpp-python")


def built(kind: str) -> Peers:
    """Those for a kind of device."""
    folders = inference_builds.folders(version(), gpu=kind == "gpu")
    found = {
        name: next((folder / name for folder in folders if (folder / name).exists()), None)
        for name in PROGRAMS
    }
    how = f"{BUILD} CUDA=1" if kind == "gpu" else BUILD
    missing = [
        f"{name} {version()} is not built for the {kind.upper()}: `{how}`."
        for name, path in found.items()
        if path is None
    ]
    return Peers(found[SERVER], found[CEILING], missing)


# ---- Settings -----------------------------------------------------------------------------------


def settings(device: Device, *, batches: bool = False) -> list[Setting]:
    """Those that llama-server is tried with; the best is measured.

    On a processor they are the layouts of its cache with as many threads as cores, one less and
    half; on a GPU the layouts with its sampling there and here. With `batches` it is the size of
    its steps instead of the layout.
    """
    choices = [UNIFIED] if batches else [UNIFIED, STREAMS]
    if device.kind == "gpu":
        choices = [(*choice, *where) for choice in choices for where in ((), ON_DEVICE)]
    else:
        choices = [(*choice, *flags) for flags in _threads(device.cores) for choice in choices]
    steps = [("-b", str(size), "-ub", str(size)) for size in STEPS] if batches else []
    return [
        Setting(" ".join((*choice, *step)), (*choice, *step))
        for choice in choices
        for step in [(), *steps]
    ]


def ceiling_settings(device: Device) -> list[Setting]:
    """Those of them that llama-batched-bench has: it does not sample."""
    return [one for one in settings(device) if not set(ON_DEVICE) & set(one.flags)]


def _threads(cores: int) -> list[tuple[str, ...]]:
    """All cores, one less, and half of them, which are often the real ones."""
    counts = sorted({cores, max(1, cores - 1), max(1, cores // 2)})
    return [("-t", str(count), "-tb", str(count)) for count in counts]


# ---- llama-server -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def llama_server(
    program: Path, device: Device, slots: int, context: int, setting: Setting, folder: Path
) -> AsyncIterator[Target]:
    """One that listens; it answers 503 until its model is loaded. Raises `Failure`."""
    port = free_port()
    command = [
        *(str(program), "--host", "127.0.0.1", "--port", str(port), "--no-ui", "--fit", "off"),
        *_model(device, context),
        *("-np", str(slots), *setting.flags),
    ]
    async with running(command, folder) as process:
        await wait_listening(process, port, SERVER, folder)
        yield Target(url=f"http://127.0.0.1:{port}/v1", model="any")


def _model(device: Device, context: int) -> list[str]:
    """Flags that llama.cpp's programs have in common."""
    layers = ["-ngl", "999"] if device.kind == "gpu" else ["-ngl", "0", "--device", "none"]
    return [
        *("-m", str(device.model), "-c", str(context), *layers),
        *("-ctk", device.kv_type, "-ctv", device.kv_type),
    ]


# ---- llama-batched-bench ------------------------------------------------------------------------


class _Line(msgspec.Struct, frozen=True):
    """Of its output: `speed` is prompts and answers together, in tokens per second."""

    speed: float


async def ceiling(
    program: Path, device: Device, sizes: Sizes, flags: Sequence[str], folder: Path
) -> Figures:
    """The shape of a burst, without sampling, a queue or a line to anybody. Raises `Failure`."""
    cells = -(-(sizes.prompt + sizes.answer) // CELLS_STEP) * CELLS_STEP
    command = [
        *(str(program), *_model(device, sizes.agents * cells), *flags),
        *("-npp", str(sizes.prompt), "-ntg", str(sizes.answer), "-npl", str(sizes.agents)),
        *("--output-format", "jsonl"),
    ]
    async with asyncio.timeout(CEILING_SECONDS_MAX), running(command, folder) as process:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b"{"):
                speed = msgspec.json.decode(line, type=_Line).speed
                return {TOTAL: Figure(speed, "tokens/s", "higher")}
    raise Failure(
        "request.internal",
        f"{CEILING} said no figure:\n{tail(folder)}",
        f"Build it again: `{BUILD}`.",
    )
