"""Namespaces: the worker sees no other process, no network, no mount and no name of the host.

The pid namespace holds for children only, so the caller forks once more afterwards: that child is
process 1 of it, and everything in it dies with that child.
"""

import errno
import os
import socket
from pathlib import Path

from agent_runtime.sandbox import syscalls
from agent_runtime.sandbox.report import CURE_UNKNOWN, LayerReport, LayerUnavailable

LAYER = "namespaces"

# The user namespace comes first: it is what lets an ordinary user create the others.
_NAMESPACES = {
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
    "net": syscalls.CLONE_NEWNET,
    "mount": syscalls.CLONE_NEWNS,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
}
_ALL = sum(_NAMESPACES.values())

_CURE_BY_ERRNO = {
    errno.EPERM: "allow user namespaces to ordinary users: kernel.unprivileged_userns_clone=1 on "
    "Debian, kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile on Ubuntu; in a "
    "container, a seccomp profile that allows unshare(2)",
    errno.ENOSPC: "raise the user.max_*_namespaces limits with sysctl",
    errno.EUSERS: "start the daemon under fewer nested user namespaces",
    errno.EINVAL: "use a kernel that is built with all six namespaces",
}


def enter_namespaces() -> LayerReport:
    """Enter all six, with the present uid and gid mapped to themselves and nobody else mapped."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        syscalls.unshare(_ALL)
    except OSError as error:
        raise _explain(error, uid, gid) from error
    try:
        _write_id_maps(uid, gid)
        # The host's name is the host's business, and the namespace starts with a copy of it.
        socket.sethostname("worker")
    except OSError as error:
        raise LayerUnavailable.of(
            LAYER,
            "mapping the user into its namespace",
            error,
            "mount /proc writable for the daemon",
        ) from error
    return LayerReport(LAYER, "enforced", ", ".join(_NAMESPACES))


def _write_id_maps(uid: int, gid: int) -> None:
    # A process that changed its uid is not dumpable, and the files in /proc of such a process
    # belong to root: it could not write its own map.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    # Without this the kernel refuses an ordinary user's gid map.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _explain(error: OSError, uid: int, gid: int) -> LayerUnavailable:
    """Try them one at a time: keep what can be had (for `standard`), and name what cannot."""
    entered: list[str] = []
    refused: list[str] = []
    for name, flag in _NAMESPACES.items():
        try:
            syscalls.unshare(flag)
            if name == "user":
                _write_id_maps(uid, gid)
        except OSError as one:
            refused.append(f"{name} ({os.strerror(one.errno or 0)})")
        else:
            entered.append(name)
    number = error.errno or 0
    detail = f"refused: {', '.join(refused) or 'all at once, though each alone is allowed'}"
    if entered:
        detail += f"; entered: {', '.join(entered)}"
    cure = _CURE_BY_ERRNO.get(number, CURE_UNKNOWN)
    return LayerUnavailable(LAYER, number, detail, cure)
