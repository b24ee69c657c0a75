"""`agentd ctl` against a daemon that speaks the real protocol."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from canned_daemon import AGENT, HAPPENINGS, STATUS, TRACE, Daemon
from click.testing import Result

from ipc_protocol import control, inference, methods
from ipc_protocol.errors import Failure
from ipc_protocol.values import Receipt
from orchestrator.cli import output
from orchestrator.cli.exits import Exit

Agentd = Callable[..., Result]

COMMANDS: list[tuple[list[str], Any, list[str]]] = [
    (
        ["status"],
        control.Status,
        ["healthy", "up 1 h 0 min", "opsclaw", "smollm2", "1/2", "2 queu", "without landlock"],
    ),
    (["agents"], control.Agents, ["opsclaw", "busy", "act, delivery 12", "without landlock"]),
    (["agents", "list"], control.Agents, ["opsclaw", "busy"]),
    (
        ["agents", "history", "sensor"],
        control.AgentVersions,
        ["abababababab", "agent@0.2.0", "on probation, 3 of 20 messages", "took its place"],
    ),
    (
        ["agents", "rollback", "sensor"],
        control.AgentUpgraded,
        ["version 2 (abababababab, agent@0.2.0) has taken over from version 1", "20 messages"],
    ),
    (["agents", "retire", "gate"], control.AgentRetired, ["gate is retired", "2 of its"]),
    (
        ["slots"],
        control.Engines,
        [
            "on CUDA0  2 threads  KV 512/8192 (6%, unified)  swap 1.0 MiB of 256.0 MiB",
            "memory 1.5 GiB  1204 steps",
            *("decode", "430", "256", "413", "17", "1.2 s", "uxclaw", "82"),
            *("devclaw", "swapped", "5.0 ms", "2.5 s", "all slots busy", "not known"),
        ],
    ),
    (["memory"], control.Memories, ["opsclaw", "Rotate logs weekly.", "0.70"]),
    (["tasks", "devclaw"], control.Tasks, ["rotate logs", "doing", "half-way"]),
    (["trace", "c1"], control.Trace, ["12.3 ms", "31 tokens", "Rotate logs weekly.", "2 attempts"]),
    (["send", "ops.report", "hi"], Receipt, ["c9  accepted for opsclaw, secclaw"]),
    (["send", "ops.report", "hi", "--wait"], Receipt, ["c9  handled by opsclaw, secclaw"]),
    (
        ["send", "ops.report", "hi", "--id", "known"],
        Receipt,
        ["c9  was sent before, accepted for opsclaw, secclaw"],
    ),
    (["attention", "list"], control.AttentionRequests, ["3", "May I restart nginx?"]),
    (["ask", "hi", "--correlation", "c7"], Receipt, ["c7", "opsclaw", "ctl answer c7"]),
    (["answer", "c1"], control.Conversation, ["Free /var/log."]),
]


@pytest.mark.parametrize(("arguments", "kind", "shown"), COMMANDS)
def test_a_command_prints_what_the_daemon_says(
    agentd: Agentd, daemon: Daemon, arguments: list[str], kind: Any, shown: list[str]
) -> None:
    result = agentd("ctl", *arguments, "--socket", daemon.path)
    assert result.exit_code == Exit.OK, result.output
    for part in shown:
        assert part in result.stdout, result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(("arguments", "kind", "shown"), COMMANDS)
def test_json_is_one_document_of_the_type_of_the_protocol(
    agentd: Agentd, daemon: Daemon, arguments: list[str], kind: Any, shown: list[str]
) -> None:
    result = agentd("ctl", *arguments, "--json", "--socket", daemon.path)
    assert result.exit_code == Exit.OK, result.output
    assert isinstance(msgspec.json.decode(result.stdout, type=kind, strict=True), kind)
    assert result.stdout.count("\n") == 1


def test_json_has_the_fields_at_their_defaults_too(agentd: Agentd, daemon: Daemon) -> None:
    result = agentd("ctl", "agents", "--json", "--socket", daemon.path)
    document = json.loads(result.stdout)["agents"][0]
    assert set(document) == set(AGENT.__struct_fields__)
    assert msgspec.json.decode(result.stdout, type=control.Agents).agents == [AGENT]


def test_arguments_arrive_at_the_daemon(agentd: Agentd, daemon: Daemon) -> None:
    line = ("--socket", daemon.path)
    agentd("ctl", "ask", "-", "--to", "opsclaw", "--priority", "urgent", *line, stdin="why?")
    agentd("ctl", "send", "ops.raw", "-", *line, stdin=b"\xff\x00")
    agentd("ctl", "memory", "opsclaw", "--query", "logs", "--limit", "2", *line)
    agentd("ctl", "attention", "answer", "3", "yes", *line)
    agentd("ctl", "attention", "list", "--all", *line)
    asked, sent, memory, answer, listed = daemon.asked
    assert (asked.text, asked.to, asked.priority) == ("why?", "opsclaw", "urgent")
    assert asked.correlation
    assert sent == control.Publish(topic="ops.raw", payloads=[b"\xff\x00"])
    assert memory == control.MemoryQuery(agent="opsclaw", query="logs", limit=2)
    assert answer == control.AttentionAnswer(id=3, text="yes")
    assert listed == control.AttentionQuery(all=True)


def test_two_questions_have_two_names(agentd: Agentd, daemon: Daemon) -> None:
    for _ in range(2):
        agentd("ctl", "ask", "hi", "--socket", daemon.path)
    assert len({asked.correlation for asked in daemon.asked}) == 2


# ---- Waiting and watching -----------------------------------------------------------------------


def test_ask_waits_for_the_reply_and_prints_nothing_else_in_a_pipe(
    agentd: Agentd, daemon: Daemon
) -> None:
    result = agentd("ctl", "ask", "disk", "--wait", "--socket", daemon.path)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Free /var/log.\n", "")


def test_a_reply_that_does_not_come_in_time_can_be_fetched_later(
    agentd: Agentd, daemon: Daemon
) -> None:
    daemon.reply = None
    arguments = ("--wait", "--timeout", "50ms", "--correlation", "c5", "--socket", daemon.path)
    result = agentd("ctl", "ask", "disk", *arguments)
    assert result.exit_code == Exit.TIMEOUT
    assert "agentd ctl answer c5" in result.stderr


def test_a_timeout_without_waiting_is_a_mistake(agentd: Agentd, daemon: Daemon) -> None:
    result = agentd("ctl", "ask", "x", "--timeout", "5", "--socket", daemon.path)
    assert result.exit_code == Exit.USAGE
    assert "--wait" in result.stderr


def test_a_wrong_duration_says_what_was_expected(agentd: Agentd) -> None:
    result = agentd("ctl", "answer", "c1", "--timeout", "5 parsecs")
    assert result.exit_code == Exit.USAGE
    assert "such as" in result.stderr


def test_watch_prints_a_line_for_each_happening(agentd: Agentd, daemon: Daemon) -> None:
    result = agentd("ctl", "watch", "--kind", "journal.appended", "--socket", daemon.path)
    assert result.exit_code == Exit.OK
    assert daemon.asked == [control.Watch(kinds=["journal.appended"])]
    first, missed, second = result.stdout.splitlines()
    assert "opsclaw" in first and "act: my duty" in first and "[c1]" in first
    assert "3 happenings were missed" in missed
    assert "[red]disk" in second


def test_watch_json_is_a_document_a_line(agentd: Agentd, daemon: Daemon) -> None:
    result = agentd("ctl", "watch", "--json", "--socket", daemon.path)
    lines = result.stdout.splitlines()
    assert [msgspec.json.decode(line, type=control.Happening) for line in lines] == HAPPENINGS


def test_the_trace_puts_what_was_delegated_under_who_delegated_it(
    agentd: Agentd, daemon: Daemon
) -> None:
    lines = agentd("ctl", "trace", "c1", "--socket", daemon.path).stdout.splitlines()
    depth = {
        word: next(line.index(word) for line in lines if word in line)
        for word in ("→ user.request", "delegated", "→ agent.devclaw", "leased")
    }
    order = [next(i for i, line in enumerate(lines) if word in line) for word in depth]
    assert order == sorted(order)
    assert lines[0].startswith(TRACE.conversation.correlation)
    assert any("dead letter" in line and "expired" in line for line in lines)


# ---- Sending with an id, and waiting -------------------------------------------------------------


def test_an_id_and_the_wait_arrive_at_the_daemon(agentd: Agentd, daemon: Daemon) -> None:
    line = ("--socket", daemon.path)
    named = ("--id", "reading-17", "--correlation", "c3")
    assert agentd("ctl", "send", "ops.raw", "x", *named, "--wait", *line).exit_code == Exit.OK
    assert daemon.asked == [
        control.Publish(
            topic="ops.raw",
            payloads=[b"x"],
            message_ids=["reading-17"],
            correlation="c3",
            wait="handled",
        )
    ]


def test_who_waits_in_vain_is_told_where_to_look(agentd: Agentd, daemon: Daemon) -> None:
    daemon.reply = None
    result = agentd(
        "ctl", "send", "ops.raw", "x", "--wait", "--timeout", "50ms", "--json",
        "--socket", daemon.path,
    )  # fmt: skip
    assert result.exit_code == Exit.TIMEOUT
    error = json.loads(result.stderr)
    (asked,) = daemon.asked
    assert error["code"] == "delivery.unfinished"
    assert f"agentd ctl trace {asked.correlation}" in error["cure"]
    assert error["details"]["correlation"] == asked.correlation


def test_with_an_id_the_wait_can_be_taken_up_again(agentd: Agentd, daemon: Daemon) -> None:
    daemon.reply = None
    waiting = ("--id", "r1", "--wait", "--timeout", "50ms", "--socket", daemon.path)
    result = agentd("ctl", "send", "ops.raw", "x", *waiting)
    assert result.exit_code == Exit.TIMEOUT
    assert "same --id" in result.stderr


def test_a_timeout_of_a_message_without_waiting_is_a_mistake(
    agentd: Agentd, daemon: Daemon
) -> None:
    result = agentd("ctl", "send", "t", "x", "--timeout", "5", "--socket", daemon.path)
    assert (result.exit_code, daemon.asked) == (Exit.USAGE, [])
    assert "--wait" in result.stderr


@pytest.mark.parametrize("wait", [(), ("--wait",)])
def test_a_message_that_is_refused_is_an_error_with_its_cure(
    agentd: Agentd, daemon: Daemon, wait: tuple[str, ...]
) -> None:
    daemon.failures["ctl.publish"] = Failure("bus.backpressure", "ops is full.", "Try later.")
    result = agentd("ctl", "send", "t", "x", *wait, "--socket", daemon.path)
    assert result.exit_code == Exit.FAILED
    assert "ops is full." in result.stderr and "Try later." in result.stderr


# ---- On a terminal ------------------------------------------------------------------------------


def on_terminal(*arguments: object, **environment: str) -> str:
    """Run agentd with a pseudo-terminal as its output, and return all that it wrote."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment}
    with subprocess.Popen(
        [*command, *map(str, arguments)], stdout=terminal, stderr=terminal, stdin=terminal, env=env
    ) as process:
        os.close(terminal)
        written = b""
        while True:
            try:
                data = os.read(controller, 65536)
            except OSError:  # Linux says so when the last writer is gone
                break
            written += data
        process.wait(10)
    os.close(controller)
    return written.decode()


