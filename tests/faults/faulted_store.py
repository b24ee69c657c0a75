"""Stores as a killed daemon has left them, and what happens to them before a disk fails."""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import apsw
import crash_states
from crash_states import STORE
from planned_load import Load, Promise

from ipc_protocol.errors import Failure
from orchestrator.store.database import Database
from orchestrator.store.store import Store
from orchestrator.store.transaction import Transaction

INCARNATION: Final = "at-work"

INDEX_PAGES: Final = 4062
"""Pages of the log that fit into the first segment of its index: the next one maps a second."""

LOG_PAGE_BYTES: Final = 24 + 4096


def copy(folder: Path, to: Path) -> None:
    """What matters of a store, also of one that is open. Of its index a crash leaves nothing, and
    the reserve comes and goes."""
    to.mkdir(exist_ok=True)
    for name in (STORE, crash_states.LOG):
        if (folder / name).exists():
            shutil.copyfile(folder / name, to / name)


class Folder(NamedTuple):
    """A store as a killed daemon left it, and what it has promised."""

    path: Path
    promises: list[Promise]

    @contextmanager
    def copied(self) -> Iterator["Folder"]:
        with tempfile.TemporaryDirectory(prefix="disk-", dir=crash_states.scratch()) as folder:
            copy(self.path, Path(folder))
            yield Folder(Path(folder), [*self.promises])

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Load]:
        """A load on the store; what it is promised is added to what was promised before."""
        clock = itertools.count(1_800_000_050_000_000, 1000)
        store = await Store.open(self.path / STORE, clock_us=lambda: next(clock))
        load = Load(store, INCARNATION)
        try:
            yield load
        finally:
            await store.close()
            self.promises.extend(load.promises)

    async def require_sound(self, what: str) -> None:
        """It can be opened, everything promised is there, nothing in part; and it goes on."""
        faults = await crash_states.faults_after(self.path / STORE, self.promises)
        assert not faults, f"{what}: {faults}"

    def holds(self, found: str) -> bool:
        """Does this statement find a row?"""
        connection = apsw.Connection(str(self.path / STORE))
        try:
            return bool(connection.execute(found).fetchall())
        finally:
            connection.close()


def write_ballast(tx: Transaction, size: int) -> None:
    tx.execute(
        "INSERT INTO state (owner, key, value, changed_us) VALUES (?, '', randomblob(?), 0)"
        " ON CONFLICT DO UPDATE SET value = excluded.value",
        (tx.actor, size),
    )


async def restart_log(load: Load) -> None:
    """Write the log back as the store's upkeep does, which says so if it cannot and goes on."""

    def restart() -> None:
        own: Database | None = None
        try:
            own = Database(load.store.path, writable=True)
            own.restart_log(100)
        except Failure as failure:
            assert failure.code in ("store.full", "store.unavailable")
        finally:
            if own is not None:
                with suppress(Failure):
                    own.close()

    await asyncio.to_thread(restart)


@asynccontextmanager
async def held_log(load: Load, pages: int, size: int) -> AsyncIterator[None]:
    """Somebody reads, so that the log only grows; and it has `pages` already."""
    path = load.store.path
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM agent").fetchall()
        while path.with_name(crash_states.LOG).stat().st_size < pages * LOG_PAGE_BYTES:
            await load.store.apply(write_ballast, "ballast", size)
        yield
    finally:
        reader.close()


async def prepare(folder: Path) -> Folder:
    """A store at work, in the moment in which its daemon is killed."""
    at_work = Folder(folder / "live", [])
    at_work.path.mkdir()
    async with at_work.opened() as load:
        await load.register()
        await load.publish("job.start", "before")
        copy(at_work.path, folder / "killed")
    return Folder(folder / "killed", at_work.promises)


async def prepare_long_log(folder: Path, killed: Folder) -> Folder:
    with killed.copied() as long:
        async with long.opened() as load, held_log(load, INDEX_PAGES - 30, 100_000):
            copy(long.path, folder / "long")
    return Folder(folder / "long", killed.promises)
