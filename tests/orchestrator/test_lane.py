"""The lane against workers that send what they should not: real store, real line, hostile peer."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.events import Hello
from ipc_protocol.inference import EngineStart, Nothing
from ipc_protocol.methods import WORK_EFFECT, WORKER_HANDLE
from ipc_protocol.values import LayerReport, Priority
from ipc_protocol.work import (
    Completion,
    EffectRequest,
    EmitHealth,
    Handle,
    Infer,
    Memory,
    MemoryEntry,
    Note,
    Outgoing,
    Refused,
    TaskChange,
    UseTool,
    Work,
)
from orchestrator.batch import Ending
from orchestrator.budget import Allowance
from orchestrator.bus.handing import GivenBack, Leased
from orchestrator.bus.leasing import Grant, grant
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.config.types import AgentConfig, LimitsConfig
from orchestrator.deaths import BACKTRACE_CHARACTERS_MAX, TRAPS
from orchestrator.effects import EFFECT_BYTES_MAX, Effects
from orchestrator.engines import EmbeddingEngine, LanguageEngine
from orchestrator.lane import Lane
from orchestrator.metrics import Metrics
from orchestrator.preferences import Preferences
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store
from orchestrator.tools.folder import FolderLimits, WorkFolder
from orchestrator.tools.tool import Grants, ToolContext
from orchestrator.workers import Exit, Worker
from tests.leasing import LOOP, lease_one

AGENT = "opsclaw"
STEPS = 2
TOOL_SECONDS = 0.1
CONFIG = AgentConfig(
    name=AGENT,
    identity="x",
    imports=["health"],
    limits=LimitsConfig(steps=STEPS, tokens=64, time_us=1_000_000),
)
Behaviour = Callable[[Handle, Connection], Awaitable[msgspec.Struct]]


class Bench:
    """A lane whose worker is played by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_us = 1_800_000_000_000_000
        self.asked = 0
        self.tool_began = asyncio.Event()
        self.tools_run = 0
        self.came = asyncio.Event()
        self.ending: Ending | None = None

    @property
    def exceeded(self) -> str:
        allowed = Allowance(steps=STEPS, tokens=64, time_us=1).effects
        return f"The delivery has used its {allowed} effects."

    def clock_us(self) -> int:
        self.now_us += 1
        return self.now_us

    async def open(self) -> None:
        self.store = await Store.open(self.path / "agentd.db", clock_us=self.clock_us)
        self.reader: Reader = self.store.reader("test")
        agents = [Registration(name=AGENT, consumes=["ops.>"], publishes=["user.reply"])]
        await self.store.apply(register_agents, BUS, RegisterAgents(agents=agents))
        metrics = Metrics("0", ())
        embedding = EmbeddingEngine(
            EngineStart(name="embed", path=""), self.clock_us, lambda name: None
        )
        language = LanguageEngine(
            EngineStart(name="none", path=""), self.clock_us, lambda name: None
        )
        self._engine = asyncio.create_task(embedding.run())
        folder = WorkFolder(self.path, FolderLimits())

        async def no_tasks() -> list[int]:
            return []

        effects = Effects(
            CONFIG,
            store=self.store,
            reader=self.reader,
            language=language,
            preferences=Preferences(language, {}, metrics),
            preference_weight=0,
            embedding=embedding,
            tools=lambda effects: ToolContext(
                Grants(agent=AGENT, tools=("memory.search",)),
                folder,
                lambda topic: False,
                self.recall,
                no_tasks,
                effects.calls_in_flight,
            ),
            metrics=metrics,
            clock_us=self.clock_us,
        )
        self.lane = Lane(
            AGENT,
            store=self.store,
            effects=effects,
            embedding=embedding,
            metrics=metrics,
            clock_us=self.clock_us,
        )

    async def recall(self, query: str, limit: int) -> list[Memory]:
        """A tool that takes its time."""
        self.tool_began.set()
        await asyncio.sleep(TOOL_SECONDS)
        self.tools_run += 1
        return []

    async def close(self) -> None:
        self._engine.cancel()
        await asyncio.gather(self._engine, return_exceptions=True)
        await self.store.close()

    async def deliver(self, behaviour: Behaviour, *, trial: bool = False) -> tuple[str, str]:
        """Ask something, let the worker behave, and return the delivery's state and last error."""
        self.asked += 1
        question = Publish(
            topic="ops.disk", payloads=[b"x"], correlation=f"c{self.asked}", screened=True
        )
        await self.store.apply(publish, OPERATOR, question)
        return await self.redeliver(behaviour, trial=trial)

    async def redeliver(self, behaviour: Behaviour, *, trial: bool = False) -> tuple[str, str]:
        """The same with what is in the queue."""
        leased = await lease_one(self.store, AGENT)
        assert leased is not None

        async def handle(work: Work, call: Call) -> Nothing:
            (delivery,) = work.deliveries
            answer = await behaviour(work.handle(delivery), call.connection)
            await call.send_item(Sent(finished=[[delivery.delivery, answer]]))
            return Nothing()

        async with self.worker(handle) as worker:
            self.ending = await self.lane.handle(worker, "w", [leased], trial=trial)
        ((state, error),) = await self.reader.fetch(
            "SELECT state, coalesce(last_error, '') FROM delivery WHERE id = ?",
            (leased.handle.delivery,),
        )
        return state, error

    @contextlib.asynccontextmanager
    async def worker(
        self, handle: Callable[[Work, Call], Awaitable[Nothing]]
    ) -> AsyncIterator[Worker]:
        """A worker that handles its deliveries so."""
        ours, theirs = socket.socketpair()
        served = Handlers().add(WORK_EFFECT, self.lane.on_effect)
        hostile = Handlers().add(WORKER_HANDLE, handle)
        opening = asyncio.create_task(self._open_peer(theirs, hostile))
        async with Connection(ours, Hello(name="orchestrator"), served, initiator=True) as line:
            peer = await opening
            exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
            exited.set_result(Exit("killed by SIGKILL", own=True))
            yield Worker(1, list[LayerReport](), line, exited)
            await peer.__aexit__(None, None, None)

    async def publish(self, text: str, priority: Priority) -> None:
        message = Publish(
            topic="ops.disk", payloads=[text.encode()], priority=priority, screened=True
        )
        await self.store.apply(publish, OPERATOR, message)

    def take(self, leased: Leased | GivenBack) -> None:
        self.lane.take(leased)
        self.came.set()

    async def drive(self, worker: Worker, *, batches: int) -> None:
        """Hand over what has come, so often."""
        for _ in range(batches):
            while not (batch := await self.lane.next_batch("w", trial=True)):
                await self.came.wait()
                self.came.clear()
            await self.lane.handle(worker, "w", batch, trial=True)

    async def _open_peer(self, sock: socket.socket, handlers: Handlers) -> Connection:
        peer = Connection(sock, Hello(name="worker"), handlers, initiator=False)
        await peer.__aenter__()
        return peer


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


