"""An agent that is retired is gone for good, however its daemon ends, and in nobody's way."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import wat_components as wat
from component_daemons import (
    add,
    component_installation,
    send,
    wait_dead_letter,
    write_agent,
    write_component,
)
from daemons import AGENTD, Installation, RunningDaemon, agentd, short_folder

SLOW_TO_STOP: Final = wat.agent(shutdown=wat.LOOP)
"""It is up to the limit on the time of a call how long its end takes."""


@pytest.fixture
def installation() -> Iterator[Installation]:
    with short_folder() as folder:
        yield component_installation(folder)


def added(daemon: RunningDaemon, name: str, text: str = wat.agent(), **keys: object) -> None:
    folder = daemon.installation.folder.parent
    done = add(daemon, write_agent(folder, name, write_component(folder, name, text), **keys))
    assert done.status == 0, done.errors


def own_file(installation: Installation, name: str) -> Path:
    return installation.state / "agents.d" / f"{name}.toml"


def versions(daemon: RunningDaemon, name: str) -> list[str]:
    rows = daemon.rows(f"SELECT state FROM agent_version WHERE agent = '{name}'")
    return [str(state) for (state,) in rows]


def names(daemon: RunningDaemon) -> set[str]:
    return {str(one["name"]) for one in daemon.status()["agents"]}


def test_what_a_kill_has_left_of_a_retirement_is_done_at_the_next_start(
    installation: Installation,
) -> None:
    daemon = installation.start()
    daemon.wait_healthy()
    added(daemon, "slow", SLOW_TO_STOP, limits={"fuel": 10**12, "call": "5s"})
    retire = subprocess.Popen(
        [*AGENTD, "ctl", "agents", "retire", "slow", "--socket", str(daemon.socket)],
        stderr=subprocess.PIPE,
        text=True,
    )

    def leaving() -> bool:
        return bool(daemon.rows("SELECT 1 FROM agent WHERE name = 'slow' AND retired_by <> ''"))

    daemon.wait(leaving, "to retire it")
    daemon.kill()
    _, errors = retire.communicate(timeout=60)
    assert "agentd ctl agents history slow" in errors
    assert own_file(installation, "slow").exists(), "it was killed too late to show anything"
    with installation.running() as again:
        assert "slow" not in names(again)
        assert not own_file(installation, "slow").exists()
        assert versions(again, "slow") == ["retired"]
        assert again.status()["retired"] == []


def test_who_delegates_to_a_retired_agent_is_no_reason_not_to_start(
    installation: Installation,
) -> None:
    with installation.running() as daemon:
        added(daemon, "bee")
        added(daemon, "asks", delegate=["bee"])
        daemon.ctl("agents", "retire", "bee")
        added(daemon, "later")
    with installation.running() as daemon:
        assert names(daemon) == {"echo", "sink", "asks", "later"}
    checked = agentd("check", *installation.config_option)
    assert checked.status == 0
    assert 'agent.asks.delegate[0]: found "bee", which was retired' in checked.output
    with installation.running() as daemon:
        added(daemon, "bee")
    assert "which was retired" not in agentd("check", *installation.config_option).output


def test_a_configured_agent_that_stays_away_is_spoken_of(installation: Installation) -> None:
    with installation.running() as daemon:
        daemon.ctl("agents", "retire", "echo")
        assert daemon.ctl("agents")["retired"] == ["echo"]
    with installation.running() as daemon:
        assert daemon.status()["retired"] == ["echo"]
        shown = agentd("ctl", "agents", "--socket", str(daemon.socket)).output
        assert "configured, and retired: echo" in shown
        assert "agent echo is configured, and stays away" in daemon.tail()
        assert add(daemon, installation.folder / "agents.d" / "echo.toml").status == 0
        assert daemon.status()["retired"] == []


def test_an_agent_that_died_with_the_daemon_that_added_it_is_in_the_audit_trail(
    installation: Installation,
) -> None:
    with installation.running() as daemon:
        added(daemon, "kept")
        file = own_file(installation, "kept").read_text()
    # As a kill between the file and the commit leaves it.
    own_file(installation, "late").write_text(file.replace("[agent.kept", "[agent.late"))
    for _ in range(2):
        with installation.running() as daemon:
            rows = daemon.rows("SELECT owner, subject FROM audit WHERE action = 'agent.add'")
            assert rows == [("operator", "kept"), ("operator", "late")]


def test_one_that_cannot_finish_is_named_and_can_be_repaired(installation: Installation) -> None:
    with installation.running() as daemon:
        limits = {"inbox": 100}
        added(daemon, "bad", wat.agent(handle=wat.TRAP), limits=limits)
        first = send(daemon, "bad.in", "1")
        wait_dead_letter(daemon, first, 90)
        (delivery,) = daemon.ctl("trace", first)["deliveries"]
        assert delivery["attempts"] == len(delivery["traps"]) == 5
        for number in range(3):
            send(daemon, "bad.in", str(number))
        daemon.wait(lambda: daemon.agent("bad")["state"] == "quarantined", "to give it up")
        done = daemon.run_ctl("agents", "retire", "bad")
        assert done.status == 1
        assert "bad is retired, and cannot finish what it has" in done.errors
        assert "agentd ctl attention answer" in done.errors
        good = write_component(installation.folder, "good", wat.agent())
        daemon.ctl("agents", "upgrade", "bad", str(good))
        daemon.wait(lambda: "bad" not in names(daemon), "to see it off")
        assert not own_file(installation, "bad").exists()
        assert daemon.ctl("attention", "list")["requests"] == []
