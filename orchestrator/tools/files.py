"""`fs.read`, `fs.list` and `fs.write`: an agent's own work folder. The disk work is `folder`'s."""

import asyncio
from typing import Annotated, Final

from msgspec import Meta

from ipc_protocol.errors import Failure
from ipc_protocol.work import ToolResult
from orchestrator.printable import printable
from orchestrator.tools import limits
from orchestrator.tools.folder import Entry
from orchestrator.tools.paths import scratch_name
from orchestrator.tools.tool import (
    Outside,
    Tool,
    ToolArguments,
    ToolContext,
    cut,
    prose,
    record,
    text,
)

Path = Annotated[str, Meta(max_length=limits.PATH_CHARACTERS_MAX)]


class PathArguments(ToolArguments, frozen=True):
    path: Path


class ListArguments(ToolArguments, frozen=True):
    path: Path = "."


class WriteArguments(ToolArguments, frozen=True):
    path: Path
    content: Annotated[str, Meta(max_length=limits.WRITE_CHARACTERS_MAX)]


async def read(arguments: PathArguments, context: ToolContext) -> ToolResult:
    file = await asyncio.to_thread(context.folder.read, arguments.path)
    if b"\0" in file.data:
        raise Failure(
            "tool.failed",
            f"{arguments.path!r} is no text: {file.size_bytes} bytes of binary data.",
            "Only text can be read.",
        )
    shown = file.data.decode(errors="replace")
    if not shown:
        return ToolResult(ok=True, output="The file is empty.")
    return ToolResult(ok=True, output=cut(shown, limits.FILE_OUTPUT_CHARACTERS_MAX))


async def list_(arguments: ListArguments, context: ToolContext) -> ToolResult:
    entries = await asyncio.to_thread(context.folder.list, arguments.path)
    if not entries:
        return ToolResult(ok=True, output="The folder is empty.")
    lines = [_line(entry) for entry in entries[: limits.LISTED_ENTRIES_MAX]]
    if len(entries) > len(lines):
        lines.append(f"… and {len(entries) - len(lines)} more")
    return ToolResult(ok=True, output=cut("\n".join(lines), limits.FILE_OUTPUT_CHARACTERS_MAX))


async def prepare_write(arguments: WriteArguments, context: ToolContext) -> None:
    folder, data = context.folder, _data(arguments)
    left = await asyncio.to_thread(folder.staged)
    if left:
        waiting = {scratch_name(key) for key in await context.calls_in_flight()}
        await asyncio.to_thread(folder.discard, left - waiting)
    await asyncio.to_thread(folder.stage, arguments.path, data, context.key)


async def write(arguments: WriteArguments, context: ToolContext) -> ToolResult:
    await asyncio.to_thread(context.folder.put, arguments.path, context.key)
    return _written(arguments)


async def recover_write(arguments: WriteArguments, context: ToolContext) -> ToolResult | None:
    finish = context.folder.finish
    done = await asyncio.to_thread(finish, arguments.path, _data(arguments), context.key)
    return _written(arguments) if done else None


def _data(arguments: WriteArguments) -> bytes:
    try:
        return arguments.content.encode()
    except UnicodeEncodeError as error:
        raise Failure(
            "tool.failed", "The content has half a character in it.", "Write plain Unicode."
        ) from error


def _written(arguments: WriteArguments) -> ToolResult:
    size_bytes = len(_data(arguments))
    return ToolResult(ok=True, output=f"Wrote {size_bytes} bytes to {arguments.path}.")


def _line(entry: Entry) -> str:
    name = printable(entry.name)
    return f"{name}/" if entry.is_folder else f"{name} {entry.size_bytes} B"


FS_READ: Final = Tool(
    "fs.read",
    "Read a text file of your work folder.",
    PathArguments,
    lambda _: record({"path": text(limits.PATH_CHARACTERS_MAX)}),
    read,
)
FS_LIST: Final = Tool(
    "fs.list",
    "List a folder of your work folder, '.' for all of it.",
    ListArguments,
    lambda _: record({"path": text(limits.PATH_CHARACTERS_MAX)}),
    list_,
)
FS_WRITE: Final = Tool(
    "fs.write",
    "Write a text file in your work folder.",
    WriteArguments,
    lambda _: record(
        {
            "path": text(limits.PATH_CHARACTERS_MAX),
            "content": prose(limits.WRITE_GENERATED_CHARACTERS_MAX),
        }
    ),
    write,
    outside=Outside(
        prepare_write,
        recover_write,
        "The file does not hold what was to be written: it was changed since, or never written. "
        "Read it before you write it again.",
    ),
)