class Sent(msgspec.Struct):
    """Completions that need not be any."""

    finished: list[Any]


class Forged(msgspec.Struct):
    """A completion whose fields have any type."""

    outcome: Any = "acted"
    reason: Any = "because"
    outputs: Any = []
    tasks: Any = []
    memories: Any = []
    until_us: Any = None


def answering(answer: msgspec.Struct) -> Behaviour:
    async def behave(_: Handle, __: Connection) -> msgspec.Struct:
        return answer

    return behave


async def test_a_plain_completion_is_applied(bench: Bench) -> None:
    assert (await bench.deliver(answering(Completion(outcome="acted", reason="done"))))[0] == "done"


@pytest.mark.parametrize(
    "forged",
    [
        Forged(outcome="deferred", until_us=2**63),
        Forged(outcome="deferred", until_us=-1),
        Forged(outcome="deferred"),
        Forged(outcome="eaten"),
        Forged(tasks=[{"type": "task", "id": 2**63, "state": "done"}]),
        Forged(tasks=[{"type": "task", "id": 999, "state": "done"}]),
        Forged(outputs="none"),
        Forged(memories=[{"text": "x"}]),
    ],
)
async def test_a_forged_completion_ends_its_delivery_and_nothing_else(
    bench: Bench, forged: Forged
) -> None:
    state, _ = await bench.deliver(answering(forged))
    assert state == "dead"
    assert (await bench.deliver(answering(Completion(outcome="acted", reason="done"))))[0] == "done"


