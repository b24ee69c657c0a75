"""What is old is deleted, a little at a time; what somebody may still need stays."""

import time
from collections import Counter
from typing import Any

import msgspec
import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.work import MemoryEntry, TaskChange
from orchestrator.bus.attention import RaiseAttention, raise_attention
from orchestrator.bus.leasing import Fail, fail
from orchestrator.bus.limits import DEATHS_MAX
from orchestrator.bus.observations import HealthEvent, Span, record_span, report_health
from orchestrator.bus.registration import Registration
from orchestrator.bus.retention import Clean, Cleaned, Place, clean
from orchestrator.bus.routing import BUS, SUPERVISOR
from orchestrator.store.audit import Audit, first_broken, record_audit
from orchestrator.store.transaction import Transaction

Bus = Any
"""The fixture `bus`."""

DAY_US = 86_400_000_000
MESSAGES = 100_000
"""As many as the issue asks for."""
TABLES = ("conversation", "message", "delivery", "journal", "tool_call", "health", "span")


async def counts(bus: Bus) -> dict[str, int]:
    return {table: await bus.value(f"SELECT count(*) FROM {table}") for table in TABLES}


async def cleaned(bus: Bus, **arguments: Any) -> Counter[str]:
    """Clean to the end. Returns the rows by table."""
    total: Counter[str] = Counter()
    place = Place()
    while True:
        wanted = Clean(before_us=bus.now_us - 7 * DAY_US, after=place, **arguments)
        result: Cleaned = await bus.store.apply(clean, BUS, wanted)
        total.update(result.rows)
        place = result.after
        if result.done:
            return total


async def handle(bus: Bus, correlation: str, *, topic: str = "ops.disk", **more: Any) -> None:
    await bus.ask(topic=topic, correlation=correlation)
    await bus.do_next("opsclaw", **more)


async def answered(bus: Bus, *correlations: str) -> None:
    """Conversations with their question, its delivery and the composed reply."""
    for correlation in correlations:
        await handle(bus, correlation)
        await bus.do_next("conductor", ("user.reply", "done"), outcome="composed")


async def correlations(bus: Bus) -> list[str]:
    rows = await bus.reader.fetch("SELECT correlation FROM conversation ORDER BY id")
    return [row[0] for row in rows]


async def grow_old(bus: Bus) -> None:
    """Let the window pass. The newest row of each table stays, whatever its age: this is it."""
    bus.now_us += 8 * DAY_US
    await answered(bus, "newest")


async def foreign_keys_hold(bus: Bus) -> bool:
    return not await bus.reader.fetch("PRAGMA foreign_key_check")


# ---- What goes ----------------------------------------------------------------------------------


async def test_an_old_conversation_goes_with_all_that_is_its(bus: Bus) -> None:
    await answered(bus, "c1", "c2")
    await grow_old(bus)
    gone = await cleaned(bus)
    assert gone["conversation"] == 2
    assert (gone["message"], gone["delivery"]) == (6, 4)
    assert await correlations(bus) == ["newest"]
    left = "(SELECT id FROM delivery)"
    assert await bus.value(f"SELECT count(*) FROM journal WHERE delivery NOT IN {left}") == 0
    assert await foreign_keys_hold(bus)


async def test_it_goes_when_its_answer_is_older_than_the_window(bus: Bus) -> None:
    await answered(bus, "c1")
    bus.now_us += 1
    await answered(bus, "newest")
    bus.now_us += 7 * DAY_US - 1
    assert await cleaned(bus) == {}
    bus.now_us += 1
    assert (await cleaned(bus))["conversation"] == 1


async def test_repeating_it_changes_nothing(bus: Bus) -> None:
    await answered(bus, "c1", "c2")
    await grow_old(bus)
    await cleaned(bus)
    before = await counts(bus)
    assert await cleaned(bus) == {}
    assert await counts(bus) == before


