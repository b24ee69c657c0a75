"""The system calls that Python has no name for, each with its prototype, in one place.

Every function raises `OSError` with the call's errno. Nothing here knows what a sandbox is.
Numbers are the kernel's UAPI constants; calls that glibc wraps go through the wrapper. Only
Landlock, whose numbers are the same on every architecture, and seccomp, whose number is an
argument, are called by number.
"""

import ctypes
import errno
import os
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)

# unshare(2), <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# mount(2), <linux/mount.h>
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# prctl(2), <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# seccomp(2), <linux/seccomp.h>
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1

# mallopt(3), <malloc.h>
_M_ARENA_MAX = -8

# capset(2), <linux/capability.h>
_CAPABILITY_VERSION_3 = 0x20080522

# landlock(7), <asm-generic/unistd.h>
_NR_LANDLOCK_CREATE_RULESET = 444
_NR_LANDLOCK_ADD_RULE = 445
_NR_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1  # the kernel's structure is packed
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def _prototype(name: str, *arguments: type) -> Callable[..., int]:
    function = getattr(_libc, name)
    function.argtypes = arguments
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    return function  # type: ignore[no-any-return]


_unshare = _prototype("unshare", ctypes.c_int)
_mount = _prototype(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
)
_umount2 = _prototype("umount2", ctypes.c_char_p, ctypes.c_int)
_pivot_root = _prototype("pivot_root", ctypes.c_char_p, ctypes.c_char_p)
_prctl = _prototype("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)
_capset = _prototype("capset", ctypes.c_void_p, ctypes.c_void_p)
_close_range = _prototype("close_range", ctypes.c_uint, ctypes.c_uint, ctypes.c_int)
_syscall = _prototype("syscall", ctypes.c_long, *[ctypes.c_void_p] * 4)
_mallopt = _prototype("mallopt", ctypes.c_int, ctypes.c_int)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    _checked(_unshare(flags))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _checked(_mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()))


def unmount(target: str, flags: int) -> None:
    _checked(_umount2(target.encode(), flags))


def pivot_root(new_root: str, put_old: str) -> None:
    _checked(_pivot_root(new_root.encode(), put_old.encode()))


def prctl(option: int, argument: int = 0, second: int = 0) -> int:
    return _checked(_prctl(option, argument, second, 0, 0))


def set_process_name(name: str) -> None:
    """What `ps` and `top` show; the kernel keeps the first 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode())  # kept alive: an address alone is not
    _checked(_prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0))


def close_range(first: int, last: int) -> None:
    _checked(_close_range(first, last, 0))


def clear_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    _checked(_capset(ctypes.byref(header), ctypes.byref(data)))


def install_seccomp_filter(number: int, program: bytes) -> None:
    """Load a classic BPF program (8 bytes an instruction) on every thread of the process, or none.

    `number` is that of seccomp(2) on this architecture.
    """
    filter_program = _FilterProgram(len(program) // 8, program)
    refusing = _checked(
        _syscall(
            number,
            _SECCOMP_SET_MODE_FILTER,
            _SECCOMP_FILTER_FLAG_TSYNC,
            ctypes.addressof(filter_program),
            0,
        )
    )
    if refusing:  # the id of a thread that has a filter of its own
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))


def limit_malloc_arenas(arenas_max: int) -> None:
    """How many heaps the threads of this process and of its forks share."""
    if not _mallopt(_M_ARENA_MAX, arenas_max):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def landlock_abi() -> int:
    """The version of Landlock that the kernel speaks, from 1."""
    return _checked(
        _syscall(_NR_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION, 0)
    )


def landlock_create_ruleset(access_fs: int, access_net: int, scoped: int, size_bytes: int) -> int:
    """A descriptor of a ruleset; `size_bytes` cuts the attributes to what an older ABI knows."""
    attributes = _RulesetAttributes(access_fs, access_net, scoped)
    return _checked(
        _syscall(_NR_LANDLOCK_CREATE_RULESET, ctypes.addressof(attributes), size_bytes, 0, 0)
    )


def landlock_allow_beneath(ruleset: int, directory: int, access_fs: int) -> None:
    rule = _PathBeneath(access_fs, directory)
    _checked(
        _syscall(
            _NR_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, ctypes.addressof(rule), 0
        )
    )


def landlock_restrict_self(ruleset: int) -> None:
    _checked(_syscall(_NR_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0, 0))
