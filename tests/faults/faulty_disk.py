"""A disk that fails when it is told to: at one call of one transaction, or from that call on.

The calls by which SQLite reaches a disk are functions in two tables of its VFS. Here they are
replaced in place, below Python: an error that a VFS in Python raises would surface from every
statement, also where SQLite itself makes nothing of it, as with a checkpoint behind a commit.
The VFS is that of the whole process.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import apsw

_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p

_FILE_METHODS: Final[dict[str, tuple[Any, ...]]] = {
    "xClose": (),
    "xRead": (_POINTER, _INT, _LONG),
    "xWrite": (_POINTER, _INT, _LONG),
    "xTruncate": (_LONG,),
    "xSync": (_INT,),
    "xFileSize": (_POINTER,),
    "xLock": (_INT,),
    "xUnlock": (_INT,),
    "xCheckReservedLock": (_POINTER,),
    "xFileControl": (_INT, _POINTER),
    "xSectorSize": (),
    "xDeviceCharacteristics": (),
    "xShmMap": (_INT, _INT, _INT, _POINTER),
    "xShmLock": (_INT, _INT, _INT),
    "xShmBarrier": (),
    "xShmUnmap": (_INT,),
    "xFetch": (_LONG, _INT, _POINTER),
    "xUnfetch": (_LONG, _POINTER),
}
"""`sqlite3_io_methods`, version 3: what each takes after the file. All that can fail return int."""

_VFS_METHODS: Final[dict[str, tuple[Any, ...]]] = {
    "xOpen": (_POINTER, _POINTER, _INT, _POINTER),
    "xDelete": (_POINTER, _INT),
    "xAccess": (_POINTER, _INT, _POINTER),
}
"""The beginning of the methods of `sqlite3_vfs`: what each takes after the VFS."""

CODES: Final = {
    "xOpen": apsw.SQLITE_CANTOPEN,
    "xDelete": apsw.SQLITE_IOERR_DELETE,
    "xAccess": apsw.SQLITE_IOERR_ACCESS,
    "xRead": apsw.SQLITE_IOERR_READ,
    "xWrite": apsw.SQLITE_IOERR_WRITE,
    "xTruncate": apsw.SQLITE_IOERR_TRUNCATE,
    "xSync": apsw.SQLITE_IOERR_FSYNC,
    "xFileSize": apsw.SQLITE_IOERR_FSTAT,
    "xLock": apsw.SQLITE_IOERR_LOCK,
    "xUnlock": apsw.SQLITE_IOERR_UNLOCK,
    "xShmMap": apsw.SQLITE_IOERR_SHMMAP,
    "xShmLock": apsw.SQLITE_IOERR_SHMLOCK,
}
"""The calls that can fail, and what SQLite's own VFS answers then."""

ROOM_CODES: Final = {
    "xOpen": apsw.SQLITE_CANTOPEN,
    "xWrite": apsw.SQLITE_FULL,
    "xSync": apsw.SQLITE_IOERR_FSYNC,
    "xShmMap": apsw.SQLITE_IOERR_SHMSIZE,
}
"""The calls that need room, and what SQLite's own VFS answers when there is none."""

CHANGING: Final = frozenset(("xWrite", "xSync", "xDelete"))
"""The calls that change what a store holds. To cut its log behind the last commit does not."""


class _FileMethods(ctypes.Structure):
    _fields_ = [("iVersion", _INT), *((name, _POINTER) for name in _FILE_METHODS)]


class _File(ctypes.Structure):
    _fields_ = [("pMethods", ctypes.POINTER(_FileMethods))]


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", _INT),
        ("szOsFile", _INT),
        ("mxPathname", _INT),
        ("pNext", _POINTER),
        ("zName", ctypes.c_char_p),
        ("pAppData", _POINTER),
        *((name, _POINTER) for name in _VFS_METHODS),
    ]


class Failing(NamedTuple):
    """Fail call number `at` with `error`, and with *lasting* all that follow. A failed sync may
    *drop* what was written since the last one: the system does not try those pages again."""

    at: int
    error: int
    lasting: bool = False
    dropping: bool = False

    def __str__(self) -> str:
        how = "from" if self.lasting else "dropped at" if self.dropping else "at"
        return f"{os.strerror(self.error)} {how} call {self.at}"

    @property
    def codes(self) -> dict[str, int]:
        return ROOM_CODES if self.error == errno.ENOSPC else CODES