@pytest.mark.parametrize("code", ["store.full", "inference.busy", "store.ownership"])
async def test_a_worker_cannot_name_a_failure_that_passes(bench: Bench, code: str) -> None:
    async def behave(_: Handle, __: Connection) -> msgspec.Struct:
        raise Failure(code, "so it says")

    assert (await bench.deliver(behave))[0] == "dead"


async def test_effects_beyond_all_of_them_end_the_delivery(bench: Bench) -> None:
    asked = 0

    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        nonlocal asked
        while True:
            asked += 1
            note = Note(phase="act", summary="again")
            request = EffectRequest(delivery=handle.delivery, step=asked, effect=note)
            await line.call(WORK_EFFECT, request)

    state, _ = await bench.deliver(behave)
    allowed = Allowance(steps=STEPS, tokens=64, time_us=1).effects
    assert (state, asked) == ("dead", allowed + 1)
    ((entries,),) = await bench.reader.fetch("SELECT count(*) FROM journal WHERE step > 0")
    assert entries == allowed


async def spending(handle: Handle, line: Connection) -> msgspec.Struct:
    """Ask for one effect after the other, for as long as they are to be had."""
    step = 0
    while True:
        step += 1
        note = Note(phase="act", summary="again")
        request = EffectRequest(delivery=handle.delivery, step=step, effect=note)
        await line.call(WORK_EFFECT, request)


async def test_what_a_worker_on_probation_spends_is_not_held_against_its_delivery(
    bench: Bench,
) -> None:
    state, error = await bench.deliver(spending, trial=True)
    assert (state, error.split(". ")[0]) == ("queued", bench.exceeded.rstrip("."))
    assert bench.ending == Ending("retried", left=True, exceeded=bench.exceeded)
    assert await bench.reader.fetch("SELECT deaths FROM delivery") == [(0,)]


async def using_tools(handle: Handle, line: Connection) -> msgspec.Struct:
    for step in range(1, STEPS + 2):
        tool = UseTool(name="memory.search", arguments={"query": "disk"})
        request = EffectRequest(delivery=handle.delivery, step=step, effect=tool)
        result = await line.call(WORK_EFFECT, request)
        assert isinstance(result, Refused) == (step > STEPS)
    return Completion(outcome="acted", reason="done")


async def test_a_budget_that_is_used_up_is_told_though_the_delivery_is_done(bench: Bench) -> None:
    assert (await bench.deliver(using_tools, trial=True))[0] == "done"
    assert bench.ending == Ending("completed", 1, exceeded="It has used its 2 tool calls.")


async def test_a_message_that_is_refused_over_a_used_up_budget_waits_for_another_version(
    bench: Bench,
) -> None:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        await using_tools(handle, line)
        raise Failure("component.refused", "I got nothing.")

    assert await bench.deliver(behave, trial=True) == ("queued", "I got nothing.")
    assert bench.ending == Ending("retried", exceeded="It has used its 2 tool calls.")


@pytest.mark.parametrize("step", [0, 2, 2**31 - 1])
async def test_a_step_out_of_order_is_refused(bench: Bench, step: int) -> None:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        note = Note(phase="act", summary="x")
        request = EffectRequest(delivery=handle.delivery, step=step, effect=note)
        await line.call(WORK_EFFECT, request)
        return Completion(outcome="acted", reason="done")

    state, error = await bench.deliver(behave)
    assert state == "dead"
    assert "is next" in error


async def test_an_effect_too_large_for_the_journal_is_refused(bench: Bench) -> None:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        note = Note(phase="act", summary="x" * EFFECT_BYTES_MAX)
        request = EffectRequest(delivery=handle.delivery, step=1, effect=note)
        await line.call(WORK_EFFECT, request)
        return Completion(outcome="acted", reason="done")

    state, error = await bench.deliver(behave)
    assert state == "dead"
    assert "limit" in error


