"""The disk is full: asking is refused, reading goes on, and what was begun ends in the reserve.

The state folder is a small file system of its own in memory, mounted in a namespace that only the
daemon and what it starts can see. It is filled from outside, through `/proc/PID/root`.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Installation, RunningDaemon

STATE_BYTES = 24 * 1024 * 1024
"""The database and its log need 4 MiB, and sixteen leave room for a conversation."""

TEXT = "Is the disk full?"
"""So short that it would fit into what the log has already; the intake refuses it all the same."""

ALARMS = """
import json, sys, apsw
rows = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY).execute(
    "SELECT json_extract(data, '$.over') FROM health WHERE kind = 'store.full' ORDER BY id")
print(json.dumps([over for (over,) in rows]))
"""

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root"),
]


@pytest.fixture
def daemon(installation: Installation, model_path: Path) -> Iterator[RunningDaemon]:
    """A daemon whose state has little room; the model lies elsewhere."""
    installation.configure(model={"default": {"file": str(model_path)}})
    mount = f"mount -t tmpfs -o size={STATE_BYTES} none {shlex.quote(str(installation.state))}"
    wrapper = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    with installation.running(wrapper) as daemon:
        yield daemon


def ballast(daemon: RunningDaemon) -> Path:
    return daemon.seen(daemon.installation.state / "ballast")


def fill(daemon: RunningDaemon) -> None:
    with ballast(daemon).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == 28, error


def intake(daemon: RunningDaemon) -> float:
    return daemon.metrics().total("agentd_store_intake_open")


def within(daemon: RunningDaemon, *command: str) -> str:
    """What a command prints that sees the files as the daemon does."""
    enter = ["nsenter", "--mount", f"--target={daemon.process.pid}", sys.executable]
    done = subprocess.run([*enter, *command], capture_output=True, text=True, check=True)
    return done.stdout


def alarms(daemon: RunningDaemon) -> list[bool]:
    """Those about the disk; true where one is over."""
    path = str(daemon.installation.state / "agentd.db")
    return [bool(over) for over in json.loads(within(daemon, "-c", ALARMS, path))]


def test_a_full_disk_refuses_what_is_new_and_loses_nothing(daemon: RunningDaemon) -> None:
    daemon.answered("Is the load too high or the memory used up?", "before")
    daemon.ask("Write a small Python script that counts the lines of a text file.", "during")
    daemon.wait(lambda: daemon.agent("devclaw")["phase"] == "act", "to be at work")
    fill(daemon)

    daemon.wait(lambda: intake(daemon) == 0, "to take nothing in")
    refused = daemon.run_ctl("ask", TEXT, "--correlation", "refused")
    assert refused.status == 1
    assert '"store.full"' in refused.errors
    assert str(daemon.installation.state / "agentd.db") in refused.errors

    # Reading goes on.
    assert daemon.ctl("trace", "before")["conversation"]["state"] == "answered"
    assert daemon.run_ctl("trace", "refused").status == 1
    assert daemon.http("/metrics")[0] == 200

    # And so does what was accepted, in the reserve: that the intake is closed is written down.
    daemon.wait(lambda: alarms(daemon) == [False], "to report that the disk is full")

    # With room again, everything that was accepted is finished, and new requests are taken.
    ballast(daemon).unlink()
    daemon.wait(lambda: intake(daemon) == 1, "to take in what is new")
    trace = daemon.wait_answer("during")
    assert trace["conversation"]["reply"].strip()
    assert trace["dead_letters"] == []
    assert daemon.answered("Is the load too high?", "refused")["conversation"]["reply"].strip()
    daemon.wait_healthy()
    status = daemon.status()
    assert status["dead_letters"] == 0
    assert {agent["restarts"] for agent in status["agents"]} == {0}
    assert alarms(daemon) == [False, True]


def test_a_daemon_stops_when_asked_though_its_disk_is_full(daemon: RunningDaemon) -> None:
    daemon.ask("Write a small Python script that counts the lines of a text file.", "unfinished")
    daemon.wait(lambda: daemon.agent("devclaw")["phase"] == "act", "to be at work")
    fill(daemon)
    daemon.wait(lambda: intake(daemon) == 0, "to take nothing in")
    assert daemon.run_ctl("ask", TEXT).status == 1
    # The fixture stops it, and looks at its exit status.
