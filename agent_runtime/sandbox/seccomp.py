"""Seccomp: the system calls of a process that has already imported everything, and no others.

What is not listed fails with EPERM rather than killing the worker. Either way the call is not made,
so nothing is gained by death; but libraries probe (libuv tries io_uring first) and go on without,
and an agent whose tool tries something forbidden should observe an error, not die and be restarted
into the same attempt. Calls of a foreign architecture, which no honest code makes and whose numbers
mean something else, do kill.

There are two programs. A worker can make no memory executable; a compiler, whose library publishes
the code that it compiles, may do so with memory that it cannot write at the same time. In all else
they are the same.

They are generated once, in the zygote, and one is only loaded in the worker: it is the last layer,
after which neither a library nor a file can be opened. It is loaded for all threads at once, by
seccomp(2): prctl(2) would leave out those that were started before. Classic BPF sees arguments, not
what they point to, so a call that is dangerous only through a pointer is refused outright.
"""

import functools
import mmap
import os
import socket
import termios
from collections.abc import Callable
from typing import Any

import msgspec

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
# requeueing is for condition variables of C libraries older than those that Python runs on.
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
    "seccomp(2)"
)


class Filters(msgspec.Struct, frozen=True):
    """The programs, in the kernel's own format, and the number of the call that loads one."""

    number: int
    worker: bytes
    compiler: bytes


@functools.cache
def filters() -> Filters:
    """Opens a library: call it before confinement."""
    try:
        # pyseccomp looks for the library while it is imported, and fails right there.
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise LayerUnavailable(
            LAYER, 0, f"generating the filter: {error}", _CURE_LIBRARY
        ) from error
    try:
        return Filters(
            number=pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "seccomp"),
            worker=_generate(pyseccomp, compiles=False),
            compiler=_generate(pyseccomp, compiles=True),
        )
    except OSError as error:
        raise LayerUnavailable.of(LAYER, "generating the filter", error, _CURE_LIBRARY) from error


def install_filter(*, compiles: bool) -> LayerReport:
    """The last layer, for every thread. Needs no-new-privileges."""
    prepared = filters()
    program = prepared.compiler if compiles else prepared.worker
    try:
        syscalls.install_seccomp_filter(prepared.number, program)
    except OSError as error:
        raise LayerUnavailable.of(LAYER, "installing the filter", error, _CURE_KERNEL) from error
    memory = "no memory writable and executable" if compiles else "no new executable memory"
    detail = f"{len(program) // 8} instructions, else EPERM; {memory}"
    return LayerReport(LAYER, "enforced", detail)


def _generate(library: Any, *, compiles: bool) -> bytes:
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
    if compiles:
        # Its code is written first and made executable then.
        writable_or_executable = mmap.PROT_WRITE | mmap.PROT_EXEC
        allow("mprotect", library.Arg(2, library.MASKED_EQ, writable_or_executable, mmap.PROT_EXEC))
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
