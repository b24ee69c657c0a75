"""Descriptors: what a process already holds open, no other layer takes away again.

Landlock, namespaces and the private root judge an open, not a use. So everything that was inherited
goes, except what is named here. It is applied in every mode, `off` included: a worker that kept the
zygote's own socket would keep that connection open beyond the zygote's death.
"""

import os
from collections.abc import Iterable

from agent_runtime.sandbox import syscalls
from agent_runtime.sandbox.report import LayerReport

LAYER = "descriptors"

_STANDARD_STREAMS = (0, 1, 2)
_DESCRIPTOR_LAST = 2**32 - 1


def close_descriptors(kept: Iterable[int], null_fd: int, log_fd: int) -> LayerReport:
    """Close all but `kept`; standard input and output become `null_fd`, standard error `log_fd`."""
    kept = tuple(kept)
    assert not set(kept) & set(_STANDARD_STREAMS), "a kept descriptor would be overwritten"
    # The log first: it may be the caller's own standard output.
    os.dup2(log_fd, 2)
    os.dup2(null_fd, 0)
    os.dup2(null_fd, 1)
    survivors = sorted({*kept, *_STANDARD_STREAMS})
    first = 0
    for survivor in survivors:
        if first < survivor:
            syscalls.close_range(first, survivor - 1)
        first = survivor + 1
    syscalls.close_range(first, _DESCRIPTOR_LAST)
    return LayerReport(LAYER, "enforced", f"kept {', '.join(map(str, survivors))}")
