"""Backups while the store is written, and the way back, wherever it is interrupted."""

import asyncio
import datetime
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipc_protocol.errors import Failure
from orchestrator.store import restoring
from orchestrator.store.copies import back_up, restore
from orchestrator.store.database import Database
from orchestrator.store.lock import locked
from orchestrator.store.migration import open_current
from orchestrator.store.store import Store
from orchestrator.store.transaction import Transaction

NOW = datetime.datetime(2026, 11, 5, 12, 0, tzinfo=datetime.UTC)


def put(tx: Transaction, key: str) -> None:
    tx.execute(
        "INSERT INTO state (owner, key, value, changed_us) VALUES (?, ?, zeroblob(900), ?)",
        (tx.actor, key, tx.now_us),
    )


def still_to_copy(steps: list[int], done: int, pages: int) -> None:
    steps.append(pages - done)


def keys(path: Path) -> list[str]:
    other = Database(path, writable=False)
    try:
        return [row[0] for row in other.rows("SELECT key FROM state ORDER BY key")]
    finally:
        other.close()


async def written(path: Path, clock: Any, *names: str) -> None:
    store = await Store.open(path, clock_us=clock)
    for name in names:
        await store.apply(put, "opsclaw", name)
    await store.close()


@pytest.fixture
async def backup(path: Path, clock: Any, tmp_path: Path) -> Path:
    """Of a store with `a`, which has had `b` since then."""
    await written(path, clock, "a")
    target = tmp_path / "backup.db"
    back_up(path, target)
    await written(path, clock, "b")
    return target


# ---- Backups -------------------------------------------------------------------------------------


async def test_a_backup_beside_commits_is_one_moment_of_the_store(
    store: Store, tmp_path: Path
) -> None:
    stopped = asyncio.Event()
    acknowledged: list[str] = []

    async def write() -> None:
        while not stopped.is_set():
            name = f"{len(acknowledged):06d}"
            await store.apply(put, "opsclaw", name)
            acknowledged.append(name)

    task = asyncio.create_task(write())
    for number in range(3):
        before = len(acknowledged)
        target = tmp_path / f"{number}.db"
        steps: list[int] = []
        told = functools.partial(still_to_copy, steps)
        size = await asyncio.to_thread(back_up, store.path, target, told=told)
        there = keys(target)
        assert len(there) >= before
        assert there == [f"{number:06d}" for number in range(len(there))]
        assert size == target.stat().st_size
        assert steps[-1] == 0
    stopped.set()
    await task
    assert not [name for name in os.listdir(tmp_path) if "part" in name]  # noqa: PTH208


def test_a_backup_needs_nothing_beside_it_and_is_for_its_owner(backup: Path) -> None:
    assert backup.stat().st_mode & 0o777 == 0o600
    backup.parent.joinpath("elsewhere").mkdir()
    moved = backup.rename(backup.parent / "elsewhere" / "b.db")
    assert keys(moved) == ["a"]
    assert os.listdir(moved.parent) == ["b.db"]  # noqa: PTH208


def test_a_backup_is_not_overwritten_unless_that_is_asked_for(path: Path, backup: Path) -> None:
    with pytest.raises(Failure, match="--force"):
        back_up(path, backup)
    assert keys(backup) == ["a"]
    back_up(path, backup, force=True)
    assert keys(backup) == ["a", "b"]


def test_the_store_itself_is_no_place_for_its_backup(path: Path, backup: Path) -> None:
    with pytest.raises(Failure, match="the store itself"):
        back_up(path, path, force=True)
    assert keys(path) == ["a", "b"]
    assert backup.exists()