class FaultyDisk:
    """Made by `faulty_disk`. `calls` are those between `fail` and `heal`; number `failed_at` is the
    first that failed."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failed_at: int | None = None
        self._failing: Failing | None = None
        self._files: dict[int, _OpenFile] = {}

    def fail(self, failing: Failing) -> None:
        """Count calls from here on, and fail as told."""
        self.calls = []
        self.failed_at = None
        self._failing = failing

    def heal(self) -> None:
        """Fail no more, and count no more."""
        self._failing = None

    def code_of(self, call: str) -> int:
        """The code with which this call has to fail, or 0."""
        failing = self._failing
        if failing is None:
            return 0
        number = len(self.calls)
        self.calls.append(call)
        if (
            call not in failing.codes
            or number < failing.at
            or (number > failing.at and not failing.lasting)
        ):
            return 0
        if self.failed_at is None:
            self.failed_at = number
        return failing.codes[call]

    def opened(self, file: int, path: bytes | None) -> None:
        if path is not None:
            self._files[file] = _OpenFile(path)

    def before(self, call: str, file: int) -> None:
        if call == "xClose":
            if (closing := self._files.pop(file, None)) is not None:
                closing.close()
        elif (
            call in ("xWrite", "xTruncate")
            and self._failing is not None
            and self._failing.dropping
            and file in self._files
        ):
            self._files[file].remember()

    def synced(self, file: int, *, failed: bool) -> None:
        if file in self._files:
            self._files[file].synced(failed=failed)


class _OpenFile:
    """What was on the disk when the file was synced last, once it has been changed since."""

    def __init__(self, path: bytes) -> None:
        # Kept open as long as SQLite's: to close any descriptor gives up the locks of all.
        self._descriptor = os.open(path, os.O_RDWR)
        self._before: bytes | None = None

    def remember(self) -> None:
        if self._before is None:
            self._before = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def synced(self, *, failed: bool) -> None:
        if failed and self._before is not None:
            os.pwrite(self._descriptor, self._before, 0)
            os.ftruncate(self._descriptor, len(self._before))
        self._before = None

    def close(self) -> None:
        os.close(self._descriptor)


_disks: list[FaultyDisk] = []
"""The disk whose word counts is the last one."""

_kept_alive: list[Any] = []
"""Whatever C code may call as long as the process lives."""


@contextmanager
def faulty_disk() -> Iterator[FaultyDisk]:
    """Every file that is opened meanwhile lies on this disk. All must be closed before its end."""
    vfs = _default_vfs()
    replaced = _replacements(vfs)
    before = {name: getattr(vfs, name) for name in replaced}
    disk = FaultyDisk()
    _disks.append(disk)
    try:
        for name, replacement in replaced.items():
            setattr(vfs, name, replacement)
        yield disk
    finally:
        for name, original in before.items():
            setattr(vfs, name, original)
        _disks.pop()


def _default_vfs() -> Any:
    pointer = _POINTER()
    connection = apsw.Connection(":memory:")
    try:
        assert connection.file_control(
            "main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(pointer)
        )
    finally:
        connection.close()
    assert pointer.value is not None
    return _Vfs.from_address(pointer.value)


def _replacements(vfs: Any) -> dict[str, int | None]:
    def replaced(name: str, call: Callable[..., int]) -> int | None:
        prototype = ctypes.CFUNCTYPE(_INT, _POINTER, *_VFS_METHODS[name])
        original = prototype(getattr(vfs, name))
        return _address(prototype(lambda *arguments: call(original, *arguments)))

    def opening(original: Any, of: int, name: int | None, file: int, *more: int) -> int:
        if code := _disks[-1].code_of("xOpen"):
            _File.from_address(file).pMethods = None  # There is nothing to close then.
            return code
        status: int = original(of, name, file, *more)
        if status == apsw.SQLITE_OK:
            _disks[-1].opened(file, None if name is None else ctypes.string_at(name))
            _replace_methods(file)
        return status

    def deleting(original: Any, *arguments: int) -> int:
        status: int = _disks[-1].code_of("xDelete") or original(*arguments)
        return status

    def accessing(original: Any, *arguments: int) -> int:
        status: int = _disks[-1].code_of("xAccess") or original(*arguments)
        return status

    calls: dict[str, Callable[..., int]] = {
        "xOpen": opening,
        "xDelete": deleting,
        "xAccess": accessing,
    }
    return {name: replaced(name, call) for name, call in calls.items()}


_methods: dict[int, Any] = {}
"""The tables in use, by the address of SQLite's own."""


def _replace_methods(file: int) -> None:
    opened = _File.from_address(file)
    own = ctypes.cast(opened.pMethods, _POINTER).value
    assert own is not None
    if own not in _methods:
        table = _FileMethods.from_buffer_copy(opened.pMethods.contents)
        for name in ("xClose", *(name for name in CODES if name in _FILE_METHODS)):
            prototype = ctypes.CFUNCTYPE(_INT, _POINTER, *_FILE_METHODS[name])
            address = getattr(table, name)
            if address is not None:
                setattr(table, name, _address(prototype(_calling(name, prototype(address)))))
        _methods[own] = table
    opened.pMethods = ctypes.pointer(_methods[own])


def _calling(name: str, original: Any) -> Callable[..., int]:
    def call(file: int, *arguments: Any) -> int:
        disk = _disks[-1]
        disk.before(name, file)
        status: int = disk.code_of(name) if name in CODES else 0
        failed = status != 0
        if not failed:
            status = original(file, *arguments)
        if name == "xSync":
            disk.synced(file, failed=failed)
        return status

    return call


def _address(function: Any) -> int | None:
    _kept_alive.append(function)
    return ctypes.cast(function, _POINTER).value