async def test_ids_are_never_given_out_twice(bus: Bus) -> None:
    """An answered question or a memory that names a delivery would find another one."""
    await answered(bus, "c1", "c2")
    highest = [
        await bus.value(f"SELECT max(id) FROM {table}")
        for table in ("conversation", "message", "delivery")
    ]
    bus.now_us += 30 * DAY_US
    await cleaned(bus)
    assert await correlations(bus) == ["c2"]
    receipt = await bus.ask(topic="ops.disk", correlation="c3")
    assert receipt.message > highest[1]
    for table, before in zip(("conversation", "message", "delivery"), highest, strict=True):
        assert await bus.value(f"SELECT max(id) FROM {table}") > before


async def test_health_events_and_spans_have_the_same_window(bus: Bus) -> None:
    for actor in (BUS, SUPERVISOR, "opsclaw"):
        await bus.store.apply(report_health, actor, HealthEvent(kind="test", detail=actor))
        span = Span(name="life", started_us=bus.now_us, finished_us=bus.now_us)
        await bus.store.apply(record_span, actor, span)
    bus.now_us += 8 * DAY_US
    await bus.store.apply(report_health, BUS, HealthEvent(kind="test", detail="new"))
    span = Span(name="new", started_us=bus.now_us, finished_us=bus.now_us)
    await bus.store.apply(record_span, BUS, span)
    assert await cleaned(bus) == {"health": 3, "span": 3}
    assert await bus.value("SELECT detail FROM health") == "new"
    assert await bus.value("SELECT name FROM span") == "new"


async def test_the_newest_health_event_and_span_stay(bus: Bus) -> None:
    await bus.store.apply(report_health, BUS, HealthEvent(kind="test", detail="only"))
    await bus.store.apply(record_span, BUS, Span(name="only", started_us=1, finished_us=2))
    bus.now_us += 8 * DAY_US
    assert await cleaned(bus) == {}


async def test_a_span_goes_with_its_delivery(bus: Bus) -> None:
    await answered(bus, "c1")
    delivery = await bus.value("SELECT min(id) FROM delivery")
    for name in ("trap", "later"):
        span = Span(name=name, started_us=bus.now_us, finished_us=bus.now_us, delivery=delivery)
        await bus.store.apply(record_span, BUS, span)
    await bus.store.apply(record_span, BUS, Span(name="newest", started_us=1, finished_us=2))
    await grow_old(bus)
    gone = await cleaned(bus)
    assert (gone["span"], gone["conversation"]) == (2, 1)


async def test_the_newest_span_stays_even_if_its_delivery_goes(bus: Bus) -> None:
    await answered(bus, "c1")
    delivery = await bus.value("SELECT min(id) FROM delivery")
    span = Span(name="trap", started_us=1, finished_us=2, delivery=delivery)
    await bus.store.apply(record_span, BUS, span)
    await grow_old(bus)
    gone = await cleaned(bus)
    assert (gone["span"], gone["conversation"]) == (0, 1)


async def test_a_publishers_id_holds_as_long_as_its_message(bus: Bus) -> None:
    first = await bus.ask(topic="ops.disk", message_ids=["m1"])
    await bus.do_next("opsclaw")
    await bus.do_next("conductor", ("user.reply", "done"), outcome="composed")
    await answered(bus, "newest")
    bus.now_us += 7 * DAY_US
    await cleaned(bus)
    assert await bus.ask(topic="ops.disk", message_ids=["m1"]) == first
    bus.now_us += 1
    await answered(bus, "newer")
    await cleaned(bus)
    again = await bus.ask(topic="ops.disk", message_ids=["m1"])
    assert again.message > first.message


# ---- What stays ---------------------------------------------------------------------------------


async def test_what_is_not_answered_stays(bus: Bus) -> None:
    await bus.ask(topic="ops.disk", correlation="open")
    await bus.ask(topic="dev.fix", correlation="composing")
    await bus.do_next("devclaw")
    await grow_old(bus)
    assert await cleaned(bus) == {}
    assert await correlations(bus) == ["open", "composing", "newest"]


