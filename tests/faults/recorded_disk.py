"""A disk whose every change is recorded, and what it may hold after a power cut at any moment.

`RecordedDisk` is a SQLite VFS: it lets everything through to the disk and writes down what was
changed, in order. `Disk` takes such a record up to any point and makes up the contents that a disk
may have if the power goes there. What was synced is there. What was not is there, or is not, or is
there in some of its sectors, whatever was written before or after it; and a sector that was being
written may hold anything. A file's name is as safe as its folder was synced, however often the file
was. Only one thing is taken for granted, as SQLite does on every common disk: a write changes no
byte outside of its own range.
"""

import ctypes
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw
import pytest

SECTOR_BYTES: Final = 512
"""The smallest unit that disks write: what is torn is torn between two of them."""

GARBAGE_PROBABILITY: Final = 0.02
"""Of a sector that was being written: more of it would hide what the rest of a torn write does."""


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: int
    size: int


class Sync(NamedTuple):
    """It began after so many operations: later ones, of other threads, it says nothing about."""

    file: int
    begun: int


class Create(NamedTuple):
    name: str
    file: int


class Rename(NamedTuple):
    name: str
    to: str


class Remove(NamedTuple):
    name: str


class SyncFolder(NamedTuple):
    pass


Operation = Write | Truncate | Sync | Create | Rename | Remove | SyncFolder
Renaming = Create | Rename | Remove


class RecordedDisk(apsw.VFS):
    """The files of one folder. `operations` is what happened to them so far."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, "", maxpathname=0)
        self.name = name
        self.operations: list[Operation] = []
        self._folder = folder
        self._files: dict[str, int] = {}
        self._count = 0

    def local_name(self, name: str | apsw.URIFilename | None) -> str | None:
        """The name within the folder; None for a file that SQLite keeps for itself."""
        if isinstance(name, apsw.URIFilename):
            name = name.filename()
        if name is None or Path(name).parent != self._folder:
            return None
        return Path(name).name

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        local = self.local_name(name)
        if local is None:
            return apsw.VFSFile("", name, flags)
        file = self._files.get(local)
        if file is None:
            file = self._created(local)
        return _RecordedFile(name, flags, file, self.operations)

    def xDelete(self, name: str, sync_folder: bool) -> None:  # noqa: N802 - SQLite's name
        local = self.local_name(name)
        if local is not None and self._files.pop(local, None) is not None:
            # Recorded first: where SQLite syncs the folder within, the file is gone by then.
            self.operations.append(Remove(local))
        super().xDelete(name, sync_folder)

    def hold(self, files: Mapping[str, bytes]) -> None:
        """Begin with these on the disk."""
        for name, content in files.items():
            file = self._created(name)
            self.operations.append(Write(file, 0, content))
            self.operations.append(Sync(file, len(self.operations)))
        self.operations.append(SyncFolder())

    def _created(self, name: str) -> int:
        file = self._files[name] = self._count
        self._count += 1
        self.operations.append(Create(name, file))
        return file

    def renamed(self, name: str, to: str) -> None:
        self._files[to] = self._files.pop(name)
        self.operations.append(Rename(name, to))

    def folder_synced(self) -> None:
        self.operations.append(SyncFolder())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Also write down what does not come through the VFS: how a new store gets its name, and
        the folders that SQLite syncs by itself. Everything still happens."""
        with pytest.MonkeyPatch.context() as patch:
            rename, fsync = Path.rename, os.fsync

            def renaming(source: Path, target: Path) -> Path:
                result = rename(source, target)
                if source.parent == self._folder:
                    self.renamed(source.name, Path(target).name)
                return result

            def syncing(descriptor: int) -> None:
                fsync(descriptor)
                if Path(f"/proc/self/fd/{descriptor}").resolve() == self._folder:
                    self.folder_synced()

            patch.setattr(Path, "rename", renaming)
            patch.setattr(os, "fsync", syncing)
            with _opened_folders(self, self.folder_synced):
                yield

    def close(self) -> None:
        self.unregister()