def test_what_happens_is_shown_while_somebody_waits_at_a_terminal(daemon: Daemon) -> None:
    written = on_terminal("ctl", "ask", "disk", "--wait", "--socket", daemon.path)
    assert written.index("act: my duty") < written.index("Free /var/log.")
    assert "\x1b[" in written
    assert "\x1b]0;owned" not in written and "\x1b[2J" not in written and "\u202e" not in written


def test_a_failure_while_waiting_at_a_terminal_is_one_clear_line(daemon: Daemon) -> None:
    daemon.failures["ctl.answer"] = Failure("store.full", "The disk is full.", "Make room.")
    written = on_terminal("ctl", "ask", "disk", "--wait", "--socket", daemon.path)
    assert "The disk is full." in written and "Make room." in written
    assert "Traceback" not in written and "Group" not in written


def test_waiting_ends_at_an_interrupt_from_the_keyboard(daemon: Daemon) -> None:
    daemon.reply = None
    script = "from orchestrator.cli.main import main; main()"
    arguments = ["ctl", "answer", "c1", "--socket", str(daemon.path)]
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=-1) as process:
        assert daemon.waited_for.wait(10)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == Exit.INTERRUPTED
    assert b"Traceback" not in errors


def test_no_color_is_honoured(daemon: Daemon) -> None:
    written = on_terminal("ctl", "status", "--socket", daemon.path, NO_COLOR="1")
    assert "opsclaw" in written
    assert "\x1b[3" not in written and "\x1b[1;3" not in written


