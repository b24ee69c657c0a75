"""A store on a disk that fills up: new work is refused, what was begun ends, room opens it again.

The disk is a small file system in memory, so nothing here is simulated.
"""

import asyncio
import contextlib
import datetime
import os
import resource
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ipc_protocol.errors import Failure
from orchestrator.store.copies import back_up, restore
from orchestrator.store.database import Database
from orchestrator.store.store import Store
from orchestrator.store.transaction import Transaction

DISK_BYTES = 24 * 1024 * 1024
WAIT_SECONDS_MAX = 30.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


def clock_us() -> int:
    return time.time_ns() // 1000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
async def store(disk: Path) -> AsyncIterator[Store]:
    opened = await Store.open(disk / "agentd.db", clock_us=clock_us)
    yield opened
    await opened.close()


def put(tx: Transaction, key: str) -> str:
    tx.execute(
        "INSERT INTO state (owner, key, value, changed_us) VALUES (?, ?, randomblob(60000), ?)",
        (tx.actor, key, tx.now_us),
    )
    return key


def fill(disk: Path, leave: int = 0) -> Path:
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while shutil.disk_usage(disk).free > leave:
            file.write(bytes(4096))
    return ballast


async def wait_intake(store: Store, is_open: bool) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while store.condition.intake != is_open:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def refusal(store: Store) -> Failure:
    with pytest.raises(Failure) as failure:
        await store.take_in(put, "opsclaw", "refused")
    assert failure.value.code == "store.full"
    assert str(store.path) in failure.value.problem.message
    return failure.value


def keys(path: Path) -> list[str]:
    other = Database(path, writable=False)
    try:
        return [row[0] for row in other.rows("SELECT key FROM state ORDER BY key")]
    finally:
        other.close()


@needs_root
async def test_what_was_begun_ends_in_the_reserve_while_new_work_is_refused(
    store: Store, disk: Path
) -> None:
    assert await store.take_in(put, "opsclaw", "taken") == "taken"
    assert store.condition.reserve > 0
    ballast = fill(disk)
    await wait_intake(store, is_open=False)
    await refusal(store)

    # Twelve completions of 60 kB: the first finds the disk full, and the reserve is for all.
    done = [f"done {number:02d}" for number in range(12)]
    for key in done:
        assert await store.apply_when_room(put, "opsclaw", key) == key
    assert store.condition.reserve == 0
    assert await store.reader("test").fetch("SELECT count(*) FROM state") == [(13,)]
    await refusal(store)

    ballast.unlink()
    await wait_intake(store, is_open=True)
    assert store.condition.reserve > 0
    assert await store.take_in(put, "opsclaw", "taken again") == "taken again"
    assert keys(store.path) == [*done, "taken", "taken again"]
    alarms = [store.alarms.get_nowait() for _ in range(store.alarms.qsize())]
    assert [(one.kind, one.over) for one in alarms] == [("store.full", False), ("store.full", True)]


@needs_root
async def test_intake_closes_before_the_disk_is_full_and_keeps_the_reserve(
    store: Store, disk: Path
) -> None:
    reserve = store.condition.reserve
    ballast = fill(disk, leave=reserve // 2)
    await wait_intake(store, is_open=False)
    assert store.condition.reserve == reserve
    failure = await refusal(store)
    assert failure.problem.details["free_bytes"] < reserve
    assert await store.apply(put, "opsclaw", "done") == "done"
    # A little more room is not enough: else it would open and close all the time.
    os.truncate(ballast, ballast.stat().st_size - reserve)
    await asyncio.sleep(1.5)
    await refusal(store)
    os.truncate(ballast, ballast.stat().st_size - 2 * reserve)
    await wait_intake(store, is_open=True)


@needs_root
async def test_with_nothing_left_at_all_everything_waits_and_nothing_is_lost(
    store: Store, disk: Path
) -> None:
    await store.apply(put, "opsclaw", "before")
    ballast = fill(disk)
    began = [
        asyncio.create_task(store.apply_when_room(put, "opsclaw", f"begun {number:03d}"))
        for number in range(100)
    ]
    await wait_intake(store, is_open=False)
    # What others give up is eaten by whoever fills the disk.
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while store.condition.reserve:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    fill(disk)
    assert not all(task.done() for task in began)
    ballast.unlink()
    assert await asyncio.gather(*began) == [f"begun {number:03d}" for number in range(100)]
    await wait_intake(store, is_open=True)
    assert len(keys(store.path)) == 101


@needs_root
async def test_a_store_that_opens_on_a_full_disk_takes_nothing_in_until_there_is_room(
    disk: Path,
) -> None:
    path = disk / "agentd.db"
    first = await Store.open(path, clock_us=clock_us)
    await first.apply(put, "opsclaw", "before")
    await first.close()
    (disk / "agentd.db.reserve").unlink()
    ballast = fill(disk, leave=256 * 1024)
    store = await Store.open(path, clock_us=clock_us)
    await refusal(store)
    assert await store.reader("test").fetch("SELECT key FROM state") == [("before",)]
    ballast.unlink()
    await wait_intake(store, is_open=True)
    await store.take_in(put, "opsclaw", "after")
    await store.close()
    assert keys(path) == ["after", "before"]


@needs_root
async def test_a_backup_to_a_full_disk_says_so_and_leaves_nothing(
    tmp_path: Path, disk: Path
) -> None:
    path = tmp_path / "agentd.db"
    store = await Store.open(path, clock_us=clock_us)
    await store.apply(put, "opsclaw", "a")
    await store.close()
    whole = tmp_path / "whole.db"
    back_up(path, whole)
    ballast = fill(disk, leave=64 * 1024)
    with pytest.raises(Failure) as failure:
        back_up(path, disk / "backup.db")
    assert failure.value.code == "store.full"
    assert str(disk) in failure.value.problem.message
    assert os.listdir(disk) == [ballast.name]  # noqa: PTH208
    with pytest.raises(Failure) as failure:
        restore(disk / "agentd.db", whole, now=datetime.datetime.now(datetime.UTC))
    assert failure.value.code == "store.full"
    assert sorted(os.listdir(disk)) == ["agentd.db.lock", ballast.name]  # noqa: PTH208


async def test_a_limit_of_the_process_is_a_full_disk_too(tmp_path: Path) -> None:
    """As a quota is: the system says it with another number, which must not count as a broken
    disk."""
    store = await Store.open(tmp_path / "agentd.db", clock_us=clock_us)
    await store.apply(put, "opsclaw", "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log_bytes = (tmp_path / "agentd.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (log_bytes + 4096, before[1]))
    try:
        with pytest.raises(Failure) as failure:
            await store.apply(put, "opsclaw", "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failure.value.code == "store.full"
    assert await store.apply(put, "opsclaw", "c") == "c"
    await store.close()
    assert keys(store.path) == ["a", "c"]
