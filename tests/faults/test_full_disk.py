"""The disk is full: asking is refused, reading goes on, and what was begun waits for room.

The state folder is a small file system of its own in memory, mounted in a namespace that only the
daemon and what it starts can see. It is filled from outside, through `/proc/PID/root`.
"""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Installation, RunningDaemon

STATE_BYTES = 24 * 1024 * 1024
"""The database and its log need 4 MiB, and sixteen leave room for a conversation."""

LONG_TEXT = "Is the disk full? " * 2000
"""A commit that fits into what the log has already needs no room; this one does."""

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


def test_a_full_disk_refuses_what_is_new_and_loses_nothing(daemon: RunningDaemon) -> None:
    daemon.answered("Is the load too high or the memory used up?", "before")
    daemon.ask("Write a small Python script that counts the lines of a text file.", "during")
    daemon.wait(lambda: daemon.agent("devclaw")["phase"] == "act", "to be at work")
    fill(daemon)

    refused = daemon.run_ctl("ask", LONG_TEXT, "--correlation", "refused")
    assert refused.status == 1
    assert '"store.full"' in refused.errors
    assert str(daemon.installation.state / "agentd.db") in refused.errors

    # Reading goes on.
    assert daemon.ctl("trace", "before")["conversation"]["state"] == "answered"
    assert daemon.run_ctl("trace", "refused").status == 1
    assert daemon.http("/metrics")[0] == 200

    # With room again, everything that was accepted is finished, and new requests are taken.
    ballast(daemon).unlink()
    trace = daemon.wait_answer("during")
    assert trace["conversation"]["reply"].strip()
    assert trace["dead_letters"] == []
    assert daemon.answered("Is the load too high?", "refused")["conversation"]["reply"].strip()
    daemon.wait_healthy()
    status = daemon.status()
    assert status["dead_letters"] == 0
    assert {agent["restarts"] for agent in status["agents"]} == {0}


def test_a_daemon_stops_when_asked_though_its_disk_is_full(daemon: RunningDaemon) -> None:
    daemon.ask("Write a small Python script that counts the lines of a text file.", "unfinished")
    daemon.wait(lambda: daemon.agent("devclaw")["phase"] == "act", "to be at work")
    fill(daemon)
    assert daemon.run_ctl("ask", LONG_TEXT).status == 1
    # The fixture stops it, and looks at its exit status.
