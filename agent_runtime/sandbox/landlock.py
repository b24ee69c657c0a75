"""Landlock: a second, independent answer to every path, port and signal.

It handles everything that the kernel's ABI can and allows files beneath the scratch space, nothing
else. Where the private root holds, Landlock is never asked; it is there for the day it does not.
Rights by ABI: https://docs.kernel.org/userspace-api/landlock.html
"""

import errno
import os

from agent_runtime.sandbox import syscalls
from agent_runtime.sandbox.report import CURE_UNKNOWN, LayerReport, LayerUnavailable

LAYER = "landlock"

_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_REMOVE_DIR = 1 << 4
_REMOVE_FILE = 1 << 5
_MAKE_DIR = 1 << 7
_MAKE_REG = 1 << 8
_REFER = 1 << 13
_TRUNCATE = 1 << 14

# No execution, no devices, no sockets, no links, no pipes: plain files and folders.
_ALLOWED_IN_SCRATCH = (
    _WRITE_FILE
    | _READ_FILE
    | _READ_DIR
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _REFER
    | _TRUNCATE
)

# (from this ABI on, how many rights of the file system are known). Bits are numbered from 0.
_FS_RIGHTS_BY_ABI = ((5, 16), (3, 15), (2, 14), (1, 13))
_NET_RIGHTS = 0b11  # bind and connect over TCP, from ABI 4 on
_SCOPES = 0b11  # abstract Unix sockets and signals, from ABI 6 on
_NET_ABI = 4
_SCOPE_ABI = 6
_WORD_BYTES = 8


def restrict_access(scratch: str | None) -> LayerReport:
    """Allow files beneath `scratch`, or, without a private root to hold one, none at all."""
    try:
        abi = syscalls.landlock_abi()
        rights = next(count for first, count in _FS_RIGHTS_BY_ABI if abi >= first)
        handled = (1 << rights) - 1
        words = 3 if abi >= _SCOPE_ABI else 2 if abi >= _NET_ABI else 1
        ruleset = syscalls.landlock_create_ruleset(
            handled, _NET_RIGHTS, _SCOPES, words * _WORD_BYTES
        )
        try:
            if scratch is not None:
                _allow_scratch(ruleset, scratch, handled)
            syscalls.landlock_restrict_self(ruleset)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise LayerUnavailable.of(LAYER, "restricting access", error, _cure(error.errno)) from error
    extras = ["files"] + ["TCP"] * (abi >= _NET_ABI) + ["sockets and signals"] * (abi >= _SCOPE_ABI)
    return LayerReport(LAYER, "enforced", f"ABI {abi}: {', '.join(extras)}")


def _allow_scratch(ruleset: int, scratch: str, handled: int) -> None:
    directory = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.landlock_allow_beneath(ruleset, directory, _ALLOWED_IN_SCRATCH & handled)
    finally:
        os.close(directory)


def _cure(number: int | None) -> str:
    if number == errno.EOPNOTSUPP:
        return "boot with `landlock` in the kernel's lsm= parameter"
    if number == errno.ENOSYS:
        return (
            "use Linux 5.13 or later, built with Landlock, and let the container's filter pass it"
        )
    return CURE_UNKNOWN
