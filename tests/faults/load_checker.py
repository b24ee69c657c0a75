"""Says what is wrong with a store that has been under the planned load.

It reads the tables by statements of its own and shares no code with the bus: what has to be there
follows from the plan and from the promises that callers were given.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import apsw
import planned_load
import sqlite_vec
from planned_load import Promise

UNFINISHED: Final = ("queued", "leased", "parked")


class Fault(NamedTuple):
    """*Lost*: a promise was not kept. *Half*: a transaction is there in part, or twice. *Corrupt*:
    the file cannot be read, or contradicts itself. *Stuck*: the program cannot go on from there."""

    kind: Literal["lost", "half", "corrupt", "stuck"]
    what: str


def faults_of(path: Path, promises: Iterable[Promise]) -> list[Fault]:
    """Everything that is wrong with the store at `path`, to which `promises` were made."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(5000)
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        connection.execute(
            "BEGIN IMMEDIATE"
        )  # The word index is checked by a statement that writes.
        verdicts = connection.execute("PRAGMA integrity_check").fetchall()
        if verdicts != [("ok",)]:
            return [Fault("corrupt", str(verdict)) for (verdict,) in verdicts]
        tables = _Tables(connection)
        return [
            *(Fault("corrupt", each) for each in _contradictions(connection)),
            *(Fault("lost", each) for each in _broken(tables, promises)),
            *(Fault("half", each) for each in _halves(tables)),
        ]
    except apsw.Error as error:
        return [Fault("corrupt", f"{type(error).__name__}: {error}")]
    finally:
        connection.close()


def _contradictions(connection: apsw.Connection) -> Iterator[str]:
    for row in connection.execute("PRAGMA foreign_key_check"):
        yield f"a reference to nothing: {row}"
    try:
        connection.execute(
            "INSERT INTO memory_text (memory_text, rank) VALUES ('integrity-check', 1)"
        )
    except apsw.CorruptError:
        yield "the word index is not that of the memories"
    vectors = connection.execute("SELECT rowid FROM memory_vector ORDER BY 1").fetchall()
    memories = connection.execute("SELECT id FROM memory ORDER BY 1").fetchall()
    if vectors != memories:
        yield "the vector index is not that of the memories"


class _Message(NamedTuple):
    id: int
    conversation: int
    topic: str
    sender: str
    payload: bytes
    produced_by: int | None

    @property
    def name(self) -> str:
        return planned_load.name_of(self.payload)


class _Delivery(NamedTuple):
    id: int
    message: int
    conversation: int
    agent: str
    state: str
    composing: bool
    begun_us: int | None


class _Tables:
    """What the store holds, by the keys by which it is looked up."""

    def __init__(self, connection: apsw.Connection) -> None:
        def rows(sql: str) -> list[tuple[Any, ...]]:
            return connection.execute(sql).fetchall()

        self.agents = {row[0] for row in rows("SELECT name FROM agent WHERE state = 'active'")}
        self.subscriptions = set(rows("SELECT agent, pattern FROM topic_subscription"))
        self.messages = {
            row[0]: _Message(*row)
            for row in rows(
                "SELECT id, conversation, topic, sender, payload, produced_by FROM message"
            )
        }
        self.deliveries = {
            row[0]: _Delivery(*row)
            for row in rows(
                "SELECT id, message, conversation, agent, state, composing, begun_us FROM delivery"
            )
        }
        self.conversations = rows("SELECT id, state, composer, reply FROM conversation")
        self.notes: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
        for delivery, step, text in rows(
            "SELECT delivery, step, json_extract(request, '$.summary') FROM journal"
            " WHERE kind = 'note' ORDER BY delivery, step"
        ):
            self.notes[delivery].append((step, text))
        self.memories: defaultdict[int, list[str]] = defaultdict(list)
        for delivery, text in rows("SELECT delivery, text FROM memory"):
            self.memories[delivery].append(text)
        self.states = {
            (owner, key): value for owner, key, value in rows("SELECT owner, key, value FROM state")
        }
        self.outputs: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
        self.topics: defaultdict[int, set[str]] = defaultdict(set)
        for message in self.messages.values():
            self.topics[message.conversation].add(message.topic)
            if message.produced_by is not None:
                self.outputs[message.produced_by].append((message.topic, message.name))
        self.by_message: defaultdict[int, list[_Delivery]] = defaultdict(list)
        self.by_conversation: defaultdict[int, list[_Delivery]] = defaultdict(list)
        for delivery in self.deliveries.values():
            self.by_message[delivery.message].append(delivery)
            self.by_conversation[delivery.conversation].append(delivery)


