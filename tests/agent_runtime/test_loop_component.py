"""The loop of an agent that has a component: who is asked, and what becomes of the answers."""

from collections.abc import Callable

import pytest
from deliveries import (
    ANSWER,
    FINISH,
    READ_DISK,
    REFLECTION,
    certain,
    drive_component,
    evidence,
    handle,
    profile,
    verdict,
    world,
)

from agent_runtime.loop.consulting import (
    ACTS,
    TAKES_OVER,
    Advice,
    Consult,
    Consulted,
    Judgement,
)
from ipc_protocol.work import (
    Infer,
    MemoryEntry,
    Note,
    Outgoing,
    StateChange,
    TaskChange,
)

Answer = Callable[[Consult], Consulted]

ALERT = Outgoing(topic="ops.alert", payload=b"too hot")
NOTED = MemoryEntry(text="cellar", outcome="success", lesson="warm in summer", importance=0.5)
TASK = TaskChange(id=None, title="open the window")
KEPT = StateChange(key="count", value=b"1")
HANDLED = Consulted(taken=True, outputs=(ALERT,), memories=(NOTED,), tasks=(TASK,), state=(KEPT,))
LEFT = Consulted(taken=False)


def phases(asked: list[object]) -> list[str]:
    return [one.phase if isinstance(one, Consult) else type(one).__name__ for one in asked]


def test_a_component_that_acts_gets_the_message_and_nothing_else_is_asked() -> None:
    completion, asked = drive_component(profile(), handle(), ACTS, lambda consult: HANDLED, world())
    assert phases(asked) == ["act"]
    assert completion.outcome == "acted"
    assert completion.outputs == [ALERT]
    assert completion.memories == [NOTED]
    assert completion.tasks == [TASK]
    assert completion.state == [KEPT]


def test_what_screening_gives_to_nobody_does_not_reach_the_component() -> None:
    ignored = handle(evidence=evidence(verdict=verdict("ignore")))
    completion, asked = drive_component(profile(), ignored, ACTS, lambda consult: HANDLED, world())
    assert phases(asked) == ["Note"]
    assert completion.outcome == "ignored"


def test_what_screening_gives_to_the_agent_is_noted_and_reaches_the_component() -> None:
    wanted = handle(evidence=certain())
    completion, asked = drive_component(profile(), wanted, ACTS, lambda consult: HANDLED, world())
    assert phases(asked) == ["Note", "act"]
    assert completion.outcome == "acted"


def mind(**answers: Consulted) -> Answer:
    return lambda consult: answers.get(consult.phase, LEFT)


def test_a_mind_that_takes_everything_over_leaves_the_model_alone() -> None:
    answer = mind(
        triage=Consulted(taken=True, advice=Advice(action="act", reason="it is hot")),
        act=HANDLED,
        reflect=Consulted(taken=True, judgement=Judgement("Ask sooner.", "partial", 0.7)),
    )
    completion, asked = drive_component(profile(), handle(), TAKES_OVER, answer, world())
    assert phases(asked) == ["triage", "Note", "act", "reflect"]
    assert asked[3] == Consult("reflect", sent=(ALERT,))
    assert completion.reason == "it is hot"
    noted, reflected = completion.memories
    assert noted == NOTED
    assert (reflected.lesson, reflected.outcome, reflected.importance) == (
        "Ask sooner.",
        "partial",
        0.7,
    )


def test_a_mind_that_leaves_everything_is_a_model() -> None:
    completion, asked = drive_component(
        profile(),
        handle(),
        TAKES_OVER,
        mind(),
        world(READ_DISK, FINISH, ANSWER, REFLECTION),
    )
    consulted = [one.phase for one in asked if isinstance(one, Consult)]
    assert consulted == ["triage", "act", "reflect"]
    assert any(isinstance(one, Infer) for one in asked)
    assert completion.outcome == "acted"
    assert completion.memories


@pytest.mark.parametrize("beginning", [{"must_take": True}, {"deferred": True}])
def test_a_mind_is_not_asked_in_triage_about_what_it_has_to_take(
    beginning: dict[str, bool],
) -> None:
    _, asked = drive_component(
        profile(), handle(**beginning), TAKES_OVER, mind(act=HANDLED), world(REFLECTION)
    )
    assert [one.phase for one in asked if isinstance(one, Consult)] == ["act", "reflect"]


def test_a_mind_that_only_acts_lets_the_model_reflect() -> None:
    completion, asked = drive_component(
        profile(), handle(must_take=True), TAKES_OVER, mind(act=HANDLED), world(REFLECTION)
    )
    assert [type(one) for one in asked if not isinstance(one, Consult)] == [Infer]
    noted, reflected = completion.memories
    assert noted == NOTED
    assert "too hot" in reflected.text


def test_what_a_mind_staged_in_triage_commits_with_what_it_lets_go() -> None:
    advice = Advice(action="ignore", reason="not mine")
    answer = mind(triage=Consulted(taken=True, advice=advice, state=(KEPT,), memories=(NOTED,)))
    completion, asked = drive_component(profile(), handle(), TAKES_OVER, answer, world())
    assert phases(asked) == ["triage", "Note"]
    assert isinstance(asked[1], Note)
    assert completion.outcome == "ignored"
    assert completion.reason == "not mine"
    assert completion.state == [KEPT]
    assert completion.memories == [NOTED]


def test_a_mind_defers_by_its_own_measure() -> None:
    advice = Advice(action="defer", reason="at night", defer_us=90_000_000)
    message = handle()
    completion, _ = drive_component(
        profile(), message, TAKES_OVER, mind(triage=Consulted(taken=True, advice=advice)), world()
    )
    assert completion.outcome == "deferred"
    assert completion.until_us == message.beginning.now_us + 90_000_000


def test_a_mind_delegates_to_whom_it_names() -> None:
    advice = Advice(action="delegate", reason="code", to="devclaw")
    completion, _ = drive_component(
        profile(), handle(), TAKES_OVER, mind(triage=Consulted(taken=True, advice=advice)), world()
    )
    assert completion.outcome == "delegated"
    assert completion.outputs[0].topic == "agent.devclaw"
