"""Records a store under load, makes up what the disk may hold after a power cut, and looks at it.

Each crash state is opened by the program itself, which then has to go on from there.
"""

import asyncio
import itertools
import multiprocessing
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import load_checker
import pytest
from load_checker import Fault
from planned_load import Load, Promise
from recorded_disk import Disk, Operation, RecordedDisk, Write, put

from ipc_protocol.errors import Failure
from orchestrator.store import checkpointing, database, space
from orchestrator.store.database import Database
from orchestrator.store.store import Store

STORE: Final = "agentd.db"
LOG: Final = f"{STORE}-wal"
INDEX: Final = f"{STORE}-shm"

KIB: Final = 1024

SMALL: Final = {
    "PASS_BYTES": 128 * KIB,
    "TAIL_BYTES_MAX": 128 * KIB,
    "LOG_BYTES_SOFT": 512 * KIB,
    "LOG_BYTES_HARD": 2048 * KIB,
}
"""Limits of the log, so small that a short load has many checkpoints and restarts of its log."""

LOG_BYTES_KEPT: Final = 256 * KIB

RESERVE_BYTES: Final = 64 * KIB
"""A reserve of the usual size would take longer to make than all the rest of a crash state."""

GARBAGE_INDEX_PROBABILITY: Final = 0.25
"""Of an index of the log that is not one: it is not written to the disk with the rest, so a crash
may leave anything of it."""

FAULTS_SHOWN: Final = 5

_names = itertools.count()


class Recording(NamedTuple):
    """What was done to a disk, and promised; the first `began` operations were there before."""

    operations: list[Operation]
    promises: list[Promise]
    began: int = 0

    def promised(self, position: int) -> list[Promise]:
        return [each for each in self.promises if each.position <= position]


class Cut(NamedTuple):
    """The power goes after so many operations; `seed` says what is left then."""

    position: int
    seed: int


class Tally(NamedTuple):
    """How many crash states were looked at, how many had each kind of fault, and some of these."""

    states: int
    kinds: Counter[str]
    examples: list[str]

    def __str__(self) -> str:
        counts = ", ".join(
            f"{self.kinds[kind]} {kind}" for kind in ("lost", "half", "corrupt", "stuck")
        )
        return "\n".join([f"{self.states} crash states: {counts}", *self.examples])


def scratch() -> Path | None:
    """Where crash states are written: in memory, where there is such a folder."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


@contextmanager
def small_reserve() -> Iterator[None]:
    """Stores that are opened meanwhile keep little room free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "RESERVE_BYTES_MAX", RESERVE_BYTES)
        yield


@contextmanager
def log_limits(kept: int, **limits: int) -> Iterator[None]:
    """Stores that are opened meanwhile have these limits of their log, and cut it to `kept` bytes
    when it begins anew."""
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in limits.items():
            patch.setattr(checkpointing, name, limit)
        patch.setattr(database, "LOG_BYTES_KEPT", kept)
        yield


@contextmanager
def _durable_as(synchronous: str) -> Iterator[None]:
    """Stores that are opened meanwhile have this level, and a log that is kept short."""
    make_durable = Database.make_durable

    def durable(connection: Database) -> None:
        make_durable(connection)
        connection.execute(f"PRAGMA synchronous = {synchronous}")

    with (
        pytest.MonkeyPatch.context() as patch,
        small_reserve(),
        log_limits(LOG_BYTES_KEPT, **SMALL),
    ):
        patch.setattr(Database, "make_durable", durable)
        yield


def record(folder: Path, *, synchronous: str = "FULL", rounds: int = 4) -> Recording:
    """A store from its creation on: under load, closed, opened again, under load."""
    return _recorded(folder, {}, [], synchronous, [("first", rounds), ("second", rounds)])


def record_after(recording: Recording, cut: Cut, folder: Path) -> Recording:
    """A store that is opened on what a power cut has left, and is under load again."""
    files, promises = crash_state(recording, cut)
    kept = [promise._replace(position=0) for promise in promises]
    return _recorded(folder, files, kept, "FULL", [(f"after-{cut.seed}", 1)])


def crash_state(recording: Recording, cut: Cut) -> tuple[dict[str, bytes], list[Promise]]:
    """What is on the disk then, and what was promised before."""
    disk = Disk()
    for operation in recording.operations[: cut.position]:
        disk.apply(operation)
    return disk.after_power_cut(random.Random(cut.seed)), recording.promised(cut.position)


