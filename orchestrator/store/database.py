"""The only module that knows apsw: opens the file, runs statements, turns its errors into ours.

A `Database` is one connection and belongs to one thread at a time. Errors that an operator can act
on leave here as `Failure`; anything else (a wrong statement, a violated CHECK) is a defect of the
caller and passes through as it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import apsw
import sqlite_vec

from ipc_protocol.errors import Failure

Value = None | int | float | str | bytes
Bindings = Sequence[Value] | Mapping[str, Value]
Row = tuple[Any, ...]

APPLICATION_ID: Final = 0x61677464
"""`agtd` in the header of the file: another program's database is recognised as foreign."""

BUSY_MS_MAX: Final = 5000
"""A reader meets a lock only while the log is restarted, which takes milliseconds."""

STATEMENTS_CACHED: Final = 400
"""Compiled statements kept per connection: more than the distinct statements of the program."""

CACHE_KIB: Final = 16 * 1024
"""Pages of the writer and of each reader in memory: a working set of 4,000 pages."""

LOG_BYTES_KEPT: Final = 64 * 1024 * 1024
"""What the write-ahead log shrinks to after a checkpoint that followed a burst."""

CHECKED_BYTES_MAX: Final = 256 * 1024 * 1024
"""A file up to this size is checked whole when it is opened, in about a second."""

VECTOR_BYTES: Final = 256 * 4
"""An embedding: 256 little-endian 4-byte floats."""


class Query(Protocol):
    """What can be asked: a transaction, and a reader's view."""

    def rows(self, sql: str, bindings: Bindings = ()) -> list[Row]: ...

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None: ...


def unavailable(path: Path, what: str, cure: str) -> Failure:
    return Failure("store.unavailable", f"The store {path}: {what}.", cure, path=str(path))


class Database:
    """One connection. `actor` is what the SQL function `actor()` answers on the writing one."""

    def __init__(self, path: Path, *, writable: bool, vfs: str | None = None) -> None:
        self.path = path
        self.actor = ""
        mode = apsw.SQLITE_OPEN_READWRITE if writable else apsw.SQLITE_OPEN_READONLY
        if writable and not path.exists():
            mode |= apsw.SQLITE_OPEN_CREATE
        try:
            self._connection = apsw.Connection(
                str(path), flags=mode, vfs=vfs, statementcachesize=STATEMENTS_CACHED
            )
        except apsw.Error as error:
            raise self._translated(error) from error
        try:
            self._configure(writable)
        except BaseException:
            self._connection.close()
            raise

    def _configure(self, writable: bool) -> None:
        connection = self._connection
        connection.set_busy_timeout(BUSY_MS_MAX)
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        connection.enable_load_extension(False)
        connection.create_scalar_function("actor", self._current_actor, 0)
        self.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        if writable:
            self.execute("PRAGMA foreign_keys = ON")
            self.execute("PRAGMA recursive_triggers = ON")
        else:
            self.execute("PRAGMA query_only = ON")

    def make_durable(self) -> None:
        """Write-ahead log, and every commit on disk before it is reported."""
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("PRAGMA synchronous = FULL")
        self.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_KEPT}")

    def _current_actor(self, *_: object) -> str:
        return self.actor

    def execute(self, sql: str, bindings: Bindings = ()) -> None:
        try:
            self._connection.execute(sql, bindings)
        except apsw.Error as error:
            raise self._translated(error) from error

    def rows(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        try:
            return self._connection.execute(sql, bindings).fetchall()
        except apsw.Error as error:
            raise self._translated(error) from error

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None:
        """The first row, or None."""
        rows = self.rows(sql, bindings)
        return rows[0] if rows else None

    def pragma(self, name: str) -> Any:
        row = self.row(f"PRAGMA {name}")
        return row[0] if row else None

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def interrupt(self) -> None:
        """End the statement that runs in another thread."""
        self._connection.interrupt()

    def close(self) -> None:
        try:
            self._connection.close()
        except apsw.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: apsw.Error) -> Exception:
        text = str(error)
        if isinstance(error, apsw.ConstraintError) and text.startswith("ownership: "):
            return Failure(
                "store.ownership",
                f"{self.actor!r} may not write this row: {text.removeprefix('ownership: ')}.",
                "Only its owner may change it.",
                actor=self.actor,
            )
        if isinstance(error, apsw.FullError):
            return Failure(
                "store.full",
                f"There is no room left to write {self.path}.",
                "Free space on its file system or raise the quota; then repeat the request.",
                path=str(self.path),
            )
        if isinstance(error, _CORRUPT):
            return unavailable(
                self.path,
                f"it is damaged or is no database ({text})",
                "Restore it from a backup; the file was left as it is.",
            )
        if isinstance(error, _BROKEN):
            return unavailable(
                self.path,
                f"it cannot be read or written ({text})",
                "Check the disk, its mount and the permissions, then restart the daemon.",
            )
        return error


_CORRUPT = (apsw.CorruptError, apsw.NotADBError)
_BROKEN = (
    apsw.IOError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.PermissionsError,
    apsw.AuthError,
    apsw.ProtocolError,
    apsw.NoMemError,
)
