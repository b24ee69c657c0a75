"""New versions of a component go live under load, and a bad one goes back. Nothing is lost, not
even where the daemon is killed meanwhile."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import wat_components as wat
from component_daemons import (
    ECHO_TOPIC,
    component_daemon,
    component_installation,
    connected,
    echoed,
    send_all,
    unfinished,
    write_component,
)
from daemons import AGENTD, Installation, RunningDaemon, short_folder

from ipc_protocol.aio import Connection
from ipc_protocol.control import Send
from ipc_protocol.errors import Failure
from ipc_protocol.methods import SEND

MESSAGES: Final = 3000
PER_SECOND: Final = 500.0

UNTIL_KILLED: Final = 600
PER_SECOND_UNTIL_KILLED: Final = 150.0
"""Four seconds of load, in the middle of which the daemon is killed."""
MOMENT_SECONDS_MAX: Final = 30.0

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


def _hash_of(component: Path) -> str:
    return hashlib.sha256(component.read_bytes()).hexdigest()


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
    metrics = daemon.metrics()
    for moved in ("traps_total", "upgrades_total", "rollbacks_total", "compile_seconds_count"):
        assert metrics.total(f"agentd_component_{moved}") >= 1, moved
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


# ---- The daemon is killed ------------------------------------------------------------------------


@pytest.fixture
def installation() -> Iterator[Installation]:
    with short_folder() as folder:
        yield component_installation(folder)


async def _publish(
    connection: Connection, payloads: Sequence[bytes], acknowledged: set[str]
) -> None:
    """Publish at a steady rate for as long as there is somebody to publish to."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(payload: bytes) -> None:
        try:
            await connection.call(SEND, Send(topic=ECHO_TOPIC, payload=payload))
        except Failure as failure:
            assert failure.code.startswith("protocol."), failure
        else:
            acknowledged.add(payload.decode())

    async with asyncio.TaskGroup() as group:
        for number, payload in enumerate(payloads):
            due = began + number / PER_SECOND_UNTIL_KILLED
            await asyncio.sleep(max(0.0, due - loop.time()))
            if connection.closed:
                return
            group.create_task(one(payload))


async def _kill_under_load(
    daemon: RunningDaemon, component: Path, moment: Callable[[], bool]
) -> set[str]:
    """Upgrade under load, and kill the daemon at a moment of it. What it had acknowledged."""
    acknowledged: set[str] = set()
    payloads = [f"before {number}".encode() for number in range(UNTIL_KILLED)]
    async with connected(daemon) as connection:
        load = asyncio.create_task(_publish(connection, payloads, acknowledged))
        await asyncio.sleep(UNTIL_KILLED / PER_SECOND_UNTIL_KILLED / 4)
        upgrade = await asyncio.create_subprocess_exec(
            *AGENTD,
            *("ctl", "agents", "upgrade", "echo", str(component)),
            *("--messages", "100000", "--seconds", "1", "--socket", str(daemon.socket)),
        )
        await asyncio.to_thread(_kill_at, daemon, moment)
        await upgrade.wait()
        await load
    assert len(acknowledged) < UNTIL_KILLED, "it was killed in the middle of the load"
    return acknowledged


def _kill_at(daemon: RunningDaemon, moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MOMENT_SECONDS_MAX
    while not moment():
        assert time.monotonic() < deadline, f"it did not come to that:\n{daemon.tail()}"
        time.sleep(0.001)
    daemon.kill()


def _finish(daemon: RunningDaemon, acknowledged: set[str]) -> None:
    """More of the same, after which everything came out exactly once."""
    more = [f"after {number}" for number in range(100)]

    async def publish() -> None:
        async with connected(daemon) as connection:
            await send_all(connection, ECHO_TOPIC, [one.encode() for one in more], PER_SECOND)

    asyncio.run(publish())
    daemon.wait(lambda: unfinished(daemon) == 0, "to have handled everything")
    # What was not acknowledged may have been taken or not; what was taken is in the database.
    taken = daemon.rows(f"SELECT CAST(payload AS TEXT) FROM message WHERE topic = '{ECHO_TOPIC}'")
    assert echoed(daemon) == Counter(str(payload) for (payload,) in taken)
    assert set(echoed(daemon).values()) == {1}
    assert acknowledged | set(more) <= echoed(daemon).keys()
    assert daemon.rows("SELECT count(*) FROM dead_letter") == [(0,)]


def test_a_daemon_that_is_killed_while_it_upgrades_loses_and_doubles_nothing(
    installation: Installation, tmp_path: Path
) -> None:
    daemon = installation.start()
    daemon.wait_healthy()
    component = write_component(tmp_path, "good", GOOD)
    kept = installation.state / "components" / f"{_hash_of(component)}.wasm"
    acknowledged = asyncio.run(_kill_under_load(daemon, component, kept.exists))
    with installation.running() as again:
        _finish(again, acknowledged)
        active = again.agent("echo")["component"]["sha256"]
        (version,) = [one for one in _history(again) if one["state"] == "active"]
        assert active == version["sha256"]
        if active != _hash_of(component):  # it came to no handover, which leaves nothing behind
            done = again.run_ctl("agents", "upgrade", "echo", str(component))
            assert done.status == 0, done.errors


def test_a_daemon_that_is_killed_on_probation_goes_on_with_it(
    installation: Installation, tmp_path: Path
) -> None:
    daemon = installation.start()
    daemon.wait_healthy()
    component = write_component(tmp_path, "good", GOOD)

    def is_on_probation() -> bool:
        active = "SELECT 1 FROM agent_version WHERE state = 'active' AND settled_us IS NULL"
        return bool(daemon.rows(active))

    acknowledged = asyncio.run(_kill_under_load(daemon, component, is_on_probation))
    with installation.running() as again:
        assert again.agent("echo")["component"]["sha256"] == _hash_of(component)
        _finish(again, acknowledged)
        assert [one["state"] for one in _history(again)] == ["active", "retired"]


def test_a_configured_component_that_is_gone_stops_no_daemon(installation: Installation) -> None:
    with installation.running() as daemon:
        assert daemon.agent("echo")["state"] == "idle"
    (installation.folder.parent / "echo.wasm").unlink()
    with installation.running() as daemon:
        _finish(daemon, set())
