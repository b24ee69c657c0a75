"""What operators ask about the bus on the control socket, against a real store."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipc_protocol import bus
from ipc_protocol.aio import Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.methods import (
    DEAD_LIST,
    DEAD_PURGE,
    DEAD_REPLAY,
    DEAD_SHOW,
    TAP,
    TOPICS,
    Method,
)
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.replaying import LETTERS_PER_CALL_MAX
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.control import tapping
from orchestrator.control.bus import BusControl
from orchestrator.control.routing_table import RoutingTable
from orchestrator.control.tapping import SHOWN_BYTES_MAX
from orchestrator.store.store import Store

US = 1_000_000
NOW_US = 1_800_000_000 * US

AGENTS = [
    Registration(name="ops", consumes=["disk.*"], publishes=["report.disk"], inbox=100_000),
    Registration(name="dev", consumes=["report.disks"], inbox=100_000),
]


class Listener:
    """The end of a line that takes items, as slowly as it likes."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self._came = asyncio.Event()

    async def send_item(self, item: Any) -> None:
        await self.reading.wait()
        self.items.append(item)
        self._came.set()

    async def wait_for(self, count: int) -> list[Any]:
        async with asyncio.timeout(20):
            while len(self.items) < count:
                self._came.clear()
                await self._came.wait()
        return self.items


class Operator:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_us = NOW_US
        self.states = {"ops": SimpleNamespace(state="idle"), "dev": SimpleNamespace(state="idle")}
        reader = store.reader("bus")
        self.table = RoutingTable(
            store.changes, reader, cast(Any, self.states), lambda: self.now_us
        )
        control = BusControl(store, reader, self.table, lambda: self.now_us)
        self._handlers: Handlers = control.add_to(Handlers())

    async def ask(
        self, method: Method[Any, Any, Any], params: Any, line: Listener | None = None
    ) -> Any:
        _, handler = self._handlers.find(method.name)
        return await handler(params, cast(Any, line or Listener()))

    async def publish(
        self, topic: str, *payloads: bytes, correlation: str | None = None
    ) -> list[int]:
        message = Publish(topic=topic, payloads=payloads, correlation=correlation, screened=True)
        accepted = await self.store.apply(publish, OPERATOR, message)
        return accepted.messages

    async def list(self, limit: int = 50, **chosen: Any) -> bus.DeadLetters:
        params = bus.ListDeadLetters(filter=bus.DeadLetterFilter(**chosen), limit=limit)
        found: bus.DeadLetters = await self.ask(DEAD_LIST, params)
        return found

    async def numbers(self, **chosen: Any) -> "list[int]":
        return [letter.number for letter in (await self.list(**chosen)).letters]

    async def topics(self) -> dict[str, bus.Topic]:
        line = Listener()
        await self.ask(TOPICS, Nothing(), line)
        return {row.name: row for row in line.items}

    @contextlib.asynccontextmanager
    async def tapping(self, topic: str, **more: Any) -> AsyncIterator[Listener]:
        """Somebody who looks on, from the moment at which nothing is missed any more."""
        line = Listener()
        before = len(self.store.changes._subscriptions)
        tap = bus.Tap(topic=topic, **more)
        following = asyncio.create_task(self.ask(TAP, tap, line))
        await until(lambda: len(self.store.changes._subscriptions) > before or following.done())
        try:
            yield line
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    store = await Store.open(tmp_path / "agentd.db", clock_us=lambda: NOW_US)
    await store.apply(register_agents, BUS, RegisterAgents(agents=AGENTS))
    yield Operator(store)
    await store.close()


