"""What a reducer is given: statements, the time, the actor, and a way to say what it changed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from ipc_protocol.errors import Failure
from orchestrator.store.changes import Change
from orchestrator.store.database import Bindings, Database, Row, Value

T = TypeVar("T")

ROWS_PER_STATEMENT_MAX: Final = 64
"""Rows of one INSERT. Each statement is one call into SQLite, for which this thread gives up and
takes back the interpreter's lock; beyond 64 rows that is a hundredth of the work."""

_ROW_COUNTS: Final = (ROWS_PER_STATEMENT_MAX, 16, 4, 1)
"""As few different statements as keep the number of calls small: each is compiled once."""


class Outcome:
    """What a reducer leaves behind beside its rows."""

    __slots__ = ("changes", "handed", "undo")

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.handed: list[tuple[str, Any]] = []
        self.undo: list[Callable[[], None]] = []

    def take_back(self) -> None:
        """Bring what is kept in memory to where it was, and forget the rest."""
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()
        self.changes.clear()
        self.handed.clear()


class Transaction:
    """One reducer's view of the store. Valid only while the reducer runs.

    `now_us` does not move while it runs. `actor` is who the store is written for, and who the
    ownership triggers see. `memory` outlives transactions: what is derived from the tables and
    worth keeping. Who changes it says how to take that back (`on_undo`).
    """

    def __init__(
        self,
        database: Database,
        actor: str,
        now_us: int,
        memory: dict[str, Any],
        follows: Callable[[str], bool] = lambda kind: True,
    ) -> None:
        assert actor, "nothing is written in nobody's name"
        self._database = database
        self._memory = memory
        self._outcome = Outcome()
        self.follows = follows
        """Does anybody follow changes of this kind? Else they need not be made."""
        self.now_us = now_us
        database.actor = actor

    @property
    def actor(self) -> str:
        return self._database.actor

    @property
    def outcome(self) -> Outcome:
        return self._outcome

    @contextmanager
    def acting_as(self, actor: str) -> Iterator[None]:
        """Write in another name, where a rule of the bus says that this actor causes it."""
        before, self._database.actor = self._database.actor, actor
        try:
            yield
        finally:
            self._database.actor = before

    @contextmanager
    def nested(self) -> Iterator[None]:
        """A part that is taken back alone if it fails with a `Failure`, which is raised on."""
        outer, self._outcome = self._outcome, Outcome()
        actor = self._database.actor
        self._database.execute("SAVEPOINT part")
        try:
            yield
        except Failure as failure:
            self._database.actor = actor
            self._outcome.take_back()
            if not is_fatal(failure):
                self._database.rollback_to("part")
                self._database.execute("RELEASE part")
            raise
        else:
            self._database.execute("RELEASE part")
            outer.changes += self._outcome.changes
            outer.handed += self._outcome.handed
        finally:
            outer.undo += self._outcome.undo
            self._outcome = outer

    # -- statements

    def execute(self, sql: str, bindings: Bindings = ()) -> None:
        self._database.tell_actor()
        self._database.execute(sql, bindings)

    def rows(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        return self._database.rows(sql, bindings)

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None:
        return self._database.row(sql, bindings)

    def insert(self, sql: str, bindings: Bindings = ()) -> int:
        """Run an INSERT that ends in `RETURNING id`, and return that id."""
        self._database.tell_actor()
        row = self._database.row(sql, bindings)
        assert row is not None
        identity = row[0]
        assert isinstance(identity, int)
        return identity

    def insert_many(self, table: str, columns: str, rows: Sequence[Iterable[Value]]) -> None:
        """Insert `rows` of `columns` (as in SQL: names with commas) with few statements."""
        self._database.tell_actor()
        width = columns.count(",") + 1
        begin = 0
        for count in _ROW_COUNTS:
            sql = _insertion(table, columns, width, count)
            while len(rows) - begin >= count:
                bindings: list[Value] = []
                for row in rows[begin : begin + count]:
                    bindings += row
                self._database.execute(sql, bindings)
                begin += count

    # -- what follows from it

    def emit(self, kind: str, /, **data: Any) -> None:
        """Tell those who follow changes, once the commit is on disk."""
        if self.follows(kind):
            self._outcome.changes.append(Change(kind=kind, data=data, at_us=self.now_us))

    def hand_over(self, receiver: str, thing: Any) -> None:
        """Give `thing` to the receiver of that name, once the commit is on disk."""
        self._outcome.handed.append((receiver, thing))

    # -- what is kept in memory

    def on_undo(self, undo: Callable[[], None]) -> None:
        """Call this if what the reducer has written so far is taken back."""
        self._outcome.undo.append(undo)

    def cached(self, key: str, load: Callable[[], T]) -> T:
        """A value derived from the tables, kept until `forget`."""
        if key not in self._memory:
            self._memory[key] = load()
            # It may have been read from rows that are taken back.
            self.on_undo(lambda: self._drop(key))
        value: T = self._memory[key]
        return value

    def forget(self, key: str) -> None:
        if key in self._memory:
            before = self._memory.pop(key)
            self.on_undo(lambda: self._memory.update({key: before}))

    def _drop(self, key: str) -> None:
        self._memory.pop(key, None)


_INSERTIONS: Final[dict[tuple[str, str, int], str]] = {}


def _insertion(table: str, columns: str, width: int, count: int) -> str:
    """The text of an INSERT of `count` rows. The same object each time, which is found faster."""
    key = (table, columns, count)
    sql = _INSERTIONS.get(key)
    if sql is None:
        row = f"({', '.join('?' * width)})"
        values = ", ".join([row] * count)
        sql = _INSERTIONS[key] = f"INSERT INTO {table} ({columns}) VALUES {values}"
    return sql


def is_fatal(error: Exception) -> bool:
    """SQLite has already taken back the whole transaction, or must."""
    return isinstance(error, Failure) and error.code in ("store.full", "store.unavailable")
