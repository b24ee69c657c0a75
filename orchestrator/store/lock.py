"""The lock file beside the database: one daemon alone may give its leases back."""

import fcntl
import os
from pathlib import Path

from orchestrator.store.database import unavailable


def locked(path: Path) -> int:
    """Take the lock of the store at `path`; who closes the descriptor gives it back.

    Raises `store.unavailable` if another process has it, or if the folder cannot be written.
    """
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unavailable(
            path, f"its folder cannot be written ({error.strerror})", "Check path and permissions."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise unavailable(
            path, "another agentd uses it", "Stop that one, or give this one another state folder."
        ) from error
    return descriptor
