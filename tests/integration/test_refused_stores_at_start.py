"""A daemon whose store is not whole does not start, says what to do, and changes nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.store.copies import back_up
from orchestrator.store.database import Database
from orchestrator.store.migration import open_current

AGENTD = (sys.executable, "-m", "orchestrator.cli.main")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """No models and no agents, and a store that was used before."""
    path = tmp_path / "agentd.toml"
    path.write_text('[daemon]\nstate = "state"\nsocket = "a.sock"\n[model]\n')
    (tmp_path / "state").mkdir()
    open_current(tmp_path / "state" / "agentd.db").close()
    return path


def agentd(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENTD, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero_a_page(path: Path) -> None:
    database = Database(path, writable=False)
    row = database.row("SELECT rootpage FROM sqlite_schema WHERE name = 'delivery'")
    database.close()
    assert row is not None
    with path.open("r+b") as file:
        file.seek((row[0] - 1) * 4096)
        file.write(bytes(4096))


def scribble(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lose_all_but_the_log(path: Path) -> None:
    path.unlink()
    path.with_name("agentd.db-wal").write_bytes(b"log")


def make_newer(path: Path) -> None:
    database = Database(path, writable=True)
    database.execute("PRAGMA user_version = 99")
    database.close()


@pytest.mark.parametrize(
    ("spoil", "cure"),
    [
        (cut_off, "Restore it from a backup"),
        (zero_a_page, "Restore it from a backup"),
        (scribble, "Restore it from a backup"),
        (empty, "Restore it from a backup"),
        (lose_all_but_the_log, "Put the database back"),
        (make_newer, "Install the version"),
    ],
)
def test_a_daemon_refuses_a_spoilt_store(
    config: Path, spoil: Callable[[Path], None], cure: str
) -> None:
    path = config.parent / "state" / "agentd.db"
    spoil(path)
    before = path.read_bytes() if path.exists() else None
    done = agentd("run", "--config", config)
    assert done.returncode == 1
    assert str(path) in done.stderr and cure in done.stderr
    assert "Traceback" not in done.stderr
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_restored_store_starts_where_a_damaged_one_did_not(config: Path) -> None:
    path = config.parent / "state" / "agentd.db"
    backup = config.parent / "backup.db"
    back_up(path, backup)
    scribble(path)
    checked = agentd("store", "check", "--config", config)
    assert checked.returncode == 1 and "damaged" in checked.stdout
    restored = agentd("store", "restore", backup, "--config", config)
    assert restored.returncode == 0, restored.stderr
    assert ".before-" in restored.stdout
    assert agentd("store", "check", "--config", config).returncode == 0
