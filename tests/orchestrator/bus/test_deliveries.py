"""Publishing, leasing, parking, failing: the life of deliveries on a real store."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.work import Evidence, Setting
from orchestrator.bus.evidence import Screening, attach_screening, unscreened_messages
from orchestrator.bus.handing import Leased
from orchestrator.bus.leasing import (
    Fail,
    Park,
    ReleaseLeases,
    ResumeDue,
    Wake,
    fail,
    park,
    release_leases,
    resume_due,
    wake,
)
from orchestrator.bus.limits import DEATHS_MAX, MESSAGE_TTL_US
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.store.transaction import Transaction

Bus = Any
"""The fixture `bus`."""

EVIDENCE = Evidence(
    agent="opsclaw", score=0.8, margin=0.3, nobody=0.1, scores={"opsclaw": 0.8}, nearest="disk"
)


async def failure_of(awaitable: Any) -> Failure:
    with pytest.raises(Failure) as failure:
        await awaitable
    return failure.value


async def failed(bus: Bus, delivery: int, *, died: bool, final: bool = False) -> str:
    arguments = Fail(
        delivery=delivery, incarnation="w1", error="crash", worker_died=died, final=final
    )
    return str(await bus.store.apply(fail, BUS, arguments))


# ---- Registration -------------------------------------------------------------------------------


async def test_what_is_published_before_an_agent_is_up_waits_for_it(bus: Bus) -> None:
    assert (await bus.ask()).subscribers == ["devclaw", "opsclaw"]
    await bus.store.close()
    await bus.open()
    assert await bus.lease("opsclaw") is not None


async def test_an_agent_that_is_no_longer_configured_is_retired(bus: Bus) -> None:
    await bus.register(Registration(name="devclaw", consumes=["user.request"]))
    assert (await bus.ask()).subscribers == ["devclaw"]
    assert await bus.value("SELECT state FROM agent WHERE name = 'opsclaw'") == "retired"
    assert (await failure_of(bus.ask(topic="agent.opsclaw"))).code == "bus.no-subscriber"


@pytest.mark.parametrize(
    "registration",
    [
        Registration(name="bus"),
        Registration(name="Ops Claw"),
        Registration(name="a", consumes=["a.>.b"]),
        Registration(name="a", publishes=["A"]),
    ],
)
async def test_a_wrong_registration_changes_nothing(bus: Bus, registration: Registration) -> None:
    await failure_of(bus.store.apply(register_agents, BUS, RegisterAgents(agents=[registration])))
    assert (await bus.ask()).subscribers == ["devclaw", "opsclaw"]


async def test_only_the_bus_registers_agents(bus: Bus) -> None:
    arguments = RegisterAgents(agents=[])
    refused = await failure_of(bus.store.apply(register_agents, "opsclaw", arguments))
    assert refused.code == "store.ownership"


# ---- Publishing ---------------------------------------------------------------------------------


async def test_a_full_inbox_holds_the_sender_back_and_nobody_gets_anything(bus: Bus) -> None:
    for _ in range(3):
        await bus.ask(topic="ops.disk")
    before = await bus.value("SELECT count(*) FROM message")
    assert (await failure_of(bus.ask())).problem.details == {"agents": ["opsclaw"]}
    assert await bus.value("SELECT count(*) FROM message") == before
    assert await bus.value("SELECT count(*) FROM delivery WHERE agent = 'devclaw'") == 0


async def test_two_publishers_of_one_commit_share_the_last_place(bus: Bus) -> None:
    results = await asyncio.gather(
        *(bus.ask(topic="ops.disk") for _ in range(4)), return_exceptions=True
    )
    assert [isinstance(result, Failure) for result in results] == [False, False, False, True]


async def test_a_refused_message_opens_no_conversation(bus: Bus) -> None:
    assert (await failure_of(bus.ask(topic="nobody.home"))).code == "bus.no-subscriber"
    assert await bus.state() is None


async def test_a_repeated_message_id_returns_the_first_receipt(bus: Bus) -> None:
    first = await bus.ask(message_ids=["m1"])
    assert await bus.ask("something else", message_ids=["m1"]) == first
    assert await bus.value("SELECT count(*) FROM message") == 1


async def test_an_agent_publishes_into_known_conversations_only(bus: Bus) -> None:
    message = Publish(topic="user.reply", payloads=[b""], correlation="fresh")
    assert (await failure_of(bus.store.apply(publish, "opsclaw", message))).code == (
        "conversation.unknown"
    )


async def test_a_cause_from_another_conversation_is_refused(bus: Bus) -> None:
    other = await bus.ask(correlation="c2")
    refused = await failure_of(bus.ask(correlation="c1", cause=other.message))
    assert refused.code == "conversation.unknown"


async def test_each_cause_is_a_hop(bus: Bus) -> None:
    cause = None
    for _ in range(33):
        receipt = await bus.ask(topic="dev.x", cause=cause)
        await bus.do_next("devclaw")
        cause = receipt.message
    assert (await failure_of(bus.ask(topic="dev.x", cause=cause))).code == "bus.expired"


async def test_the_change_of_a_message_tells_its_first_line(bus: Bus) -> None:
    with bus.store.changes.subscribe({"message.published"}, 10) as changes:
        await bus.ask("disk\n full")
        data = (await anext(changes)).data
    assert data["summary"] == "disk full"
    assert data["agents"] == ["devclaw", "opsclaw"]
    assert data["unscreened"] is False


# ---- Screening ----------------------------------------------------------------------------------


async def test_a_delivery_waits_for_its_screening(bus: Bus) -> None:
    receipt = await bus.ask(screened=False)
    assert await bus.lease("opsclaw") is None
    (waiting,) = await bus.reader.view(unscreened_messages)
    assert (waiting.message, waiting.agents) == (receipt.message, ["devclaw", "opsclaw"])
    screening = Screening(
        message=receipt.message, evidence={"opsclaw": EVIDENCE}, fallback="devclaw"
    )
    assert await bus.store.apply(attach_screening, BUS, screening) == 2
    assert await bus.store.apply(attach_screening, BUS, screening) == 0
    assert await bus.reader.view(unscreened_messages) == []
    assert (await bus.lease("opsclaw")).handle.beginning.evidence == EVIDENCE
    assert (await bus.lease("devclaw")).handle.beginning.evidence is None


async def test_whom_the_operator_addresses_may_find_that_it_is_not_his(bus: Bus) -> None:
    await bus.ask(topic="agent.opsclaw", screened=False)
    assert await bus.lease("opsclaw") is None
    (waiting,) = await bus.reader.view(unscreened_messages)
    await bus.store.apply(attach_screening, BUS, Screening(message=waiting.message))
    assert not (await bus.lease("opsclaw")).handle.beginning.must_take


async def test_delegated_work_needs_no_screening_and_must_be_taken(bus: Bus) -> None:
    await bus.ask(topic="agent.opsclaw")
    await bus.do_next("opsclaw", ("agent.devclaw", "help"), outcome="delegated")
    assert (await bus.lease("devclaw")).handle.beginning.must_take


# ---- Leasing ------------------------------------------------------------------------------------


async def test_the_more_urgent_goes_first_and_then_the_older(bus: Bus) -> None:
    await bus.ask("one", topic="dev.x", correlation="low", priority="low")
    await bus.ask("two", topic="dev.x", correlation="urgent", priority="urgent")
    await bus.ask("three", topic="dev.x", correlation="urgent")
    order = []
    while lease := await bus.lease("devclaw"):
        order.append(lease.handle.envelope.payload)
        await bus.complete("devclaw", lease.handle.delivery)
    assert order == [b"two", b"three", b"one"]


async def test_an_agents_own_class_counts_for_its_deliveries(bus: Bus) -> None:
    await bus.ask(priority="background")
    assert (await bus.lease("opsclaw")).handle.envelope.priority == "high"
    assert (await bus.lease("devclaw")).handle.envelope.priority == "normal"


async def test_a_worker_holds_as_many_deliveries_as_its_window(bus: Bus) -> None:
    handed: list[Leased] = []
    for _ in range(3):
        await bus.ask()
    with bus.store.receiving("w1", handed.append):
        await bus.grant("opsclaw", "w1", 2)
        assert [leased.delivery.message for leased in handed] == [1, 2]
        await bus.complete("opsclaw", handed[0].delivery.delivery)
        assert [leased.delivery.message for leased in handed] == [1, 2, 3]


async def test_a_message_is_leased_by_the_transaction_that_publishes_it(bus: Bus) -> None:
    handed: list[Leased] = []
    with bus.store.receiving("w1", handed.append):
        await bus.grant("opsclaw", "w1", 2)
        receipt = await bus.ask(topic="ops.disk")
    assert [leased.delivery.message for leased in handed] == [receipt.message]
    assert await bus.value("SELECT state FROM delivery") == "leased"


async def test_what_is_refused_takes_no_credit(bus: Bus) -> None:
    """A reducer that fails takes back what it had handed over and counted in memory."""
    handed: list[Leased] = []
    with bus.store.receiving("w1", handed.append):
        await bus.grant("opsclaw", "w1", 1)

        def publish_and_fail(tx: Transaction, arguments: Publish) -> None:
            publish(tx, arguments)
            raise Failure("request.invalid", "as told")

        message = Publish(topic="ops.disk", payloads=[b"1"], screened=True)
        await failure_of(bus.store.apply(publish_and_fail, OPERATOR, message))
        assert not handed
        await bus.ask(topic="ops.disk")
        assert len(handed) == 1


async def test_a_retry_begins_as_the_first_attempt_did(bus: Bus) -> None:
    await bus.ask()
    first = await bus.lease("opsclaw")
    await failed(bus, first.handle.delivery, died=True)
    bus.now_us += 5
    second = await bus.lease("opsclaw", "w2")
    assert second.handle.beginning == first.handle.beginning
    assert second.handle.beginning.prompts == {"triage": "Is it yours?"}
    assert (first.handle.attempt, second.handle.attempt) == (1, 2)


async def test_prompts_are_stored_once(bus: Bus) -> None:
    await bus.ask()
    await bus.lease("opsclaw")
    await bus.lease("devclaw")
    assert await bus.value("SELECT count(*) FROM prompt_set") == 1


async def test_what_nobody_began_in_time_is_a_dead_letter(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    bus.now_us += MESSAGE_TTL_US
    assert await bus.lease("opsclaw") is None
    await bus.store.apply(resume_due, BUS, ResumeDue())
    assert await bus.value("SELECT code FROM dead_letter") == "bus.expired"
    assert await bus.state() == "composing"


async def test_what_was_begun_is_finished_however_late(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    delivery = await bus.leased("opsclaw")
    await failed(bus, delivery, died=False)
    bus.now_us += MESSAGE_TTL_US
    assert await bus.leased("opsclaw") == delivery


async def test_a_lease_comes_back_after_a_crash_of_the_daemon(bus: Bus, tmp_path: Path) -> None:
    await bus.ask()
    delivery = await bus.leased("opsclaw")
    crashed = type(bus)(tmp_path / "copy.db")
    await bus.store.close()
    crashed.path.write_bytes(bus.path.read_bytes())
    await crashed.open()
    assert await crashed.lease("opsclaw") is None
    assert await crashed.store.apply(release_leases, BUS, ReleaseLeases()) == 1
    again = await crashed.lease("opsclaw", "w2")
    assert (again.handle.delivery, again.handle.attempt) == (delivery, 1)
    await crashed.store.close()


async def test_a_worker_gives_back_its_own_leases_only(bus: Bus) -> None:
    await bus.ask()
    await bus.lease("opsclaw", "w1")
    await bus.lease("devclaw", "w2")
    assert await bus.store.apply(release_leases, BUS, ReleaseLeases(incarnation="w1")) == 1
    assert await bus.lease("opsclaw", "w3") is not None
    assert await bus.lease("devclaw", "w3") is None


# ---- Parking ------------------------------------------------------------------------------------


async def test_a_parked_delivery_leaves_the_lane_and_comes_back_when_due(bus: Bus) -> None:
    await bus.ask("first", topic="ops.disk")
    await bus.ask("second", topic="ops.disk")
    first = await bus.leased("opsclaw")
    until_us = bus.now_us + 100
    arguments = Park(delivery=first, incarnation="w1", reason="retry", until_us=until_us)
    await bus.store.apply(park, BUS, arguments)
    assert await bus.leased("opsclaw") != first
    resumed = await bus.store.apply(resume_due, BUS, ResumeDue())
    assert (resumed.count, resumed.next_due_us) == (0, until_us)
    bus.now_us = until_us
    resumed = await bus.store.apply(resume_due, BUS, ResumeDue())
    assert (resumed.count, resumed.next_due_us) == (1, None)


async def test_a_parked_delivery_can_be_woken_once(bus: Bus) -> None:
    await bus.ask()
    delivery = await bus.leased("opsclaw")
    await bus.store.apply(park, BUS, Park(delivery=delivery, incarnation="w1", reason="job"))
    assert await bus.store.apply(wake, BUS, Wake(delivery=delivery))
    assert not await bus.store.apply(wake, BUS, Wake(delivery=delivery))
    assert await bus.leased("opsclaw") == delivery


async def test_who_does_not_hold_a_delivery_cannot_park_it(bus: Bus) -> None:
    await bus.ask()
    delivery = await bus.leased("opsclaw")
    stranger = Park(delivery=delivery, incarnation="w2", reason="job")
    assert (await failure_of(bus.store.apply(park, BUS, stranger))).code == "work.unknown-delivery"
    missing = Wake(delivery=999)
    assert (await failure_of(bus.store.apply(wake, BUS, missing))).code == "work.unknown-delivery"


# ---- Failing ------------------------------------------------------------------------------------


async def test_a_delivery_that_kills_its_worker_five_times_is_a_dead_letter(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    states = [await failed(bus, await bus.leased("opsclaw"), died=True) for _ in range(DEATHS_MAX)]
    assert states == ["queued"] * (DEATHS_MAX - 1) + ["dead"]
    assert await bus.value("SELECT attempts FROM dead_letter") == DEATHS_MAX
    assert await bus.state() == "composing"


async def test_what_is_not_the_workers_death_does_not_count(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    for _ in range(2 * DEATHS_MAX):
        assert await failed(bus, await bus.leased("opsclaw"), died=False) == "queued"


async def test_what_can_never_succeed_is_given_up_at_once(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    assert await failed(bus, await bus.leased("opsclaw"), died=False, final=True) == "dead"
    assert await bus.value("SELECT code FROM dead_letter") == "work.refused"


async def test_a_retried_delivery_keeps_its_place(bus: Bus) -> None:
    await bus.ask("first", topic="ops.disk")
    await bus.ask("second", topic="ops.disk")
    first = await bus.leased("opsclaw")
    await failed(bus, first, died=True)
    assert await bus.leased("opsclaw") == first


async def test_a_death_after_the_completion_changes_nothing(bus: Bus) -> None:
    await bus.ask()
    delivery = await bus.leased("opsclaw")
    await bus.complete("opsclaw", delivery)
    assert await failed(bus, delivery, died=True) == "done"
    missing = Fail(delivery=999, incarnation="w1", error="", worker_died=True)
    assert (await failure_of(bus.store.apply(fail, BUS, missing))).code == "work.unknown-delivery"


# ---- The questions that drivers ask all the time ------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (
            "SELECT 1 FROM delivery d WHERE d.agent = 'a' AND d.state = 'queued'"
            " AND d.finished_us IS NULL AND d.screened = 1 ORDER BY d.class, d.id LIMIT 1",
            "delivery_unfinished",
        ),
        (
            "SELECT count(*) FROM delivery"
            " WHERE agent = 'a' AND finished_us IS NULL AND composing = 0",
            "delivery_unfinished",
        ),
        (
            "SELECT 1 FROM delivery"
            " WHERE conversation = 1 AND finished_us IS NULL AND composing = 0 LIMIT 1",
            "delivery_unsettled",
        ),
        (
            "SELECT min(parked_until_us) FROM delivery"
            " WHERE state = 'parked' AND parked_until_us IS NOT NULL",
            "delivery_due",
        ),
    ],
)
async def test_a_frequent_question_is_answered_from_its_index(
    bus: Bus, sql: str, index: str
) -> None:
    plan = await bus.reader.fetch(f"EXPLAIN QUERY PLAN {sql}")
    details = " ".join(row[3] for row in plan)
    assert index in details
    assert "TEMP B-TREE" not in details


async def test_a_new_version_of_the_loop_begins_a_delivery_anew(bus: Bus) -> None:
    await bus.ask()
    first = await bus.lease("opsclaw")
    assert first is not None
    await bus.store.apply(release_leases, BUS, ReleaseLeases())
    again = await bus.lease("opsclaw", "w2", Setting(loop=2))
    assert again is not None
    assert again.handle.delivery == first.handle.delivery
    assert again.handle.beginning.loop == 2
    assert await bus.value("SELECT run FROM delivery WHERE id = ?", first.handle.delivery) == 1
    assert await bus.value("SELECT count(*) FROM journal WHERE kind = 'beginning'") == 1


async def test_another_component_begins_a_delivery_anew(bus: Bus) -> None:
    await bus.ask()
    runs = []
    for component in ("a", "a", "b", "", "a"):
        leased = await bus.lease("opsclaw", "w1", Setting(loop=1, component=component * 64))
        assert leased is not None
        assert leased.handle.beginning.component == component * 64
        run = await bus.value("SELECT run FROM delivery WHERE id = ?", leased.handle.delivery)
        runs.append(run)
        await bus.store.apply(release_leases, BUS, ReleaseLeases())
    assert runs == [0, 0, 1, 2, 3]


async def test_a_message_that_nobody_begins_ends_without_its_agent(bus: Bus) -> None:
    await bus.ask(topic="ops.disk", expires_us=bus.now_us + 100)
    resumed = await bus.store.apply(resume_due, BUS, ResumeDue())
    assert resumed.next_due_us == bus.now_us + 100
    bus.now_us += 100
    resumed = await bus.store.apply(resume_due, BUS, ResumeDue())
    assert resumed.next_due_us is None or resumed.next_due_us > bus.now_us
    assert await bus.value("SELECT state FROM delivery WHERE composing = 0") == "dead"
    assert await bus.state() == "composing"


async def test_what_begins_anew_after_its_time_to_live_is_finished_all_the_same(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    delivery = await bus.leased("opsclaw")
    bus.now_us += MESSAGE_TTL_US
    arguments = Fail(
        delivery=delivery,
        incarnation="w1",
        error="as told",
        worker_died=False,
        final=True,
        anew=True,
    )
    assert await bus.store.apply(fail, BUS, arguments) == "queued"
    await bus.store.apply(resume_due, BUS, ResumeDue())
    assert await bus.leased("opsclaw") == delivery