async def buried(operator: Operator, count: int, **columns: Any) -> list[int]:
    """Dead letters of deliveries that `ops` has not handled, one conversation each."""
    given = {"receiver": "ops", "topic": "disk.full", "code": "work.deaths", "age_us": 0, **columns}

    def bury(tx: Any, _: None) -> list[int]:
        return [
            tx.insert(
                "INSERT INTO dead_letter (conversation, message, delivery, sender, receiver,"
                " topic, payload, class, code, reason, attempts, causes, last_error, died_us)"
                " SELECT m.conversation, m.id, d.id, m.sender, ?, ?, m.payload, 2, ?, 'crash', 5,"
                " json_array(json_object('message', m.id, 'topic', m.topic, 'sender', m.sender)),"
                " 'hung', ? FROM message m JOIN delivery d ON d.message = m.id WHERE m.id = ?"
                " RETURNING id",
                (
                    given["receiver"],
                    given["topic"],
                    given["code"],
                    NOW_US - given["age_us"],
                    message,
                ),
            )
            for message in messages
        ]

    payloads = [b"disk full"] * count
    messages: list[int] = await operator.publish("disk.full", *payloads)
    return await operator.store.apply(bury, BUS, None)


# ---- Lists ---------------------------------------------------------------------------------------


async def test_dead_letters_are_listed_newest_first_and_page_on(operator: Operator) -> None:
    numbers = await buried(operator, 5)
    page = await operator.list(limit=2)
    assert [letter.number for letter in page.letters] == numbers[:2:-1]
    assert (page.matching, page.below) == (5, numbers[3])
    rest = await operator.list(limit=3, below=page.below)
    assert [letter.number for letter in rest.letters] == numbers[2::-1]
    assert (rest.matching, rest.below) == (5, None)


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({"agent": "ops"}, [0]),
        ({"agent": "operator"}, [1]),  # sent it, and nobody was to receive it
        ({"topic": "disk.full"}, [0]),
        ({"topic": "disk.*"}, [0, 1]),
        ({"topic": "other.>"}, []),
        ({"code": "bus.expired"}, [1]),
        ({"since_us": NOW_US}, [0]),
        ({"before_us": NOW_US}, [1]),
        ({"replayed": False}, [0, 1]),
        ({"replayed": True}, []),
        ({"topic": "disk.*", "code": "work.deaths"}, [0]),
    ],
)
async def test_a_list_is_narrowed(
    operator: Operator, chosen: dict[str, Any], found: list[int]
) -> None:
    other = {"receiver": None, "topic": "disk.slow", "code": "bus.expired", "age_us": 1}
    both = await buried(operator, 1) + await buried(operator, 1, **other)
    assert await operator.numbers(**chosen) == [both[place] for place in reversed(found)]


async def test_a_pattern_that_is_none_is_refused(operator: Operator) -> None:
    with pytest.raises(Failure) as failure:
        await operator.list(topic="disk..full")
    assert failure.value.code == "bus.invalid-topic"


async def test_one_dead_letter_says_all_that_is_known_of_it(operator: Operator) -> None:
    (number,) = await buried(operator, 1)
    detail = await operator.ask(DEAD_SHOW, bus.OfDeadLetter(number=number))
    assert (detail.letter.reason, detail.last_error, detail.letter.attempts) == ("crash", "hung", 5)
    assert detail.payload == bus.Payload(size_bytes=9, text="disk full")
    assert [(cause.topic, cause.sender) for cause in detail.causes] == [("disk.full", "operator")]


async def test_a_number_that_is_not_there_says_how_to_find_one(operator: Operator) -> None:
    with pytest.raises(Failure, match="dead list") as failure:
        await operator.ask(DEAD_SHOW, bus.OfDeadLetter(number=7))
    assert failure.value.code == "deadletter.unknown"


# ---- Sending again and removing ------------------------------------------------------------------

MORE = LETTERS_PER_CALL_MAX + 3
"""More than one reducer takes."""


async def test_all_are_sent_again_the_oldest_first_and_each_is_told(operator: Operator) -> None:
    numbers = await buried(operator, MORE)
    line = Listener()
    asked = bus.ReplayDeadLetters(filter=bus.DeadLetterFilter(agent="ops"))
    done = await operator.ask(DEAD_REPLAY, asked, line)
    assert (done.replayed, done.refused) == (MORE, 0)
    assert [item.number for item in line.items] == numbers
    assert sorted(item.message for item in line.items) == [item.message for item in line.items]
    again = await operator.ask(DEAD_REPLAY, asked)
    assert (again.replayed, again.refused) == (0, 0)