class _RecordedFile(apsw.VFSFile):
    def __init__(
        self,
        name: str | apsw.URIFilename | None,
        flags: list[int],
        file: int,
        operations: list[Operation],
    ) -> None:
        super().__init__("", name, flags)
        self._file = file
        self._operations = operations

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - SQLite's name
        super().xWrite(data, offset)
        self._operations.append(Write(self._file, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802 - SQLite's name
        super().xTruncate(size)
        self._operations.append(Truncate(self._file, size))

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        begun = len(self._operations)
        super().xSync(flags)
        self._operations.append(Sync(self._file, begun))


@contextmanager
def _opened_folders(vfs: apsw.VFS, opened: Callable[[], None]) -> Iterator[None]:
    """Call `opened` whenever SQLite opens a folder, which it only does to sync it."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int))
    address = vfs.xGetSystemCall("openDirectory")
    assert address is not None
    original = prototype(address)

    def open_folder(name: bytes, descriptor: Any) -> int:
        status: int = original(name, descriptor)
        opened()
        return status

    replacement = prototype(open_folder)
    pointer = ctypes.cast(replacement, ctypes.c_void_p).value
    assert pointer is not None
    assert vfs.xSetSystemCall("openDirectory", pointer)
    try:
        yield
    finally:
        assert vfs.xSetSystemCall("openDirectory", address)


class Disk:
    """What is certainly on the disk, and what was asked of it since without a sync."""

    def __init__(self) -> None:
        self._contents: dict[int, bytearray] = {}
        self._names: dict[str, int] = {}
        self._unsynced: dict[int, list[tuple[int, Write | Truncate]]] = {}
        self._renamings: list[Renaming] = []
        self._applied = 0

    def apply(self, operation: Operation) -> None:
        match operation:
            case Write() | Truncate():
                self._unsynced[operation.file].append((self._applied, operation))
            case Sync(file, begun):
                changes = self._unsynced[file]
                for at, change in changes:
                    if at < begun:
                        _change(self._contents[file], change)
                self._unsynced[file] = [(at, change) for at, change in changes if at >= begun]
            case SyncFolder():
                _rename(self._names, self._renamings)
                self._renamings = []
            case Create(_, file):
                self._contents[file] = bytearray()
                self._unsynced[file] = []
                self._renamings.append(operation)
            case Rename() | Remove():
                self._renamings.append(operation)
        self._applied += 1

    def whole(self) -> dict[str, bytes]:
        """All files as a program sees them while the power is on."""
        return self._read(self._renamings, lambda changes: changes)

    def after_power_cut(self, chance: random.Random) -> dict[str, bytes]:
        """All files as they may be found, one possibility of many."""
        renamings = self._renamings
        if chance.random() < 0.5:  # A journal of the file system keeps their order …
            renamings = renamings[: chance.randint(0, len(renamings))]
        else:  # … but nothing promises one.
            renamings = [each for each in renamings if chance.random() < 0.5]
        return self._read(renamings, lambda changes: _survivors(changes, chance))

    def _read(
        self,
        renamings: Sequence[Renaming],
        surviving: Callable[[Sequence[Write | Truncate]], Sequence[Write | Truncate]],
    ) -> dict[str, bytes]:
        names = dict(self._names)
        _rename(names, renamings)
        files: dict[str, bytes] = {}
        for name, file in names.items():
            content = bytearray(self._contents[file])
            for change in surviving([change for _, change in self._unsynced[file]]):
                _change(content, change)
            files[name] = bytes(content)
        return files


def _change(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del content[change.size :]
        return
    missing = change.offset - len(content)
    if missing > 0:
        content.extend(bytes(missing))
    content[change.offset : change.offset + len(change.data)] = change.data


def _rename(names: dict[str, int], renamings: Sequence[Renaming]) -> None:
    for each in renamings:
        match each:
            case Create(name, file):
                names[name] = file
            case Rename(name, to) if name in names:
                names[to] = names.pop(name)
            case Remove(name):
                names.pop(name, None)


def _survivors(
    changes: Sequence[Write | Truncate], chance: random.Random
) -> Sequence[Write | Truncate]:
    """Which unsynced changes of one file have reached the disk, in the order in which they did."""
    match chance.choice(("none", "all", "beginning", "some", "sectors", "shuffled")):
        case "none":
            return []
        case "all":
            return changes
        case "beginning":  # The last one that arrived is torn, if it is a write.
            kept = list(changes[: chance.randint(0, len(changes))])
            return [*kept[:-1], *_sectors(kept[-1:], chance)]
        case "some":
            return [each for each in changes if chance.random() < 0.5]
        case "sectors":
            return _sectors(changes, chance)
        case _:
            kept = _sectors(changes, chance)
            chance.shuffle(kept)
            return kept


def _sectors(changes: Sequence[Write | Truncate], chance: random.Random) -> list[Write | Truncate]:
    """Half of the sectors of each write, and half of the truncations."""
    kept: list[Write | Truncate] = []
    for change in changes:
        if isinstance(change, Truncate):
            if chance.random() < 0.5:
                kept.append(change)
            continue
        file, offset, data = change
        start = 0
        while start < len(data):
            end = min(len(data), start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES)
            draw = chance.random()
            if draw < GARBAGE_PROBABILITY:
                kept.append(Write(file, offset + start, chance.randbytes(end - start)))
            elif draw < 0.5:
                kept.append(Write(file, offset + start, data[start:end]))
            start = end
    return kept


def put(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
