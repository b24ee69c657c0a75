"""A committed change as a line for people."""

from typing import Any

import pytest

from orchestrator.control.happenings import happening
from orchestrator.store.changes import LAGGED, Change

STEP = {"phase": "act", "kind": "tool", "tool": "host.read", "summary": "Memory: 3 % used"}


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        ("attention.raised", {"question": "Restart it?"}, "asks: Restart it?"),
        ("conversation.answered", {"reply": "All is well."}, "All is well."),
        ("conversation.composing", {}, "every delivery has settled; the reply is composed"),
        ("deadletter", {"topic": "a.b", "reason": "nobody"}, "a.b: nobody"),
        ("delivery.done", {"outcome": "acted", "reason": "mine"}, "acted: mine"),
        ("delivery.failed", {"error": "killed by SIGKILL"}, "killed by SIGKILL"),
        ("delivery.leased", {"delivery": 3, "attempt": 2}, "delivery 3, attempt 2"),
        ("delivery.parked", {"reason": "attention", "on": "attention 1"}, "attention attention 1"),
        ("delivery.parked", {"reason": "preempted", "on": None}, "preempted"),
        ("delivery.ready", {"why": "screened"}, "screened"),
        ("health.reported", {"detail": "it is ill"}, "it is ill"),
        ("journal.appended", STEP, "act · host.read · Memory: 3 % used"),
        ("journal.appended", {**STEP, "tool": None, "summary": "", "phase": None}, "act · tool"),
        ("memory.written", {"outcome": "success", "lesson": "look"}, "success: look"),
        ("message.published", {"topic": "t", "sender": "s", "summary": "x"}, "t from s: x"),
        ("message.screened", {"agents": {"a": 0.1, "b": 0.5, "c": None}}, "b 0.50, a 0.10"),
        ("task.changed", {"title": "backup", "state": "open"}, "backup: open"),
        ("agent.registered", {"agents": []}, ""),
        ("agent.added", {"agent": "gate", "by": "operator"}, "by operator"),
        ("agent.retired", {"agent": "gate", "by": "operator"}, "by operator"),
        (
            "version.changed",
            {"version": 2, "state": "rolled-back", "reason": "it trapped"},
            "version 2 is rolled-back: it trapped",
        ),
        (
            "version.changed",
            {"version": 2, "state": "active", "reason": None},
            "version 2 is active",
        ),
        ("version.settled", {"version": 2}, "version 2 is kept"),
    ],
)
def test_every_kind_has_its_line(kind: str, data: dict[str, Any], line: str) -> None:
    told = happening(Change(kind=kind, data=data, at_us=5))
    assert (told.kind, told.summary, told.at_us) == (kind, line, 5)


def test_agent_and_correlation_are_taken_where_there_are_any() -> None:
    told = happening(Change(kind="x", data={"agent": "opsclaw", "correlation": "c1"}, at_us=1))
    assert (told.agent, told.correlation) == ("opsclaw", "c1")
    without = happening(Change(kind="x", data={"agent": None}, at_us=1))
    assert (without.agent, without.correlation) == ("", "")


def test_lost_changes_are_counted() -> None:
    told = happening(Change(kind=LAGGED, data={"lost": 7}, at_us=1))
    assert told.lost == 7