async def test_those_that_were_sent_before_are_sent_once_more_if_that_is_said(
    operator: Operator,
) -> None:
    (number,) = await buried(operator, 1)
    assert (await operator.ask(DEAD_REPLAY, bus.ReplayDeadLetters(numbers=[number]))).replayed == 1
    refused = await operator.ask(DEAD_REPLAY, bus.ReplayDeadLetters(numbers=[number]))
    assert (refused.replayed, refused.refused) == (0, 1)
    asked = bus.ReplayDeadLetters(filter=bus.DeadLetterFilter(), again=True)
    assert (await operator.ask(DEAD_REPLAY, asked)).replayed == 1


async def test_those_of_a_filter_are_removed_and_the_others_stay(operator: Operator) -> None:
    kept = await buried(operator, 1, code="bus.expired")
    await buried(operator, MORE)
    asked = bus.PurgeDeadLetters(filter=bus.DeadLetterFilter(code="work.deaths"))
    assert (await operator.ask(DEAD_PURGE, asked)).purged == MORE
    assert await operator.numbers() == kept


@pytest.mark.parametrize(
    "params",
    [
        bus.PurgeDeadLetters(),
        bus.PurgeDeadLetters(numbers=[1], filter=bus.DeadLetterFilter()),
        bus.PurgeDeadLetters(numbers=list(range(1, LETTERS_PER_CALL_MAX + 2))),
    ],
)
async def test_it_has_to_be_said_in_one_way_which_are_meant(
    operator: Operator, params: bus.PurgeDeadLetters
) -> None:
    await buried(operator, 1)
    with pytest.raises(Failure) as failure:
        await operator.ask(DEAD_PURGE, params)
    assert failure.value.code == "request.invalid"
    assert len(await operator.numbers()) == 1


# ---- Topics --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def counting(operator: Operator) -> AsyncIterator[None]:
    task = asyncio.create_task(operator.table.run())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, and fail when it takes too long."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


async def test_topics_have_their_rates_and_the_lag_of_their_subscribers(operator: Operator) -> None:
    async with counting(operator):
        await operator.publish("disk.full", *[b"x"] * 30)
        operator.now_us += 60 * US
        await until(lambda: bool(operator.table._traffic.messages()))
        row = (await operator.topics())["disk.*"]
    assert (row.messages, row.publishers) == (30, [])
    assert row.subscribers == [bus.TopicSubscriber(agent="ops", pending=30, oldest_us=NOW_US)]
    assert row.unused_by == []


async def test_what_was_used_before_the_daemon_started_is_used(operator: Operator) -> None:
    await operator.publish("disk.full", b"x")
    rows = await operator.topics()
    assert (rows["disk.*"].unused_by, rows["disk.*"].messages) == ([], 0)
    assert rows["report.disk"].unused_by == ["ops"]


