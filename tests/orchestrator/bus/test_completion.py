"""Completions: one transaction for all that follows, and what becomes of the conversation."""

from typing import Any

import msgspec
import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.work import Evidence, MemoryEntry, Outgoing, StateChange, TaskChange
from orchestrator.bus.evidence import Screening, attach_screening
from orchestrator.bus.leasing import Fail, ResumeDue, fail, resume_due
from orchestrator.bus.limits import (
    BACKPRESSURE_RETRY_US,
    DEATHS_MAX,
    DEFERRAL_US_MAX,
    DEFERRAL_US_MIN,
    MEMORIES_MAX,
    MEMORY_CHARS_MAX,
    OUTPUTS_MAX,
    RUNS_MAX,
    STATE_CHANGES_MAX,
    STATE_KEY_BYTES_MAX,
    STATE_VALUE_BYTES_MAX,
    TASK_CHANGES_MAX,
    TASK_CHARS_MAX,
)
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import Registration
from orchestrator.bus.routing import BUS
from orchestrator.bus.tasks import tasks_of
from orchestrator.store.state import read_state, state_bytes

Bus = Any
"""The fixture `bus`."""

LESSON = MemoryEntry(text="cleaned up", outcome="success", lesson="look at logs", importance=0.7)


async def failure_of(awaitable: Any) -> Failure:
    with pytest.raises(Failure) as failure:
        await awaitable
    return failure.value


# ---- What a completion does ---------------------------------------------------------------------


async def test_a_completion_applies_all_that_follows(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    done = await bus.do_next(
        "opsclaw",
        ("agent.devclaw", "write a script"),
        memories=[LESSON],
        tasks=[TaskChange(id=None, title="watch /var")],
    )
    assert done.state == "done"
    assert (len(done.messages), len(done.memories), len(done.tasks)) == (1, 1, 1)
    assert await bus.value("SELECT owner FROM memory") == "opsclaw"
    (task,) = await bus.reader.view(tasks_of, "opsclaw", unfinished=True)
    assert (task.title, task.state, task.correlation) == ("watch /var", "open", "c1")
    delegated = (await bus.lease("devclaw")).handle
    assert delegated.envelope.sender == "opsclaw"
    assert delegated.envelope.hops == 1
    assert delegated.envelope.priority == "high"
    assert delegated.beginning.must_take


async def test_a_repeated_completion_changes_nothing(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    delivery = await bus.leased("opsclaw")
    for repeated in (False, True, True):
        done = await bus.complete(
            "opsclaw", delivery, ("agent.devclaw", "write"), memories=[LESSON]
        )
        assert (done.state, done.repeated) == ("done", repeated)
    assert await bus.value("SELECT count(*) FROM message") == 2
    assert await bus.value("SELECT count(*) FROM memory") == 1


async def test_only_the_holder_completes(bus: Bus) -> None:
    await bus.ask()
    delivery = await bus.leased("opsclaw")
    for agent, incarnation in (("devclaw", "w1"), ("opsclaw", "w2")):
        refused = await failure_of(bus.complete(agent, delivery, incarnation=incarnation))
        assert refused.code == "work.unknown-delivery"
    assert (await failure_of(bus.complete("opsclaw", 999))).code == "work.unknown-delivery"


async def test_a_completion_that_touches_anothers_task_is_refused_whole(bus: Bus) -> None:
    await bus.ask()
    done = await bus.do_next("devclaw", tasks=[TaskChange(id=None, title="mine")])
    delivery = await bus.leased("opsclaw")
    change = TaskChange(id=done.tasks[0], state="dropped")
    refused = await failure_of(bus.complete("opsclaw", delivery, memories=[LESSON], tasks=[change]))
    assert refused.code == "store.ownership"
    assert await bus.value("SELECT state FROM task") == "open"
    assert await bus.value("SELECT count(*) FROM memory") == 0
    assert await bus.value("SELECT state FROM delivery WHERE id = ?", delivery) == "leased"


async def test_an_agent_updates_its_own_task(bus: Bus) -> None:
    await bus.ask("one", topic="dev.x")
    await bus.ask("two", topic="dev.x")
    made = await bus.do_next("devclaw", tasks=[TaskChange(id=None, title="t", note="n")])
    await bus.do_next("devclaw", tasks=[TaskChange(id=made.tasks[0], state="done")])
    (task,) = await bus.reader.view(tasks_of)
    assert (task.title, task.note, task.state) == ("t", "n", "done")


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        ("ops.report", "bus.no-subscriber"),
        ("ops.secret", "bus.not-permitted"),
        ("agent.conductor", "bus.not-permitted"),
        ("Not A Topic", "bus.invalid-topic"),
    ],
)
async def test_an_output_that_can_never_arrive_is_a_dead_letter_and_the_rest_stands(
    bus: Bus, topic: str, code: str
) -> None:
    await bus.ask(topic="ops.disk")
    done = await bus.do_next("opsclaw", (topic, "lost"), ("user.reply", "done"))
    assert (len(done.dead_letters), len(done.messages)) == (1, 1)
    (row,) = await bus.reader.fetch("SELECT code, payload, causes FROM dead_letter")
    assert row[:2] == (code, b"lost")
    assert '"topic":"ops.disk"' in row[2]