async def test_an_answered_conversation_with_something_under_way_stays(bus: Bus) -> None:
    """A composing delivery that came too late to answer it still has to be handled."""
    await handle(bus, "c1")
    await bus.leased("conductor", "w1")
    await bus.ask(topic="dev.fix", correlation="c1")  # opens it again
    await bus.do_next("devclaw")
    late, _ = await bus.reader.fetch("SELECT id FROM delivery WHERE composing = 1")
    await bus.register(
        Registration(name="opsclaw", consumes=["ops.>"]), Registration(name="devclaw")
    )
    await answer_without_conductor(bus)
    await grow_old_without_conductor(bus)
    await cleaned(bus)
    assert "c1" in await correlations(bus)
    assert await bus.value("SELECT finished_us FROM delivery WHERE id = ?", late[0]) is None
    assert await foreign_keys_hold(bus)


async def answer_without_conductor(bus: Bus) -> None:
    """The way an answered conversation comes to have composing deliveries that are not finished."""

    def answer(tx: Transaction, _: None) -> None:
        tx.execute(
            "UPDATE conversation SET state = 'answered', reply = 'x', answered_us = ?,"
            " composer = NULL WHERE correlation = 'c1'",
            (tx.now_us,),
        )

    await bus.store.apply(answer, BUS, None)


async def grow_old_without_conductor(bus: Bus) -> None:
    bus.now_us += 8 * DAY_US
    await handle(bus, "newest")


async def test_a_dead_letter_keeps_its_conversation_whole(bus: Bus) -> None:
    await bus.ask(topic="ops.disk", correlation="c1")
    for _ in range(DEATHS_MAX):
        delivery = await bus.leased("opsclaw")
        death = Fail(delivery=delivery, incarnation="w1", error="it died", worker_died=True)
        await bus.store.apply(fail, BUS, death)
    await bus.do_next("conductor", ("user.reply", "sorry"), outcome="composed")
    trap = Span(name="trap", started_us=1, finished_us=2, delivery=delivery)
    await bus.store.apply(record_span, BUS, trap)
    await bus.store.apply(record_span, BUS, Span(name="newest", started_us=1, finished_us=2))
    await answered(bus, "c2")
    before = await bus.reader.fetch("SELECT id FROM message WHERE conversation = 1")
    await grow_old(bus)
    assert (await cleaned(bus))["conversation"] == 1
    assert await correlations(bus) == ["c1", "newest"]
    assert await bus.reader.fetch("SELECT id FROM message WHERE conversation = 1") == before
    assert await bus.value("SELECT count(*) FROM dead_letter") == 1
    assert await bus.value("SELECT count(*) FROM span") == 2
    await bus.store.apply(purge, BUS, None)
    gone = await cleaned(bus)
    assert (gone["conversation"], gone["span"]) == (1, 1)


def purge(tx: Transaction, _: None) -> None:
    tx.execute("DELETE FROM dead_letter")


async def test_what_belongs_to_an_agent_stays(bus: Bus) -> None:
    lesson = MemoryEntry(text="cleaned up", outcome="success", lesson="look", importance=0.7)
    await handle(bus, "c1", memories=[lesson], tasks=[TaskChange(id=None, title="watch /var")])
    await bus.do_next("conductor", ("user.reply", "done"), outcome="composed")
    question = RaiseAttention(agent="opsclaw", question="May I?")
    await bus.store.apply(raise_attention, "opsclaw", question)
    await bus.store.apply(record_audit, "operator", Audit(action="test", subject="x"))
    await grow_old(bus)
    kept = ("memory", "task", "attention", "audit", "prompt_set")
    before = [await bus.value(f"SELECT count(*) FROM {table}") for table in kept]
    assert (await cleaned(bus))["conversation"] == 1
    assert [await bus.value(f"SELECT count(*) FROM {table}") for table in kept] == before
    assert await bus.reader.view(first_broken) is None


