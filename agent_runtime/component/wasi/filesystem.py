"""wasi:filesystem: the scratch space as the one folder that a component may be given.

What it keeps there is in memory and lives as long as its worker. There are no links, and times
cannot be set.
"""

import os
from collections.abc import Callable
from typing import Any, Final

from agent_runtime.component import limits
from agent_runtime.component.types import Case, err, ok
from agent_runtime.component.wasi.files import (
    Descriptor,
    Entries,
    FileReader,
    FileWriter,
    OpenFile,
    descriptor_stat,
    error_code,
    kind,
    metadata_hash,
)
from agent_runtime.component.wasi.paths import PathRefused
from agent_runtime.component.wasi.surroundings import Functions, Surroundings
from agent_runtime.sandbox import root

_OFFSET_MAX: Final = 2**63 - 1

_ROOT_FLAGS: Final = frozenset({"read", "mutate-directory"})


def preopens_functions(around: Surroundings, scratch: str | None) -> Functions:
    """`scratch` is the folder that is given, or None for none."""

    def get_directories() -> list[tuple[int, str]]:
        if scratch is None:
            return []
        folder = OpenFile(os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return [(around.handles.add(Descriptor(folder, _ROOT_FLAGS)), root.SCRATCH)]

    return {"get-directories": get_directories}


def private_scratch() -> str | None:
    """The scratch space of a sealed worker, which is its working folder; None where there is none,
    because the layer that makes it is switched off."""
    return root.SCRATCH if os.getcwd() == root.SCRATCH else None  # noqa: PTH109


def attempt(operation: Callable[[], Any]) -> Case:
    try:
        return ok(operation())
    except (OSError, PathRefused) as error:
        return err(error_code(error))


def filesystem_functions(around: Surroundings) -> Functions:
    return {
        **_of_files(around),
        **_of_folders(around),
        "[method]directory-entry-stream.read-directory-entry": lambda number: ok(
            around.handles.get(number, Entries).next()
        ),
        "filesystem-error-code": lambda number: error_code(around.handles.get(number, OSError)),
    }


def _of_files(around: Surroundings) -> Functions:
    """What is done with a descriptor itself."""
    handles = around.handles

    def of(number: int) -> Descriptor:
        return handles.get(number, Descriptor)

    def read(number: int, length: int, offset: int) -> Case:
        wanted = min(length, limits.TRANSFER_BYTES_MAX)

        def read_at() -> tuple[bytes, bool]:
            data = os.pread(of(number).fd, wanted, _offset(offset))
            return data, not data and wanted > 0

        return attempt(read_at)

    def set_size(number: int, size: int) -> Case:
        return attempt(lambda: os.ftruncate(of(number).fd, _offset(size)))

    def reader(number: int, offset: int) -> Case:
        file = of(number).file
        return attempt(lambda: handles.add(FileReader(file, _offset(offset))))

    def writer(number: int, offset: int) -> Case:
        file = of(number).file
        return attempt(lambda: handles.add(FileWriter(file, _offset(offset))))

    def is_same(number: int, other: int) -> bool:
        return os.path.samestat(of(number).status(), of(other).status())

    return {
        "[method]descriptor.read-via-stream": reader,
        "[method]descriptor.write-via-stream": writer,
        "[method]descriptor.append-via-stream": lambda number: ok(
            handles.add(FileWriter(of(number).file, None))
        ),
        "[method]descriptor.advise": lambda *_: ok(),
        "[method]descriptor.sync-data": lambda number: attempt(lambda: os.fdatasync(of(number).fd)),
        "[method]descriptor.sync": lambda number: attempt(lambda: os.fsync(of(number).fd)),
        "[method]descriptor.get-flags": lambda number: ok(of(number).flags),
        "[method]descriptor.get-type": lambda number: attempt(lambda: kind(of(number).status())),
        "[method]descriptor.set-size": set_size,
        "[method]descriptor.set-times": lambda *_: err("unsupported"),
        "[method]descriptor.read": read,
        "[method]descriptor.write": lambda number, data, offset: attempt(
            lambda: os.pwrite(of(number).fd, data, _offset(offset))
        ),
        "[method]descriptor.stat": lambda number: attempt(
            lambda: descriptor_stat(of(number).status())
        ),
        "[method]descriptor.is-same-object": is_same,
        "[method]descriptor.metadata-hash": lambda number: attempt(
            lambda: metadata_hash(of(number).status())
        ),
    }


def _of_folders(around: Surroundings) -> Functions:
    """What is done with a path beneath a descriptor."""
    handles = around.handles

    def of(number: int) -> Descriptor:
        return handles.get(number, Descriptor)

    def open_at(
        number: int,
        _path_flags: frozenset[str],
        path: str,
        open_flags: frozenset[str],
        flags: frozenset[str],
    ) -> Case:
        folder = of(number)
        if handles.count(Descriptor) >= limits.FILES_OPEN_MAX:
            return err("insufficient-memory")
        return attempt(lambda: handles.add(folder.open_at(path, open_flags, flags)))

    def rename_at(number: int, old_path: str, other: int, new_path: str) -> Case:
        folder, target = of(number), of(other)
        return attempt(lambda: folder.rename_at(old_path, target, new_path))

    return {
        "[method]descriptor.read-directory": lambda number: attempt(
            lambda: handles.add(Entries(of(number).entries()))
        ),
        "[method]descriptor.create-directory-at": lambda number, path: attempt(
            lambda: of(number).create_directory_at(path)
        ),
        "[method]descriptor.stat-at": lambda number, _flags, path: attempt(
            lambda: descriptor_stat(of(number).status_at(path))
        ),
        "[method]descriptor.set-times-at": lambda *_: err("unsupported"),
        "[method]descriptor.link-at": lambda *_: err("not-permitted"),
        "[method]descriptor.open-at": open_at,
        "[method]descriptor.readlink-at": lambda number, path: attempt(
            lambda: of(number).readlink_at(path)
        ),
        "[method]descriptor.remove-directory-at": lambda number, path: attempt(
            lambda: of(number).remove_directory_at(path)
        ),
        "[method]descriptor.rename-at": rename_at,
        "[method]descriptor.symlink-at": lambda *_: err("not-permitted"),
        "[method]descriptor.unlink-file-at": lambda number, path: attempt(
            lambda: of(number).unlink_file_at(path)
        ),
        "[method]descriptor.metadata-hash-at": lambda number, _flags, path: attempt(
            lambda: metadata_hash(of(number).status_at(path))
        ),
    }


def _offset(number: int) -> int:
    """As the kernel takes it. Raises `PathRefused`, as for any argument that makes no sense."""
    if number > _OFFSET_MAX:
        raise PathRefused("invalid")
    return number
