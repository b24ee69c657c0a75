"""A disk that does not sync what a checkpoint has copied: the store stops, and nothing is lost."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from ipc_protocol.errors import Failure
from orchestrator.store import checkpointing
from orchestrator.store.store import Store
from orchestrator.store.transaction import Transaction

WAIT_SECONDS_MAX = 30.0


class Disk(apsw.VFS):
    """A file system whose database file, once it is `broken`, does not come to the disk."""

    def __init__(self) -> None:
        self.broken = False
        super().__init__("broken-checkpoints", "")

    def xOpen(self, name: object, flags: list[int]) -> "File":  # noqa: N802 - apsw's name
        return File(self, name, flags)


class File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: object, flags: list[int]) -> None:
        self._disk = disk
        self._is_database = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_DB)
        super().__init__("", name, flags)  # type: ignore[arg-type]  # apsw types it as a text

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        if self._is_database and self._disk.broken:
            error = apsw.IOError("disk I/O error")
            error.extendedresult = apsw.SQLITE_IOERR_FSYNC  # type: ignore[attr-defined]
            raise error
        super().xSync(flags)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(checkpointing, "PASS_BYTES", 64 * 1024)
    made = Disk()
    yield made
    made.unregister()


def clock_us() -> int:
    return time.time_ns() // 1000


def put(tx: Transaction, key: str) -> None:
    tx.execute(
        "INSERT INTO state (owner, key, value, changed_us) VALUES (?, ?, zeroblob(9000), ?)",
        (tx.actor, key, tx.now_us),
    )


async def test_a_checkpoint_that_fails_stops_the_store_and_loses_nothing(
    tmp_path: Path, disk: Disk
) -> None:
    store = await Store.open(tmp_path / "agentd.db", clock_us=clock_us, vfs="broken-checkpoints")
    disk.broken = True
    acknowledged: list[str] = []
    with pytest.raises(Failure) as failure:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while True:
                await store.apply(put, "opsclaw", key := f"{len(acknowledged):05d}")
                acknowledged.append(key)
    assert failure.value.code == "store.unavailable"
    assert "disk I/O error" in failure.value.problem.message
    assert await store.wait_failed() is failure.value
    assert acknowledged
    with pytest.raises(Failure):
        await store.apply(put, "opsclaw", "later")
    disk.broken = False
    await store.close()

    again = await Store.open(tmp_path / "agentd.db", clock_us=clock_us)
    rows = await again.reader("test").fetch("SELECT key FROM state ORDER BY key")
    await again.close()
    assert [row[0] for row in rows] == acknowledged
