"""Backups of a store, and the way back.

A backup is one file that needs nothing beside it, and one is only ever there whole: it is written
under another name, synced, checked and renamed. Restoring replaces three files (the database, its
log, its index of the log), which cannot be done at one stroke, so it is first written down: a
checked draft beside the database, renamed to a name that says when. From then on the restoration
has happened, and whoever opens the store next finishes it (`finish_restoring`).
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ipc_protocol.errors import Failure
from orchestrator.store.database import Database, unavailable
from orchestrator.store.lock import locked
from orchestrator.store.migration import recognise, refuse_what_is_no_file
from orchestrator.store.restoring import ASIDE, PENDING, finish_restoring, synced

Told = Callable[[int, int], None]
"""Hears the pages that are copied, and all of them."""

SIDE_FILES: Final = ("-wal", "-shm", "-journal")


def back_up(path: Path, backup: Path, *, force: bool = False, told: Told | None = None) -> int:
    """Copy the store at `path`, which may be in use, to the file `backup`. Returns its bytes.

    Raises `store.unavailable` if either cannot be used, and `store.full`. Another file is
    overwritten with `force` only.
    """
    refuse_what_is_no_file(path)
    if backup.is_dir() or (backup.exists() and not force):
        raise unavailable(backup, "it exists", "Name another file, or overwrite it with --force.")
    if backup.exists() and backup.samefile(path):
        raise unavailable(backup, "it is the store itself", "Name another file.")
    draft = backup.with_name(f".{backup.name}.{os.getpid()}.part")
    with _copied(path, draft, told):
        draft.replace(backup)
        synced(backup.parent)
    return backup.stat().st_size


def restore(path: Path, backup: Path, *, now: datetime.datetime, told: Told | None = None) -> Path:
    """Put `backup` in the place of the store at `path`, which no daemon may use.

    Returns where the present store is kept, with its log beside it; nothing is there if there was
    none. Raises `store.unavailable` if a daemon runs or if the backup is not whole, and
    `store.full`; then nothing has changed.
    """
    refuse_what_is_no_file(backup)
    if path.exists() and backup.samefile(path):
        raise unavailable(backup, "it is the store itself", "Name another file.")
    lock = locked(path)
    try:
        _give(path.with_name(f"{path.name}.lock"), path)
        finish_restoring(path)
        stamp = _free_stamp(path, now)
        with _copied(backup, path.with_name(f"{path.name}.part"), told) as draft:
            _give(draft, path)
            draft.rename(path.with_name(f"{path.name}{PENDING}{stamp}"))
            synced(path.parent)
        finish_restoring(path)
    finally:
        os.close(lock)
    return path.with_name(f"{path.name}{ASIDE}{stamp}")


def _free_stamp(path: Path, now: datetime.datetime) -> str:
    """When it is, and a number if there was one in this second before."""
    second = now.astimezone(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    taken = {one.name for one in path.parent.iterdir()}
    stamp, number = second, 1
    while taken & {f"{path.name}{ASIDE}{stamp}{end}" for end in ("", "-wal")}:
        number += 1
        stamp = f"{second}-{number}"
    return stamp


@contextlib.contextmanager
def _copied(source: Path, draft: Path, told: Told | None) -> Iterator[Path]:
    """A checked copy of the store at `source`, on disk. Who wants to keep it renames it."""
    try:
        for leftover in (draft, *(draft.with_name(f"{draft.name}{end}") for end in SIDE_FILES)):
            leftover.unlink(missing_ok=True)
        database = Database(source, writable=False)
        try:
            recognise(database)
            database.copy_to(draft, told)
        finally:
            database.close()
        draft.chmod(0o600)
        synced(draft)
        copy = Database(draft, writable=False)
        try:
            _examine(copy, source)
        finally:
            copy.close()
        yield draft
    except OSError as error:
        raise _explained(error, draft) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _examine(copy: Database, source: Path) -> None:
    verdict = copy.pragma("integrity_check(1)")
    if verdict != "ok":
        raise unavailable(
            source,
            f"it is damaged ({verdict})",
            "Nothing was written. Restore the newest backup that is whole.",
        )


def _give(file: Path, path: Path) -> None:
    """Root restores for the user that the daemon runs as: who owns the store, or its folder."""
    if os.geteuid() == 0:
        owner = (path if path.exists() else path.parent).stat()
        os.chown(file, owner.st_uid, owner.st_gid)


def _explained(error: OSError, draft: Path) -> Failure:
    where = Path(error.filename) if isinstance(error.filename, str) else draft
    return unavailable(
        where,
        f"it cannot be written ({error.strerror})",
        "Check the folder, its permissions and the free space.",
    )