async def test_two_effects_at_once_are_refused(bench: Bench) -> None:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        note = Note(phase="act", summary="x")
        request = EffectRequest(delivery=handle.delivery, step=1, effect=note)
        results = await asyncio.gather(
            *(line.call(WORK_EFFECT, request) for _ in range(8)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, Failure)]
        assert refused, "all were served"
        return Completion(outcome="acted", reason="done")

    assert (await bench.deliver(behave))[0] == "done"


async def test_a_tool_that_runs_when_its_worker_dies_is_written_down(bench: Bench) -> None:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        tool = UseTool(name="memory.search", arguments={"query": "disk"})
        request = EffectRequest(delivery=handle.delivery, step=1, effect=tool)
        asking = asyncio.create_task(line.call(WORK_EFFECT, request))
        await bench.tool_began.wait()
        assert line._transport is not None
        line._transport.abort()
        await asyncio.gather(asking, return_exceptions=True)
        return Completion(outcome="acted", reason="too late")

    with pytest.raises(Failure):
        await bench.deliver(behave)
    assert await bench.reader.fetch("SELECT state, deaths FROM delivery") == [("queued", 1)]
    assert await bench.reader.fetch("SELECT kind FROM journal WHERE step = 1") == [("tool",)]
    assert bench.tools_run == 1


async def test_a_worker_that_takes_an_effect_back_loses_its_delivery(bench: Bench) -> None:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        tool = UseTool(name="memory.search", arguments={"query": "disk"})
        request = EffectRequest(delivery=handle.delivery, step=1, effect=tool)
        for _ in range(8):
            with contextlib.suppress(TimeoutError, Failure):
                async with asyncio.timeout(TOOL_SECONDS / 10):
                    await line.call(WORK_EFFECT, request)
        return Completion(outcome="acted", reason="done")

    state, error = await bench.deliver(behave)
    assert state == "dead"
    assert "took back" in error
    assert bench.tools_run == 1
    assert await bench.reader.fetch("SELECT count(*) FROM journal WHERE step > 0") == [(1,)]


async def test_nothing_is_done_for_a_worker_that_has_completed(bench: Bench) -> None:
    asked: list[asyncio.Task[Any]] = []

    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        async def ask_later() -> None:
            await asyncio.sleep(0.02)  # the completion goes first
            tool = UseTool(name="memory.search", arguments={"query": "disk"})
            request = EffectRequest(delivery=handle.delivery, step=1, effect=tool)
            await line.call(WORK_EFFECT, request)

        asked.append(asyncio.create_task(ask_later()))
        memory = MemoryEntry(text="x", outcome="success", lesson="y", importance=0.5)
        return Completion(outcome="acted", reason="done", memories=[memory])

    assert (await bench.deliver(behave))[0] == "done"
    (outcome,) = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(outcome, Failure)
    assert bench.tools_run == 0


async def test_nobody_asks_in_the_name_of_another_delivery(bench: Bench) -> None:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        note = Note(phase="act", summary="x")
        request = EffectRequest(delivery=handle.delivery + 1, step=1, effect=note)
        with pytest.raises(Failure) as failure:
            await line.call(WORK_EFFECT, request)
        assert failure.value.code == "work.unknown-delivery"
        return Completion(outcome="acted", reason="done")

    assert (await bench.deliver(behave))[0] == "done"


# ---- Workers with a component --------------------------------------------------------------------


def trapping(code: str, **details: Any) -> Behaviour:
    async def behave(_: Handle, __: Connection) -> msgspec.Struct:
        raise Failure(code, "It is lost.", "Look at it.", **details)

    return behave


