"""`host.read`: exactly the granted paths of the host, and the disk report `@disk`.

A granted path is taken literally. One that is a symbolic link is refused, because whoever may
change the link would choose what the daemon reads with its own rights.
"""

import asyncio
import errno
import os
import stat
from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

from ipc_protocol.errors import Failure
from ipc_protocol.work import ToolResult
from orchestrator.tools import disk, limits
from orchestrator.tools.openat2 import (
    AT_FDCWD,
    READ_FLAGS,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from orchestrator.tools.plain import read_at_most
from orchestrator.tools.summaries import summarise
from orchestrator.tools.tool import (
    Grants,
    Schema,
    Tool,
    ToolArguments,
    ToolContext,
    meanings,
    record,
)

DISK_REPORT: Final = "@disk"

MEANINGS: Final[Mapping[str, str]] = {
    "/proc/loadavg": "load, CPU, slow, health, status",
    "/proc/meminfo": "memory, RAM, swap, slow, health, status",
    "/proc/uptime": "uptime, reboot, restart, status",
    DISK_REPORT: "disk, storage, partition, health, status",
    "/etc/passwd": "accounts, users, logins, access",
    "/etc/group": "groups, admin, permissions, access",
    "/etc/ssh/sshd_config": "ssh, remote login, brute force",
}
"""What is found there, in the words of those who ask. Other paths speak for themselves."""


class HostReadArguments(ToolArguments, frozen=True):
    path: Annotated[str, Meta(max_length=4096)]


async def read(arguments: HostReadArguments, context: ToolContext) -> ToolResult:
    path, granted = arguments.path, context.grants.host_read
    if path not in granted:
        raise Failure(
            "tool.not-permitted",
            f"{path[:60]!r} is not granted.",
            f"You may read: {', '.join(granted) or 'nothing'}.",
        )
    work = disk.report if path == DISK_REPORT else lambda: read_host_file(path)
    try:
        async with asyncio.timeout(limits.HOST_READ_SECONDS_MAX):
            return ToolResult(ok=True, output=await asyncio.to_thread(work))
    except TimeoutError as error:
        raise Failure(
            "tool.failed",
            f"{path} did not answer within {limits.HOST_READ_SECONDS_MAX:g} s.",
            "Go on without it, and report that.",
        ) from error


def read_host_file(path: str) -> str:
    """A short reading of a regular file. Blocks. Raises `Failure`."""
    resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    try:
        file = openat2(AT_FDCWD, path, READ_FLAGS, resolve)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise Failure("tool.failed", f"{path} is not a regular file.", "Do without it.")
            data = read_at_most(file, limits.FILE_READ_BYTES_MAX)
        finally:
            os.close(file)
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        raise Failure(
            "tool.failed",
            f"{path} cannot be read: {'it is a symbolic link' if is_link else error.strerror}.",
            "An operator has to grant what it points at."
            if is_link
            else "Go on without it, and report that.",
        ) from error
    return summarise(path, data.decode(errors="replace"), os.cpu_count() or 1)


def parameters(grants: Grants) -> Schema | None:
    if not grants.host_read:
        return None
    return record({"path": meanings({path: MEANINGS.get(path, path) for path in grants.host_read})})


HOST_READ: Final = Tool(
    "host.read", "Read a fact about this host.", HostReadArguments, parameters, read
)
