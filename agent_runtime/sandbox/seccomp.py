"""Seccomp: the system calls of a worker that has already imported everything, and no others.

What is not listed fails with EPERM rather than killing the worker. Either way the call is not made,
so nothing is gained by death; but libraries probe (libuv tries io_uring first) and go on without,
and an agent whose tool tries something forbidden should observe an error, not die and be restarted
into the same attempt. Calls of a foreign architecture, which no honest code makes and whose numbers
mean something else, do kill.

The program is generated once, in the zygote, and only loaded in the worker: it is the last layer,
after which neither a library nor a file can be opened. Classic BPF sees arguments, not what they
point to, so a call that is dangerous only through a pointer is refused outright.
"""

import functools
import mmap
import os
import socket
import termios
from collections.abc import Callable
from typing import Any

from agent_runtime.sandbox import syscalls
from agent_runtime.sandbox.report import LayerReport, LayerUnavailable

LAYER = "seccomp"

_ALWAYS_ALLOWED = (
    # memory; the calls that could make it executable stand below, with their conditions
    *("brk", "munmap", "mremap"),
    # the one socket, and what the loop makes for itself
    *("read", "write", "readv", "writev", "recvfrom", "shutdown", "close"),
    *("getsockname", "getpeername"),
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "pipe2"),
    *("poll", "ppoll", "select", "pselect6"),
    *("dup", "dup2", "dup3"),
    # time, chance, identity
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time"),
    *("getrandom", "getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid"),
    *("getrusage", "times", "sysinfo", "sched_yield"),
    # its own signals: handlers and masks, but no sending
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    # files beneath the scratch space; which paths exist is the private root's and Landlock's affair
    *("openat", "open", "newfstatat", "stat", "lstat", "fstat", "statx", "access", "faccessat"),
    *("faccessat2", "lseek", "pread64", "pwrite64", "ftruncate", "fsync", "fdatasync"),
    *("getdents64", "getcwd", "chdir", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat"),
    *("rename", "renameat", "renameat2", "readlink", "readlinkat"),
    *("exit", "exit_group"),
)
# Missing on purpose, though a loop might want them: `sendmsg` and `recvmsg` carry descriptors in
# and out of the sandbox through the very socket that it is left with; libuv needs neither.
# `setsockopt` attaches BPF programs. `prctl` could make the process dumpable again. `kill` and its
# kin are left out because process 1 of a pid namespace has nobody to signal but itself.

_WORD_MASK = 0xFFFFFFFF
_FUTEX_FLAGS = 128 | 256  # FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME
# Waiting and waking. The priority-inheriting operations have a history of kernel holes, and
# requeueing is for condition variables between threads, of which there are none.
_FUTEX_OPERATIONS = (0, 1, 9, 10)  # WAIT, WAKE, WAIT_BITSET, WAKE_BITSET
# MADV_WILLNEED, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, DONTDUMP: allocators' hints about own memory.
_MADVICE = (3, 4, 8, 14, 15, 16)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. No owners, leases, locks or seals.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
_FIONBIO = 0x5421
_FIOCLEX = 0x5451
# Blocking mode, close-on-exec, bytes waiting, "is this a terminal": no device has more to say.
_IOCTLS = (_FIONBIO, _FIOCLEX, termios.FIONREAD, termios.TCGETS)
_SOCKET_QUESTIONS = (socket.SO_TYPE, socket.SO_ERROR, socket.SO_DOMAIN, socket.SO_PROTOCOL)
_SOCKET_KIND_MASK = 0xF  # the rest of the argument is SOCK_NONBLOCK and SOCK_CLOEXEC
_MAP_LOCKED = 0x2000
_MAP_HUGETLB = 0x40000  # from a pool that the operator set aside for somebody else

_CURE_LIBRARY = "install libseccomp (Debian: libseccomp2)"
_CURE_KERNEL = (
    "use a kernel built with CONFIG_SECCOMP_FILTER, and let the container's own filter pass "
    "prctl(PR_SET_SECCOMP)"
)


