"""The only module that knows apsw: opens the file, runs statements, turns its errors into ours.

A `Database` is one connection and belongs to one thread at a time. Errors that an operator can act
on leave here as `Failure`; anything else (a wrong statement, a violated CHECK) is a defect of the
caller and passes through as it is.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import apsw
import sqlite_vec

from ipc_protocol.errors import Failure
from orchestrator.store.checkpointing import LOG_BYTES_KEPT

Value = None | int | float | str | bytes
Bindings = Sequence[Value] | Mapping[str, Value]
Row = tuple[Any, ...]

DATABASE_FILE: Final = "agentd.db"
"""Its name in the state folder."""

APPLICATION_ID: Final = 0x61677464
"""`agtd` in the header of the file: another program's database is recognised as foreign."""

SQLITE_VERSION_MIN: Final = (3, 51, 3)
"""Before it, a commit that let the log begin anew beside a checkpoint could lose what it had
(https://sqlite.org/wal.html#walresetbug), and this program does both all the time."""

BUSY_MS_MAX: Final = 5000
"""A reader meets a lock only while the log is restarted, which takes milliseconds."""

STATEMENTS_CACHED: Final = 400
"""Compiled statements kept per connection: more than the distinct statements of the program."""

CACHE_KIB: Final = 16 * 1024
"""Pages of the writer and of each reader in memory: a working set of 4,000 pages."""

CHECKED_BYTES_MAX: Final = 256 * 1024 * 1024
"""A file up to this size is checked whole when it is opened, in about a second."""

FRAME_HEADER_BYTES: Final = 24
"""The log holds each page behind one (https://sqlite.org/fileformat2.html#walformat)."""

PAGES_COPIED: Final = 1024
"""By one step of a copy: 4 MiB, between two reports of how far it is."""

VECTOR_BYTES: Final = 256 * 4
"""An embedding: 256 little-endian 4-byte floats."""


assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= SQLITE_VERSION_MIN


class Query(Protocol):
    """What can be asked: a transaction, and a reader's view."""

    def rows(self, sql: str, bindings: Bindings = ()) -> list[Row]: ...

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None: ...


class Logged(NamedTuple):
    """What a checkpoint found: bytes in the log, and how many of them are in the database."""

    held: int
    copied: int


def unavailable(path: Path, what: str, cure: str) -> Failure:
    return Failure("store.unavailable", f"The store {path}: {what}.", cure, path=str(path))


