"""The world around a component that runs in isolation."""

import pytest

from ipc_protocol.control import JournaledEffect
from ipc_protocol.errors import Failure
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import (
    Effect,
    EffectRequest,
    EffectResult,
    EmitHealth,
    Infer,
    ListTasks,
    Note,
    Noted,
    Offer,
    Offered,
    ReadState,
    Recall,
    Refused,
    StateValue,
    TaskList,
    UseTool,
)
from orchestrator.components.standin import NOT_HERE, StandIn

READ = ReadState(key="count")


def asked(stand_in: StandIn, effect: Effect, step: int = 1) -> EffectResult:
    return stand_in.answer(EffectRequest(delivery=1, step=step, effect=effect))


@pytest.mark.parametrize(
    ("effect", "result"),
    [
        (READ, StateValue(value=b"7")),
        (ReadState(key="other"), StateValue(value=None)),
        (ListTasks(), TaskList(tasks=[])),
        (Note(phase="triage", summary="act"), Noted()),
        (EmitHealth(condition="degraded", detail="slow"), Noted()),
        (Offer(topic="any.where", payload_bytes=1), Offered()),
        (Infer(phase="act", messages=[], tokens_max=1), NOT_HERE),
        (Recall(phase="act", query="disk"), NOT_HERE),
        (UseTool(name="fs.read", arguments={}), NOT_HERE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_has_an_answer(effect: Effect, result: EffectResult) -> None:
    stand_in = StandIn({"count": b"7"})
    assert asked(stand_in, effect) == result
    assert stand_in.asked == [effect]


@pytest.mark.parametrize(
    ("offer", "code"),
    [
        (Offer(topic="ops.report", payload_bytes=PAYLOAD_BYTES_MAX), None),
        (Offer(topic="ops.report", payload_bytes=PAYLOAD_BYTES_MAX + 1), "bus.payload-too-large"),
        (Offer(topic="user.reply", payload_bytes=1), "bus.not-permitted"),
    ],
)
def test_the_bus_takes_what_the_limits_and_the_agent_allow(offer: Offer, code: str | None) -> None:
    offered = asked(StandIn({}, ["ops.>"]), offer)
    assert isinstance(offered, Offered)
    assert (offered.problem and offered.problem.code) == code


def test_an_agent_that_publishes_nothing_is_told_so() -> None:
    offered = asked(StandIn({}, []), Offer(topic="ops.report", payload_bytes=1))
    assert isinstance(offered, Offered) and offered.problem is not None
    assert "nothing so far" in offered.problem.cure


def test_what_is_on_record_is_answered_as_it_was() -> None:
    refused = Refused(code="work.budget", message="no more")
    record = [JournaledEffect(step=1, effect=READ, result=refused)]
    stand_in = StandIn({"count": b"7"}, record=record)
    assert asked(stand_in, READ) == refused
    assert stand_in.asked == []


def test_what_goes_beyond_the_record_is_made_up_and_told() -> None:
    record = [JournaledEffect(step=1, effect=READ, result=StateValue(value=b"6"))]
    stand_in = StandIn({"count": b"7"}, record=record)
    assert asked(stand_in, READ, step=2) == StateValue(value=b"7")
    assert stand_in.asked == [READ]


def test_a_request_that_differs_from_its_record_is_a_mismatch() -> None:
    record = [JournaledEffect(step=1, effect=ListTasks(), result=TaskList(tasks=[]))]
    with pytest.raises(Failure) as raised:
        asked(StandIn({}, record=record), READ)
    assert raised.value.code == "journal.mismatch"
    assert "count" in raised.value.problem.details["asked"]