@functools.cache
def worker_filter() -> bytes:
    """The program, in the kernel's own format. Opens a library: call it before confinement."""
    try:
        # pyseccomp looks for the library while it is imported, and fails right there.
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise LayerUnavailable(
            LAYER, 0, f"generating the filter: {error}", _CURE_LIBRARY
        ) from error
    try:
        return _generate(pyseccomp)
    except OSError as error:
        raise LayerUnavailable.of(LAYER, "generating the filter", error, _CURE_LIBRARY) from error


def install_filter() -> LayerReport:
    """The last layer. Needs no-new-privileges."""
    program = worker_filter()
    try:
        syscalls.install_seccomp_filter(program)
    except OSError as error:
        raise LayerUnavailable.of(LAYER, "installing the filter", error, _CURE_KERNEL) from error
    detail = f"{len(program) // 8} instructions, else EPERM; no new executable memory"
    return LayerReport(LAYER, "enforced", detail)


def _generate(library: Any) -> bytes:
    program = library.SyscallFilter(library.ERRNO(1))  # EPERM
    program.set_attr(library.Attr.ACT_BADARCH, library.KILL_PROCESS)
    # A balanced tree instead of a list: 8 comparisons for a call instead of up to 90.
    program.set_attr(library.Attr.CTL_OPTIMIZE, 2)

    def allow(name: str, *conditions: Any) -> None:
        number = library.resolve_syscall(library.Arch.NATIVE, name)
        # -1 is a name that this libseccomp does not know; other negative numbers stand for calls
        # that this architecture never had (`open` on ARM). Neither can be allowed or need be.
        if number >= 0:
            program.add_rule(library.ALLOW, number, *conditions)

    for name in _ALWAYS_ALLOWED:
        allow(name)
    _allow_memory(library, allow)
    _allow_by_argument(library, allow)
    with os.fdopen(os.memfd_create("seccomp"), "rb") as exported:
        program.export_bpf(exported)
        exported.seek(0)
        return exported.read()


def _allow_memory(library: Any, allow: Callable[..., None]) -> None:
    never_executable = library.Arg(2, library.MASKED_EQ, mmap.PROT_EXEC, 0)
    shared_by_nobody_else = library.Arg(3, library.MASKED_EQ, _MAP_LOCKED | _MAP_HUGETLB, 0)
    allow("mmap", never_executable, shared_by_nobody_else)
    allow("mprotect", never_executable)
    for advice in _MADVICE:
        allow("madvise", library.Arg(2, library.EQ, advice))


def _allow_by_argument(library: Any, allow: Callable[..., None]) -> None:
    def word(argument: int, value: int, mask: int = _WORD_MASK) -> Any:
        # The kernel reads these as 32 bits, whatever the upper half of the register holds.
        return library.Arg(argument, library.MASKED_EQ, mask, value)

    for operation in _FUTEX_OPERATIONS:
        allow("futex", word(1, operation, _WORD_MASK & ~_FUTEX_FLAGS))
    for command in _FCNTL_COMMANDS:
        allow("fcntl", word(1, command))
    for request in _IOCTLS:
        allow("ioctl", word(1, request))
    for question in _SOCKET_QUESTIONS:
        allow("getsockopt", word(1, socket.SOL_SOCKET), word(2, question))
    # A send names no address: the socket is connected, and to nobody else.
    allow("sendto", library.Arg(4, library.EQ, 0))
    # The loop wakes itself through a pair; a pair reaches nobody.
    allow(
        "socketpair",
        word(0, socket.AF_UNIX),
        word(1, socket.SOCK_STREAM, _SOCKET_KIND_MASK),
    )
    # On itself only, and only asking.
    allow("prlimit64", word(0, 0), library.Arg(2, library.EQ, 0))
    allow("sched_getaffinity", word(0, 0))
