"""What a component is told and what it answers, as values."""

from typing import Any

import pytest

from agent_runtime.component import answers, limits
from agent_runtime.loop.consulting import Advice, Judgement
from ipc_protocol.errors import Failure
from ipc_protocol.values import Envelope
from ipc_protocol.work import AgentProfile, Evidence, Outgoing

ENVELOPE = Envelope(
    id=1,
    topic="ops.disk",
    sender="probe",
    payload=b"97",
    correlation="c1",
    priority="normal",
    sent_us=1,
    expires_us=2,
)
TOLD = {"topic": "ops.disk", "sender": "probe", "payload": b"97", "correlation-id": "c1"}
PROFILE = AgentProfile(
    name="opsclaw",
    role="agent",
    identity="",
    duties=[],
    delegates={"devclaw": "writes code"},
    tools=[],
    publishes=[],
    steps_max=8,
    tokens_max=100,
)


def returned(**changes: Any) -> dict[str, Any]:
    return {**TOLD, "correlation-id": "", **changes}


def decision(**changes: Any) -> dict[str, Any]:
    return {"action": "act", "to": None, "seconds": None, "reason": "mine", **changes}


def test_a_message_is_told_as_its_envelope() -> None:
    assert answers.told(ENVELOPE) == TOLD


def test_what_was_sent_is_told_with_its_sender_and_the_conversation() -> None:
    told = answers.told_sent([Outgoing(topic="user.reply", payload=b"ok")], "opsclaw", TOLD)
    assert told == [
        {"topic": "user.reply", "sender": "opsclaw", "payload": b"ok", "correlation-id": "c1"}
    ]


def test_screening_is_told_where_there_was_one() -> None:
    evidence = Evidence(
        agent="opsclaw",
        score=0.5,
        margin=0.25,
        scores={"opsclaw": 0.5, "devclaw": 0.25},
        nobody=0.0,
        nearest="disk full",
    )
    assert answers.told_screening(None) is None
    assert answers.told_screening(evidence) == {
        "score": 0.5,
        "margin": 0.25,
        "nearest": "disk full",
        "scores": [("opsclaw", 0.5), ("devclaw", 0.25)],
    }


@pytest.mark.parametrize("correlation", ["", "c1"])
def test_a_message_of_the_own_conversation_goes_out(correlation: str) -> None:
    sent = answers.outgoing([returned(**{"correlation-id": correlation})], "c1")
    assert sent == [Outgoing(topic="ops.disk", payload=b"97")]


def test_a_message_for_another_conversation_is_refused() -> None:
    with pytest.raises(Failure, match="another conversation") as caught:
        answers.outgoing([returned(), returned(**{"correlation-id": "c2"})], "c1")
    assert caught.value.code == "component.output"


def test_a_topic_that_no_bus_takes_is_refused() -> None:
    answers.outgoing([returned(topic="t" * limits.TOPIC_CHARS_MAX)], "c1")
    with pytest.raises(Failure, match="129 characters"):
        answers.outgoing([returned(topic="t" * (limits.TOPIC_CHARS_MAX + 1))], "c1")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (decision(), Advice("act", "mine")),
        (decision(to="devclaw", seconds=5), Advice("act", "mine")),
        (decision(action="delegate", to="devclaw"), Advice("delegate", "mine", to="devclaw")),
        (decision(action="defer", seconds=2), Advice("defer", "mine", defer_us=2_000_000)),
        (decision(reason="r" * 600), Advice("act", "r" * 500)),
    ],
)
def test_a_decision_becomes_advice(said: dict[str, Any], expected: Advice) -> None:
    assert answers.advice(said, PROFILE) == expected


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        (decision(action="delegate"), "devclaw"),
        (decision(action="delegate", to="uxclaw"), "devclaw"),
        (decision(action="defer"), "from 1 to"),
        (decision(action="defer", seconds=0), "from 1 to"),
        (decision(action="defer", seconds=2**32 - 1), "from 1 to"),
    ],
)
def test_a_decision_that_cannot_be_followed_is_refused(said: dict[str, Any], cure: str) -> None:
    with pytest.raises(Failure) as caught:
        answers.advice(said, PROFILE)
    assert caught.value.code == "component.output"
    assert cure in caught.value.problem.cure


def test_a_reflection_becomes_a_judgement() -> None:
    said = {"lesson": "l" * 3000, "outcome": "partial", "importance": 1.0}
    assert answers.judgement(said) == Judgement("l" * limits.LESSON_CHARS_MAX, "partial", 1.0)


@pytest.mark.parametrize("importance", [-0.1, 1.1, float("nan"), float("inf")])
def test_an_importance_beyond_its_scale_is_refused(importance: float) -> None:
    with pytest.raises(Failure, match="importance"):
        answers.judgement({"lesson": "", "outcome": "success", "importance": importance})
