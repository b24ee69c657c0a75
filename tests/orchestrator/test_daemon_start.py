"""A daemon that cannot have its socket says so in a line, and changes and starts nothing."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.control.server import listening

AGENTD = (sys.executable, "-m", "orchestrator.cli.main")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """No models and no agents: what would be started is the zygote and the embedding engine."""
    path = tmp_path / "agentd.toml"
    path.write_text('[daemon]\nstate = "state"\nsocket = "a.sock"\nlog = "json"\n[model]\n')
    return path


def started(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENTD, "run", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_socket_in_use_ends_the_daemon_before_anything_is_made(config: Path) -> None:
    path = config.parent / "a.sock"
    with listening(path):
        done = started(config)
        assert path.is_socket()
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"{path} is in use" in line and "Errno" not in line
    assert not (config.parent / "state").exists()


def test_a_file_where_the_socket_should_be_survives(config: Path) -> None:
    path = config.parent / "a.sock"
    path.write_text("important")
    done = started(config)
    assert done.returncode == 1
    assert "no socket" in done.stderr
    assert path.read_text() == "important"
    assert sorted(os.listdir(config.parent)) == ["a.sock", "agentd.toml"]  # noqa: PTH208


def test_the_socket_of_a_killed_daemon_does_not_count_as_in_use(config: Path) -> None:
    path = config.parent / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(path):
        assert path.is_socket()
