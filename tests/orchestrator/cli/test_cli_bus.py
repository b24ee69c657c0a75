"""`agentd ctl bus` against a daemon that speaks the real protocol."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from canned_daemon import HOSTILE, NOW_US, Daemon, serving
from click.testing import Result

from ipc_protocol import bus, inference, methods
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure, Problem
from orchestrator.cli.bus import Moment
from orchestrator.cli.exits import Exit

Agentd = Callable[..., Result]

LETTER = bus.DeadLetterLine(
    number=7,
    died_us=NOW_US,
    sender="operator",
    receiver="opsclaw",
    topic="disk.full",
    priority="high",
    code="work.deaths",
    reason=HOSTILE,
    attempts=5,
    correlation="c1",
    payload_bytes=4,
    replayed_as=12,
    replayed_us=NOW_US,
)
LETTERS = bus.DeadLetters(letters=[LETTER], matching=3, below=7)
DETAIL = bus.DeadLetterDetail(
    letter=LETTER,
    last_error="hung",
    message=4,
    delivery=5,
    causes=[bus.CausingMessage(message=4, topic="disk.full", sender="operator")],
    payload=bus.Payload(size_bytes=4, data=b"\xff\x00\x01\x02"),
)
PROBLEM = Problem(code="bus.backpressure", message="The inbox is full.", cure="Try later.")
REPLAYED = [
    bus.ReplayedLetter(number=7, message=12, correlation="c1"),
    bus.ReplayedLetter(number=8, problem=PROBLEM),
]
TOPIC_ROWS = [
    bus.Topic(
        name="disk.*",
        publishers=["opsclaw"],
        subscribers=[bus.TopicSubscriber(agent="devclaw", pending=3, oldest_us=NOW_US - 4_000_000)],
        per_second=1.25,
        messages=75,
    ),
    bus.Topic(
        name="disk.report",
        publishers=["opsclaw"],
        subscribers=[],
        leads_nowhere=["opsclaw"],
        near="disk.reports",
        unused_by=["opsclaw"],
    ),
]
TAPPED = [
    bus.Tapped(
        message=9,
        sent_us=NOW_US,
        topic="disk.full",
        sender="operator",
        correlation="c1",
        receivers=["opsclaw"],
        payload=bus.Payload(size_bytes=2000, text=HOSTILE, cut=True),
    ),
    bus.Tapped(lost=4),
]


class BusDaemon(Daemon):
    """One that answers what is asked about the bus."""

    outcomes = REPLAYED
    stays = False
    """A tap goes on after the messages that there are."""

    def handlers(self) -> Handlers:
        return (
            super()
            .handlers()
            .add(methods.DEAD_LIST, self._canned("ctl.bus.dead.list", LETTERS))
            .add(methods.DEAD_SHOW, self._canned("ctl.bus.dead.show", DETAIL))
            .add(methods.DEAD_PURGE, self._canned("purge", bus.PurgedLetters(purged=3)))
            .add(methods.DEAD_REPLAY, self._replay)
            .add(methods.TOPICS, self._topics)
            .add(methods.TAP, self._tap)
        )

    async def _replay(self, params: bus.ReplayDeadLetters, call: Call) -> bus.ReplayedLetters:
        self.asked.append(params)
        for outcome in self.outcomes:
            await call.send_item(outcome)
        refused = sum(outcome.problem is not None for outcome in self.outcomes)
        return bus.ReplayedLetters(replayed=len(self.outcomes) - refused, refused=refused)

    async def _topics(self, _: inference.Nothing, call: Call) -> bus.Topics:
        for row in TOPIC_ROWS:
            await call.send_item(row)
        return bus.Topics(now_us=NOW_US, since_us=NOW_US - 60_000_000)

    async def _tap(self, params: bus.Tap, call: Call) -> inference.Nothing:
        self.asked.append(params)
        for tapped in TAPPED:
            await call.send_item(tapped)
        if self.stays:
            await call.connection.wait_closed()
        return inference.Nothing()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[BusDaemon]:
    made = BusDaemon(tmp_path / "d.sock")
    with serving(made):
        yield made


@pytest.fixture
def ctl(agentd: Agentd, daemon: BusDaemon) -> Callable[..., Result]:
    return lambda *arguments: agentd("ctl", "bus", *arguments, "--socket", daemon.path)


Ctl = Callable[..., Result]


# ---- What is shown -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["dead"], ["7", "opsclaw", "disk.full", "work.deaths", "disk", "as message 12"]),
        (["dead", "list"], ["1 of 3", "--below 7"]),
        (["dead", "show", "7"], ["ff00 0102", "hexadecimal", "last error", "hung", "message 4 on"]),
        (["topics"], ["devclaw (3 pending, 4.0 s)", "1.2", "75", "leads nowhere", "disk.reports"]),
        (["topics"], ["never used (declared by opsclaw)", "counted for 1 min 0 s"]),
        (["tap", "disk.*"], ["operator → opsclaw", "2000 bytes in all", "4 messages were missed"]),
    ],
)
def test_a_command_prints_what_the_daemon_says(
    ctl: Ctl, arguments: list[str], shown: list[str]
) -> None:
    result = ctl(*arguments)
    assert result.exit_code == Exit.OK, result.output
    for part in shown:
        assert part in result.stdout, result.stdout
    assert "\x1b" not in result.stdout


def test_json_is_what_the_daemon_says(ctl: Ctl) -> None:
    assert msgspec.json.decode(ctl("dead", "--json").stdout, type=bus.DeadLetters) == LETTERS
    shown = ctl("dead", "show", "7", "--json").stdout
    assert msgspec.json.decode(shown, type=bus.DeadLetterDetail) == DETAIL
    topics = json.loads(ctl("topics", "--json").stdout)
    assert msgspec.convert(topics["topics"], list[bus.Topic]) == TOPIC_ROWS
    assert (topics["now_us"], topics["since_us"]) == (NOW_US, NOW_US - 60_000_000)


def test_a_tap_prints_a_line_of_json_for_each_message(ctl: Ctl) -> None:
    lines = ctl("tap", "disk.*", "--json").stdout.splitlines()
    assert [msgspec.json.decode(line, type=bus.Tapped) for line in lines] == TAPPED


# ---- What is asked -------------------------------------------------------------------------------


def test_options_arrive_at_the_daemon(ctl: Ctl, daemon: BusDaemon) -> None:
    ctl("dead", "--agent", "opsclaw", "--topic", "disk.>", "--code", "x", "--limit", "2")
    ctl("dead", "list", "--below", "9", "--since", "2026-01-02T03:04:05+00:00")
    ctl("tap", "disk.*", "--last", "3", "--full")
    first, second, tap = daemon.asked
    chosen = bus.DeadLetterFilter(agent="opsclaw", topic="disk.>", code="x")
    assert first == bus.ListDeadLetters(filter=chosen, limit=2)
    chosen = bus.DeadLetterFilter(below=9, since_us=1_767_323_045_000_000)
    assert second == bus.ListDeadLetters(filter=chosen)
    assert tap == bus.Tap(topic="disk.*", last=3, full=True)


def test_a_moment_is_so_long_ago_or_a_date() -> None:
    now_us = time.time_ns() // 1000
    ago_us = now_us - Moment().convert("2h", None, None)
    assert 0 <= 7_200_000_000 - ago_us < 60_000_000
    assert Moment().convert("1970-01-02T00:00:00Z", None, None) == 86_400_000_000
    assert Moment().convert(5, None, None) == 5


@pytest.mark.parametrize("value", ["yesterday", "12", ""])
def test_what_is_no_moment_is_a_mistake(ctl: Ctl, value: str) -> None:
    assert ctl("dead", "list", "--since", value).exit_code == Exit.USAGE


# ---- Sending again -------------------------------------------------------------------------------


def test_those_that_could_not_be_sent_again_are_told_with_the_cure(
    ctl: Ctl, daemon: BusDaemon
) -> None:
    result = ctl("dead", "replay", "--all", "--code", "work.deaths", "--again")
    assert result.exit_code == Exit.FAILED
    assert "7  is message 12 in conversation c1" in result.stdout
    assert "8  bus.backpressure  The inbox is full.  Try later." in result.stdout
    assert "1 were sent again  1 could not be sent again" in result.stdout
    chosen = bus.DeadLetterFilter(code="work.deaths")
    assert daemon.asked == [bus.ReplayDeadLetters(filter=chosen, again=True)]


def test_json_has_the_outcome_of_each(ctl: Ctl) -> None:
    result = ctl("dead", "replay", "7", "8", "--json")
    assert result.exit_code == Exit.FAILED
    document = json.loads(result.stdout)
    assert msgspec.convert(document["letters"], list[bus.ReplayedLetter]) == REPLAYED
    assert (document["replayed"], document["refused"]) == (1, 1)


def test_one_that_is_sent_again_is_one_line(ctl: Ctl, daemon: BusDaemon) -> None:
    daemon.outcomes = REPLAYED[:1]
    result = ctl("dead", "replay", "7")
    assert (result.exit_code, result.stdout) == (0, "7  is message 12 in conversation c1\n")
    assert daemon.asked == [bus.ReplayDeadLetters(numbers=[7])]


def test_one_that_is_refused_is_an_error_like_any_other(ctl: Ctl, daemon: BusDaemon) -> None:
    daemon.outcomes = REPLAYED[1:]
    result = ctl("dead", "replay", "8")
    assert result.exit_code == Exit.FAILED
    assert result.stdout == ""
    assert "The inbox is full." in result.stderr and "Try later." in result.stderr
    error = json.loads(ctl("dead", "replay", "8", "--json").stderr)
    assert error["code"] == "bus.backpressure"


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay"],
        ["replay", "7", "--all"],
        ["replay", "7", "--agent", "opsclaw"],
        ["replay", "--agent", "opsclaw"],
        ["replay", "0"],
        ["purge", "--yes"],
        ["purge", "7", "--all", "--yes"],
        ["purge", "7", "--code", "x", "--yes"],
    ],
)
def test_it_has_to_be_said_in_one_way_which_are_meant(
    ctl: Ctl, daemon: BusDaemon, arguments: list[str]
) -> None:
    assert ctl("dead", *arguments).exit_code == Exit.USAGE
    assert daemon.asked == []


# ---- Removing ------------------------------------------------------------------------------------


def test_nothing_is_removed_where_nobody_can_be_asked(ctl: Ctl, daemon: BusDaemon) -> None:
    result = ctl("dead", "purge", "--all")
    assert result.exit_code == Exit.USAGE
    assert "3 dead letters" in result.stderr and "--yes" in result.stderr
    assert not any(isinstance(asked, bus.PurgeDeadLetters) for asked in daemon.asked)


def test_what_dies_after_the_question_is_not_removed(ctl: Ctl, daemon: BusDaemon) -> None:
    result = ctl("dead", "purge", "--code", "work.deaths", "--yes")
    assert (result.exit_code, result.stdout) == (0, "3 dead letters are removed.\n")
    _, purge = daemon.asked
    chosen = bus.DeadLetterFilter(code="work.deaths", below=LETTER.number + 1)
    assert purge == bus.PurgeDeadLetters(filter=chosen)


def test_those_of_a_number_are_removed(ctl: Ctl, daemon: BusDaemon) -> None:
    assert ctl("dead", "purge", "7", "8", "--yes").exit_code == Exit.OK
    assert daemon.asked == [bus.PurgeDeadLetters(numbers=[7, 8])]


def test_an_error_of_the_daemon_is_told(ctl: Ctl, daemon: BusDaemon) -> None:
    cure = "`agentd ctl bus dead list` lists them."
    daemon.failures["purge"] = Failure("deadletter.unknown", "There is no dead letter 9.", cure)
    result = ctl("dead", "purge", "9", "--yes")
    assert result.exit_code == Exit.FAILED
    assert "There is no dead letter 9." in result.stderr and cure in result.stderr


@pytest.mark.parametrize(("said", "status", "removed"), [("y", 0, True), ("n", 1, False)])
def test_a_person_is_asked_on_a_terminal(
    daemon: BusDaemon, said: str, status: int, removed: bool
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "orchestrator.cli.main", "ctl", "bus", "dead", "purge", "7"]
    with subprocess.Popen(
        [*command, "--socket", str(daemon.path)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.write(ours, f"{said}\n".encode())
        _, errors = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert "Remove 1 dead letter for good?" in errors
    assert process.returncode == status
    assert any(isinstance(asked, bus.PurgeDeadLetters) for asked in daemon.asked) == removed


# ---- Following -----------------------------------------------------------------------------------


def test_an_interrupt_ends_a_tap_in_order(daemon: BusDaemon) -> None:
    daemon.stays = True
    command: list[Any] = [sys.executable, "-m", "orchestrator.cli.main", "ctl", "bus", "tap", ">"]
    with subprocess.Popen(
        [*command, "--json", "--socket", daemon.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "disk.full" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
