"""`agentd store check|backup|restore`, as a script and as a person would call them."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from orchestrator.cli.exits import Exit
from orchestrator.store.database import Database
from orchestrator.store.lock import locked
from orchestrator.store.migration import open_current

Agentd = Callable[..., Result]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    open_current(folder / "agentd.db").close()
    return folder


def test_a_store_in_order_has_a_row_for_each_check(agentd: Agentd, state: Path) -> None:
    result = agentd("store", "check", "--state", state)
    assert result.exit_code == Exit.OK, result.output
    for name in ("file", "foreign keys", "audit", "deliveries", "leases", "memory vectors"):
        assert re.search(rf"^{name} +ok", result.stdout, re.MULTILINE)
    assert f"{state / 'agentd.db'} is in order." in result.stdout
    document = json.loads(agentd("store", "check", "--json", "--state", state).stdout)
    assert document["ok"] is True
    assert {one["state"] for one in document["checks"]} == {"ok"}
    assert [*document["checks"][0]] == ["check", "state", "detail"]


def test_a_damaged_store_is_exit_status_1(agentd: Agentd, state: Path) -> None:
    (state / "agentd.db").write_bytes(b"no database" * 1000)
    result = agentd("store", "check", "--state", state)
    assert result.exit_code == Exit.FAILED
    assert "is damaged." in result.stdout
    again = agentd("store", "check", "--json", "--state", state)
    assert again.exit_code == Exit.FAILED
    assert json.loads(again.stdout)["ok"] is False


def test_the_store_is_that_of_the_configuration(agentd: Agentd, state: Path) -> None:
    config = state.parent / "agentd.toml"
    config.write_text(f"[daemon]\nstate = {str(state)!r}\n[model]\n")
    result = agentd("store", "check", "--json", "--config", config)
    assert json.loads(result.stdout)["store"] == str(state / "agentd.db")
    elsewhere = agentd("store", "check", "--state", state.parent / "nowhere")
    assert elsewhere.exit_code == Exit.FAILED
    assert "No such file" in elsewhere.stdout


def test_a_backup_goes_out_and_comes_back(agentd: Agentd, state: Path, tmp_path: Path) -> None:
    backup = tmp_path / "b.db"
    made = agentd("store", "backup", backup, "--state", state)
    assert made.exit_code == Exit.OK, made.output
    assert str(backup) in made.stdout
    refused = agentd("store", "backup", backup, "--state", state, "--json")
    assert refused.exit_code == Exit.FAILED
    assert json.loads(refused.stderr)["code"] == "store.unavailable"
    forced = agentd("store", "backup", backup, "--state", state, "--force", "--json")
    assert json.loads(forced.stdout)["bytes"] == backup.stat().st_size

    (state / "agentd.db").write_bytes(b"no database" * 1000)
    restored = agentd("store", "restore", backup, "--state", state, "--json")
    document = json.loads(restored.stdout)
    assert Path(document["former"]).read_bytes() == b"no database" * 1000
    assert agentd("store", "check", "--state", state).exit_code == Exit.OK

    (state / "agentd.db").unlink()
    for left in state.glob("agentd.db-*"):
        left.unlink()
    first = agentd("store", "restore", backup, "--state", state)
    assert "before" not in first.stdout, "there was nothing to keep"
    database = Database(state / "agentd.db", writable=False)
    assert database.pragma("integrity_check") == "ok"
    database.close()


def test_nothing_is_restored_while_a_daemon_has_the_store(
    agentd: Agentd, state: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "b.db"
    lock = locked(state / "agentd.db")
    try:
        assert agentd("store", "backup", backup, "--state", state).exit_code == Exit.OK
        assert agentd("store", "check", "--state", state).exit_code == Exit.OK
        refused = agentd("store", "restore", backup, "--state", state)
    finally:
        os.close(lock)
    assert refused.exit_code == Exit.FAILED
    assert "another agentd uses it" in refused.stderr and "Stop that one" in refused.stderr