async def test_the_future_of_a_clock_that_was_wrong_stops_nothing(bus: Bus) -> None:
    bus.now_us += 3650 * DAY_US
    await answered(bus, "future")
    bus.now_us -= 3650 * DAY_US
    await answered(bus, "c1")
    await grow_old(bus)
    assert (await cleaned(bus))["conversation"] == 1
    assert await correlations(bus) == ["future", "newest"]


# ---- A little at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5, 64])
async def test_whatever_fits_into_one_transaction_the_end_is_the_same(bus: Bus, limit: int) -> None:
    await answered(bus, "c1", "c2", "c3")
    await grow_old(bus)
    place, steps = Place(), 0
    while True:
        wanted = Clean(before_us=bus.now_us - 7 * DAY_US, limit=limit, after=place)
        result = await bus.store.apply(clean, BUS, wanted)
        assert await foreign_keys_hold(bus)
        place, steps = result.after, steps + 1
        if result.done:
            break
    assert steps >= 6 // limit
    assert await correlations(bus) == ["newest"]


async def test_a_crash_between_two_transactions_leaves_what_the_next_start_deletes(
    bus: Bus,
) -> None:
    await answered(bus, "c1", "c2", "c3")
    await grow_old(bus)
    wanted = Clean(before_us=bus.now_us - 7 * DAY_US, limit=4)
    assert not (await bus.store.apply(clean, BUS, wanted)).done
    await bus.store.close()
    await bus.open()
    assert await foreign_keys_hold(bus)
    await cleaned(bus)
    assert await correlations(bus) == ["newest"]


async def test_long_contents_count_as_many_rows(bus: Bus) -> None:
    for number in range(4):
        await bus.ask("x" * 200_000, topic="ops.disk", correlation=f"c{number}")
        await bus.do_next("opsclaw")
        await bus.do_next("conductor", ("user.reply", "done"), outcome="composed")
    await grow_old(bus)
    wanted = Clean(before_us=bus.now_us - 7 * DAY_US, limit=60)
    result = await bus.store.apply(clean, BUS, wanted)
    assert not result.done
    assert result.rows["conversation"] <= 2


async def test_only_the_bus_cleans(bus: Bus) -> None:
    await answered(bus, "c1")
    await grow_old(bus)
    with pytest.raises(Failure) as failure:
        await bus.store.apply(clean, "opsclaw", Clean(before_us=bus.now_us - 7 * DAY_US))
    assert failure.value.code == "store.ownership"


