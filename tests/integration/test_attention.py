"""An agent asks a person, waits without being in anybody's way, and goes on with the answer."""

from typing import Any, Final

import pytest
from daemons import Installation, RunningDaemon

pytestmark = pytest.mark.model

# A request that names the tool: then a small model is offered no other.
FIRST: Final = "Make an attention request: may I restart the mail server?"
SECOND: Final = "Make an attention request: may I restart the web server?"


def let_opsclaw_only_ask(installation: Installation) -> None:
    """One tool, and nobody to hand the question on to."""
    installation.remove_agents("devclaw", "secclaw", "uxclaw")
    installation.add_agent(
        "opsclaw",
        identity="You are OpsClaw. You ask a person before you do anything.",
        duties=["restart a server"],
        publishes=["user.reply"],
        tools=["attention.request"],
    )


def open_questions(daemon: RunningDaemon) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = daemon.ctl("attention", "list")["requests"]
    return sorted(requests, key=lambda request: request["id"])


def wait_questions(daemon: RunningDaemon, number: int) -> list[dict[str, Any]]:
    daemon.wait(lambda: len(open_questions(daemon)) == number, f"to have {number} open questions")
    return open_questions(daemon)


def test_a_question_waits_through_a_restart_and_holds_nobody_up(
    installation: Installation,
) -> None:
    let_opsclaw_only_ask(installation)
    with installation.running() as daemon:
        daemon.ask(FIRST, "first", "--to", "opsclaw")
        (first,) = wait_questions(daemon, 1)
        assert (first["agent"], first["correlation"]) == ("opsclaw", "first")
        assert first["question"].strip()
        opsclaw = daemon.agent("opsclaw")
        assert (opsclaw["state"], opsclaw["parked"], opsclaw["pending"]) == ("idle", 1, 0)
        assert daemon.metrics().total("agentd_parked", reason="attention") == 1

        # The lane is free: a second delivery is handled to its end meanwhile.
        daemon.ask(SECOND, "second", "--to", "opsclaw")
        _, second = wait_questions(daemon, 2)
        assert second["correlation"] == "second"
        daemon.ctl("attention", "answer", str(second["id"]), "Yes, do it tonight.")
        assert_answered(daemon, "second", "Yes, do it tonight.")
        assert [one["id"] for one in open_questions(daemon)] == [first["id"]]

    with installation.running() as daemon:
        assert open_questions(daemon) == [first]
        trace = daemon.ctl("trace", "first")
        assert [one["state"] for one in trace["deliveries"]] == ["parked"]
        daemon.ctl("attention", "answer", str(first["id"]), "No, never.")
        assert_answered(daemon, "first", "No, never.")
        assert open_questions(daemon) == []
        assert daemon.status()["dead_letters"] == 0

        again = daemon.run_ctl("attention", "answer", str(first["id"]), "Yes.")
        assert again.status == 1
        assert "attention.unknown" in again.errors


def assert_answered(daemon: RunningDaemon, correlation: str, answer: str) -> None:
    """The conversation has its reply, and the answer is the result of the journaled call."""
    trace = daemon.wait_answer(correlation)
    (delivery,) = (one for one in trace["deliveries"] if one["agent"] == "opsclaw")
    assert (delivery["state"], delivery["outcome"]) == ("done", "acted")
    assert delivery["attempts"] == 1
    (call,) = (step for step in delivery["steps"] if step["kind"] == "tool")
    assert call["request"]["name"] == "attention.request"
    assert call["result"]["output"] == answer
    assert trace["conversation"]["reply"].strip()
