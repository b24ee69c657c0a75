"""The effects of a component: what it was granted, what they cost, and where they end."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from desks import AGENT, Desk, ask

from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart, Generate, Generated, Share
from ipc_protocol.work import (
    Effect,
    EmitHealth,
    Evidence,
    Infer,
    ListTasks,
    Note,
    Noted,
    Offer,
    Offered,
    ReadState,
    Refused,
    StateValue,
    TaskList,
    UseTool,
    Weigh,
    Weighed,
)
from orchestrator import effects as effects_module
from orchestrator.budget import EFFECTS_OF_COMPONENT_MAX, Allowance, Spent
from orchestrator.effects import EFFECT_BYTES_MAX
from orchestrator.engines import LanguageEngine, Listener

OWN: tuple[Effect, ...] = (
    ReadState(key="a"),
    ListTasks(),
    EmitHealth(condition="degraded", detail="x"),
)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    await made.open()
    await made.ask()
    yield made
    await made.store.close()


async def failure_of(awaitable: Any) -> Failure:
    with pytest.raises(Failure) as failure:
        await awaitable
    return failure.value


async def test_what_was_granted_is_answered_and_replayed(desk: Desk) -> None:
    effects = desk.effects("state", "tasks", "health")
    asked = (Offer(topic="user.reply", payload_bytes=1), *OWN)
    answered = (Offered(), StateValue(value=None), TaskList(tasks=[]), Noted())
    for _ in range(2):
        attempt = await desk.attempt()
        for effect, result in zip(asked, answered, strict=True):
            assert await ask(effects, attempt, effect) == result
    assert await desk.reader.fetch("SELECT count(*) FROM journal WHERE step > 0") == [(4,)]
    assert await desk.reader.fetch("SELECT count(*) FROM health") == [(1,)]


async def test_what_was_spent_is_what_the_journal_says(desk: Desk) -> None:
    effects = desk.effects("state", "health")
    attempt = await desk.attempt()
    for effect in (
        ReadState(key="ä"),
        EmitHealth(condition="healthy", detail=""),
        Note(phase="act", summary="x"),
        UseTool(name="none", arguments={}),
    ):
        await ask(effects, attempt, effect)
    again = await desk.attempt()
    assert again.spent.effects == 4
    assert attempt.spent == again.spent


@pytest.mark.parametrize("effect", OWN)
@pytest.mark.parametrize(("imports", "component"), [((), True), (("logging",), True), ((), False)])
async def test_what_was_not_granted_ends_the_delivery(
    desk: Desk, effect: Effect, imports: tuple[str, ...], component: bool
) -> None:
    effects = desk.effects(*imports, component=component)
    refused = await failure_of(ask(effects, await desk.attempt(), effect))
    assert refused.code == "component.grant"
    assert "`imports`" in refused.problem.cure
    assert await desk.reader.fetch("SELECT count(*) FROM health") == [(0,)]


async def test_the_bus_needs_no_grant(desk: Desk) -> None:
    offer = Offer(topic="ops.secret", payload_bytes=1)
    found = await ask(desk.effects(), await desk.attempt(), offer)
    assert isinstance(found, Offered)
    assert found.problem is not None


async def test_a_component_has_more_effects_than_a_loop_and_an_end_of_them(desk: Desk) -> None:
    effects = desk.effects("state")
    allowed = Allowance(steps=1, tokens=64, time_us=1, component=True).effects
    assert allowed > EFFECTS_OF_COMPONENT_MAX
    attempt = await desk.attempt()
    attempt.spent = Spent(effects=allowed - 1)
    assert await ask(effects, attempt, ReadState(key="a")) == StateValue(value=None)
    assert (await failure_of(ask(effects, attempt, ReadState(key="b")))).code == "work.budget"


async def test_an_effect_has_a_size(desk: Desk) -> None:
    effects = desk.effects("health")
    detail = "x" * EFFECT_BYTES_MAX
    effect = EmitHealth(condition="healthy", detail=detail)
    refused = await failure_of(ask(effects, await desk.attempt(), effect))
    assert refused.code == "request.invalid"


async def test_a_journal_has_a_size(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects_module, "JOURNAL_BYTES_MAX", 1_000)
    effects = desk.effects("health")
    attempt = await desk.attempt()
    effect = EmitHealth(condition="healthy", detail="x" * 400)
    for _ in range(2):
        assert await ask(effects, attempt, effect) == Noted()
    assert (await failure_of(ask(effects, attempt, effect))).code == "work.budget"
    again = await desk.attempt()
    for _ in range(2):
        assert await ask(effects, again, effect) == Noted()
    assert (await failure_of(ask(effects, again, effect))).code == "work.budget"


async def test_who_has_no_model_is_told_so(desk: Desk) -> None:
    infer = Infer(phase="act", messages=[], tokens_max=1)
    found = await ask(desk.effects(), await desk.attempt(), infer)
    assert isinstance(found, Refused)
    assert found.code == "inference.unavailable"


class Refusing(LanguageEngine):
    """Without a process: it refuses what it is asked, and keeps it."""

    def __init__(self, code: str) -> None:
        super().__init__(EngineStart(name="default"), lambda: 0, lambda name: None)
        self._code = code
        self.asked: list[Generate] = []

    async def generate(self, params: Generate, on_item: Listener | None = None) -> Generated:
        self.asked.append(params)
        raise Failure(self._code, "no")


@pytest.mark.parametrize(
    "code", ["inference.culprit", "inference.deadline", "inference.unavailable", "model.invalid"]
)
async def test_what_its_model_refuses_is_a_result_that_the_loop_can_go_on_from(
    desk: Desk, code: str
) -> None:
    language = Refusing(code)
    infer = Infer(phase="act", messages=[], tokens_max=1)
    found = await ask(desk.effects(language=language), await desk.attempt(), infer)
    assert isinstance(found, Refused)
    assert found.code == code
    (asked,) = language.asked
    assert asked.share == Share(weight=3, running_max=2)


async def test_who_has_no_model_weighs_by_screening_alone(desk: Desk) -> None:
    evidence = Evidence(
        agent=AGENT,
        score=0.9,
        margin=0.9,
        scores={AGENT: 0.9},
        nobody=0.0,
        nearest="x",
        recipients=(AGENT,),
    )
    found = await ask(desk.effects(), await desk.attempt(evidence), Weigh(phase="triage"))
    assert isinstance(found, Weighed)
    assert (found.verdict.action, found.preferences) == ("act", {})