def _recorded(
    folder: Path,
    files: Mapping[str, bytes],
    promises: list[Promise],
    synchronous: str,
    sessions: Sequence[tuple[str, int]],
) -> Recording:
    disk = RecordedDisk(f"recorded-{next(_names)}", folder)
    put(files, folder)
    disk.hold(files)
    began = len(disk.operations)
    clock = itertools.count(1_800_000_000_000_000, 1000)

    async def session(incarnation: str, rounds: int) -> None:
        store = await Store.open(folder / STORE, clock_us=lambda: next(clock), vfs=disk.name)
        load = Load(store, incarnation, lambda: len(disk.operations))
        await load.register()
        await load.employ()
        await load.handle_all()
        for number in range(rounds):
            await _one_round(load, f"{incarnation}.{number}")
        await load.publish("job.all", f"{incarnation}.left")  # Still leased when it is closed.
        await store.close()
        promises.extend(load.promises)

    with disk.recording(), _durable_as(synchronous):
        for incarnation, rounds in sessions:
            asyncio.run(session(incarnation, rounds))
    recording = Recording(disk.operations, promises, began)
    disk.unregister()
    _require_faithful(recording, folder)
    return recording


async def _one_round(load: Load, name: str) -> None:
    await load.publish("job.start", f"{name}.a")
    await load.publish("job.all", f"{name}.b")
    await load.handle_all()
    await asyncio.gather(
        *(load.publish("job.all", f"{name}.{number}") for number in range(4)),
        load.publish("job.start", f"{name}.c"),
        load.publish_batch("job.note", f"{name}.d", 12),
        load.publish_batch("job.start", f"{name}.e", 3),
        load.handle_all(),
    )
    await load.handle_all()


def _require_faithful(recording: Recording, folder: Path) -> None:
    """Everything that was written was recorded, and nothing else."""
    disk = Disk()
    for operation in recording.operations:
        disk.apply(operation)
    found = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in (INDEX, f"{STORE}.lock", f"{STORE}.reserve")
    }
    assert disk.whole() == found, "the record is not what is on the disk"


def cuts(recording: Recording, count: int, seed: int) -> list[Cut]:
    """Where to cut: everywhere in turn, and as often where most is unsynced, before each sync."""
    chance = random.Random(seed)
    operations = recording.operations
    telling = [
        number
        for number, operation in enumerate(operations)
        if number >= recording.began and not isinstance(operation, Write)
        for number in (number, number + 1)
    ]
    positions = [
        chance.choice(telling) if number % 2 else chance.randint(recording.began, len(operations))
        for number in range(count)
    ]
    return sorted(Cut(position, chance.getrandbits(32)) for position in positions)


def examined(recording: Recording, chosen: Sequence[Cut]) -> Tally:
    """Look at all these crash states, in as many processes as there are processors."""
    processes = min(len(os.sched_getaffinity(0)), 8)
    share = -(-len(chosen) // processes)
    parts = [chosen[start : start + share] for start in range(0, len(chosen), share)]
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _receive, (recording,)
    ) as pool:
        tallies = list(pool.map(_examined_part, parts))
    kinds: Counter[str] = Counter()
    for tally in tallies:
        kinds.update(tally.kinds)
    examples = [example for tally in tallies for example in tally.examples]
    return Tally(sum(tally.states for tally in tallies), kinds, examples[:FAULTS_SHOWN])


_received: list[Recording] = []
"""What this process has to look at."""


def _receive(recording: Recording) -> None:
    _received[:] = [recording]


def _examined_part(chosen: Sequence[Cut]) -> Tally:
    with small_reserve():
        return asyncio.run(examine(_received[0], chosen))


async def examine(recording: Recording, chosen: Sequence[Cut]) -> Tally:
    """Go through the record once, and look at each crash state of `chosen`, which is in order."""
    disk = Disk()
    applied = 0
    tally = Tally(len(chosen), Counter(), [])
    for cut in chosen:
        for operation in recording.operations[applied : cut.position]:
            disk.apply(operation)
        applied = cut.position
        promises = recording.promised(cut.position)
        chance = random.Random(cut.seed)
        with tempfile.TemporaryDirectory(prefix="power-cut-", dir=scratch()) as folder:
            files = disk.after_power_cut(chance)
            if LOG in files and chance.random() < GARBAGE_INDEX_PROBABILITY:
                files[INDEX] = chance.randbytes(32 * 1024)
            put(files, Path(folder))
            found = await faults_after(Path(folder) / STORE, promises)
        tally.kinds.update({fault.kind for fault in found})
        tally.examples.extend(f"{cut}: {fault}" for fault in found[:1])
    return tally


async def faults_after(path: Path, promises: Sequence[Promise]) -> list[Fault]:
    """Start the program on what the power cut has left, look at it, go on, and look again."""
    clock = itertools.count(1_800_000_100_000_000, 1000)
    try:
        store = await Store.open(path, clock_us=lambda: next(clock))
    except Failure as failure:
        return [Fault("corrupt", str(failure))]
    try:
        if found := load_checker.faults_of(path, promises):
            return found
        load = Load(store, "afterwards")
        try:
            await load.register()
            await load.employ()
            await load.publish("job.all", "afterwards")
            await load.handle_all()
        except Failure as failure:
            return [Fault("stuck", str(failure))]
        found = load_checker.faults_of(path, [*promises, *load.promises])
        return found or load_checker.undone(path)
    finally:
        await store.close()