async def test_no_table_is_read_from_end_to_end(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await answered(bus, "c1", "c2")
    delivery = await bus.value("SELECT min(id) FROM delivery")
    for name in ("trap", "newest"):
        span = Span(name=name, started_us=1, finished_us=2, delivery=delivery)
        await bus.store.apply(record_span, BUS, span)
    await grow_old(bus)
    asked: list[tuple[str, Any]] = []

    def watched(tx: Transaction, arguments: Clean) -> list[str]:
        rows = tx.rows
        for name in ("rows", "execute"):
            monkeypatch.setattr(tx, name, noting(getattr(tx, name)))
        clean(tx, arguments)
        return [
            detail
            for sql, bindings in asked
            for *_, detail in rows(f"EXPLAIN QUERY PLAN {sql}", bindings)
        ]

    def noting(run: Any) -> Any:
        def noted(sql: str, bindings: Any = ()) -> Any:
            asked.append((sql, bindings))
            return run(sql, bindings)

        return noted

    plan = await bus.store.apply(watched, BUS, Clean(before_us=bus.now_us - 7 * DAY_US))
    steps = [step for step in plan if "VIRTUAL TABLE" not in step]  # the lists that are given
    assert "SEARCH m USING INDEX message_conversation (conversation=?)" in steps
    assert [step for step in steps if step.startswith("SCAN")] == []


# ---- A hundred thousand -------------------------------------------------------------------------


def fill(tx: Transaction, count: int) -> None:
    """`count` handled messages, four to a conversation; every hundredth has a dead letter.

    Written as rows: a bus would take a minute for them.
    """
    numbers = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)"
    )
    first_us = tx.now_us - 30 * DAY_US
    tx.execute(
        f"INSERT INTO conversation (id, correlation, state, class, round, opened_by, question,"
        f" reply, opened_us, answered_us) {numbers} SELECT n, hex(randomblob(8)), 'answered', 2, 1,"
        f" 'operator', 4 * n - 3, 'done', ?2 + n, ?2 + n FROM numbers",
        (count // 4, first_us),
    )
    tx.execute(
        f"INSERT INTO message (id, conversation, round, topic, sender, class, payload, hops,"
        f" composed, publisher_id, sent_us, expires_us) {numbers} SELECT n, (n + 3) / 4, 1,"
        f" 'ops.disk', 'operator', 2, randomblob(256), 0, 0, hex(randomblob(8)), ?2, ?2 + 1"
        f" FROM numbers",
        (count, first_us),
    )
    tx.execute(
        "INSERT INTO delivery (id, message, conversation, agent, class, state, composing, screened,"
        " must_take, outcome, queued_us, finished_us) SELECT id, id, conversation, 'opsclaw', 2,"
        " 'done', 0, 1, 0, 'acted', sent_us, sent_us FROM message"
    )
    tx.execute(
        "INSERT INTO journal (delivery, run, step, kind, key_hash, request, result, started_us,"
        " finished_us) SELECT id, 0, 0, 'note', zeroblob(32), '{}', '{}', 1, 2 FROM delivery"
        " WHERE id % 4 = 0"
    )
    tx.execute(
        "INSERT INTO dead_letter (conversation, sender, topic, payload, class, code, reason,"
        " attempts, causes, died_us) SELECT id, 'x', 'y', zeroblob(1), 2, 'bus.expired', 'late', 0,"
        " '[]', 1 FROM conversation WHERE id % 100 = 0"
    )


async def test_a_hundred_thousand_messages(
    bus: Bus, capsys: pytest.CaptureFixture[str], record_property: Any
) -> None:
    await bus.store.apply(record_audit, "operator", Audit(action="test", subject="x"))
    await bus.store.apply(fill, BUS, MESSAGES)
    await answered(bus, "newest")
    held: list[tuple[float, float]] = []

    def timed(tx: Transaction, arguments: Clean) -> Cleaned:
        began, worked = time.perf_counter(), time.thread_time()
        result = clean(tx, arguments)
        held.append((time.perf_counter() - began, time.thread_time() - worked))
        return result

    place, total = Place(), Counter[str]()
    began = time.perf_counter()
    while True:
        wanted = Clean(before_us=bus.now_us - 7 * DAY_US, after=place)
        result = await bus.store.apply(timed, BUS, wanted)
        total.update(result.rows)
        place = result.after
        if result.done:
            break
    told: dict[str, Any] = {
        "transactions": len(held),
        "rows": sum(total.values()),
        "seconds": round(time.perf_counter() - began, 2),
    }
    for name, durations in zip(("held_ms", "processor_ms"), zip(*held, strict=True), strict=True):
        ordered = sorted(durations)
        told[name] = {
            "median": round(1e3 * ordered[len(ordered) // 2], 2),
            "p99": round(1e3 * ordered[-(len(ordered) // 100) - 1], 2),
            "longest": round(1e3 * ordered[-1], 2),
        }
    record_property("retention", told)
    with capsys.disabled():
        print(f"\n{msgspec.json.encode(told).decode()}")
    kept = MESSAGES // 4 // 100
    assert await bus.value("SELECT count(*) FROM conversation") == kept + 1
    assert total["message"] == MESSAGES - 4 * kept
    assert await foreign_keys_hold(bus)
    assert await bus.reader.view(first_broken) is None
    assert await bus.value("PRAGMA integrity_check") == "ok"
    before = await counts(bus)
    assert await cleaned(bus) == {}
    assert await counts(bus) == before
