"""Files that are nobody else's, and that are there whole or not at all.

All of it blocks. Files are hashed through descriptors, from their beginning to their end, and
without moving the position that a descriptor may share with another one.
"""

import errno
import hashlib
import os
import stat
import tempfile
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

from orchestrator.components.limits import PIECE_BYTES

PART: Final = ".part"
"""The end of the name of a file that is not whole yet; one that a crash left behind is garbage."""

_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Never through a link, and without waiting for the other end of a FIFO."""

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class Content(NamedTuple):
    """What a file holds. `sha256` is in hexadecimal."""

    sha256: str
    size_bytes: int


class TooLong(Exception):
    """A file has more bytes than it may have."""


class Foreign(Exception):
    """A file is not, or not only, this program's own; says why."""


def content(file: FileIO, bytes_max: int) -> Content:
    """What the open file holds. Raises `TooLong`."""
    digest = hashlib.sha256()
    size_bytes = 0
    while piece := os.pread(file.fileno(), PIECE_BYTES, size_bytes):
        size_bytes += len(piece)
        if size_bytes > bytes_max:
            raise TooLong
        digest.update(piece)
    return Content(digest.hexdigest(), size_bytes)


def make_folder(path: Path) -> None:
    """A folder that nobody else enters, made or corrected."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)


def open_own(path: Path, *, others_may_read: bool = False) -> FileIO:
    """Open a file of this program's own for reading.

    It closes itself where its caller was cancelled meanwhile. Raises `FileNotFoundError`, and
    `Foreign` where somebody else may have had a hand in it.
    """
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Foreign("it is a symbolic link") from None
        raise
    if reason := _why_foreign(os.fstat(descriptor), others_may_read):
        os.close(descriptor)
        raise Foreign(reason)
    return FileIO(descriptor, "r")


def _why_foreign(status: os.stat_result, others_may_read: bool) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid != os.geteuid():
        return f"it belongs to the user id {status.st_uid}"
    mode = stat.S_IMODE(status.st_mode)
    if mode & (_OTHERS_WRITE if others_may_read else _OTHERS):
        return f"others may use it (mode {mode:04o})"
    return ""


def new_part(folder: Path) -> tuple[FileIO, Path]:
    """An empty file for reading and writing, mode 0600, and its path."""
    file, path = tempfile.mkstemp(suffix=PART, dir=folder)
    return FileIO(file, "r+"), Path(path)


def write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def write_file(path: Path, data: bytes) -> None:
    """Create or replace a file, at once or not at all. Mode 0600."""
    file, part = new_part(path.parent)
    with file:
        try:
            write_all(file, data)
            keep(file, part, path)
        except OSError:
            part.unlink()
            raise


def keep(file: FileIO, part: Path, path: Path) -> None:
    """Give a file that is whole its name, so that both are on disk."""
    os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
