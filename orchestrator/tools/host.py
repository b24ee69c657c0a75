"""`host.read`: exactly the granted paths of the host, and the disk report `@disk`.

A granted path is taken literally. One that is a symbolic link is refused, because whoever may
change the link would choose what the daemon reads with its own rights.
"""

import asyncio
import errno
import os
import stat
from typing import Annotated, Final

from msgspec import Meta

from ipc_protocol.errors import Failure
from ipc_protocol.work import ToolResult
from orchestrator.tools import disk, limits
from orchestrator.tools.folder import read_at_most
from orchestrator.tools.openat2 import (
    AT_FDCWD,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from orchestrator.tools.summaries import summarise
from orchestrator.tools.tool import Grants, Schema, Tool, ToolArguments, ToolContext, choice, record

DISK_REPORT: Final = "@disk"


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
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        file = openat2(AT_FDCWD, path, flags, resolve)
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
    return record({"path": choice(grants.host_read)}) if grants.host_read else None


HOST_READ: Final = Tool(
    "host.read", "Read a fact about this host.", HostReadArguments, parameters, read
)
