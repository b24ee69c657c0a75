"""Calls of tools that act outside the database: written down before, under a key of their own."""

from typing import Any

import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.work import ToolResult, UseTool
from orchestrator.bus.journal import Append, append_journal
from orchestrator.bus.tool_calls import (
    BeginToolCall,
    ToolCall,
    begin_tool_call,
    calls_in_flight,
    find_tool_call,
    idempotency_key,
)

Bus = Any
"""The fixture `bus`."""

WRITE = UseTool(name="fs.write", arguments={"path": "a", "content": "x"})
OTHER = UseTool(name="fs.write", arguments={"path": "a", "content": "y"})


@pytest.fixture
async def delivery(bus: Bus) -> int:
    await bus.ask(topic="ops.disk")
    return int(await bus.leased("opsclaw"))


async def begin(
    bus: Bus, delivery: int, effect: UseTool = WRITE, *, agent: str = "opsclaw", worker: str = "w1"
) -> ToolCall:
    call = BeginToolCall(delivery=delivery, incarnation=worker, step=1, effect=effect)
    found = await bus.store.apply(begin_tool_call, agent, call)
    assert isinstance(found, ToolCall)
    return found


async def failure_of(awaitable: Any) -> str:
    with pytest.raises(Failure) as failure:
        await awaitable
    return failure.value.code


async def test_a_call_is_known_from_its_beginning(bus: Bus, delivery: int) -> None:
    before = await bus.reader.view(find_tool_call, delivery, 1, WRITE)
    assert not before.begun
    assert await begin(bus, delivery) == before
    assert await begin(bus, delivery) == ToolCall(key=before.key, begun=True)
    assert await bus.reader.view(find_tool_call, delivery, 1, WRITE) == ToolCall(
        key=before.key, begun=True
    )
    assert await bus.value("SELECT idempotency_key FROM tool_call") == before.key


async def test_another_call_at_a_begun_step_is_a_mismatch(bus: Bus, delivery: int) -> None:
    await begin(bus, delivery)
    assert await failure_of(begin(bus, delivery, OTHER)) == "journal.mismatch"
    looked_up = bus.reader.view(find_tool_call, delivery, 1, OTHER)
    assert await failure_of(looked_up) == "journal.mismatch"


async def test_only_the_holder_begins_a_call(bus: Bus, delivery: int) -> None:
    for agent, worker in (("devclaw", "w1"), ("opsclaw", "w2")):
        refused = begin(bus, delivery, agent=agent, worker=worker)
        assert await failure_of(refused) == "work.unknown-delivery"
    assert await failure_of(bus.reader.view(find_tool_call, 99, 1, WRITE)) == (
        "work.unknown-delivery"
    )


async def test_a_call_is_in_flight_until_it_is_journaled(bus: Bus, delivery: int) -> None:
    call = await begin(bus, delivery)
    assert await bus.reader.view(calls_in_flight, "opsclaw") == {call.key}
    assert await bus.reader.view(calls_in_flight, "devclaw") == frozenset()
    entry = Append(
        delivery=delivery,
        incarnation="w1",
        step=1,
        effect=WRITE,
        result=ToolResult(ok=True, output="Wrote 1 byte."),
        started_us=bus.now_us,
    )
    await bus.store.apply(append_journal, "opsclaw", entry)
    assert await bus.reader.view(calls_in_flight, "opsclaw") == frozenset()


async def test_the_call_of_a_delivery_that_is_over_is_in_nobodys_flight(
    bus: Bus, delivery: int
) -> None:
    await begin(bus, delivery)
    await bus.complete("opsclaw", delivery)
    assert await bus.reader.view(calls_in_flight, "opsclaw") == frozenset()


def test_no_two_calls_have_one_key() -> None:
    calls: list[tuple[str, int, int, int, int, UseTool]] = [
        ("c1", 1, 1, 0, 1, WRITE),
        ("c2", 1, 1, 0, 1, WRITE),
        ("c1", 2, 1, 0, 1, WRITE),
        ("c1", 1, 2, 0, 1, WRITE),
        ("c1", 1, 1, 1, 1, WRITE),
        ("c1", 1, 1, 0, 2, WRITE),
        ("c1", 1, 1, 0, 1, OTHER),
    ]
    assert len({idempotency_key(*call) for call in calls}) == len(calls)
