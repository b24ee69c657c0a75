"""A write in two steps, so that a crash between any two instructions leaves something to tell by.

It is *staged*: all of it is on disk, under a name that its idempotency key gives. Then it is *put*
in its place by a rename. Who has written down that it may be put, and does not know whether it was,
finds the staged file (it was not), or the content in its place (it was); else somebody has been
there since, and nobody can tell.

`root` is an open work folder, where staged files lie.
"""

import contextlib
import os
import stat
from typing import Final

from ipc_protocol.errors import Failure
from orchestrator.tools.openat2 import BENEATH, FOLDER_FLAGS, READ_FLAGS, openat2
from orchestrator.tools.paths import SCRATCH_PREFIX, scratch_name
from orchestrator.tools.plain import read_at_most, require_plain_file

_WRITE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def staged_names(root: int) -> frozenset[str]:
    """The names under which writes lie that were not put."""
    with os.scandir(root) as found:
        return frozenset(item.name for item in found if item.name.startswith(SCRATCH_PREFIX))


def stage(root: int, key: str, data: bytes) -> None:
    """Get a write ready. What was staged under the key before must be gone."""
    name = scratch_name(key)
    file = os.open(name, _WRITE_FLAGS | os.O_CLOEXEC, 0o600, dir_fd=root)
    try:
        written = 0
        while written < len(data):
            written += os.write(file, data[written:])
        os.fsync(file)
        os.fsync(root)
    except OSError:
        os.unlink(name, dir_fd=root)
        raise
    finally:
        os.close(file)


def put(root: int, names: tuple[str, ...], path: str, key: str) -> None:
    """Create or replace a file by what is staged, at once or not at all; what cannot be put stays
    staged. The folders above it are made. `names` are the path's."""
    with contextlib.ExitStack() as stack:
        parent = root
        for name in names[:-1]:
            parent = _make_folder(parent, name)
            stack.callback(os.close, parent)
        _require_replaceable(path, parent, names[-1])
        os.replace(scratch_name(key), names[-1], src_dir_fd=root, dst_dir_fd=parent)
        try:
            os.fsync(parent)
            if parent != root:
                os.fsync(root)  # else the staged file may come back, and be taken for not put
        except OSError as error:
            raise Failure(
                "tool.failed",
                f"{path!r} was written, but may not outlast a loss of power: {error.strerror}.",
                "An operator has to look at the disk.",
            ) from error


def holds(root: int, names: tuple[str, ...], data: bytes) -> bool:
    """Is this the content of the file, and on disk to stay? False also where nobody can tell."""
    with contextlib.ExitStack() as stack:
        try:
            file = openat2(root, "/".join(names), READ_FLAGS, BENEATH)
            stack.callback(os.close, file)
            status = os.fstat(file)
            plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not plain or read_at_most(file, len(data) + 1) != data:
                return False
            parent = openat2(root, "/".join(names[:-1]) or ".", FOLDER_FLAGS, BENEATH)
            stack.callback(os.close, parent)
            for descriptor in (file, parent, root):
                os.fsync(descriptor)
        except OSError:
            return False
        return True


def _make_folder(parent: int, name: str) -> int:
    try:
        os.mkdir(name, mode=0o700, dir_fd=parent)
    except FileExistsError:
        pass
    else:
        os.fsync(parent)
    return openat2(parent, name, FOLDER_FLAGS, BENEATH)


def _require_replaceable(path: str, parent: int, name: str) -> None:
    # Only for the error: the replacing itself exchanges the name and follows nothing.
    with contextlib.suppress(FileNotFoundError):
        require_plain_file(path, os.stat(name, dir_fd=parent, follow_symlinks=False))
