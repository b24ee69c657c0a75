"""What operators ask on the control socket, against a real store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from ipc_protocol import control
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.frames import FrameType, encode
from ipc_protocol.methods import ASK, ATTENTION_ANSWER, ATTENTION_LIST, MEMORY, TRACE, Method
from ipc_protocol.values import Receipt
from ipc_protocol.work import Memory, Setting, ToolResult, UseTool
from orchestrator.bus.attention import RaiseAttention, raise_attention
from orchestrator.bus.journal import Append, append_journal
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS
from orchestrator.control.service import Service
from orchestrator.control.views import Views
from orchestrator.intake import Intake
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store
from tests.leasing import lease_one

NOW_US = 1_800_000_000_000_000


class Operator:
    """Asks a service, without a line between them."""

    agent_names = ["opsclaw", "devclaw"]

    def __init__(self, store: Store) -> None:
        self.store = store
        self.recalling = asyncio.Barrier(len(self.agent_names))
        views = Views(store.reader("test"))
        intake = Intake(store, store.reader("intake"), Metrics("0", []))
        service = Service(cast(Any, self), store, intake, views, 60_000_000, lambda: NOW_US)
        self._handlers: Handlers = service.handlers()

    async def recall(self, agent: str, _: str, __: int) -> list[control.OwnedMemory]:
        """Each agent's answer comes when all of them have been asked."""
        await self.recalling.wait()
        memory = Memory(id=1, text="", outcome="success", importance=0.5, created_us=0)
        return [control.OwnedMemory(agent=agent, memory=memory)]

    async def ask(self, method: Method[Any, Any, Any], params: Any) -> Any:
        _, handler = self._handlers.find(method.name)
        return await handler(params, Call(cast(Any, "a connection"), 1))

    async def question(self, text: str, **more: Any) -> Receipt:
        receipt: Receipt = await self.ask(ASK, control.Ask(text=text, **more))
        return receipt

    async def value(self, sql: str) -> Any:
        ((value,),) = await self.store.reader("value").fetch(sql)
        return value


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    store = await Store.open(tmp_path / "agentd.db", clock_us=lambda: NOW_US)
    agents = [
        Registration(name=name, consumes=["user.request"], publishes=["user.reply"])
        for name in Operator.agent_names
    ]
    await store.apply(register_agents, BUS, RegisterAgents(agents=agents))
    yield Operator(store)
    await store.close()


# ---- Asking under a name -------------------------------------------------------------------------


async def test_asking_the_same_again_under_one_name_is_a_retry(operator: Operator) -> None:
    first = await operator.question("disk full", correlation="c1")
    again = await operator.question("disk full", correlation="c1")
    assert again == first
    assert await operator.value("SELECT count(*) FROM message") == 1


async def test_asking_something_else_under_one_name_is_another_message(operator: Operator) -> None:
    first = await operator.question("disk full", correlation="c1")
    second = await operator.question("and the other disk?", correlation="c1")
    assert second.message != first.message
    assert second.correlation == first.correlation
    assert await operator.value("SELECT count(*) FROM conversation") == 1


async def test_asking_somebody_else_under_one_name_is_another_message(operator: Operator) -> None:
    first = await operator.question("disk full", correlation="c1", to="opsclaw")
    second = await operator.question("disk full", correlation="c1", to="devclaw")
    assert (first.subscribers, second.subscribers) == (["opsclaw"], ["devclaw"])


# ---- Quarantine ----------------------------------------------------------------------------------


async def quarantine(operator: Operator, agent: str) -> int:
    asked = RaiseAttention(agent=agent, question="Restart it?")
    return await operator.store.apply(raise_attention, BUS, asked)


async def open_questions(operator: Operator) -> list[int]:
    listed = await operator.ask(ATTENTION_LIST, control.AttentionQuery())
    return [request.id for request in listed.requests]


async def test_an_answer_that_does_not_release_says_how_to_and_leaves_the_question_open(
    operator: Operator,
) -> None:
    question = await quarantine(operator, "opsclaw")
    with pytest.raises(Failure, match="stays in quarantine") as failure:
        await operator.ask(ATTENTION_ANSWER, control.AttentionAnswer(id=question, text="no"))
    assert failure.value.code == "request.invalid"
    assert "yes, y, ok, restart, release" in failure.value.problem.cure
    assert await open_questions(operator) == [question]


async def test_an_answer_that_releases_closes_the_question(operator: Operator) -> None:
    question = await quarantine(operator, "opsclaw")
    await operator.ask(ATTENTION_ANSWER, control.AttentionAnswer(id=question, text="Yes, go on."))
    assert await open_questions(operator) == []


async def test_the_question_about_an_agent_that_is_gone_takes_any_answer(
    operator: Operator,
) -> None:
    question = await quarantine(operator, "retired")
    await operator.ask(ATTENTION_ANSWER, control.AttentionAnswer(id=question, text="never mind"))
    assert await open_questions(operator) == []


# ---- Memories ------------------------------------------------------------------------------------


async def test_the_memories_of_all_agents_are_searched_at_once(operator: Operator) -> None:
    async with asyncio.timeout(5):
        found = await operator.ask(MEMORY, control.MemoryQuery(query="disk"))
    assert [memory.agent for memory in found.memories] == operator.agent_names


# ---- Traces --------------------------------------------------------------------------------------


async def journaled(operator: Operator, text: str, output: str, steps: int) -> None:
    """A conversation whose one leased delivery has journaled tool calls."""
    await operator.question(text, correlation="c1", to="opsclaw")
    await operator.store.apply(_screen_all, BUS, None)
    setting = Setting(loop=1, prompts={"triage": "?"})
    leased = await lease_one(operator.store, "opsclaw", "w", setting)
    assert leased is not None
    for number in range(1, steps + 1):
        effect = UseTool(name="fs.write", arguments={"path": "a", "text": output})
        entry = Append(
            delivery=leased.handle.delivery,
            incarnation="w",
            step=number,
            effect=effect,
            result=ToolResult(ok=True, output=output),
            started_us=NOW_US,
        )
        await operator.store.apply(append_journal, "opsclaw", entry)


def _screen_all(tx: Any, _: None) -> None:
    tx.execute("UPDATE delivery SET screened = 1")


async def test_a_trace_of_huge_journal_entries_is_cut_until_it_fits_into_a_frame(
    operator: Operator,
) -> None:
    await journaled(operator, "t" * 200_000, "x" * 200_000, steps=30)
    trace: control.Trace = await operator.ask(TRACE, control.OfConversation(correlation="c1"))
    encode(FrameType.RESULT, 1, trace)
    (delivery,) = trace.deliveries
    assert len(delivery.steps) == 30
    assert all(step.summary.startswith("fs.write(path=a") for step in delivery.steps)
    assert "texts are cut" in trace.cut


async def test_a_trace_that_fits_says_everything(operator: Operator) -> None:
    await journaled(operator, "disk full", "x" * 2000, steps=3)
    trace: control.Trace = await operator.ask(TRACE, control.OfConversation(correlation="c1"))
    assert trace.cut == ""
    (delivery,) = trace.deliveries
    assert [step.result["output"] for step in delivery.steps] == ["x" * 2000] * 3


async def test_a_trace_of_more_rows_than_are_listed_says_so(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.control.tracing.STEPS_MAX", 2)
    await journaled(operator, "disk full", "x", steps=3)
    trace: control.Trace = await operator.ask(TRACE, control.OfConversation(correlation="c1"))
    assert trace.cut == "Only the first 2 journal entries are shown."
