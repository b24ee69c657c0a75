"""How fast the bus is: publish, handle in a sandboxed worker, complete; and brokers beside it.

A daemon is started, and publishers as processes of their own. A message counts when its completion
is on disk and its publisher was told so; it was synced before its receipt, and once more with its
completion. The brokers that are installed do the same work in the same run: publish, store, consume
in another process, acknowledge, and tell the publisher. A run ends when all is handled; what the
publishers were told is compared with what the store has.
"""

import asyncio
import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from orchestrator.bench import bus_measures as plan
from orchestrator.bench import peer_servers
from orchestrator.bench.bus_daemon import daemon
from orchestrator.bench.bus_measures import Better, Compared, Figure
from orchestrator.bench.bus_pacing import Load, Outcome, percentile_ms, rate
from orchestrator.bench.bus_processes import Side, measure
from orchestrator.bench.peer_servers import Peer
from orchestrator.cli.measure import Measure

WINDOWS: Final = 3
"""Of which the median is the rate with so many stored."""
FILLING_SECONDS_MAX: Final = 60.0
"""What takes longer to store is only stored if that is asked for."""
FILLING_MESSAGES: Final = 50_000
"""Stored by one run, so that each ends within its time on a slow disk too."""

SYNC: Final = "fdatasync of a page of 4 KiB, p50"
SYNCS: Final = 200
PAGE_BYTES: Final = 4096

DEFAULT_FOLDER: Final = Path("/var/tmp")
"""It survives a restart (FHS 3.0, 5.15), so that it is on a disk, where /tmp may be in memory."""
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})

Tell = Callable[[str], None]


class Settings(NamedTuple):
    """How long to measure, and where."""

    seconds: float = 3.0
    """For each run."""
    stored: tuple[int, ...] = plan.STORED
    window: int = 30_000
    """Messages that are measured with so many stored: three times that, after a thousand, stays
    below a hundred thousand."""
    full: bool = False
    """Store as many as is said, however long it takes."""
    folder: Path = DEFAULT_FOLDER


QUICK: Final = Settings(seconds=0.3, stored=(1_000, 10_000), window=2_000)
"""To see whether it works. Its figures are too short to say much."""


class Report(NamedTuple):
    """The rows, and what they do not say."""

    measures: list[Measure]
    notes: list[str]


def run(settings: Settings, tell: Tell) -> Report:
    """Raises `Failure`, and `OSError` where the folder cannot be written."""
    place = settings.folder.resolve()
    with tempfile.TemporaryDirectory(prefix="agentd-bench-", dir=place) as folder:
        return asyncio.run(_report(settings, Path(folder), tell))


async def _report(settings: Settings, folder: Path, tell: Tell) -> Report:
    notes = _notes_on(folder)
    with cancelled_by_sigterm():
        sync = {SYNC: Figure(_sync_ms(folder), "ms", "lower")}
        bus = await _bus(settings, _within(folder, "bus"), tell)
        growth = await _growth(settings, _within(folder, "growth"), tell, notes)
        peers, missing = peer_servers.installed(folder)
        compared: list[Compared] = []
        for number, peer in enumerate(peers):
            await asyncio.to_thread(os.sync)  # nobody pays for what the one before left unwritten
            compared += await _peer(peer, settings, _within(folder, f"peer-{number}"), tell)
    return Report(plan.rows({**bus, **growth, **sync}, compared), notes + missing)


