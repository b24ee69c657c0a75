"""The journal, and questions to a person, whose answers are journal entries too."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import asdict

from ipc_protocol.errors import Failure
from ipc_protocol.work import (
    Effect,
    EffectResult,
    Infer,
    Inferred,
    Note,
    Noted,
    Recall,
    Recalled,
    Setting,
    ToolResult,
    UseTool,
    Verdict,
    Weigh,
    Weighed,
    effect_key,
)
from orchestrator.budget import Spent
from orchestrator.bus.attention import (
    AnswerAttention,
    RaiseAttention,
    RequestAttention,
    answer_attention,
    raise_attention,
    request_attention,
)
from orchestrator.bus.handing import Leased
from orchestrator.bus.journal import Append, append_journal, read_journal, spent
from orchestrator.bus.leasing import (
    Fail,
    Grant,
    ReleaseLeases,
    Wake,
    fail,
    grant,
    release_leases,
    wake,
)
from orchestrator.bus.limits import DEFERRAL_US_MIN
from orchestrator.bus.observations import HealthEvent, Span, record_span, report_health
from orchestrator.bus.routing import BUS, OPERATOR, SUPERVISOR
from orchestrator.store.audit import first_broken

Bus = Any
"""The fixture `bus`."""

TOOL = UseTool(name="fs.read", arguments={"path": "a"})
ASK = UseTool(name="attention.request", arguments={"question": "May I?"})


async def failure_of(awaitable: Any) -> Failure:
    with pytest.raises(Failure) as failure:
        await awaitable
    return failure.value


@pytest.fixture
async def delivery(bus: Bus) -> int:
    await bus.ask(topic="ops.disk")
    return int(await bus.leased("opsclaw"))


async def append(
    bus: Bus,
    delivery: int,
    step: int,
    effect: Effect,
    result: EffectResult,
    *,
    agent: str = "opsclaw",
    incarnation: str = "w1",
    tokens: int = 0,
) -> EffectResult:
    entry = Append(
        delivery=delivery,
        incarnation=incarnation,
        step=step,
        effect=effect,
        result=result,
        started_us=bus.now_us - 5,
        tokens=tokens,
    )
    return await bus.store.apply(append_journal, agent, entry)


VERDICT = Verdict(action="act", reason="it is mine", certain=False, probability=0.9)


@pytest.mark.parametrize(
    ("effect", "result"),
    [
        (Infer(phase="triage", messages=[], tokens_max=5), Inferred(text="x", generated_tokens=1)),
        (
            Weigh(phase="triage"),
            Weighed(verdict=VERDICT, preferences={"opsclaw": -0.5}),
        ),
        (Recall(phase="act", query="disk"), Recalled(memories=[])),
        (TOOL, ToolResult(ok=True, output="content")),
        (Note(phase="reflect", summary="done"), Noted()),
    ],
)
async def test_every_kind_of_effect_is_read_back_as_it_was_written(
    bus: Bus, delivery: int, effect: Effect, result: EffectResult
) -> None:
    assert await bus.reader.view(read_journal, delivery, 0, effect) is None
    assert await append(bus, delivery, 0, effect, result) == result
    assert await bus.reader.view(read_journal, delivery, 0, effect) == result


async def test_the_first_result_of_a_step_wins(bus: Bus, delivery: int) -> None:
    await append(bus, delivery, 0, TOOL, ToolResult(ok=True, output="first"))
    again = await append(bus, delivery, 0, TOOL, ToolResult(ok=True, output="second"))
    assert again == ToolResult(ok=True, output="first")


async def test_another_request_at_a_written_step_is_a_mismatch(bus: Bus, delivery: int) -> None:
    await append(bus, delivery, 0, TOOL, ToolResult(ok=True, output="first"))
    refused = await failure_of(append(bus, delivery, 0, ASK, Noted()))
    assert refused.code == "journal.mismatch"
    assert (await failure_of(bus.reader.view(read_journal, delivery, 0, ASK))).code == (
        "journal.mismatch"
    )


async def test_only_the_holder_writes_the_journal(bus: Bus, delivery: int) -> None:
    for agent, incarnation in (("devclaw", "w1"), ("opsclaw", "w2")):
        refused = await failure_of(
            append(bus, delivery, 0, TOOL, Noted(), agent=agent, incarnation=incarnation)
        )
        assert refused.code == "work.unknown-delivery"


async def test_what_another_component_has_spent_does_not_count(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")

    async def leased(component: str) -> Spent:
        await bus.store.apply(release_leases, BUS, ReleaseLeases(incarnation="w1"))
        handed: list[Leased] = []
        with bus.store.receiving("w1", handed.append):
            setting = Setting(loop=1, component=component)
            wanted = Grant(agent="opsclaw", incarnation="w1", window=1, setting=setting)
            await bus.store.apply(grant, BUS, wanted)
        (found,) = handed
        return Spent(**{**asdict(found.spent), "journal_bytes": 0})

    assert await leased("a" * 64) == Spent()
    await append(bus, 1, 1, TOOL, ToolResult(ok=True, output="x"), tokens=5)
    assert await leased("a" * 64) == Spent(effects=1, steps=1, tokens=5)
    assert await leased("b" * 64) == Spent()
    await append(bus, 1, 1, Note(phase="act", summary="b"), Noted())
    assert await leased("b" * 64) == Spent(effects=1)
    await append(bus, 1, 2, Note(phase="act", summary="defer"), Noted())
    until_us = bus.now_us + DEFERRAL_US_MIN
    await bus.complete("opsclaw", 1, outcome="deferred", until_us=until_us)
    await bus.store.apply(wake, BUS, Wake(delivery=1))
    assert await leased("b" * 64) == Spent(effects=2)
    assert await leased("a" * 64) == Spent()


async def test_a_journal_knows_its_size(bus: Bus, delivery: int) -> None:
    effect, result = Note(phase="act", summary="ä"), ToolResult(ok=True, output="x")
    await append(bus, delivery, 1, effect, result)
    size = len(effect_key(effect)) + len(msgspec.json.encode(result))
    assert (await bus.reader.view(spent, delivery)).journal_bytes == size


async def test_a_retry_knows_what_earlier_attempts_have_spent(bus: Bus, delivery: int) -> None:
    infer = Infer(phase="act", messages=[], tokens_max=5)
    await append(bus, delivery, 0, TOOL, ToolResult(ok=True, output=""))
    await append(bus, delivery, 1, infer, Inferred(text="", generated_tokens=4), tokens=4)
    await bus.store.apply(release_leases, BUS, ReleaseLeases())
    lease = await bus.lease("opsclaw", "w2")
    assert (lease.spent.steps, lease.spent.tokens) == (1, 4)


async def test_a_deferral_begins_a_new_journal(bus: Bus, delivery: int) -> None:
    await append(bus, delivery, 0, TOOL, ToolResult(ok=True, output="before"))
    until_us = bus.now_us + DEFERRAL_US_MIN
    await bus.complete("opsclaw", delivery, outcome="deferred", until_us=until_us)
    await bus.store.apply(wake, BUS, Wake(delivery=delivery))
    await bus.leased("opsclaw")
    assert await bus.reader.view(read_journal, delivery, 0, TOOL) is None
    assert await bus.value("SELECT count(*) FROM journal WHERE step = 0") == 1


async def test_the_journal_is_the_trace(bus: Bus, delivery: int) -> None:
    with bus.store.changes.subscribe({"journal.appended"}, 10) as changes:
        await append(bus, delivery, 0, TOOL, ToolResult(ok=True, output="content"))
        data = (await anext(changes)).data
    assert (data["phase"], data["tool"], data["duration_us"]) == ("act", "fs.read", 5)
    assert data["summary"] == "content"


# ---- Questions to a person ----------------------------------------------------------------------


async def asked(bus: Bus, delivery: int, step: int = 3, incarnation: str = "w1") -> int:
    request = RequestAttention(
        delivery=delivery, incarnation=incarnation, step=step, effect=ASK, question="May I?"
    )
    return int(await bus.store.apply(request_attention, "opsclaw", request))


async def test_an_answer_is_in_the_journal_when_the_delivery_goes_on(
    bus: Bus, delivery: int
) -> None:
    question = await asked(bus, delivery)
    assert await bus.lease("opsclaw") is None
    answer = AnswerAttention(attention=question, text="yes")
    await bus.store.apply(answer_attention, OPERATOR, answer)
    assert await bus.leased("opsclaw", "w2") == delivery
    assert await bus.reader.view(read_journal, delivery, 3, ASK) == ToolResult(
        ok=True, output="yes"
    )
    assert await bus.value("SELECT action FROM audit") == "attention.answer"
    assert await bus.reader.view(first_broken) is None


async def test_a_question_survives_a_restart(bus: Bus, delivery: int) -> None:
    question = await asked(bus, delivery)
    await bus.store.close()
    await bus.open()
    await bus.store.apply(release_leases, BUS, ReleaseLeases())
    answer = AnswerAttention(attention=question, text="yes")
    await bus.store.apply(answer_attention, OPERATOR, answer)
    assert await bus.leased("opsclaw") == delivery


async def test_the_same_question_is_asked_once(bus: Bus, delivery: int) -> None:
    question = await asked(bus, delivery)
    await bus.store.apply(wake, BUS, Wake(delivery=delivery))
    await bus.leased("opsclaw")
    assert await asked(bus, delivery) == question


async def test_a_question_is_answered_once_and_by_the_operator(bus: Bus, delivery: int) -> None:
    question = await asked(bus, delivery)
    answer = AnswerAttention(attention=question, text="yes")
    assert (await failure_of(bus.store.apply(answer_attention, "devclaw", answer))).code == (
        "store.ownership"
    )
    await bus.store.apply(answer_attention, OPERATOR, answer)
    assert (await failure_of(bus.store.apply(answer_attention, OPERATOR, answer))).code == (
        "attention.unknown"
    )


async def test_an_answer_that_comes_too_late_wakes_nothing(bus: Bus, delivery: int) -> None:
    question = await asked(bus, delivery)
    await bus.store.apply(wake, BUS, Wake(delivery=delivery))
    await bus.leased("opsclaw")
    gone = Fail(delivery=delivery, incarnation="w1", error="", worker_died=False, final=True)
    await bus.store.apply(fail, BUS, gone)
    await bus.store.apply(answer_attention, OPERATOR, AnswerAttention(attention=question, text="y"))
    assert await bus.value("SELECT state FROM delivery WHERE id = ?", delivery) == "dead"


async def test_supervision_asks_about_an_agent_in_quarantine(bus: Bus) -> None:
    raised = RaiseAttention(agent="opsclaw", question="It crashed ten times. Restart it?")
    question = await bus.store.apply(raise_attention, SUPERVISOR, raised)
    await bus.store.apply(answer_attention, OPERATOR, AnswerAttention(attention=question, text="y"))
    assert await bus.value("SELECT answer FROM attention") == "y"


async def test_the_daemon_notes_what_happens_to_it(bus: Bus) -> None:
    event = HealthEvent(kind="agent.quarantined", detail="too many crashes", agent="opsclaw")
    await bus.store.apply(report_health, SUPERVISOR, event)
    await bus.store.apply(record_span, BUS, Span(name="screening", started_us=1, finished_us=2))
    assert await bus.value("SELECT owner FROM health") == SUPERVISOR
    assert await bus.value("SELECT name FROM span") == "screening"
