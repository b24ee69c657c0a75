"""What an operator does about the bus of one running daemon: dead letters, topics, messages.

Its agents answer with what they were told, on topics of which one leads nowhere at first.
"""

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
from daemons import AGENTD, Installation, RunningDaemon, short_folder

RELAYED = "relay.out"
LOST = "relay.lost"


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """`relay` passes on what it gets, to `sink` and to nobody."""
    with short_folder() as folder:
        installation = Installation.bare(folder / "here")
        installation.add_agent(
            "relay", brain="echo", consumes=["relay.in"], publishes=[RELAYED, LOST]
        )
        installation.add_agent("sink", brain="echo", consumes=[RELAYED, "relay.losst"])
        with installation.running() as running:
            yield running


def relayed(daemon: RunningDaemon, text: str, correlation: str) -> int:
    """Send a message through `relay`. The number of the dead letter that comes of it."""
    daemon.ctl("send", "relay.in", text, "--correlation", correlation)
    found: list[int] = []

    def died() -> bool:
        letters = daemon.ctl("bus", "dead", "list", "--topic", "relay.*")["letters"]
        found[:] = [one["number"] for one in letters if one["correlation"] == correlation]
        return bool(found)

    daemon.wait(died, f"to bury an output of {correlation}", 30)
    return found[0]


def topics(daemon: RunningDaemon) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in daemon.ctl("bus", "topics")["topics"]}


def test_a_topic_that_leads_nowhere_is_told_when_all_agents_are_up(daemon: RunningDaemon) -> None:
    def said() -> list[str]:
        lines = daemon.installation.log.read_text().splitlines()
        return [json.loads(line)["event"] for line in lines if line.startswith("{")]

    daemon.wait(lambda: any("Is 'relay.losst' meant?" in one for one in said()), "to warn", 30)
    (table,) = [event for event in said() if "who reaches whom" in event]
    rows = [row.strip() for row in table.splitlines()]
    assert f"{RELAYED}: relay → sink" in rows
    assert f"{LOST}: relay → nobody" in rows


def test_topics_show_who_reaches_whom_and_how_much(daemon: RunningDaemon) -> None:
    before = topics(daemon)[RELAYED]["messages"]
    relayed(daemon, "counted", "c-topics")
    row = topics(daemon)[RELAYED]
    assert row["messages"] == before + 1
    assert row["per_second"] > 0
    assert (row["publishers"], [one["agent"] for one in row["subscribers"]]) == (
        ["relay"],
        ["sink"],
    )
    assert topics(daemon)[LOST]["leads_nowhere"] == ["relay"]


def test_a_dead_letter_says_why_and_what_was_in_it(daemon: RunningDaemon) -> None:
    number = relayed(daemon, "größer", "c-show")
    shown = daemon.ctl("bus", "dead", "show", str(number))
    assert shown["letter"]["code"] == "bus.no-subscriber"
    assert shown["payload"]["text"] == "größer"
    assert [cause["sender"] for cause in shown["causes"]] == ["operator"]
    (letter,) = daemon.ctl("trace", "c-show")["dead_letters"]
    assert (letter["number"], letter["topic"]) == (number, LOST)


def test_a_dead_letter_is_sent_again_when_somebody_is_there_for_it(daemon: RunningDaemon) -> None:
    number = relayed(daemon, "late", "c-replay")
    refused = daemon.run_ctl("bus", "dead", "replay", str(number))
    assert refused.status == 1
    assert json.loads(refused.errors)["code"] == "bus.no-subscriber"
    file = daemon.installation.folder / "late.toml"
    file.write_text(
        tomli_w.dumps({"agent": {"late": {"brain": "echo", "consumes": [LOST], "publishes": []}}})
    )
    added = daemon.run_ctl("agents", "add", str(file))
    assert added.status == 0, added.errors
    (letter,) = daemon.ctl("bus", "dead", "replay", str(number))["letters"]
    sql = f"SELECT agent, state FROM delivery WHERE message = {letter['message']}"
    daemon.wait(lambda: daemon.rows(sql) == [("late", "done")], "to handle it", 30)
    assert topics(daemon)[LOST]["leads_nowhere"] == []
    again = daemon.run_ctl("bus", "dead", "replay", str(number))
    assert json.loads(again.errors)["code"] == "deadletter.replayed"
    audited = daemon.rows("SELECT owner, subject FROM audit WHERE action = 'deadletter.replay'")
    assert audited == [("operator", str(number))]


def test_what_is_purged_is_gone(daemon: RunningDaemon) -> None:
    assert daemon.run_ctl("bus", "dead", "purge", "--topic", LOST).status == 2
    matching = daemon.ctl("bus", "dead")["matching"]
    assert matching > 0
    done = daemon.ctl("bus", "dead", "purge", "--topic", LOST, "--yes")
    assert done["purged"] == matching
    assert daemon.ctl("bus", "dead")["letters"] == []
    gone = daemon.run_ctl("bus", "dead", "show", "1")
    assert json.loads(gone.errors)["code"] == "deadletter.unknown"


def test_a_tap_follows_a_pattern_until_it_is_interrupted(daemon: RunningDaemon) -> None:
    daemon.ctl("send", "relay.in", "earlier")
    command = ("ctl", "bus", "tap", "relay.*", "--last", "1", "--json")
    with subprocess.Popen(
        [*AGENTD, *command, "--socket", str(daemon.socket)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["payload"]["text"] == "earlier"
        daemon.ctl("send", "relay.in", "x" * 2000, "--correlation", "c-tap")
        seen = []
        while not any(one["topic"] == RELAYED and one["correlation"] == "c-tap" for one in seen):
            seen.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    (followed,) = [one for one in seen if one["topic"] == RELAYED and one["payload"]["cut"]]
    assert (followed["sender"], followed["receivers"]) == ("relay", ["sink"])
    assert followed["payload"]["size_bytes"] == 2000


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("tap", "relay..out"), 1, "empty word"),
        (("dead", "list", "--topic", "a.>.b"), 1, "stands for all the rest"),
        (("dead", "purge", "999", "--yes"), 1, "dead list"),
        (("dead", "replay", "999"), 1, "dead list"),
        (("dead", "replay"), 2, "--all"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    daemon: RunningDaemon, command: tuple[str, ...], status: int, said: str
) -> None:
    done = daemon.run_ctl("bus", *command)
    assert done.status == status
    assert said in done.errors