async def test_outputs_beyond_the_cap_are_dead_letters(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    done = await bus.do_next("opsclaw", *[("user.reply", "x")] * (OUTPUTS_MAX + 2))
    assert (len(done.messages), len(done.dead_letters)) == (OUTPUTS_MAX, 2)


async def test_backpressure_parks_the_completion_until_there_is_room(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    for _ in range(3):
        await bus.ask(topic="dev.x", correlation="other")
    delivery = await bus.leased("opsclaw")
    outputs = (("user.reply", "asked"), ("agent.devclaw", "help"))
    parked = await bus.complete("opsclaw", delivery, *outputs, memories=[LESSON])
    assert (parked.state, parked.full) == ("parked", ["devclaw"])
    assert await bus.value("SELECT count(*) FROM memory") == 0
    assert await bus.value("SELECT parked_on FROM delivery WHERE id = ?", delivery) == "devclaw"
    await bus.do_next("devclaw")
    bus.now_us += BACKPRESSURE_RETRY_US
    await bus.store.apply(resume_due, BUS, ResumeDue())
    assert await bus.leased("opsclaw", "w2") == delivery
    done = await bus.complete("opsclaw", delivery, *outputs, memories=[LESSON], incarnation="w2")
    assert done.state == "done"


async def test_outputs_of_one_completion_count_together(bus: Bus) -> None:
    await bus.ask(topic="agent.devclaw")
    await bus.ask(topic="ops.disk")
    done = await bus.do_next("opsclaw", *[("agent.devclaw", "help")] * 3)
    assert (done.state, done.full) == ("parked", ["devclaw"])


async def test_more_outputs_than_an_inbox_holds_are_no_reason_to_wait(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    done = await bus.do_next("opsclaw", *[("agent.devclaw", "help")] * 4)
    assert (done.state, len(done.messages), len(done.dead_letters)) == ("done", 3, 1)
    assert await bus.value("SELECT code FROM dead_letter") == "bus.backpressure"


async def test_an_agent_asks_for_less_urgency_but_never_for_more_than_it_has(bus: Bus) -> None:
    await bus.ask(topic="ops.disk", priority="low")
    await bus.do_next(
        "opsclaw",
        Outgoing(topic="agent.devclaw", payload=b"1", priority="urgent"),
        Outgoing(topic="agent.devclaw", payload=b"2", priority="normal"),
    )
    rows = await bus.reader.fetch("SELECT class FROM message WHERE sender = 'opsclaw' ORDER BY id")
    assert rows == [(1,), (2,)]


async def test_a_deferred_delivery_comes_back_with_a_new_beginning(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    delivery = await bus.leased("opsclaw")
    until_us = bus.now_us + DEFERRAL_US_MIN
    for repeated in (False, True):
        deferred = await bus.complete(
            "opsclaw", delivery, outcome="deferred", until_us=until_us, memories=[LESSON]
        )
        assert (deferred.state, deferred.repeated) == ("parked", repeated)
    assert await bus.value("SELECT count(*) FROM memory") == 1
    assert await bus.state() == "open"
    bus.now_us = until_us
    await bus.store.apply(resume_due, BUS, ResumeDue())
    beginning = (await bus.lease("opsclaw")).handle.beginning
    assert beginning.deferred
    assert beginning.now_us == until_us


# ---- Who takes it -------------------------------------------------------------------------------


async def screened(bus: Bus, fallback: str = "devclaw") -> None:
    receipt = await bus.ask(screened=False)
    await bus.store.apply(
        attach_screening, BUS, Screening(message=receipt.message, fallback=fallback)
    )


async def test_if_nobody_takes_it_the_fallback_owner_must(bus: Bus) -> None:
    await screened(bus)
    await bus.do_next("opsclaw", outcome="ignored")
    assert await bus.value("SELECT count(*) FROM delivery") == 2
    await bus.do_next("devclaw", outcome="ignored")
    assert await bus.state() == "open"
    assert (await bus.lease("devclaw")).handle.beginning.must_take


async def test_the_fallback_owner_is_asked_once(bus: Bus) -> None:
    await screened(bus)
    for agent in ("opsclaw", "devclaw", "devclaw"):
        await bus.do_next(agent, outcome="ignored")
    assert await bus.state() == "composing"


async def test_if_somebody_took_it_there_is_no_fallback(bus: Bus) -> None:
    await screened(bus)
    await bus.do_next("opsclaw", ("user.reply", "done"))
    await bus.do_next("devclaw", outcome="ignored")
    assert await bus.state() == "composing"


async def test_a_fallback_owner_who_died_of_it_is_not_asked_again(bus: Bus) -> None:
    await screened(bus)
    await bus.do_next("opsclaw", outcome="ignored")
    for _ in range(DEATHS_MAX):
        await die(bus, "devclaw")
    assert await bus.state() == "composing"


async def die(bus: Bus, agent: str) -> None:
    delivery = await bus.leased(agent)
    arguments = Fail(delivery=delivery, incarnation="w1", error="crash", worker_died=True)
    await bus.store.apply(fail, BUS, arguments)


# ---- The conversation ---------------------------------------------------------------------------


async def test_a_conversation_is_composed_when_its_last_delivery_closes(bus: Bus) -> None:
    await bus.ask("disk full")
    await bus.do_next("opsclaw", ("user.reply", "I cleaned up"))
    assert await bus.state() == "open"
    await bus.do_next("devclaw", ("user.reply", "I fixed the script"))
    assert await bus.state() == "composing"
    lease = await bus.lease("conductor")
    assert lease.composing
    assert lease.handle.question == "disk full"
    assert [(answer.agent, answer.text) for answer in lease.handle.answers] == [
        ("opsclaw", "I cleaned up"),
        ("devclaw", "I fixed the script"),
    ]
    with bus.store.changes.subscribe({"conversation.answered"}, 10) as changes:
        await bus.complete(
            "conductor", lease.handle.delivery, ("user.reply", "All is well"), outcome="composed"
        )
        assert (await anext(changes)).data["reply"] == "All is well"
    assert await bus.state() == "answered"
    assert await bus.value("SELECT reply FROM conversation") == "All is well"


async def test_delegated_work_keeps_the_conversation_open(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    await bus.do_next("opsclaw", ("agent.devclaw", "help"), outcome="delegated")
    assert await bus.state() == "open"
    await bus.do_next("devclaw", ("user.reply", "helped"))
    assert await bus.state() == "composing"


async def test_a_later_message_opens_a_new_round(bus: Bus) -> None:
    await bus.ask("first", topic="ops.disk")
    await bus.do_next("opsclaw", ("user.reply", "one"))
    await bus.do_next("conductor", ("user.reply", "reply one"), outcome="composed")
    await bus.ask("second", topic="ops.disk")
    assert await bus.state() == "open"
    await bus.do_next("opsclaw", ("user.reply", "two"))
    handle = (await bus.lease("conductor")).handle
    assert handle.question == "second"
    assert [answer.text for answer in handle.answers] == ["two"]
    await bus.complete("conductor", handle.delivery, ("user.reply", "reply two"))
    assert await bus.value("SELECT round FROM conversation") == 2
    assert await bus.value("SELECT reply FROM conversation") == "reply two"


async def test_what_comes_while_composing_is_composed_with_the_rest(bus: Bus) -> None:
    await bus.ask("first", topic="ops.disk")
    await bus.do_next("opsclaw", ("user.reply", "one"))
    early = await bus.leased("conductor")
    await bus.ask("more", topic="ops.disk")
    await bus.complete("conductor", early, ("user.reply", "too early"))
    assert await bus.state() == "open"
    await bus.do_next("opsclaw", ("user.reply", "two"))
    handle = (await bus.lease("conductor")).handle
    assert [answer.text for answer in handle.answers] == ["one", "two"]
    await bus.complete("conductor", handle.delivery, ("user.reply", "both"))
    assert await bus.value("SELECT reply FROM conversation") == "both"


async def test_a_conductor_without_a_reply_leaves_the_answers_as_they_are(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    await bus.do_next("opsclaw", ("user.reply", "one"))
    await bus.do_next("conductor", outcome="failed")
    assert await bus.value("SELECT reply FROM conversation") == "opsclaw: one"


async def test_a_composing_that_dies_leaves_the_answers_as_they_are(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    await bus.do_next("opsclaw", ("user.reply", "one"))
    for _ in range(DEATHS_MAX):
        await die(bus, "conductor")
    assert await bus.state() == "answered"
    assert await bus.value("SELECT reply FROM conversation") == "opsclaw: one"


async def test_without_a_conductor_the_answers_are_the_reply(empty_bus: Bus) -> None:
    await empty_bus.register(
        Registration(name="opsclaw", consumes=["ops.>"], publishes=["user.reply"])
    )
    await empty_bus.ask(topic="ops.disk")
    await empty_bus.do_next("opsclaw", ("user.reply", "one"), ("user.reply", "two"))
    assert await empty_bus.value("SELECT reply FROM conversation") == "opsclaw: one\n\nopsclaw: two"


async def test_a_full_inbox_of_the_conductor_does_not_keep_an_answer_back(bus: Bus) -> None:
    await bus.register(
        Registration(name="opsclaw", consumes=["ops.>"], publishes=["user.reply"], inbox=9),
        Registration(name="conductor", role="conductor", publishes=["user.reply"], inbox=1),
    )
    for number in range(3):
        await bus.ask(topic="ops.disk", correlation=f"c{number}")
        await bus.do_next("opsclaw", ("user.reply", "one"))
        assert await bus.state(f"c{number}") == "composing"


async def test_an_answer_after_the_answer_is_composed_in_a_new_round(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    await bus.do_next("opsclaw")
    await bus.do_next("conductor", ("user.reply", "nothing"), outcome="composed")
    late = Publish(topic="user.reply", payloads=[b"found it"], correlation="c1")
    await bus.store.apply(publish, "opsclaw", late)
    assert await bus.state() == "composing"
    handle = (await bus.lease("conductor")).handle
    assert [answer.text for answer in handle.answers] == ["found it"]


async def test_the_operator_can_make_a_conversation_more_urgent(bus: Bus) -> None:
    await bus.ask(topic="dev.x", priority="low")
    await bus.ask(topic="dev.x", priority="urgent")
    await bus.ask(topic="dev.x", priority="background")
    rows = await bus.reader.fetch("SELECT class FROM message ORDER BY id")
    assert rows == [(3,), (0,), (0,)]


async def test_the_fallback_owner_gets_its_evidence_again(bus: Bus) -> None:
    receipt = await bus.ask(screened=False)
    found = Evidence(
        agent="devclaw", score=0.4, margin=0.1, nobody=0.3, scores={"devclaw": 0.4}, nearest="code"
    )
    screening = Screening(message=receipt.message, evidence={"devclaw": found}, fallback="devclaw")
    await bus.store.apply(attach_screening, BUS, screening)
    await bus.do_next("opsclaw", outcome="ignored")
    await bus.do_next("devclaw", outcome="ignored")
    assert (await bus.lease("devclaw")).handle.beginning.evidence == found


async def test_a_refused_completion_tells_nobody_of_a_change(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    delivery = await bus.leased("opsclaw")
    with bus.store.changes.subscribe(None, 100) as changes:
        await failure_of(bus.complete("opsclaw", delivery, tasks=[TaskChange(id=99, state="done")]))
    assert [change async for change in changes] == []


# ---- What a worker may send ---------------------------------------------------------------------

SHORT = MemoryEntry(text="x", outcome="success", lesson="y", importance=0.5)


@pytest.mark.parametrize(
    "more",
    [
        {"memories": [SHORT] * (MEMORIES_MAX + 1)},
        {"memories": [msgspec.structs.replace(SHORT, lesson="y" * MEMORY_CHARS_MAX)]},
        {"tasks": [TaskChange(id=None, title="t")] * (TASK_CHANGES_MAX + 1)},
        {"tasks": [TaskChange(id=None, title="t", note="n" * TASK_CHARS_MAX)]},
    ],
)
async def test_a_completion_over_its_limits_is_refused_whole(bus: Bus, more: Any) -> None:
    await bus.ask(topic="ops.disk")
    with pytest.raises(Failure) as failure:
        await bus.do_next("opsclaw", **more)
    assert failure.value.code == "work.refused"
    assert await bus.value("SELECT count(*) FROM memory") == 0
    assert await bus.value("SELECT state FROM delivery") == "leased"


@pytest.mark.parametrize("ahead_us", [None, DEFERRAL_US_MAX + 1, 2**62 - 1_800_000_000_000_000])
async def test_a_deferral_needs_a_time_that_comes(bus: Bus, ahead_us: int | None) -> None:
    await bus.ask(topic="ops.disk")
    until_us = None if ahead_us is None else bus.now_us + ahead_us
    with pytest.raises(Failure, match="deferral"):
        await bus.do_next("opsclaw", outcome="deferred", until_us=until_us)


@pytest.mark.parametrize("ahead_us", [-60_000_000, 0, DEFERRAL_US_MIN - 1])
async def test_a_deferral_that_is_due_by_now_comes_again_at_once(bus: Bus, ahead_us: int) -> None:
    delivery = await bus.ask(topic="ops.disk")
    until_us = bus.now_us + ahead_us
    await bus.do_next("opsclaw", outcome="deferred", until_us=until_us)
    resumed = await bus.store.apply(resume_due, BUS, ResumeDue())
    assert (resumed.count, resumed.next_due_us) == (0, bus.now_us + DEFERRAL_US_MIN), delivery


async def test_a_deferral_publishes_nothing(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    until_us = bus.now_us + DEFERRAL_US_MIN
    with pytest.raises(Failure, match="deferral"):
        await bus.do_next(
            "opsclaw", ("user.reply", "not yet"), outcome="deferred", until_us=until_us
        )


async def test_nothing_is_put_off_for_ever(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    for _ in range(RUNS_MAX - 1):
        until_us = bus.now_us + DEFERRAL_US_MIN
        await bus.do_next("opsclaw", outcome="deferred", until_us=until_us)
        bus.now_us = until_us
        await bus.store.apply(resume_due, BUS, ResumeDue())
    with pytest.raises(Failure, match="at most 7 times"):
        await bus.do_next("opsclaw", outcome="deferred", until_us=bus.now_us + DEFERRAL_US_MIN)


# ---- State --------------------------------------------------------------------------------------

KEEPER = Registration(name="keeper", consumes=["ops.>"], publishes=["ops.report"], state_max=1_000)


@pytest.fixture
async def keeper(empty_bus: Bus) -> Bus:
    await empty_bus.register(KEEPER)
    return empty_bus


async def keep(bus: Bus, *changes: tuple[str, bytes | None], **more: Any) -> Any:
    await bus.ask(topic="ops.disk")
    state = [StateChange(key=key, value=value) for key, value in changes]
    return await bus.do_next("keeper", state=state, **more)


async def test_the_last_change_of_a_key_holds(keeper: Bus) -> None:
    with keeper.store.changes.subscribe({"state.changed"}, 8) as changes:
        await keep(keeper, ("a", b"1"), ("b", b"2"), ("a", b"3"), ("b", None))
        told = (await anext(changes)).data
    assert await keeper.reader.view(read_state, "keeper", "a") == b"3"
    assert await keeper.reader.view(read_state, "keeper", "b") is None
    assert told == {
        "agent": "keeper",
        "delivery": 1,
        "correlation": "c1",
        "changes": 4,
        "bytes": 64 + 1 + 1,
    }


async def test_a_repeated_completion_changes_the_state_once(keeper: Bus) -> None:
    await keeper.ask(topic="ops.disk")
    delivery = await keeper.leased("keeper")
    for value in (b"first", b"second"):
        change = StateChange(key="a", value=value)
        await keeper.complete("keeper", delivery, state=[change])
    assert await keeper.reader.view(read_state, "keeper", "a") == b"first"


async def test_a_state_that_would_be_too_large_takes_the_whole_completion_back(
    keeper: Bus,
) -> None:
    await keep(keeper, ("a", bytes(800)))
    before = await keeper.reader.view(state_bytes, "keeper")
    refused = await failure_of(keep(keeper, ("b", bytes(800)), memories=[LESSON]))
    assert refused.code == "work.refused"
    assert refused.problem.details == {"agent": "keeper", "bytes": before + 64 + 1 + 800}
    assert await keeper.value("SELECT count(*) FROM memory") == 0
    assert await keeper.value("SELECT state FROM delivery WHERE id = 2") == "leased"
    assert await keeper.reader.view(state_bytes, "keeper") == before


async def test_a_state_is_full_to_the_last_byte(keeper: Bus) -> None:
    await keep(keeper, ("a", bytes(1_000 - 64 - 1)))
    assert await keeper.reader.view(state_bytes, "keeper") == 1_000


async def test_a_state_over_a_lowered_limit_can_shrink_and_not_grow(keeper: Bus) -> None:
    await keep(keeper, ("a", bytes(400)), ("b", bytes(400)))
    await keeper.register(msgspec.structs.replace(KEEPER, state_max=100))
    await keep(keeper, ("a", None))
    refused = await failure_of(keep(keeper, ("b", bytes(401))))
    assert refused.code == "work.refused"
    assert await keeper.reader.view(state_bytes, "keeper") == 64 + 1 + 400


@pytest.mark.parametrize(
    "changes",
    [
        [("", b"")],
        [("ä" * (STATE_KEY_BYTES_MAX // 2) + "x", b"")],
        [("a", bytes(STATE_VALUE_BYTES_MAX + 1))],
        [("a", None)] * (STATE_CHANGES_MAX + 1),
    ],
)
async def test_changes_of_state_have_their_bounds(keeper: Bus, changes: list[Any]) -> None:
    assert (await failure_of(keep(keeper, *changes))).code == "work.refused"


async def test_the_largest_changes_of_state_are_taken(keeper: Bus) -> None:
    await keeper.register(msgspec.structs.replace(KEEPER, state_max=2**30))
    key = "ä" * (STATE_KEY_BYTES_MAX // 2)
    changes: list[Any] = [(key, bytes(STATE_VALUE_BYTES_MAX))] * (STATE_CHANGES_MAX - 1)
    await keep(keeper, *changes, ("a", None))
    held = await keeper.reader.view(state_bytes, "keeper")
    assert held == 64 + STATE_KEY_BYTES_MAX + STATE_VALUE_BYTES_MAX


async def test_an_agent_without_a_limit_keeps_nothing(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    change = StateChange(key="a", value=b"")
    assert (await failure_of(bus.do_next("opsclaw", state=[change]))).code == "work.refused"


async def test_what_was_kept_before_a_deferral_stays(keeper: Bus) -> None:
    until_us = keeper.now_us + DEFERRAL_US_MIN
    await keep(keeper, ("a", b"x"), outcome="deferred", until_us=until_us)
    assert await keeper.reader.view(read_state, "keeper", "a") == b"x"


async def test_outputs_that_were_too_many_are_one_dead_letter(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    done = await bus.do_next("opsclaw", ("user.reply", "done"), left_out=3)
    (letter,) = done.dead_letters
    sql = "SELECT topic, reason FROM dead_letter WHERE id = ?"
    ((topic, reason),) = await bus.reader.view(lambda query: query.rows(sql, (letter,)))
    assert topic == "user.reply"
    assert "made 4, and the last 3 were not kept" in reason


async def test_backpressure_leaves_the_state_as_it_was(empty_bus: Bus) -> None:
    full = Registration(name="full", consumes=["ops.report"], inbox=1)
    await empty_bus.register(KEEPER, full)
    await empty_bus.ask(topic="ops.disk")
    delivery = await empty_bus.leased("keeper")
    await empty_bus.ask(topic="agent.full")
    change = StateChange(key="a", value=b"x")
    done = await empty_bus.complete("keeper", delivery, ("ops.report", "x"), state=[change])
    assert done.state == "parked"
    assert await empty_bus.reader.view(read_state, "keeper", "a") is None
