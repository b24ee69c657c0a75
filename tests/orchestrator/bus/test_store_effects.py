"""What a component asks of the bus and the store: answered and written down together, once."""

from typing import Any

import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import (
    EffectResult,
    EmitHealth,
    ListTasks,
    Noted,
    Offer,
    Offered,
    ReadState,
    StateChange,
    StateValue,
    Task,
    TaskChange,
    TaskList,
)
from orchestrator.bus.completion import Completed
from orchestrator.bus.journal import read_journal, spent
from orchestrator.bus.leasing import ReleaseLeases, release_leases
from orchestrator.bus.limits import HEALTH_CHARS_MAX, HOPS_MAX, TASK_CHANGES_MAX, TASKS_LISTED_MAX
from orchestrator.bus.registration import Registration
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.bus.store_effects import PerformInStore, StoreEffect, perform_in_store
from orchestrator.bus.tasks import tasks_of

Bus = Any
"""The fixture `bus`."""

WATCH = Registration(
    name="watch",
    consumes=["sensor.>"],
    publishes=["user.reply", "ops.report", "dev.job"],
    delegates=["devclaw"],
    inbox=100,
    state_max=1_000_000,
)
OPS = Registration(name="opsclaw", consumes=["ops.>"], publishes=["user.reply"], inbox=3)
DEV = Registration(name="devclaw", publishes=["user.reply"], inbox=1)


@pytest.fixture
async def delivery(empty_bus: Bus) -> int:
    await empty_bus.register(WATCH, OPS, DEV)
    await empty_bus.ask(topic="sensor.one")
    return int(await empty_bus.leased("watch"))


async def perform(
    bus: Bus,
    delivery: int,
    effect: StoreEffect,
    step: int = 1,
    *,
    agent: str = "watch",
    incarnation: str = "w1",
) -> EffectResult:
    wanted = PerformInStore(
        delivery=delivery,
        incarnation=incarnation,
        step=step,
        effect=effect,
        started_us=bus.now_us - 5,
    )
    result: EffectResult = await bus.store.apply(perform_in_store, agent, wanted)
    return result


async def offered(bus: Bus, delivery: int, **offer: Any) -> str:
    """The code of what is in the way, or nothing."""
    given = {"topic": "ops.report", "payload_bytes": 1, **offer}
    result = await perform(bus, delivery, Offer(**given))
    assert isinstance(result, Offered)
    return "" if result.problem is None else result.problem.code


# ---- Offers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "code"),
    [
        ({}, ""),
        ({"correlation": "c1"}, ""),
        ({"topic": "user.reply"}, ""),
        ({"topic": "agent.devclaw"}, ""),
        ({"payload_bytes": PAYLOAD_BYTES_MAX}, ""),
        ({"payload_bytes": PAYLOAD_BYTES_MAX + 1}, "bus.payload-too-large"),
        ({"correlation": "c2"}, "bus.not-permitted"),
        ({"topic": "ops.secret"}, "bus.not-permitted"),
        ({"topic": "agent.opsclaw"}, "bus.not-permitted"),
        ({"topic": "dev.job"}, "bus.no-subscriber"),
        ({"topic": "Ops Report"}, "bus.invalid-topic"),
    ],
)
async def test_an_offer_is_answered_as_publishing_would_be(
    empty_bus: Bus, delivery: int, offer: dict[str, Any], code: str
) -> None:
    assert await offered(empty_bus, delivery, **offer) == code
    assert await empty_bus.value("SELECT count(*) FROM message") == 1


async def test_an_offer_names_the_inboxes_that_are_full(empty_bus: Bus, delivery: int) -> None:
    for _ in range(3):
        await empty_bus.ask(topic="ops.disk")
    result = await perform(empty_bus, delivery, Offer(topic="ops.report", payload_bytes=1))
    assert isinstance(result, Offered)
    assert result.problem is not None
    assert (result.problem.code, result.problem.details) == (
        "bus.backpressure",
        {"agents": ["opsclaw"]},
    )


async def test_an_offer_counts_the_hop_that_it_would_be(empty_bus: Bus, delivery: int) -> None:
    def hop(tx: Any, _: None) -> None:
        tx.execute("UPDATE message SET hops = ?", (HOPS_MAX,))

    await empty_bus.store.apply(hop, BUS, None)
    assert await offered(empty_bus, delivery) == "bus.expired"


# ---- State, tasks, health -----------------------------------------------------------------------


async def test_a_state_is_read_as_the_last_completion_left_it(
    empty_bus: Bus, delivery: int
) -> None:
    change = StateChange(key="mean", value=b"\x00\xff")
    await empty_bus.complete("watch", delivery, state=[change])
    await empty_bus.ask(topic="sensor.one")
    second = await empty_bus.leased("watch")
    assert await perform(empty_bus, second, ReadState(key="mean")) == StateValue(value=b"\x00\xff")
    assert await perform(empty_bus, second, ReadState(key="none"), 2) == StateValue(value=None)