@pytest.mark.parametrize("code", sorted(TRAPS))
async def test_a_lost_component_is_the_death_of_its_worker(bench: Bench, code: str) -> None:
    backtrace = "0: main!handle\n\x1b[2J" + "x" * BACKTRACE_CHARACTERS_MAX
    with pytest.raises(Failure) as failure:
        await bench.deliver(trapping(code, backtrace=backtrace, fuel=41))
    assert failure.value.code == code
    assert await bench.reader.fetch("SELECT state, deaths, last_error FROM delivery") == [
        ("queued", 1, "It is lost. Look at it.")
    ]
    ((delivery, data),) = await bench.reader.fetch(
        "SELECT delivery, data FROM span WHERE name = 'trap'"
    )
    told = msgspec.json.decode(data)
    assert (delivery, told["code"], told["fuel"]) == (1, code, 41)
    assert told["backtrace"].startswith("0: main!handle\n\N{REPLACEMENT CHARACTER}[2Jx")
    assert len(told["backtrace"]) == BACKTRACE_CHARACTERS_MAX


async def test_five_lost_components_make_a_dead_letter(bench: Bench) -> None:
    with pytest.raises(Failure):
        await bench.deliver(trapping("component.fuel"))
    for _ in range(4):
        with pytest.raises(Failure):
            await bench.redeliver(trapping("component.fuel"))
    assert await bench.reader.fetch("SELECT state, deaths FROM delivery") == [("dead", 5)]


async def test_what_a_worker_on_probation_dies_of_is_not_held_against_its_delivery(
    bench: Bench,
) -> None:
    with pytest.raises(Failure):
        await bench.deliver(trapping("component.trapped"), trial=True)
    assert await bench.reader.fetch("SELECT state, deaths FROM delivery") == [("queued", 0)]


async def test_a_worker_that_says_why_and_goes_has_said_why(bench: Bench) -> None:
    async def behave(_: Handle, line: Connection) -> msgspec.Struct:
        written = line._write_error

        def write_and_go(stream: int, problem: Problem) -> None:
            written(stream, problem)
            line._close_transport()

        line._write_error = write_and_go  # type: ignore[method-assign]
        raise Failure("component.trapped", "It is lost.")

    with pytest.raises(Failure) as failure:
        await bench.deliver(behave)
    assert failure.value.code == "component.trapped"
    assert await bench.reader.fetch("SELECT deaths FROM delivery") == [(1,)]


@pytest.mark.parametrize("code", ["component.refused", "component.output", "bus.expired"])
async def test_what_a_component_says_of_a_message_is_final(bench: Bench, code: str) -> None:
    state, error = await bench.deliver(trapping(code))
    assert (state, error) == ("dead", "It is lost. Look at it.")
    assert bench.ending == Ending("refused")


async def test_details_of_any_type_are_told_as_they_can_be(bench: Bench) -> None:
    with pytest.raises(Failure):
        await bench.deliver(trapping("component.trapped", backtrace=[1], fuel="much"))
    ((data,),) = await bench.reader.fetch("SELECT data FROM span WHERE name = 'trap'")
    told = msgspec.json.decode(data)
    assert (told["backtrace"], told["fuel"]) == ("[1]", None)


async def test_a_component_that_is_lost_to_an_obstacle_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise Failure("store.full", "The disk is full.")

    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        note = Note(phase="act", summary="x")
        with contextlib.suppress(Failure):
            await line.call(
                WORK_EFFECT, EffectRequest(delivery=handle.delivery, step=1, effect=note)
            )
        raise Failure("component.trapped", "The host function failed.")

    monkeypatch.setattr(bench.lane._effects, "perform", full)
    assert (await bench.deliver(behave))[0] == "parked"
    assert bench.ending == Ending("retried", left=True)
    assert await bench.reader.fetch("SELECT deaths FROM delivery") == [(0,)]


def telling(*conditions: str) -> Behaviour:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        for step, condition in enumerate(conditions, 1):
            effect = EmitHealth(condition=condition, detail=str(step))  # type: ignore[arg-type]
            await line.call(
                WORK_EFFECT, EffectRequest(delivery=handle.delivery, step=step, effect=effect)
            )
        return Completion(outcome="acted", reason="done")

    return behave


