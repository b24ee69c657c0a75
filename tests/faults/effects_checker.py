"""Counts, in the database of a stopped daemon, what became of a known load.

It shares nothing with the program but the schema: Python's own SQLite, read-only, the receipts that
the publishers got, and the topology that the configuration says. What there has to be follows from
the load alone; what there is has to be the same, no more and no less, whoever was killed meanwhile.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

OPERATOR: Final = "operator"

DEATHS_MAX: Final = 4
"""Of a delivery's own workers; the fifth would make it a dead letter."""

COUNT_BYTES: Final = 8
"""What an agent that counts puts before the payload that it passes on: its count, little-endian."""

COUNT_KEY: Final = "count"

TEXT_CHARACTERS: Final = 100
"""Compared of what agents keep: its beginning names the message, and its end may be cut off."""

SHOWN_MAX: Final = 5
"""Examples of each kind of problem: the first ones say what it is."""


class Station(NamedTuple):
    """An agent: it publishes what it gets on each of its topics, and keeps something of it."""

    name: str
    consumes: tuple[str, ...]
    publishes: tuple[str, ...] = ()
    keeps: Literal["", "count", "memory", "health", "answer"] = ""
    ordered: bool = True
    """False where deliveries are parked, which gives up their place."""


class Sent(NamedTuple):
    """A message that its publisher has a receipt for."""

    publisher: str
    number: int
    """Of this publisher, which sends one after the other."""
    topic: str
    rank: int
    payload: bytes
    message: int
    correlation: str

    @property
    def message_id(self) -> str:
        return f"{self.publisher}/{self.number}"


@dataclass
class Report:
    """What was counted, and what is wrong with it."""

    messages: int = 0
    deliveries: int = 0
    deaths: int = 0
    """The most that a delivery has met."""
    problems: list[str] = field(default_factory=list)

    def complain(self, about: str, cases: Iterable[object]) -> None:
        found = list(cases)
        if found:
            shown = "; ".join(str(case) for case in found[:SHOWN_MAX])
            more = f"; and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
            self.problems.append(f"{about}: {shown}{more}")


class Place(NamedTuple):
    """A message by its way: the publisher's id of the first, then each agent and topic."""

    message_id: str
    way: str


class _Message(NamedTuple):
    id: int
    correlation: str
    topic: str
    sender: str
    rank: int
    payload: bytes
    cause: int | None
    produced_by: int | None
    hops: int
    publisher_id: str | None


class _Delivery(NamedTuple):
    id: int
    message: int
    agent: str
    state: str
    outcome: str | None
    deaths: int
    finished_us: int | None


