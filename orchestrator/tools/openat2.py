"""openat2(2), which Python has no name for: open a path under rules that the kernel enforces.

There is no weaker substitute on purpose: walking a path component by component is a race.
"""

import ctypes
import errno
import os
from typing import Final

from ipc_protocol.errors import Failure

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
"""Never above the starting folder, never through a link of either kind."""

FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY
READ_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
"""Without O_NONBLOCK the opening of a FIFO would wait for its other end for ever."""

AT_FDCWD: Final = -100
_NR_OPENAT2: Final = 437  # the same on every architecture
_ATTEMPTS_MAX: Final = 64
"""The kernel answers EAGAIN when a rename beside it made its check uncertain."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_OpenHow),
    ctypes.c_size_t,
)
_syscall.restype = ctypes.c_long


def openat2(folder: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """A descriptor of `path`, looked up from the open folder `folder` under the rules `resolve`.

    Raises `OSError` as open(2) does (EXDEV: the path leaves the folder; ELOOP: it has a link), and
    `Failure` when the kernel has no openat2.
    """
    name = os.fsencode(path)
    if b"\0" in name:
        raise OSError(errno.EINVAL, "a path cannot contain a NUL byte", path)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_ATTEMPTS_MAX):
        descriptor = _syscall(_NR_OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how))
        if descriptor >= 0:
            return int(descriptor)
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            raise Failure(
                "tool.failed",
                "This kernel has no openat2, without which files are not opened safely.",
                "Run Linux 5.6 or later, or let the container's seccomp profile pass openat2.",
            )
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number), path)
    raise OSError(errno.EAGAIN, "the path keeps changing", path)
