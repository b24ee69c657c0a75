"""Resource limits: what the worker may take of the host, as far as the kernel counts per process.

Memory is a limit on the address space, and so on growth: a fork starts with everything that the
zygote has mapped, shared and untouched, and may add `memory_bytes_max` to it. Files in the scratch
space are not part of it; the scratch space has its own limit.
"""

import os
import resource
from pathlib import Path

from agent_runtime.sandbox import limits
from agent_runtime.sandbox.report import LayerReport, LayerUnavailable

LAYER = "rlimits"


def address_space_bytes_now() -> int:
    """What the calling process has mapped: where the growth of its forks begins."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def set_rlimits(
    address_space_bytes_max: int, file_bytes_max: int, cpu_seconds_max: int | None
) -> LayerReport:
    """Lower every limit for good: the soft and the hard one.

    No thread can be started afterwards: the kernel counts them as processes.
    """
    wanted = {
        resource.RLIMIT_AS: address_space_bytes_max,
        resource.RLIMIT_STACK: limits.STACK_BYTES_MAX,
        resource.RLIMIT_NOFILE: limits.DESCRIPTORS_MAX,
        resource.RLIMIT_FSIZE: file_bytes_max,
        resource.RLIMIT_SIGPENDING: limits.SIGNALS_PENDING_MAX,
        # The worker forks nothing, dumps nothing, locks nothing and never gets ahead of others.
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if cpu_seconds_max is not None:
        # With both limits alike it is SIGKILL: process 1 of a pid namespace ignores SIGXCPU.
        wanted[resource.RLIMIT_CPU] = cpu_seconds_max
    try:
        for kind, value in wanted.items():
            _, hard = resource.getrlimit(kind)
            # An ordinary user cannot raise a limit that was already lower, and need not.
            lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (lowered, lowered))
    except (OSError, ValueError) as error:
        raise LayerUnavailable(
            LAYER,
            getattr(error, "errno", None) or 0,
            f"setting a limit: {error}",
            "allow the daemon setrlimit(2); see the seccomp profile of its container",
        ) from error
    detail = f"address space {address_space_bytes_max} bytes, no process, no core dump"
    if cpu_seconds_max is not None:
        detail += f", {cpu_seconds_max} s of CPU time"
    return LayerReport(LAYER, "enforced", detail)
