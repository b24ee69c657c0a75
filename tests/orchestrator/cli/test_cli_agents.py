"""`agentd ctl agents`: what it reads on this machine, and what it makes of the daemon's answers."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from canned_daemon import Daemon
from click.testing import Result

from ipc_protocol import control
from ipc_protocol.errors import Failure
from orchestrator.cli import agents as commands
from orchestrator.cli.exits import Exit

Agentd = Callable[..., Result]


@pytest.fixture
def component(tmp_path: Path) -> Path:
    path = tmp_path / "gate.wasm"
    path.write_bytes(b"\0asm" + bytes(range(256)) * 10)
    return path


def test_options_without_a_command_are_those_of_the_list(agentd: Agentd, daemon: Daemon) -> None:
    listed = agentd("ctl", "agents", "list", "--json", "--socket", daemon.path)
    assert agentd("ctl", "agents", "--json", "--socket", daemon.path).stdout == listed.stdout
    assert agentd("ctl", "agents", "--help").stdout.startswith("Usage: agentd ctl agents")
    wrong = agentd("ctl", "agents", "upgarde", "--socket", daemon.path)
    assert wrong.exit_code == Exit.USAGE


def test_a_component_is_uploaded_in_pieces_before_the_upgrade(
    agentd: Agentd, daemon: Daemon, component: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "PIECE_BYTES", 1000)
    result = agentd(
        *("ctl", "agents", "upgrade", "sensor", component),
        *("--messages", "5", "--seconds", "2min", "--socket", daemon.path),
    )
    assert (result.exit_code, result.stderr) == (Exit.OK, "")
    assert "has taken over from version 1" in result.stdout
    data = component.read_bytes()
    assert daemon.uploaded == data and daemon.pieces == [0, 1000, 1000, len(data) - 2000]
    assert daemon.asked == [
        control.UpgradeAgent(
            agent="sensor", sha256=hashlib.sha256(data).hexdigest(), messages=5, us=120_000_000
        )
    ]


def test_an_upload_goes_on_where_an_earlier_one_was_given_up(
    agentd: Agentd, daemon: Daemon, component: Path
) -> None:
    daemon.uploaded = component.read_bytes()[:700]
    agentd("ctl", "agents", "upgrade", "sensor", component, "--socket", daemon.path)
    assert daemon.uploaded == component.read_bytes()


def test_an_error_of_the_daemon_has_its_code_and_details(
    agentd: Agentd, daemon: Daemon, component: Path
) -> None:
    daemon.failures["ctl.agents.upgrade"] = Failure(
        "component.trapped", "`init` trapped.", "Look at it.", backtrace="0: init"
    )
    arguments = ("sensor", component, "--socket", daemon.path)
    result = agentd("ctl", "agents", "upgrade", *arguments, "--json")
    assert result.exit_code == Exit.FAILED
    error = json.loads(result.stderr)
    assert error["code"] == "component.trapped" and error["details"] == {"backtrace": "0: init"}


def test_a_component_that_cannot_be_read_is_named(agentd: Agentd, daemon: Daemon) -> None:
    result = agentd("ctl", "agents", "upgrade", "sensor", "/no/such", "--socket", daemon.path)
    assert result.exit_code == Exit.FAILED
    assert "The component, /no/such, cannot be read: no such file" in result.stderr


def test_what_is_no_regular_file_is_not_waited_for(
    agentd: Agentd, daemon: Daemon, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = tmp_path / "fifo"
    result = agentd("ctl", "agents", "upgrade", "sensor", fifo, "--socket", daemon.path)
    assert result.exit_code == Exit.FAILED
    assert "cannot be read: it is not a regular file" in result.stderr


def test_a_daemon_that_ends_meanwhile_may_have_done_it(
    agentd: Agentd, daemon: Daemon, component: Path
) -> None:
    daemon.failures["ctl.agents.upgrade"] = Failure("protocol.closed", "The connection ended.")
    result = agentd("ctl", "agents", "upgrade", "sensor", component, "--socket", daemon.path)
    assert result.exit_code == Exit.UNREACHABLE
    assert "`agentd ctl agents history sensor` shows that" in result.stderr


# ---- Adding --------------------------------------------------------------------------------------

GATE = '[agent.gate]\nidentity_file = "gate.md"\nconfig_file = "/abs"\ncomponent = "gate.wasm"\n'


def test_what_the_file_of_an_agent_names_goes_with_it(
    agentd: Agentd, daemon: Daemon, component: Path, tmp_path: Path
) -> None:
    config = tmp_path / "other.json"
    config.write_bytes(b"{}")
    (tmp_path / "gate.md").write_text("You guard.")
    file = tmp_path / "gate.toml"
    text = GATE.replace("/abs", str(config))
    file.write_text(text)
    result = agentd("ctl", "agents", "add", file, "--socket", daemon.path)
    assert result.exit_code == Exit.OK, result.output
    assert result.stdout == ("warning  no duties\ngate was added; /state/gate.toml keeps it.\n")
    assert daemon.asked == [
        control.AddAgent(
            file=str(file),
            text=text,
            contents={"gate.md": b"You guard.", str(config): b"{}"},
            components={"gate.wasm": hashlib.sha256(component.read_bytes()).hexdigest()},
        )
    ]
    assert daemon.uploaded == component.read_bytes()


def test_a_file_that_is_not_there_is_named_with_its_key(
    agentd: Agentd, daemon: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "gate.toml"
    file.write_text(GATE)
    result = agentd("ctl", "agents", "add", file, "--socket", daemon.path)
    assert result.exit_code == Exit.FAILED
    assert f"The `identity_file` of {file}, {tmp_path / 'gate.md'}, cannot be read" in result.stderr


def test_a_file_that_fits_into_no_frame_is_named_before_it_is_sent(
    agentd: Agentd, daemon: Daemon, tmp_path: Path
) -> None:
    big = tmp_path / "big.json"
    big.write_bytes(bytes(commands.TEXT_BYTES_MAX + 1))
    (tmp_path / "gate.md").write_text("You guard.")
    file = tmp_path / "gate.toml"
    file.write_text(GATE.replace("/abs", str(big)))
    result = agentd("ctl", "agents", "add", file, "--socket", daemon.path)
    assert result.exit_code == Exit.FAILED
    assert f"The `config_file` of {file}, {big}, is larger than 1048576 bytes" in result.stderr


@pytest.mark.parametrize("data", [b"x = [", b'agent = "x"', b"\xff", b"[agent]\ngate = 3\n"])
def test_what_is_wrong_with_the_file_itself_the_daemon_says(
    agentd: Agentd, daemon: Daemon, tmp_path: Path, data: bytes
) -> None:
    file = tmp_path / "gate.toml"
    file.write_bytes(data)
    problems = [{"file": str(file), "line": 1, "key": "", "found": "x", "expected": "y"}]
    daemon.failures["ctl.agents.add"] = Failure(
        "request.invalid", "the file has 1 mistake", problems=problems
    )
    result = agentd("ctl", "agents", "add", file, "--json", "--socket", daemon.path)
    assert result.exit_code == Exit.CONFIG
    error = json.loads(result.stderr)
    assert error["code"] == "config.wrong" and error["details"]["problems"] == problems


def test_another_error_of_adding_is_no_wrong_file(
    agentd: Agentd, daemon: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "gate.toml"
    file.write_text("[agent.gate]\n")
    daemon.failures["ctl.agents.add"] = Failure("component.grant", "not granted")
    assert agentd("ctl", "agents", "add", file, "--socket", daemon.path).exit_code == Exit.FAILED


# ---- Going ---------------------------------------------------------------------------------------


def test_whoever_does_not_wait_for_the_end_is_told_that_it_comes(
    agentd: Agentd, daemon: Daemon
) -> None:
    daemon.unfinished = True
    result = agentd("ctl", "agents", "retire", "gate", "--timeout", "50ms", "--socket", daemon.path)
    assert result.exit_code == Exit.TIMEOUT
    assert "it is retired all the same" in result.stderr


def test_whoever_waits_in_a_pipe_hears_what_for(agentd: Agentd, daemon: Daemon) -> None:
    result = agentd("ctl", "agents", "retire", "gate", "--socket", daemon.path)
    assert (result.exit_code, result.stderr.count("\n")) == (Exit.OK, 1)
    silent = agentd("ctl", "agents", "retire", "gate", "--json", "--socket", daemon.path)
    assert (silent.exit_code, silent.stderr) == (Exit.OK, "")
