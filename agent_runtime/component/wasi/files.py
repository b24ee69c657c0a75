"""Files of the scratch space: opened beneath one folder, name by name, and never through a link.

The private root and Landlock hold a worker to its scratch space whatever happens here. This holds
it there as well where they are switched off, and gives the errors that a component expects.
"""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from agent_runtime.component.wasi.clocks import datetime
from agent_runtime.component.wasi.paths import PathRefused, names_of
from agent_runtime.component.wasi.streams import StreamEnded

ERROR_CODES: Final[dict[int, str]] = {
    errno.EACCES: "access",
    errno.EAGAIN: "would-block",
    errno.EBADF: "bad-descriptor",
    errno.EBUSY: "busy",
    errno.EDQUOT: "quota",
    errno.EEXIST: "exist",
    errno.EFBIG: "file-too-large",
    errno.EINVAL: "invalid",
    errno.EISDIR: "is-directory",
    errno.ELOOP: "loop",
    errno.EMFILE: "insufficient-memory",
    errno.EMLINK: "too-many-links",
    errno.ENAMETOOLONG: "name-too-long",
    errno.ENOENT: "no-entry",
    errno.ENOMEM: "insufficient-memory",
    errno.ENOSPC: "insufficient-space",
    errno.ENOTDIR: "not-directory",
    errno.ENOTEMPTY: "not-empty",
    errno.ENOTSUP: "unsupported",
    errno.EPERM: "not-permitted",
    errno.EROFS: "read-only",
    errno.EXDEV: "cross-device",
}
"""Of the kernel, as wasi:filesystem calls them. Anything else is *io*."""

_KINDS: Final[dict[int, str]] = {
    stat.S_IFBLK: "block-device",
    stat.S_IFCHR: "character-device",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "fifo",
    stat.S_IFLNK: "symbolic-link",
    stat.S_IFREG: "regular-file",
    stat.S_IFSOCK: "socket",
}

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700


def error_code(error: OSError | PathRefused) -> str:
    if isinstance(error, PathRefused):
        return error.code
    return ERROR_CODES.get(error.errno or 0, "io")


class OpenFile:
    """A descriptor of the kernel. Whoever holds it keeps it open: a handle, and its streams.

    So hold it while you use its number: there is no other hand that keeps it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Descriptor:
    """A file or a folder that a component has opened, with the flags that it gave."""

    def __init__(self, file: OpenFile, flags: frozenset[str]) -> None:
        self.file = file
        self.flags = flags

    @property
    def fd(self) -> int:
        return self.file.fd

    def open_at(self, path: str, open_flags: frozenset[str], flags: frozenset[str]) -> "Descriptor":
        """Raises `OSError`, `PathRefused`."""
        names = names_of(path)
        how = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        if "write" in flags:
            how |= os.O_RDWR if "read" in flags else os.O_WRONLY
        if "create" in open_flags:
            how |= os.O_CREAT
        if "exclusive" in open_flags:
            how |= os.O_EXCL
        if "truncate" in open_flags:
            how |= os.O_TRUNC
        if "directory" in open_flags:
            how |= os.O_DIRECTORY
        name = names[-1] if names else "."
        parent = self._parent(names)
        return Descriptor(OpenFile(os.open(name, how, _FILE_MODE, dir_fd=parent.fd)), flags)

    def create_directory_at(self, path: str) -> None:
        parent, name = self._place(path)
        os.mkdir(name, _FOLDER_MODE, dir_fd=parent.fd)

    def remove_directory_at(self, path: str) -> None:
        parent, name = self._place(path)
        os.rmdir(name, dir_fd=parent.fd)

    def unlink_file_at(self, path: str) -> None:
        parent, name = self._place(path)
        os.unlink(name, dir_fd=parent.fd)

    def rename_at(self, old_path: str, to: "Descriptor", new_path: str) -> None:
        origin, old_name = self._place(old_path)
        target, new_name = to._place(new_path)
        os.rename(old_name, new_name, src_dir_fd=origin.fd, dst_dir_fd=target.fd)

    def readlink_at(self, path: str) -> str:
        parent, name = self._place(path)
        return os.readlink(name, dir_fd=parent.fd)

    def status(self) -> os.stat_result:
        return os.fstat(self.fd)

    def status_at(self, path: str) -> os.stat_result:
        names = names_of(path)
        if not names:
            return self.status()
        parent = self._parent(names)
        return os.stat(names[-1], dir_fd=parent.fd, follow_symlinks=False)

    def entries(self) -> list[tuple[str, str]]:
        """Kind and name of everything in the folder, by name."""
        with os.scandir(self.fd) as found:
            return sorted(((_kind_of_entry(entry), entry.name) for entry in found), key=_by_name)

    def _place(self, path: str) -> tuple[OpenFile, str]:
        """The folder that `path` names something in, and the name. Not the folder itself."""
        names = names_of(path)
        if not names:
            raise PathRefused("invalid")
        return self._parent(names), names[-1]

    def _parent(self, names: tuple[str, ...]) -> OpenFile:
        # One name at a time: `O_NOFOLLOW` speaks of the last one only.
        folder = self.file
        for name in names[:-1]:
            folder = OpenFile(os.open(name, _FOLDER, dir_fd=folder.fd))
        return folder


class FileReader:
    """An input stream of a file, from `offset` on."""

    def __init__(self, file: OpenFile, offset: int) -> None:
        self._file = file
        self._offset = offset

    def read(self, length: int) -> bytes:
        data = os.pread(self._file.fd, length, self._offset)
        if not data and length:
            raise StreamEnded
        self._offset += len(data)
        return data


class FileWriter:
    """An output stream of a file, from `offset` on; at its end where that is None."""

    def __init__(self, file: OpenFile, offset: int | None) -> None:
        self._file = file
        self._offset = offset

    def write(self, data: bytes) -> None:
        offset = os.fstat(self._file.fd).st_size if self._offset is None else self._offset
        write_all(self._file.fd, data, offset)
        if self._offset is not None:
            self._offset += len(data)

    def flush(self) -> None:
        pass


class Entries:
    """A stream of the entries of a folder."""

    def __init__(self, entries: list[tuple[str, str]]) -> None:
        self._entries: Iterator[tuple[str, str]] = iter(entries)

    def next(self) -> dict[str, str] | None:
        entry = next(self._entries, None)
        return None if entry is None else {"type": entry[0], "name": entry[1]}


def write_all(fd: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "unknown")


def descriptor_stat(status: os.stat_result) -> dict[str, Any]:
    """The record of wasi:filesystem/types."""
    return {
        "type": kind(status),
        "link-count": status.st_nlink,
        "size": status.st_size,
        "data-access-timestamp": datetime(status.st_atime_ns),
        "data-modification-timestamp": datetime(status.st_mtime_ns),
        "status-change-timestamp": datetime(status.st_ctime_ns),
    }


def metadata_hash(status: os.stat_result) -> dict[str, int]:
    """Equal for the same file, as long as nothing else is put in its place."""
    return {"lower": status.st_ino, "upper": status.st_dev}


def _kind_of_entry(entry: os.DirEntry[str]) -> str:
    return kind(entry.stat(follow_symlinks=False))


def _by_name(entry: tuple[str, str]) -> str:
    return entry[1]
