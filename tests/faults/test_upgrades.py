"""New versions of a component go live under load, and a bad one goes back. Nothing is lost."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import wat_components as wat
from component_daemons import (
    ECHO_TOPIC,
    component_daemon,
    connected,
    echoed,
    send_all,
    unfinished,
    write_component,
)
from daemons import AGENTD, RunningDaemon, short_folder

MESSAGES: Final = 3000
PER_SECOND: Final = 500.0

GOOD: Final = wat.agent(extra="(core module $second-version)")
TRAPS_ON_THE_TENTH: Final = wat.agent(handle=wat.trap_on(10))
LOOPS_ON_THE_TENTH: Final = wat.agent(
    handle=f"(if (i32.eq (global.get $count) (i32.const 10)) (then {wat.LOOP})) {wat.ECHO}"
)
GARBLES_THE_TENTH: Final = wat.agent(
    handle="(if (result i32) (i32.eq (global.get $count) (i32.const 10))"
    f" (then {wat.INVALID_UTF8}) (else {wat.ECHO}))"
)
REFUSES_ITS_CONFIG: Final = wat.agent(init=wat.refuse("no such topic"))


@pytest.fixture
def daemon() -> Iterator[RunningDaemon]:
    with short_folder() as folder, component_daemon(folder) as running:
        yield running


async def _upgrade_under_load(daemon: RunningDaemon, component: Path) -> int:
    """Publish all along; upgrade after a third of it. Returns the exit status of the upgrade."""
    payloads = [f"message {number}".encode() for number in range(MESSAGES)]
    async with connected(daemon) as connection:
        load = asyncio.create_task(send_all(connection, ECHO_TOPIC, payloads, PER_SECOND))
        await asyncio.sleep(MESSAGES / PER_SECOND / 3)
        upgrade = await asyncio.create_subprocess_exec(
            *AGENTD,
            *("ctl", "agents", "upgrade", "echo", str(component)),
            *("--messages", "20", "--seconds", "1", "--socket", str(daemon.socket)),
        )
        status = await upgrade.wait()
        await load
    return status


def _all_once(daemon: RunningDaemon) -> None:
    daemon.wait(lambda: unfinished(daemon) == 0, "to have handled everything")
    assert echoed(daemon) == Counter(f"message {number}" for number in range(MESSAGES))
    assert daemon.rows("SELECT count(*) FROM dead_letter") == [(0,)]


def _history(daemon: RunningDaemon) -> list[dict[str, Any]]:
    versions: list[dict[str, Any]] = daemon.ctl("agents", "history", "echo")["versions"]
    return versions


def _wait_state(daemon: RunningDaemon, number: int, state: str) -> dict[str, Any]:
    def settled() -> bool:
        return any(one["number"] == number and one["state"] == state for one in _history(daemon))

    daemon.wait(settled, f"to have version {number} {state}")
    (version,) = [one for one in _history(daemon) if one["number"] == number]
    return version


def test_an_upgrade_under_load_loses_and_doubles_nothing(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    status = asyncio.run(_upgrade_under_load(daemon, write_component(tmp_path, "good", GOOD)))
    assert status == 0
    _all_once(daemon)
    _wait_state(daemon, 2, "active")


@pytest.mark.parametrize(
    "bad",
    [TRAPS_ON_THE_TENTH, LOOPS_ON_THE_TENTH, GARBLES_THE_TENTH],
    ids=["traps", "loops", "garbles"],
)
def test_a_version_that_fails_on_its_tenth_message_goes_back_and_nothing_is_lost(
    daemon: RunningDaemon, tmp_path: Path, bad: str
) -> None:
    asyncio.run(_upgrade_under_load(daemon, write_component(tmp_path, "bad", bad)))
    _all_once(daemon)
    version = _wait_state(daemon, 2, "rolled-back")
    assert version["reason"].startswith("`handle` of the component")
    again = _wait_state(daemon, 3, "active")
    assert (again["source"], again["sha256"]) == ("rollback", _history(daemon)[0]["sha256"])
    assert daemon.agent("echo")["state"] in ("idle", "busy")


def test_a_version_that_does_not_start_changes_nothing(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    component = write_component(tmp_path, "refuses", REFUSES_ITS_CONFIG)
    before = daemon.agent("echo")["pid"]
    done = daemon.run_ctl("agents", "upgrade", "echo", str(component))
    assert done.status != 0
    assert "no such topic" in done.errors
    assert daemon.agent("echo")["pid"] == before