async def test_what_was_read_once_is_read_again_whatever_became_of_it(
    empty_bus: Bus, delivery: int
) -> None:
    assert await perform(empty_bus, delivery, ReadState(key="mean")) == StateValue(value=None)

    def put(tx: Any, _: None) -> None:
        tx.execute("INSERT INTO state VALUES ('watch', 'mean', x'01', 1)")

    await empty_bus.store.apply(put, "watch", None)
    await empty_bus.store.apply(release_leases, BUS, ReleaseLeases())
    assert await empty_bus.leased("watch", "w2") == delivery
    again = await perform(empty_bus, delivery, ReadState(key="mean"), incarnation="w2")
    assert again == StateValue(value=None)


async def test_only_the_agents_own_unfinished_tasks_are_listed(
    empty_bus: Bus, delivery: int
) -> None:
    tasks = [
        TaskChange(id=None, title="one", note="first"),
        TaskChange(id=None, title="two", state="done"),
        TaskChange(id=None, title="three", state="doing"),
    ]
    await empty_bus.complete("watch", delivery, tasks=tasks)
    await empty_bus.ask(topic="ops.disk")
    await empty_bus.do_next("opsclaw", tasks=[TaskChange(id=None, title="of another")])
    await empty_bus.ask(topic="sensor.one")
    found = await perform(empty_bus, await empty_bus.leased("watch"), ListTasks())
    assert found == TaskList(
        tasks=[
            Task(id=1, title="one", state="open", note="first"),
            Task(id=3, title="three", state="doing", note=""),
        ]
    )


async def test_a_long_list_of_tasks_is_cut(empty_bus: Bus, delivery: int) -> None:
    many = [TaskChange(id=None, title=str(number)) for number in range(TASK_CHANGES_MAX)]
    await empty_bus.complete("watch", delivery, tasks=many)
    await empty_bus.ask(topic="sensor.one")
    done: Completed = await empty_bus.do_next("watch", tasks=many[:1])
    assert len(done.tasks) == 1
    await empty_bus.ask(topic="sensor.one")
    found = await perform(empty_bus, await empty_bus.leased("watch"), ListTasks())
    assert isinstance(found, TaskList)
    assert len(await empty_bus.reader.view(tasks_of, "watch")) > TASKS_LISTED_MAX
    assert [task.title for task in found.tasks] == [each.title for each in many][:TASKS_LISTED_MAX]


async def test_health_is_reported_once_and_told_to_those_who_watch(
    empty_bus: Bus, delivery: int
) -> None:
    effect = EmitHealth(condition="degraded", detail="x" * (HEALTH_CHARS_MAX + 1))
    with empty_bus.store.changes.subscribe({"health.reported"}, 8) as changes:
        assert await perform(empty_bus, delivery, effect) == Noted()
        assert await perform(empty_bus, delivery, effect) == Noted()
        change = await anext(changes)
    assert change.data == {
        "health": 1,
        "kind": "agent",
        "agent": "watch",
        "detail": "x" * HEALTH_CHARS_MAX,
        "data": {"condition": "degraded", "delivery": delivery},
    }
    rows = await empty_bus.reader.fetch("SELECT owner, kind, agent FROM health")
    assert rows == [("watch", "agent", "watch")]


# ---- The journal --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "summary"),
    [
        (Offer(topic="ops.report", payload_bytes=1), "ops.report"),
        (ReadState(key="mean"), "mean"),
        (ListTasks(), ""),
        (EmitHealth(condition="healthy", detail="fine"), "fine"),
    ],
)
async def test_each_is_written_down_and_told(
    empty_bus: Bus, delivery: int, effect: StoreEffect, summary: str
) -> None:
    kind = effect.__struct_config__.tag
    with empty_bus.store.changes.subscribe({"journal.appended"}, 8) as changes:
        result = await perform(empty_bus, delivery, effect)
        told = await anext(changes)
    assert (told.data["kind"], told.data["summary"], told.data["phase"]) == (kind, summary, None)
    assert await empty_bus.reader.view(read_journal, delivery, 1, effect) == result
    assert await empty_bus.value("SELECT kind FROM journal WHERE step = 1") == kind
    assert (await empty_bus.reader.view(spent, delivery)).effects == 1


async def test_another_request_at_a_step_that_is_written_is_a_mismatch(
    empty_bus: Bus, delivery: int
) -> None:
    await perform(empty_bus, delivery, ReadState(key="a"))
    with pytest.raises(Failure) as refused:
        await perform(empty_bus, delivery, EmitHealth(condition="healthy", detail=""))
    assert refused.value.code == "journal.mismatch"
    assert await empty_bus.value("SELECT count(*) FROM health") == 0


async def test_only_the_holder_asks(empty_bus: Bus, delivery: int) -> None:
    for agent, incarnation in (("opsclaw", "w1"), ("watch", "w2"), (OPERATOR, "w1")):
        with pytest.raises(Failure) as refused:
            await perform(empty_bus, delivery, ListTasks(), agent=agent, incarnation=incarnation)
        assert refused.value.code == "work.unknown-delivery"