async def test_the_table_is_logged_once_all_agents_are_up(
    operator: Operator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.control.routing_table.LOOK_SECONDS", 0)
    operator.states["dev"].state = "starting"
    with caplog.at_level(logging.INFO):
        async with counting(operator):
            await operator.store.settle()
            assert caplog.records == []
            operator.states["dev"].state = "busy"
            operator.states["ops"].state = "backoff"  # it was up before
            await until(lambda: len(caplog.records) == 3)
    table, *warned = caplog.records
    assert "report.disk: ops → nobody" in table.getMessage().splitlines()
    assert {record.levelname for record in warned} == {"WARNING"}
    assert any("Is 'report.disks' meant?" in record.getMessage() for record in warned)


async def test_nobody_waits_for_an_agent_in_quarantine(
    operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    operator.states["dev"].state = "quarantined"
    with caplog.at_level(logging.INFO):
        async with counting(operator):
            await until(lambda: bool(caplog.records))


# ---- Following -----------------------------------------------------------------------------------


async def test_a_tap_shows_what_is_published_from_now_on(operator: Operator) -> None:
    await operator.publish("disk.full", b"before")
    async with operator.tapping("disk.*") as line:
        (number,) = await operator.publish("disk.full", b"now", correlation="c1")
        (tapped,) = await line.wait_for(1)
    assert tapped == bus.Tapped(
        message=number,
        sent_us=NOW_US,
        topic="disk.full",
        sender="operator",
        correlation="c1",
        receivers=["ops"],
        payload=bus.Payload(size_bytes=3, text="now"),
    )


async def test_a_tap_shows_its_topic_alone(operator: Operator) -> None:
    async with operator.tapping("disk.full") as line:
        await operator.publish("disk.slow", b"other")
        await operator.publish("disk.full", b"mine")
        (tapped,) = await line.wait_for(1)
    assert tapped.payload.text == "mine"


async def test_a_tap_begins_with_the_last_ones_and_shows_none_twice(operator: Operator) -> None:
    await operator.publish("disk.slow", b"other")
    await operator.publish("disk.full", *[b"%d" % number for number in range(150)])
    await operator.publish("disk.slow", b"other")
    async with operator.tapping("disk.full", last=100) as line:
        await line.wait_for(1)
        await operator.publish("disk.full", b"150")
        tapped = await line.wait_for(101)
    assert [each.payload.text for each in tapped] == [str(number) for number in range(50, 151)]


async def test_what_comes_while_the_last_ones_are_read_is_shown_once(operator: Operator) -> None:
    async with operator.tapping("disk.full", last=100) as line:
        for number in range(20):
            await operator.publish("disk.full", b"%d" % number)
        tapped = await line.wait_for(20)
    assert [each.payload.text for each in tapped] == [str(number) for number in range(20)]


async def test_a_payload_is_cut_unless_all_of_it_is_asked_for(operator: Operator) -> None:
    large = b"x" * PAYLOAD_BYTES_MAX
    await operator.publish("disk.full", large)
    async with operator.tapping("disk.full", last=1) as line:
        (tapped,) = await line.wait_for(1)
    assert tapped.payload.cut
    assert (len(tapped.payload.text), tapped.payload.size_bytes) == (SHOWN_BYTES_MAX, len(large))
    async with operator.tapping("disk.full", last=1, full=True) as line:
        (tapped,) = await line.wait_for(1)
    assert (tapped.payload.cut, len(tapped.payload.text)) == (False, len(large))


async def test_a_slow_reader_is_told_how_many_it_has_lost(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tapping, "WAITING_MAX", 10)
    async with operator.tapping("disk.full") as line:
        line.reading.clear()
        await operator.publish("disk.full", b"first")
        for _ in range(30):
            await operator.publish("disk.full", b"x")
            await operator.publish("disk.slow", b"not counted")
        line.reading.set()
        await until(lambda: any(each.lost for each in line.items))
        await operator.publish("disk.full", b"last")
        await until(lambda: line.items[-1].payload.text == "last")
    shown = sum(1 for each in line.items if each.message)
    assert shown + sum(each.lost for each in line.items) == 32
    assert shown < 32


async def test_a_reader_that_hangs_up_ends_its_tap(operator: Operator) -> None:
    class Gone(Listener):
        async def send_item(self, item: Any) -> None:
            raise Failure("protocol.closed", "It is gone.")

    await operator.publish("disk.full", b"x")
    with pytest.raises(Failure) as failure:
        await operator.ask(TAP, bus.Tap(topic="disk.full", last=1), Gone())
    assert failure.value.code == "protocol.closed"
    assert operator.store.changes._subscriptions == []


async def test_a_tap_ends_with_the_store(operator: Operator) -> None:
    following = asyncio.create_task(operator.ask(TAP, bus.Tap(topic=">"), Listener()))
    await until(lambda: bool(operator.store.changes._subscriptions))
    await operator.store.settle()
    await operator.store.close()
    async with asyncio.timeout(20):
        assert await following == Nothing()


async def test_a_tap_on_a_pattern_that_is_none_is_refused(operator: Operator) -> None:
    with pytest.raises(Failure) as failure:
        await operator.ask(TAP, bus.Tap(topic="a.>.b"))
    assert failure.value.code == "bus.invalid-topic"