@pytest.mark.parametrize(
    ("told", "heard"),
    [
        (["healthy"], None),
        (["degraded"], EmitHealth(condition="degraded", detail="1")),
        (["overloaded", "healthy"], EmitHealth(condition="overloaded", detail="1")),
    ],
)
async def test_what_an_agent_says_of_itself_is_heard(
    bench: Bench, told: list[str], heard: EmitHealth | None
) -> None:
    assert (await bench.deliver(telling(*told)))[0] == "done"
    assert bench.ending == Ending("completed", 1, heard)


async def test_nobody_asks_in_the_name_of_the_worker_that_has_the_delivery(bench: Bench) -> None:
    async def behave(handle: Handle, line: Connection) -> msgspec.Struct:
        note = Note(phase="act", summary="x")
        request = EffectRequest(delivery=handle.delivery, step=1, effect=note)
        other = Call(line, 1)  # not the line of the worker, as the daemon sees it
        with pytest.raises(Failure) as failure:
            await bench.lane.on_effect(request, other)
        assert failure.value.code == "work.unknown-delivery"
        return Completion(outcome="acted", reason="done")

    assert (await bench.deliver(behave))[0] == "done"


SMALL = st.text(max_size=20)
COMPLETIONS = st.builds(
    Completion,
    outcome=st.sampled_from(["acted", "delegated", "ignored", "deferred", "composed", "failed"]),
    reason=SMALL,
    outputs=st.lists(
        st.builds(
            Outgoing,
            topic=st.sampled_from(["user.reply", "agent.opsclaw", "agent.x", "ops.disk", "", ".."]),
            payload=st.binary(max_size=50),
        ),
        max_size=4,
    ),
    tasks=st.lists(
        st.builds(
            TaskChange,
            id=st.none() | st.integers(1, 2**63 - 1),
            title=st.none() | SMALL,
            state=st.none() | st.sampled_from(["open", "doing", "done", "dropped"]),
            note=SMALL,
        ),
        max_size=3,
    ),
    memories=st.lists(
        st.builds(
            MemoryEntry,
            text=SMALL,
            outcome=st.sampled_from(["success", "partial", "failure"]),
            lesson=SMALL,
            importance=st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=3,
    ),
    until_us=st.none() | st.integers(0, 2**63 - 1),
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(completion=COMPLETIONS)
async def test_any_completion_ends_in_a_state_of_the_table(
    bench: Bench, completion: Completion
) -> None:
    state, error = await bench.deliver(answering(completion))
    assert state in ("done", "parked", "dead"), error


# ---- Something more urgent -----------------------------------------------------------------------


async def test_what_is_more_urgent_goes_first_although_there_is_room_for_both(bench: Bench) -> None:
    """It is leased at once beside what is in work, and has not to wait for that."""
    order: list[str] = []
    asked = asyncio.Event()

    async def handle(work: Work, call: Call) -> Nothing:
        for delivery in work.deliveries:
            text = delivery.payload.decode()
            order.append(text)
            if text == "long" and order.count("long") == 1:
                question = Infer(phase="act", messages=[], tokens_max=8)
                request = EffectRequest(delivery=delivery.delivery, step=1, effect=question)
                asked.set()
                await call.connection.call(WORK_EFFECT, request)
            done = Completion(outcome="acted", reason=text)
            await call.send_item(Sent(finished=[[delivery.delivery, done]]))
        return Nothing()

    async with bench.worker(handle) as worker:
        with bench.store.receiving("w", bench.take):
            wanted = Grant(agent=AGENT, incarnation="w", window=8, setting=LOOP)
            await bench.store.apply(grant, BUS, wanted)
            await bench.publish("long", "background")
            await bench.publish("later", "background")
            driving = asyncio.create_task(bench.drive(worker, batches=4))
            await asked.wait()
            await bench.publish("urgent", "urgent")
            async with asyncio.timeout(20):
                await driving
    assert order == ["long", "urgent", "long", "later"]
    rows = await bench.reader.fetch("SELECT DISTINCT state, deaths, run FROM delivery")
    assert rows == [("done", 0, 0)]
