"""The second half of a restoration: what is decided is finished, by whoever opens the store next.

A draft with the name `agentd.db.restored-TIME` is whole, checked and on disk. The present database
and its log are moved aside together, under names with the same time; only then does the draft take
the place. Each step can be repeated, so an interruption at any point leaves either the old store
or one that the next opening completes, never one database with the log of another.
"""

import os
from pathlib import Path
from typing import Final

from orchestrator.store.database import unavailable

PENDING: Final = ".restored-"
ASIDE: Final = ".before-"


def finish_restoring(path: Path) -> Path | None:
    """Complete a restoration of the store at `path`, if one was decided; where the former store
    is then. Who calls holds the lock of the store. Raises `store.unavailable`."""
    try:
        return _finish(path)
    except OSError as error:
        raise unavailable(
            path,
            f"its restoration cannot be finished ({error.strerror})",
            "Check the folder and its permissions, then try again; nothing is lost.",
        ) from error


def _finish(path: Path) -> Path | None:
    prefix = f"{path.name}{PENDING}"
    drafts = sorted(one for one in path.parent.iterdir() if one.name.startswith(prefix))
    if not drafts:
        return None
    draft = drafts[-1]
    aside = path.with_name(f"{path.name}{ASIDE}{draft.name.rpartition(PENDING)[2]}")
    for end in ("", "-wal"):
        present = path.with_name(f"{path.name}{end}")
        if present.exists():
            present.rename(aside.with_name(f"{aside.name}{end}"))
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    # On disk before the draft comes into the place: else the old log could come back beside it.
    synced(path.parent)
    draft.rename(path)
    synced(path.parent)
    return aside


def synced(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
