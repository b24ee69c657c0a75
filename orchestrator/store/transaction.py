"""What a reducer is given: statements, the time, the actor, and a way to say what it changed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from orchestrator.store.changes import Change
from orchestrator.store.database import Bindings, Database, Row

T = TypeVar("T")


class Transaction:
    """One reducer's view of the store. Valid only while the reducer runs.

    `now_us` does not move while it runs. `actor` is who the store is written for, and who the
    ownership triggers see.
    """

    def __init__(self, database: Database, actor: str, now_us: int, cache: dict[str, Any]) -> None:
        assert actor, "nothing is written in nobody's name"
        self._database = database
        self._cache = cache
        self.now_us = now_us
        self.changes: list[Change] = []
        database.actor = actor

    @property
    def actor(self) -> str:
        return self._database.actor

    @contextmanager
    def acting_as(self, actor: str) -> Iterator[None]:
        """Write in another name, where a rule of the bus says that this actor causes it."""
        before, self._database.actor = self._database.actor, actor
        try:
            yield
        finally:
            self._database.actor = before

    def execute(self, sql: str, bindings: Bindings = ()) -> None:
        self._database.execute(sql, bindings)

    def rows(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        return self._database.rows(sql, bindings)

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None:
        return self._database.row(sql, bindings)

    def insert(self, sql: str, bindings: Bindings = ()) -> int:
        """Run an INSERT that ends in `RETURNING id`, and return that id."""
        row = self._database.row(sql, bindings)
        assert row is not None
        identity = row[0]
        assert isinstance(identity, int)
        return identity

    def emit(self, kind: str, /, **data: Any) -> None:
        """Tell those who follow changes, once the commit is on disk."""
        self.changes.append(Change(kind=kind, data=data, at_us=self.now_us))

    def cached(self, key: str, load: Callable[[], T]) -> T:
        """A value derived from the tables, kept until `forget` or until anything is rolled back."""
        if key not in self._cache:
            self._cache[key] = load()
        value: T = self._cache[key]
        return value

    def forget(self, key: str) -> None:
        self._cache.pop(key, None)