class Database:
    """One connection. `actor` is what the SQL function `actor()` answers on the writing one."""

    def __init__(self, path: Path, *, writable: bool, vfs: str | None = None) -> None:
        self.path = path
        self.actor = ""
        self._told: str | None = ""
        """Who the row of `acting` names; None where that has to be found out."""
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
            if writable and self._connection.readonly("main"):
                # SQLite opens it all the same, and says so at the first write.
                raise self._translated(apsw.ReadOnlyError("it may only be read"))
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
        # A statement that changes many rows notes how to take them back. In a temporary file, that
        # would be one more disk whose failure stops the daemon.
        self.execute("PRAGMA temp_store = MEMORY")
        if writable:
            self.execute("PRAGMA foreign_keys = ON")
            self.execute("PRAGMA recursive_triggers = ON")
        else:
            self.execute("PRAGMA query_only = ON")

    def make_durable(self) -> None:
        """Write-ahead log, and every commit on disk before it is reported."""
        if self.pragma("journal_mode = WAL") != "wal":
            # A sync that fails here is no error to SQLite: it stays with what it had.
            raise unavailable(
                self.path,
                "it cannot be given a write-ahead log",
                "Check the disk, its mount and the permissions, then restart the daemon.",
            )
        self.execute("PRAGMA synchronous = FULL")
        self.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_KEPT}")

    def follow_log(self, told: Callable[[int], None]) -> None:
        """Call `told` with the bytes that the log uses, after each commit of this connection.
        Checkpoints are the caller's from now on."""
        frame_bytes = self._frame_bytes()

        def hook(_: object, __: str, frames: int) -> int:
            told(frames * frame_bytes)
            return apsw.SQLITE_OK

        self._connection.set_wal_hook(hook)

    def copy_log(self) -> Logged | None:
        """Copy the log into the database as far as readers let: nobody has to wait for it. None:
        another checkpoint is under way."""
        return self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE, BUSY_MS_MAX)

    def restart_log(self, patience_ms: int) -> Logged | None:
        """Copy all of the log; it begins anew with the next commit. Writers wait meanwhile. None:
        somebody was in the way for longer than `patience_ms`."""
        return self._checkpoint(apsw.SQLITE_CHECKPOINT_RESTART, patience_ms)

    def _checkpoint(self, mode: int, patience_ms: int) -> Logged | None:
        self._connection.set_busy_timeout(patience_ms)
        try:
            held, copied = self._connection.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return None
        except apsw.Error as error:
            raise self._translated(error) from error
        finally:
            self._connection.set_busy_timeout(BUSY_MS_MAX)
        frame_bytes = self._frame_bytes()
        return Logged(held * frame_bytes, copied * frame_bytes)

    def _frame_bytes(self) -> int:
        page_bytes: int = self.pragma("page_size")
        return page_bytes + FRAME_HEADER_BYTES

    def copy_to(self, path: Path, told: Callable[[int, int], None] | None = None) -> None:
        """Write what is committed now to the new file `path`, as one that needs no log beside it.

        Writers are not held up, but the log cannot begin anew meanwhile. `told` hears the pages
        that are copied and all of them. What was written is not synced.
        """
        copy = Database(path, writable=True)
        try:
            copy.execute("PRAGMA synchronous = OFF")
            # One snapshot for all steps: else each commit of others would begin the copy anew.
            self.execute("BEGIN")
            self.row("SELECT count(*) FROM sqlite_schema")
            try:
                copy._fill(self._connection, told)
            except _CORRUPT as error:
                raise self._translated(error) from error
            except apsw.Error as error:
                raise copy._translated(error) from error
            copy.execute("PRAGMA journal_mode = DELETE")
        finally:
            self.rollback()
            copy.close()

    def _fill(self, source: apsw.Connection, told: Callable[[int, int], None] | None) -> None:
        with self._connection.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(PAGES_COPIED)
                if told is not None:
                    told(backup.page_count - backup.remaining, backup.page_count)

    def _current_actor(self, *_: object) -> str:
        return self.actor

    def execute(self, sql: str, bindings: Bindings = ()) -> None:
        try:
            self._connection.execute(sql, bindings)
        except apsw.Error as error:
            raise self._translated(error) from error

    def tell_actor(self) -> None:
        """Let the triggers know who acts, before something is written."""
        if self._told != self.actor:
            self.execute("UPDATE acting SET name = nullif(?, '') WHERE id = 1", (self.actor,))
            self._told = self.actor

    def commit(self) -> None:
        """Between two transactions nobody acts."""
        self.actor = ""
        self.tell_actor()
        self.execute("COMMIT")

    def rollback(self) -> None:
        self._told = ""
        if self.in_transaction:
            self.execute("ROLLBACK")

    def rollback_to(self, savepoint: str) -> None:
        self._told = None
        self.execute(f"ROLLBACK TO {savepoint}")

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

    def abandon(self) -> None:
        """Close, and leave the log as it is: nothing more is written or synced. A damaged store
        may still be of use to somebody, and what a failed sync has left is found out by opening."""
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self.close()

    def ended_read(self) -> Failure:
        """Why a statement was interrupted."""
        return Failure(
            "store.slow-reader",
            f"A read from {self.path} took so long that the write-ahead log could not be kept"
            " small, and was ended.",
            "Ask for less at once, or again when less is written.",
            path=str(self.path),
        )

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
        if isinstance(error, apsw.InterruptError):
            return self.ended_read()
        if isinstance(error, apsw.FullError) or self._found_no_room(error):
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

    def _found_no_room(self, error: apsw.Error) -> bool:
        """A quota or a limit that is reached, which SQLite takes for a broken disk. A failed fsync
        is none of these, whatever its reason: what it should have written is unknown."""
        return (
            isinstance(error, apsw.IOError)
            and getattr(error, "extendedresult", 0) in _WRITES  # which apsw's types leave out
            and self._connection.system_errno in _NO_ROOM
        )


_WRITES = (apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_SHMSIZE, apsw.SQLITE_IOERR_SHMMAP)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