def test_a_damaged_store_is_not_backed_up_over_a_good_backup(path: Path, backup: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(Failure, match="damaged"):
        back_up(path, backup, force=True)
    assert keys(backup) == ["a"]


def test_a_backup_names_the_place_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    open_current(path).close()
    with pytest.raises(Failure) as failure:
        back_up(path, tmp_path / "nowhere" / "b.db")
    assert failure.value.code == "store.unavailable"
    assert "nowhere" in failure.value.problem.message


# ---- The way back --------------------------------------------------------------------------------


async def test_a_restored_store_is_the_backup_and_the_former_one_is_kept(
    path: Path, backup: Path, clock: Any
) -> None:
    former = restore(path, backup, now=NOW)
    assert former.name == "agentd.db.before-20261105T120000Z"
    assert keys(former) == ["a", "b"]
    assert keys(path) == ["a"]
    await written(path, clock, "c")
    assert keys(path) == ["a", "c"]
    assert keys(backup) == ["a"]


def test_the_log_of_a_store_that_was_killed_goes_aside_with_it(path: Path, backup: Path) -> None:
    database = open_current(path)
    database.actor = "opsclaw"
    put(Transaction(database, "opsclaw", 1, {}), "c")
    database.abandon()
    assert path.with_name("agentd.db-wal").stat().st_size > 0
    former = restore(path, backup, now=NOW)
    assert keys(former) == ["a", "b", "c"]
    assert keys(path) == ["a"]


async def test_nothing_is_restored_under_a_running_daemon(
    path: Path, backup: Path, clock: Any
) -> None:
    store = await Store.open(path, clock_us=clock)
    with pytest.raises(Failure, match="another agentd"):
        restore(path, backup, now=NOW)
    await store.close()
    assert keys(path) == ["a", "b"]


def test_a_store_that_is_gone_or_damaged_is_replaced(path: Path, backup: Path) -> None:
    path.write_bytes(b"damaged" * 1000)
    former = restore(path, backup, now=NOW)
    assert former.read_bytes() == b"damaged" * 1000
    assert keys(path) == ["a"]
    path.unlink()
    second = restore(path, backup, now=NOW)
    assert keys(path) == ["a"] and not second.exists()
    assert second.name == f"{former.name}-2"


def truncated(backup: Path) -> None:
    os.truncate(backup, backup.stat().st_size // 2)


def foreign(backup: Path) -> None:
    database = Database(backup, writable=True)
    database.execute("PRAGMA application_id = 1")
    database.close()


def newer(backup: Path) -> None:
    database = Database(backup, writable=True)
    database.execute("PRAGMA user_version = 99")
    database.close()


def emptied(backup: Path) -> None:
    os.truncate(backup, 0)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, "damaged"),
        (foreign, "another program"),
        (newer, "version 99"),
        (emptied, "empty"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_backup_that_is_none_changes_nothing(
    path: Path, backup: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(backup)
    before = sorted(os.listdir(path.parent))  # noqa: PTH208
    with pytest.raises(Failure, match=said) as failure:
        restore(path, backup, now=NOW)
    assert failure.value.code == "store.unavailable"
    assert keys(path) == ["a", "b"]
    made = {*os.listdir(path.parent)} - {*before}  # noqa: PTH208
    assert made <= {"agentd.db-wal", "agentd.db-shm"}, "what reading leaves"


@pytest.mark.parametrize("steps", range(6))
def test_a_restoration_that_is_interrupted_is_finished_by_the_next_start(
    path: Path, backup: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before the step of that number; names and syncs are steps."""
    done = 0

    class DiedError(BaseException):
        pass

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            nonlocal done
            if done == steps:
                raise DiedError
            done += 1
            return step(*arguments)

        return count

    path.with_name("agentd.db-wal").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(restoring, "synced", counted(restoring.synced))
        try:
            restore(path, backup, now=NOW)
        except DiedError:
            interrupted = True
        else:
            interrupted = False
    assert interrupted == (done == steps)
    open_current(path).close()
    # Before the draft has its name nothing has happened; from then on everything does.
    assert keys(path) == (["a", "b"] if steps == 0 else ["a"])
    if steps:
        assert keys(path.with_name("agentd.db.before-20261105T120000Z")) == ["a", "b"]
    left = {name for name in os.listdir(path.parent) if "restored" in name}  # noqa: PTH208
    assert not left


def test_the_lock_is_given_back(path: Path, backup: Path) -> None:
    restore(path, backup, now=NOW)
    os.close(locked(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_restores_for_the_user_of_the_daemon(path: Path, backup: Path) -> None:
    os.chown(path, 4321, 4322)
    restore(path, backup, now=NOW)
    for name in ("agentd.db", "agentd.db.lock"):
        found = path.with_name(name).stat()
        assert (found.st_uid, found.st_gid) == (4321, 4322)
