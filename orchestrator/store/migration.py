"""Creates the file, carries an older one forward, refuses what it does not know.

A new database is made under another name and renamed when its schema is complete. So a file at the
store's path is always whole, and an empty or foreign one is never mistaken for a fresh start.
"""

import logging
import os
from importlib import resources
from pathlib import Path

from orchestrator.store.database import APPLICATION_ID, CHECKED_BYTES_MAX, Database, unavailable
from orchestrator.store.restoring import finish_restoring, synced

log = logging.getLogger(__name__)


def migrations() -> list[str]:
    """The statements that lead from version N to N + 1, at index N."""
    folder = resources.files("orchestrator.store.migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    for version, name in enumerate(names, start=1):
        assert name.startswith(f"{version:04d}_"), f"{name} leaves a gap before it"
    return [folder.joinpath(name).read_text(encoding="utf-8") for name in names]


def open_current(path: Path, *, vfs: str | None = None) -> Database:
    """The writing connection to the store at `path`, at the program's schema version.

    Raises `store.unavailable` for a damaged, foreign or newer file; such a file is left untouched.
    """
    if (former := finish_restoring(path)) is not None:
        log.warning("A restoration was finished; the former store is %s.", former)
    if not os.path.lexists(path):
        _create(path, vfs)
    refuse_what_is_no_file(path)
    database = Database(path, writable=True, vfs=vfs)
    try:
        recognise(database)
        _check(database)
        database.make_durable()
        migrate(database, migrations())
    except BaseException:
        database.abandon()
        raise
    return database


def refuse_what_is_no_file(path: Path) -> None:
    """Raises `store.unavailable` unless there is a file with something in it."""
    try:
        size = path.stat().st_size
    except OSError as error:
        if path.is_symlink():
            raise unavailable(
                path,
                f"it is a link to {path.readlink()}, which is not there",
                "Mount or restore what it leads to, or remove the link to start empty.",
            ) from error
        raise unavailable(
            path, f"it cannot be read ({error.strerror})", "Check the path and its permissions."
        ) from error
    if path.is_dir():
        raise unavailable(path, "it is a folder", "Name a file, or move the folder away.")
    if size == 0:
        raise unavailable(
            path,
            "the file is empty, so what it held is lost",
            "Restore it from a backup, or remove the file to start with an empty store.",
        )


def _create(path: Path, vfs: str | None) -> None:
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        raise unavailable(
            path,
            f"it is gone, but its write-ahead log {log.name} is still there",
            "Put the database back beside its log, or remove the log to start empty.",
        )
    draft = path.with_name(f"{path.name}.new")
    for leftover in (draft, path.with_name(f"{draft.name}-journal")):
        leftover.unlink(missing_ok=True)
    database = Database(draft, writable=True, vfs=vfs)
    try:
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        migrate(database, migrations())
    finally:
        database.close()
    draft.rename(path)
    synced(path.parent)


def recognise(database: Database) -> None:
    """Raises `store.unavailable` for a database that this program did not make, or a later one."""
    if database.pragma("application_id") != APPLICATION_ID:
        raise unavailable(
            database.path,
            "it is the database of another program",
            "Name another file, or move this one away.",
        )
    version, known = database.pragma("user_version"), len(migrations())
    if version > known:
        raise unavailable(
            database.path,
            f"its schema has version {version}, this program knows up to {known}",
            "Install the version of agentd that wrote it, or a later one.",
        )


def _check(database: Database) -> None:
    size = database.path.stat().st_size
    log = database.path.with_name(f"{database.path.name}-wal")
    # With something in the log, a checkpoint may have been interrupted within a page.
    logged = log.exists() and log.stat().st_size > 0
    if not logged and size % database.pragma("page_size"):
        verdict = "it was cut off"
    elif size > CHECKED_BYTES_MAX:
        return
    else:
        verdict = database.pragma("quick_check(1)")
    if verdict != "ok":
        raise unavailable(
            database.path,
            f"it is damaged ({verdict})",
            "Restore it from a backup; the file was left as it is.",
        )


def migrate(database: Database, steps: list[str]) -> None:
    """Carry the schema forward, one transaction per version."""
    version = database.pragma("user_version")
    for number, statements in enumerate(steps[version:], start=version + 1):
        database.execute("BEGIN IMMEDIATE")
        try:
            database.execute(statements)
            database.execute(f"PRAGMA user_version = {number}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
