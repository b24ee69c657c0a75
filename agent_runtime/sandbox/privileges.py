"""Privileges: none can be gained, none is left, and nobody can look into the process.

It comes after the private root, which needs capabilities, and before Landlock and seccomp, which an
ordinary process may only apply once it can gain no new privileges.
"""

import errno
import itertools

from agent_runtime.sandbox import syscalls
from agent_runtime.sandbox.report import LayerReport, LayerUnavailable

LAYER = "no-new-privileges"


def drop_privileges() -> LayerReport:
    try:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
        _empty_bounding_set()
        syscalls.clear_capabilities()
        # Not dumpable: no core, and nobody of the same uid may trace it or read its memory.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise LayerUnavailable.of(
            LAYER, "dropping privileges", error, "allow the daemon prctl(2) and capset(2)"
        ) from error
    return LayerReport(LAYER, "enforced", "no new privileges, no capability, not dumpable")


def _empty_bounding_set() -> None:
    for capability in itertools.count():
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the last one that this kernel knows
                return
            if error.errno == errno.EPERM:
                # Without a user namespace an ordinary user may not, and need not: its sets are
                # empty and stay so, for it can gain no new privileges.
                return
            raise