def check(database: Path, topology: Sequence[Station], load: Sequence[Sent]) -> Report:
    """Compare a database with what the load must have come to. Nobody may have it open."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return _Check(connection, topology, load).report


class _Check:
    def __init__(
        self, connection: sqlite3.Connection, topology: Sequence[Station], load: Sequence[Sent]
    ) -> None:
        self._connection = connection
        self._topology = {station.name: station for station in topology}
        self._load = {sent.message_id: sent for sent in load}
        assert len(self._load) == len(load), "a message id stands for one message"
        self._messages = {row.id: row for row in map(_Message._make, self._rows(_MESSAGES))}
        self._deliveries = {row.id: row for row in map(_Delivery._make, self._rows(_DELIVERIES))}
        self._places: dict[int, Place | None] = {}
        for identity in sorted(self._messages):
            self._places[identity] = self._place(self._messages[identity])
        self.report = Report(
            messages=len(self._messages),
            deliveries=len(self._deliveries),
            deaths=max((row.deaths for row in self._deliveries.values()), default=0),
        )
        self._compare()
        self._receipts()
        self._passed_on()
        self._finished()
        self._kept()
        self._order()

    def _rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        yield from self._connection.execute(sql)

    def _place(self, row: _Message) -> Place | None:
        """None for a message without a beginning: who caused it is gone. Causes have lower ids."""
        if row.publisher_id is not None and row.sender == OPERATOR:
            return Place(row.publisher_id, row.topic)
        producer = self._deliveries.get(row.produced_by or 0)
        before = None if producer is None else self._places.get(producer.message)
        if producer is None or before is None:
            return None
        return Place(before.message_id, f"{before.way} > {producer.agent} > {row.topic}")

    # -- how many

    def _compare(self) -> None:
        """Both as multisets: what is missing was lost, what is too much was doubled."""
        expected_messages: Counter[Place] = Counter()
        expected_deliveries: Counter[tuple[Place, str]] = Counter()
        for sent in self._load.values():
            for place, topic in self._expected(Place(sent.message_id, sent.topic), sent.topic):
                expected_messages[place] += 1
                for station in self._receivers(topic):
                    expected_deliveries[place, station.name] += 1
        messages = Counter(place for place in self._places.values() if place is not None)
        deliveries: Counter[tuple[Place, str]] = Counter()
        for row in self._deliveries.values():
            of = self._places.get(row.message)
            if of is not None:
                deliveries[of, row.agent] += 1
        lone = [row.id for row in self._deliveries.values() if not self._places.get(row.message)]
        orphans = [identity for identity, place in self._places.items() if place is None]
        self.report.complain("messages lost", expected_messages - messages)
        self.report.complain("messages doubled", messages - expected_messages)
        self.report.complain("deliveries lost", expected_deliveries - deliveries)
        self.report.complain("deliveries doubled", deliveries - expected_deliveries)
        self.report.complain("messages of no known cause", orphans)
        self.report.complain("deliveries of no known message", lone)

    def _expected(self, place: Place, topic: str) -> Iterator[tuple[Place, str]]:
        yield place, topic
        for station in self._receivers(topic):
            for out in station.publishes:
                yield from self._expected(
                    Place(place.message_id, f"{place.way} > {station.name} > {out}"), out
                )

    def _receivers(self, topic: str) -> list[Station]:
        return [station for station in self._topology.values() if topic in station.consumes]

    # -- which

    def _receipts(self) -> None:
        """What was acknowledged is what was written, under the number that the receipt said."""
        wrong = []
        for sent in self._load.values():
            row = self._messages.get(sent.message)
            found = row and (row.publisher_id, row.correlation, row.topic, row.rank, row.payload)
            if found != (sent.message_id, sent.correlation, sent.topic, sent.rank, sent.payload):
                wrong.append(sent.message_id)
        self.report.complain("receipts that the database does not bear out", wrong)

    def _passed_on(self) -> None:
        wrong = []
        for row in self._messages.values():
            producer = self._deliveries.get(row.produced_by or 0)
            cause = None if producer is None else self._messages.get(producer.message)
            if producer is None or cause is None:
                continue  # complained about already, or the first of its way
            station = self._topology.get(producer.agent)
            counts = station is not None and station.keeps == "count"
            passed = (row.sender, row.correlation, row.cause, row.hops)
            given = (producer.agent, cause.correlation, cause.id, cause.hops + 1)
            if passed != given or row.payload[COUNT_BYTES if counts else 0 :] != cause.payload:
                wrong.append(row.id)
        self.report.complain("messages that are not what caused them", wrong)

    def _finished(self) -> None:
        deliveries = self._deliveries.values()
        complain = self.report.complain
        complain("deliveries not done", (one for one in deliveries if one.state != "done"))
        complain(
            "deliveries not acted on",
            (one for one in deliveries if one.state == "done" and one.outcome != "acted"),
        )
        complain("deliveries of too many deaths", (x for x in deliveries if x.deaths > DEATHS_MAX))
        complain("dead letters", self._rows("SELECT id, receiver, code, reason FROM dead_letter"))
        complain("questions to a person", self._rows("SELECT id, agent, question FROM attention"))
        complain(
            "conversations not closed",
            self._rows("SELECT id, correlation, state FROM conversation WHERE state <> 'answered'"),
        )
        complain("writers that never ended", self._rows(_STILL_ACTING))
        complain("rows that name what is not there", self._rows("PRAGMA foreign_key_check"))

    # -- what agents keep

    def _kept(self) -> None:
        for station in self._topology.values():
            mine = [row for row in self._deliveries.values() if row.agent == station.name]
            match station.keeps:
                case "count":
                    self._counted(station, mine)
                case "memory":
                    memories = self._rows(f"{_MEMORIES} '{station.name}'")
                    self._once(f"memories of {station.name}", mine, memories)
                case "health":
                    events = self._rows(f"{_HEALTH} '{station.name}'")
                    self._once(f"health events of {station.name}", mine, events)
                case "answer":
                    self._answered(station, mine)

    def _counted(self, station: Station, mine: Sequence[_Delivery]) -> None:
        """Its state is the number of its deliveries, and each has a number of its own."""
        state = dict(self._rows(f"SELECT key, value FROM state WHERE owner = '{station.name}'"))
        held = int.from_bytes(state.get(COUNT_KEY, b""), "little")
        if held != len(mine):
            self.report.problems.append(
                f"{station.name} has counted {held} messages; it was given {len(mine)}"
            )
        counts = Counter(
            _count(row) for row in self._messages.values() if row.sender == station.name
        )
        numbers = Counter(range(1, len(mine) + 1))
        self.report.complain(f"counts of {station.name} that are missing", numbers - counts)
        self.report.complain(f"counts of {station.name} that came again", counts - numbers)

    def _once(
        self, what: str, mine: Sequence[_Delivery], kept: Iterable[tuple[int | None, str]]
    ) -> None:
        """One for each delivery, of its payload. `kept` are deliveries and texts."""
        expected = Counter(
            (row.id, self._messages[row.message].payload.decode()[:TEXT_CHARACTERS])
            for row in mine
            if row.message in self._messages
        )
        found = Counter((delivery or 0, text[:TEXT_CHARACTERS]) for delivery, text in kept)
        self.report.complain(f"{what} that are missing", _numbers(expected - found))
        self.report.complain(f"{what} that are too many", _numbers(found - expected))

    def _answered(self, station: Station, mine: Sequence[_Delivery]) -> None:
        """The model has answered each of its deliveries once, and wholly."""
        expected = Counter(row.id for row in mine)
        answers = list(self._rows(f"{_ANSWERS} '{station.name}'"))
        found = Counter(delivery for delivery, _ in answers)
        what = f"answers to {station.name}"
        self.report.complain(f"{what} that are missing", expected - found)
        self.report.complain(f"{what} that came again", found - expected)
        self.report.complain(
            f"{what} that are not whole", (text for _, text in answers if not _is_whole(text))
        )

    # -- in which order

    def _order(self) -> None:
        """What one publisher sent in one class, each agent has handled in that order.

        Two deliveries that were finished in one commit have one time; then the ids of what they
        published, and the counts of those who count, tell them apart.
        """
        outputs: dict[int, list[_Message]] = defaultdict(list)
        for message in self._messages.values():
            if message.produced_by is not None:
                outputs[message.produced_by].append(message)
        series: dict[tuple[str, str, str, int], list[tuple[int, _Delivery]]] = defaultdict(list)
        for row in self._deliveries.values():
            place = self._places.get(row.message)
            sent = None if place is None else self._load.get(place.message_id)
            if sent is not None and place is not None and self._topology[row.agent].ordered:
                key = (row.agent, place.way, sent.publisher, sent.rank)
                series[key].append((sent.number, row))
        for (agent, way, publisher, rank), handled in series.items():
            in_order = [row for _, row in sorted(handled)]
            keys = [_handled_at(row, outputs[row.id], self._topology[agent]) for row in in_order]
            late = [
                f"delivery {after.id} before {before.id}"
                for (before, x), (after, y) in pairwise(zip(in_order, keys, strict=True))
                if not x <= y
            ]
            what = f"{agent} handled out of order, of {publisher} in class {rank} by {way}"
            self.report.complain(what, late)


def _handled_at(row: _Delivery, outputs: Sequence[_Message], station: Station) -> tuple[int, ...]:
    """What grows from one delivery to the one that is handled after it."""
    counts = [_count(message) for message in outputs if station.keeps == "count"]
    return (row.finished_us or 0, *counts, *sorted(message.id for message in outputs))


def _count(message: _Message) -> int:
    return int.from_bytes(message.payload[:COUNT_BYTES], "little")


def _is_whole(answer: str | None) -> bool:
    """It is a JSON text, as its schema wants it."""
    try:
        return isinstance(json.loads(answer or ""), str)
    except ValueError:
        return False


def _numbers(counted: Mapping[tuple[int, str], int]) -> list[str]:
    return [f"{times} for delivery {delivery}" for (delivery, _), times in counted.items()]


_MESSAGES: Final = (
    "SELECT m.id, c.correlation, m.topic, m.sender, m.class, m.payload, m.cause, m.produced_by,"
    " m.hops, m.publisher_id FROM message m LEFT JOIN conversation c ON c.id = m.conversation"
)
_DELIVERIES: Final = "SELECT id, message, agent, state, outcome, deaths, finished_us FROM delivery"
_STILL_ACTING: Final = "SELECT name FROM acting WHERE name IS NOT NULL"
_MEMORIES: Final = "SELECT delivery, text FROM memory WHERE owner ="
_ANSWERS: Final = (
    "SELECT j.delivery, json_extract(j.result, '$.text') FROM journal j"
    " JOIN delivery d ON d.id = j.delivery AND d.run = j.run WHERE j.kind = 'infer' AND d.agent ="
)
_HEALTH: Final = (
    "SELECT json_extract(data, '$.delivery'), detail FROM health WHERE kind = 'agent' AND owner ="
)