def _broken(tables: _Tables, promises: Iterable[Promise]) -> Iterator[str]:
    for promise in promises:
        _, kind, identity, name = promise
        if kind == "registered":
            wanted = {
                (agent.name, topic) for agent in planned_load.AGENTS for topic in agent.consumes
            }
            kept = (
                tables.agents == {agent.name for agent in planned_load.AGENTS}
                and tables.subscriptions == wanted
            )
        elif kind == "published":
            message = tables.messages.get(identity)
            kept = message is not None and message.name == name
        elif kind == "journaled":
            kept = any(text == name for _, text in tables.notes[identity])
        else:
            delivery = tables.deliveries.get(identity)
            if delivery is None:
                kept = False
            elif kind == "leased":
                kept = delivery.begun_us is not None
            else:
                kept = delivery.state == "done"
        if not kept:
            yield f"{promise}"


def _halves(tables: _Tables) -> Iterator[str]:
    if tables.messages and max(tables.messages) != len(tables.messages):
        yield "a message is missing between two others"
    for message in tables.messages.values():
        yield from _half_message(tables, message)
    batches = Counter(planned_load.batch_of(each.name) for each in tables.messages.values())
    for batch, count in batches.items():
        if batch is not None and count != batch[1]:
            yield f"of batch {batch[0]} there are {count} messages, not {batch[1]}"
    for delivery in tables.deliveries.values():
        yield from _half_delivery(tables, delivery)
    for conversation in tables.conversations:
        yield from _half_conversation(tables, *conversation)


def _half_message(tables: _Tables, message: _Message) -> Iterator[str]:
    deliveries = tables.by_message[message.id]
    receivers = planned_load.RECEIVERS.get(message.topic, {"conductor"})
    if sorted(each.agent for each in deliveries) != sorted(receivers):
        yield f"message {message.name} has the deliveries {deliveries}"
    if any(each.conversation != message.conversation for each in deliveries):
        yield f"message {message.name} is in another conversation than {deliveries}"


def _half_delivery(tables: _Tables, delivery: _Delivery) -> Iterator[str]:
    message = tables.messages.get(delivery.message)
    if message is None:
        return  # A reference to nothing, which is reported.
    name, agent = message.name, delivery.agent
    outputs: list[tuple[str, str]] = []
    memory: str | None = None
    if delivery.state == "done":
        if delivery.composing:
            outputs = [("user.reply", planned_load.name_of(planned_load.COMPOSED.encode()))]
        else:
            outputs = planned_load.outputs_of(agent, message.topic, name)
            memory = planned_load.memory_of(agent, name)
    if tables.outputs[delivery.id] != outputs:
        yield f"{delivery} has published {tables.outputs[delivery.id]}, not {outputs}"
    kept = planned_load.state_of(agent, name)
    if not delivery.composing and kept is not None:
        found = tables.states.get((agent, kept[0]))
        if found != (kept[1] if delivery.state == "done" else None):
            yield f"{delivery} has left its agent's state at {found!r}"
    if tables.memories[delivery.id] != ([] if memory is None else [memory]):
        yield f"{delivery} has written the memories {tables.memories[delivery.id]}"
    wanted = planned_load.notes_of(message.topic, name, composing=bool(delivery.composing))
    notes = tables.notes[delivery.id]
    if notes != [*enumerate(wanted)][: len(wanted) if delivery.state == "done" else len(notes)]:
        yield f"{delivery} has the journal {notes}"


def _half_conversation(
    tables: _Tables, conversation: int, state: str, composer: int | None, reply: str | None
) -> Iterator[str]:
    deliveries = tables.by_conversation[conversation]
    working = [each for each in deliveries if each.state in UNFINISHED and not each.composing]
    composing = [each.id for each in deliveries if each.state in UNFINISHED and each.composing]
    if working:
        expected = state == "open" and not composing
    elif composing:
        expected = state == "composing" and composing == [composer]
    else:
        composed = any(each.composing for each in deliveries)
        expected = state == "answered" and reply == (planned_load.COMPOSED if composed else "")
        expected = expected and composed != (tables.topics[conversation] == {planned_load.PLAIN})
    if not deliveries or not expected:
        yield f"conversation {conversation} is {state} ({reply!r}) with {deliveries}"


def undone(path: Path) -> list[Fault]:
    """Deliveries that nobody has finished though everybody did what there was to do."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        rows = connection.execute("SELECT id, state FROM delivery WHERE finished_us IS NULL")
        return [Fault("stuck", f"delivery {delivery} is still {state}") for delivery, state in rows]
    finally:
        connection.close()
