"""A store that is not whole is refused with what to do, and is never replaced by an empty one."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipc_protocol.errors import Failure
from orchestrator.store.database import Database
from orchestrator.store.migration import open_current

NOBODY = 65534


@pytest.fixture
def path() -> Iterator[Path]:
    """A store with an agent in it, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="agentd-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        database = open_current(folder / "agentd.db")
        database.actor = "opsclaw"
        database.execute(
            "INSERT INTO state (owner, key, value, changed_us)"
            " WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)"
            " SELECT 'opsclaw', 'key ' || i, zeroblob(2000), 1 FROM n"
        )
        database.close()
        yield folder / "agentd.db"


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_after_the_header(path: Path) -> None:
    os.truncate(path, 100)


def cut_within_a_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def zero_a_page(path: Path, table: str = "state") -> None:
    database = Database(path, writable=False)
    row = database.row("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
    database.close()
    assert row is not None
    with path.open("r+b") as file:
        file.seek((row[0] - 1) * 4096)
        file.write(bytes(4096))


def scribble_over_the_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"garbage " * 16)


def lose_all_but_the_log(path: Path) -> None:
    path.unlink()
    path.with_name("agentd.db-wal").write_bytes(b"log")


def empty(path: Path) -> None:
    os.truncate(path, 0)


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "unmounted" / "agentd.db")


def make_newer(path: Path) -> None:
    database = Database(path, writable=True)
    database.execute("PRAGMA user_version = 99")
    database.close()


def make_foreign(path: Path) -> None:
    database = Database(path, writable=True)
    database.execute("PRAGMA application_id = 7")
    database.close()


SPOILT: dict[Callable[[Path], None], tuple[str, str]] = {
    cut_in_half: ("damaged", "backup"),
    cut_after_the_header: ("damaged", "backup"),
    cut_within_a_page: ("damaged", "backup"),
    zero_a_page: ("damaged", "backup"),
    scribble_over_the_header: ("damaged or is no database", "backup"),
    lose_all_but_the_log: ("gone, but its write-ahead log", "Put the database back"),
    empty: ("empty, so what it held is lost", "backup"),
    put_a_folder_there: ("it is a folder", "move the folder away"),
    link_to_nowhere: ("which is not there", "Mount or restore"),
    make_newer: ("version 99", "Install the version"),
    make_foreign: ("another program", "move this one away"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in sorted(folder.rglob("*"))
        if one.is_file() and not one.name.endswith("-shm")
    }


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_store_is_refused_and_left_as_it_is(
    path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(path)
    before = contents(path.parent)
    said, cure = SPOILT[spoil]
    with pytest.raises(Failure) as failure:
        open_current(path)
    assert failure.value.code == "store.unavailable"
    assert str(path) in failure.value.problem.message
    assert said in failure.value.problem.message
    assert cure in failure.value.problem.cure
    after = contents(path.parent)
    assert after.pop("agentd.db-wal", b"") in (b"", before.pop("agentd.db-wal", b""))
    assert after == before


def test_a_damaged_store_keeps_the_log_of_a_daemon_that_was_killed(path: Path) -> None:
    database = open_current(path)
    database.actor = "opsclaw"
    database.execute("UPDATE state SET changed_us = 2 WHERE key = 'key 1'")
    database.abandon()
    zero_a_page(path, "agent")
    log = path.with_name("agentd.db-wal")
    before = contents(path.parent)
    assert log.stat().st_size > 0
    with pytest.raises(Failure, match="damaged"):
        open_current(path)
    assert contents(path.parent) == before


@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_store_that_may_not_be_read_or_written_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)  # root may read everything
        restore = 0
    else:
        restore = os.geteuid()
    try:
        with pytest.raises(Failure) as failure:
            open_current(path)
    finally:
        os.seteuid(restore)
    assert failure.value.code == "store.unavailable"
    assert str(path) in failure.value.problem.message
    assert "permissions" in failure.value.problem.cure
