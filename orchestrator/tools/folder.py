"""The work folder of one agent: regular files beneath one directory, counted and weighed.

All of it blocks, so callers run it in a thread. Nothing here follows a link of any kind: paths are
resolved by the kernel (openat2 beneath the folder), and a file with a second name is refused, since
that name may lie outside. Writes are atomic and durable.
How a write is told apart from one that was never made is `staging`'s.

The folder is measured at every write instead of being accounted from memory: a person may have put
something there, and a count that can drift is a count that will.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.tools import limits, staging
from orchestrator.tools.openat2 import BENEATH, FOLDER_FLAGS, READ_FLAGS, openat2
from orchestrator.tools.paths import SCRATCH_PREFIX, parse_path, scratch_name
from orchestrator.tools.plain import read_at_most, require_plain_file


class FolderLimits(msgspec.Struct, frozen=True):
    """How much a work folder may hold. Folders count as files."""

    bytes_max: int = limits.FOLDER_BYTES_MAX
    files_max: int = limits.FOLDER_FILES_MAX


class Entry(NamedTuple):
    """One name in a folder. `size_bytes` is 0 for folders."""

    name: str
    is_folder: bool
    size_bytes: int


class FileText(NamedTuple):
    """The beginning of a file, and how long all of it is."""

    data: bytes
    size_bytes: int


class _Measure(NamedTuple):
    bytes: int
    files: int

    def plus(self, other: "_Measure") -> "_Measure":
        return _Measure(self.bytes + other.bytes, self.files + other.files)


class WorkFolder:
    """The files of one agent. Raises `Failure` (`tool.failed`) for whatever cannot be done."""

    def __init__(self, path: Path, folder_limits: FolderLimits) -> None:
        self._path = path
        self._limits = folder_limits
        # Measuring and staging are one step: two writes at once could both find room.
        self._writing = threading.Lock()

    def read(self, path: str) -> FileText:
        """The first `FILE_READ_BYTES_MAX` bytes of a regular file."""
        names = parse_path(path)
        with _explained(path), self._opened() as root:
            file = openat2(root, "/".join(names) or ".", READ_FLAGS, BENEATH)
            try:
                status = os.fstat(file)
                require_plain_file(path, status)
                return FileText(read_at_most(file, limits.FILE_READ_BYTES_MAX), status.st_size)
            finally:
                os.close(file)

    def list(self, path: str) -> list[Entry]:
        """What lies in a folder, by name; at most one more than the folder's limit of files."""
        names = parse_path(path)
        with _explained(path), self._opened() as root:
            folder = openat2(root, "/".join(names) or ".", FOLDER_FLAGS, BENEATH)
            try:
                return sorted(_entries(folder, self._limits.files_max + 1))
            finally:
                os.close(folder)

    def stage(self, path: str, data: bytes, key: str) -> None:
        """Get a write ready, if there is room for it. Nobody sees it yet; it may be repeated."""
        names = _names_of_file(path)
        with self._writing, _explained(path), self._opened() as root:
            with contextlib.suppress(FileNotFoundError):  # left by a crash, perhaps half of it
                os.unlink(scratch_name(key), dir_fd=root)
            self._check_room(root, names, path, data)
            staging.stage(root, key, data)

    def staged(self) -> frozenset[str]:
        """The names under which writes lie that were not put."""
        with _explained("."), self._opened() as root:
            return staging.staged_names(root)

    def discard(self, staged: Iterable[str]) -> None:
        """Remove staged files that nobody will put in their place."""
        with self._writing, _explained("."), self._opened() as root:
            for name in staged:
                assert name.startswith(SCRATCH_PREFIX), name
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=root)

    def put(self, path: str, key: str) -> None:
        """Create or replace a file by what is staged, at once or not at all. The folders above it
        are made. What cannot be put stays staged."""
        names = _names_of_file(path)
        with self._writing, _explained(path), self._opened() as root:
            staging.put(root, names, path, key)

    def finish(self, path: str, data: bytes, key: str) -> bool:
        """Bring a write to its end that may have been put already; False where nobody can tell.

        Raises `Failure` if it was not put, and cannot be.
        """
        names = _names_of_file(path)
        with self._writing, contextlib.ExitStack() as stack:
            try:
                root = stack.enter_context(self._opened())
                staged = scratch_name(key) in staging.staged_names(root)
            except OSError:
                return False
            if not staged:
                return staging.holds(root, names, data)
            with _explained(path):
                staging.put(root, names, path, key)
            return True

    # -- within

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        root = os.open(self._path, FOLDER_FLAGS | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield root
        finally:
            os.close(root)

    def _check_room(self, root: int, names: tuple[str, ...], path: str, data: bytes) -> None:
        held = self._measure(root).plus(_measure_staged(root))
        new_files, replaced_bytes = _cost(root, names)
        bytes_after = held.bytes - replaced_bytes + len(data)
        if bytes_after > self._limits.bytes_max:
            raise Failure(
                "tool.failed",
                f"The work folder would hold {bytes_after} bytes, over its limit of "
                f"{self._limits.bytes_max}.",
                "Write less, or replace a large file by a small one.",
            )
        if new_files and held.files + new_files > self._limits.files_max:
            raise Failure(
                "tool.failed",
                f"The work folder holds {held.files} of {self._limits.files_max} files and "
                f"folders, and {path!r} needs {new_files} more.",
                "Write to a file that exists.",
            )

    def _measure(self, root: int) -> _Measure:
        """Weigh everything below, stopping as soon as there are too many entries to go on."""
        total = _Measure(0, 0)
        waiting: list[tuple[tuple[str, ...], int]] = [((), os.dup(root))]
        try:
            while waiting:
                names, folder = waiting.pop()
                try:
                    entries = _entries(folder, self._limits.files_max + 1)
                finally:
                    os.close(folder)
                size_bytes = sum(entry.size_bytes for entry in entries)
                total = total.plus(_Measure(size_bytes, len(entries)))
                if total.files > self._limits.files_max:
                    return total
                waiting.extend(_subfolders(root, names, entries))
        finally:
            for _, folder in waiting:
                os.close(folder)
        return total


def _measure_staged(root: int) -> _Measure:
    """What the writes will take that have found room already."""
    names = staging.staged_names(root)
    sizes = (os.stat(name, dir_fd=root, follow_symlinks=False).st_size for name in names)
    return _Measure(sum(sizes), len(names))


def _names_of_file(path: str) -> tuple[str, ...]:
    names = parse_path(path)
    if not names:
        raise Failure("tool.failed", "The path names no file.", "Name one, like notes.md.")
    return names


def _entries(folder: int, count_max: int) -> list[Entry]:
    entries: list[Entry] = []
    with os.scandir(folder) as found:
        for item in found:
            if item.name.startswith(SCRATCH_PREFIX):
                continue
            status = item.stat(follow_symlinks=False)
            is_folder = stat.S_ISDIR(status.st_mode)
            entries.append(Entry(item.name, is_folder, 0 if is_folder else status.st_size))
            if len(entries) >= count_max:
                break
    return entries


def _subfolders(
    root: int, names: tuple[str, ...], entries: list[Entry]
) -> Iterator[tuple[tuple[str, ...], int]]:
    for entry in entries:
        if not entry.is_folder:
            continue
        below = (*names, entry.name)
        if len(below) > limits.FOLDER_DEPTH_MAX:
            raise Failure(
                "tool.failed",
                f"The work folder is over {limits.FOLDER_DEPTH_MAX} folders deep.",
                "An operator has to tidy it.",
            )
        # One that was replaced by a link since it was listed is not entered.
        with contextlib.suppress(OSError):
            yield below, openat2(root, "/".join(below), FOLDER_FLAGS, BENEATH)


def _cost(root: int, names: tuple[str, ...]) -> tuple[int, int]:
    """How many files and folders a write will add, and the size of the file it replaces."""
    for depth in range(len(names), 0, -1):
        try:
            found = openat2(root, "/".join(names[:depth]), os.O_PATH, BENEATH)
        except FileNotFoundError:
            continue
        try:
            size_bytes = os.fstat(found).st_size if depth == len(names) else 0
        finally:
            os.close(found)
        return len(names) - depth, size_bytes
    return len(names), 0


_EXPLANATIONS: Final = {
    errno.ENOENT: ("does not exist", "Use fs.list to see what is there."),
    errno.ENOTDIR: ("has a file where a folder should be", "Use fs.list to see what is there."),
    errno.EXDEV: ("leaves the work folder", "Use a path within it, like notes/today.md."),
    errno.ELOOP: ("contains a symbolic link", "Name the file that it points at."),
    errno.EACCES: ("may not be opened by the daemon", "An operator has to change its owner."),
    errno.EPERM: ("may not be opened by the daemon", "An operator has to change its owner."),
    errno.ENXIO: ("is not a regular file", "Use another name."),
    errno.ENAMETOOLONG: ("is too long", "Use a shorter name."),
    errno.EISDIR: ("is a folder", "Name a file in it."),
    errno.ENOSPC: ("cannot be written: the disk is full", "An operator has to free space."),
    errno.EDQUOT: ("cannot be written: the quota is used up", "An operator has to free space."),
}


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why, cure = _EXPLANATIONS.get(
            error.errno or 0, (f"cannot be used: {error.strerror}", "Try another file.")
        )
        raise Failure("tool.failed", f"{path!r} {why}.", cure) from error