# ---- What goes wrong ----------------------------------------------------------------------------


def test_a_daemon_that_is_down_is_named_with_what_to_do(agentd: Agentd, tmp_path: Path) -> None:
    result = agentd("ctl", "status", "--socket", tmp_path / "no.sock")
    assert result.exit_code == Exit.UNREACHABLE
    assert f"{tmp_path}/no.sock" in result.stderr
    assert "agentd run" in result.stderr


def test_a_socket_that_a_dead_daemon_left_is_the_same(agentd: Agentd, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    result = agentd("ctl", "status", "--json", "--socket", tmp_path / "s")
    assert result.exit_code == Exit.UNREACHABLE
    assert json.loads(result.stderr)["code"] == "daemon.unreachable"
    assert result.stdout == ""


def test_somebody_else_at_the_socket_is_not_taken_for_the_daemon(
    agentd: Agentd, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()

        def answer() -> None:
            line, _ = other.accept()
            with line:
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                line.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        result = agentd("ctl", "status", "--socket", tmp_path / "s")
        thread.join(10)
    assert result.exit_code == Exit.UNREACHABLE
    assert str(tmp_path / "s") in result.stderr


def test_what_the_daemon_refuses_is_shown_with_its_cure(agentd: Agentd, daemon: Daemon) -> None:
    daemon.failures["ctl.ask"] = Failure(
        "agent.unknown", "There is no agent 'opclaw'.", "Did you mean 'opsclaw'?", name="opclaw"
    )
    arguments = ("ctl", "ask", "x", "--to", "opclaw", "--socket", daemon.path)
    result = agentd(*arguments)
    assert result.exit_code == Exit.FAILED
    assert "There is no agent 'opclaw'." in result.stderr
    assert "Did you mean 'opsclaw'?" in result.stderr
    problem = json.loads(agentd(*arguments, "--json").stderr)
    assert problem["code"] == "agent.unknown"
    assert problem["details"] == {"name": "opclaw"}


def test_the_socket_is_found_by_environment_and_configuration(
    agentd: Agentd, daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "agentd.toml").write_text('[daemon]\nsocket = "d.sock"\n')
    assert agentd("ctl", "status", AGENTD_SOCKET=str(daemon.path)).exit_code == Exit.OK
    assert agentd("ctl", "status", "--config", tmp_path).exit_code == Exit.OK
    assert agentd("ctl", "status", AGENTD_CONFIG=str(tmp_path)).exit_code == Exit.OK
    (tmp_path / "agentd.toml").write_text("[daemon]\nsocket = 3\n")
    assert agentd("ctl", "status", "--config", tmp_path).exit_code == Exit.CONFIG


def test_a_misspelt_command_suggests_the_nearest(agentd: Agentd) -> None:
    assert "Did you mean 'status'?" in agentd("ctl", "statsu").stderr
    assert "Did you mean 'check'?" in agentd("chek").stderr


# ---- Numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("us", "shown"),
    [
        (0, "0 µs"),
        (1500, "1.5 ms"),
        (4_200_000, "4.2 s"),
        (200_000_000, "3 min 20 s"),
        (7_260_000_000, "2 h 1 min"),
        (97_200_000_000, "1 d 3 h"),
    ],
)
def test_a_duration_is_shown_as_people_read_it(us: int, shown: str) -> None:
    assert output.span(us) == shown


# ---- Slots --------------------------------------------------------------------------------------


def test_who_waits_is_on_one_line_with_what_for_and_how_long_still(
    agentd: Agentd, daemon: Daemon
) -> None:
    lines = agentd("ctl", "slots", "--socket", daemon.path).stdout.splitlines()
    columns = next(line for line in lines if "FOR WHAT" in line)
    row = next(line for line in lines if "devclaw" in line)
    assert row[columns.index("FOR WHAT") :].strip() == "all slots busy"
    assert "2.5 s" in row[: columns.index("FOR WHAT")]


def test_an_engine_without_a_status_is_shown_with_its_state_and_why(
    agentd: Agentd, daemon: Daemon
) -> None:
    away = control.EngineSummary(name="big", state="unloaded", restarts=2, detail="not asked for")
    daemon.answers[methods.SLOTS.name] = control.Engines(engines=[away, away])
    shown = agentd("ctl", "slots", "--socket", daemon.path).stdout
    assert shown.count("big  unloaded  2 restarts  not asked for") == 2
    daemon.answers[methods.SLOTS.name] = control.Engines(engines=[])
    assert agentd("ctl", "slots", "--socket", daemon.path).stdout == "There are no engines.\n"


def test_an_engine_without_slots_is_one_that_makes_vectors(agentd: Agentd, daemon: Daemon) -> None:
    model = inference.ModelInfo(name="wordllama", kind="embedding", architecture="wordllama")
    engine = control.EngineSummary(
        name="embed", state="ready", restarts=0, status=inference.EngineStatus(model=model, steps=7)
    )
    daemon.answers[methods.SLOTS.name] = control.Engines(engines=[engine])
    shown = agentd("ctl", "slots", "--socket", daemon.path).stdout
    assert shown.splitlines() == [
        "embed  ready  wordllama (wordllama)",
        "  on the processor  7 steps",
    ]


def test_a_remote_engine_runs_on_nothing_here(agentd: Agentd, daemon: Daemon) -> None:
    model = inference.ModelInfo(name="big", kind="language", architecture="remote", slots=1)
    status = inference.EngineStatus(model=model, steps=7)
    engine = control.EngineSummary(name="big", state="ready", restarts=1, status=status)
    daemon.answers[methods.SLOTS.name] = control.Engines(engines=[engine])
    shown = agentd("ctl", "slots", "--socket", daemon.path).stdout
    assert shown.splitlines() == ["big  ready  big (remote)  1 restart", "  on its server  7 steps"]


def test_slots_are_legible_on_a_narrow_terminal(daemon: Daemon) -> None:
    written = on_terminal("ctl", "slots", "--socket", daemon.path, COLUMNS="72")
    written = re.sub(r"\x1b\[[0-9;]*m", "", written)
    for word in ("opsclaw", "decode", "430", "256", "devclaw", "swapped", "2.5 s"):
        assert word in written, written
    assert max(map(len, written.splitlines())) <= 72


def test_status_says_what_needs_a_person(agentd: Agentd, daemon: Daemon) -> None:
    assert STATUS.attention_open
    assert "ctl attention list" in agentd("ctl", "status", "--socket", daemon.path).stdout