def _within(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


# ---- Figures of one of those who are measured ---------------------------------------------------


class _Runs:
    """The runs of one side, and how many messages were handled in all of them."""

    def __init__(self, side: Side, folder: Path, tell: Tell) -> None:
        self.side = side
        self.handled = 0
        self._folder = folder
        self._tell = tell

    async def run(self, name: str, load: Load, publishers: int = 1) -> list[Outcome]:
        self._tell(f"{self.side.label}: {name}")
        outcomes = await measure(self.side, load, publishers, self._folder)
        self.handled += sum(one.published for one in outcomes)
        return outcomes

    async def rates(self, seconds: float) -> dict[str, Figure]:
        figures = {}
        for one in plan.RATES:
            outcomes = await self.run(one.name, one.load(seconds), one.publishers)
            figures[one.name] = Figure(rate(outcomes), "messages/s", "higher", one.expected)
        return figures

    async def low_load(self, seconds: float) -> dict[str, Figure]:
        outcomes = await self.run(plan.LOW_LOAD, plan.low_load(seconds))
        return _latencies(plan.LOW_LOAD, outcomes, plan.LOW_LOAD_EXPECTED_MS)

    async def under_load(self, highest: float, seconds: float) -> dict[str, Figure]:
        figures = {}
        for share in plan.SHARES:
            name = plan.open_name(share)
            outcomes = await self.run(name, plan.open_load(share * highest, seconds))
            figures.update(_latencies(name, outcomes))
        return figures


def _latencies(
    name: str, outcomes: list[Outcome], expected_ms: float | None = None
) -> dict[str, Figure]:
    return {
        f"{name}, p50": Figure(percentile_ms(outcomes, 0.5), "ms", "lower", expected_ms),
        f"{name}, p99": Figure(percentile_ms(outcomes, 0.99), "ms", "lower"),
    }


def _highest(figures: dict[str, Figure]) -> float:
    return max(figure.value for figure in figures.values())


async def _bus(settings: Settings, folder: Path, tell: Tell) -> dict[str, Figure]:
    tell("starting a daemon")
    async with daemon(folder) as running:
        runs = _Runs(running.side, folder, tell)
        low = await runs.low_load(settings.seconds)
        rates = await runs.rates(settings.seconds)
        loaded = await runs.under_load(_highest(rates), settings.seconds)
        await running.require_handled(runs.handled)
    return {**rates, **low, **loaded}


async def _growth(
    settings: Settings, folder: Path, tell: Tell, notes: list[str]
) -> dict[str, Figure]:
    rates: dict[int, float] = {}
    window = plan.counted_load(settings.window)
    async with daemon(folder) as running:
        runs = _Runs(running.side, folder, tell)
        for stored in settings.stored:
            seconds = (stored - runs.handled) / min(rates.values()) if rates else 0.0
            if seconds > FILLING_SECONDS_MAX and not settings.full:
                notes.append(f"Storing {stored:,} messages takes {seconds:.0f} s: use --full.")
                break
            while (missing := stored - runs.handled) > 0:
                part = plan.counted_load(min(missing, FILLING_MESSAGES))
                await runs.run(f"storing {stored:,}, {missing:,} to go", part)
            name = plan.growth_name(stored)
            rates[stored] = statistics.median(
                [rate(await runs.run(name, window)) for _ in range(WINDOWS)]
            )
        await running.require_handled(runs.handled)
    return plan.growth(rates)


async def _peer(peer: Peer, settings: Settings, folder: Path, tell: Tell) -> list[Compared]:
    """With its client as documented, of which something is promised, and tuned."""
    async with peer.start(folder) as side:
        plain = _Runs(side, folder, tell)
        figures = await plain.low_load(settings.seconds)
        figures.update(await plain.rates(settings.seconds))
        tuned = _Runs(peer_servers.tuned(side), folder, tell)
        low = await tuned.low_load(settings.seconds)
        rates = await tuned.rates(settings.seconds)
        loaded = await tuned.under_load(_highest(rates), settings.seconds)
    promised: frozenset[Better] = frozenset({"higher", "lower"} if peer.syncs else {"higher"})
    return [
        Compared(plain.side.label, figures, promised),
        Compared(tuned.side.label, {**low, **rates, **loaded}, frozenset()),
    ]


# ---- The machine --------------------------------------------------------------------------------


def _sync_ms(folder: Path) -> float:
    """What one sync of the disk costs, which is the floor of every receipt."""
    took_ms = []
    descriptor = os.open(folder / "sync", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for number in range(SYNCS):
            os.pwrite(descriptor, bytes(PAGE_BYTES), number * PAGE_BYTES)
            began_ns = time.perf_counter_ns()
            os.fdatasync(descriptor)
            took_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    finally:
        os.close(descriptor)
    return statistics.median(took_ms)


def _notes_on(folder: Path) -> list[str]:
    """What makes the figures worthless."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    under = [one for one in mounts if folder.is_relative_to(one[1])]
    kind = max(under, key=lambda one: len(one[1]))[2]
    if kind not in IN_MEMORY:
        return []
    return [f"{folder.parent} is in memory, where a sync does nothing: use --folder."]


@contextlib.contextmanager
def cancelled_by_sigterm() -> Iterator[None]:
    """Asked to end, this ends all that it has started."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
