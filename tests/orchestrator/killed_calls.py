"""Makes tool calls in processes that are killed at any step. A program, for test_tool_calls.

Each line of its input is a `Trial`; its answer is a `Came`. A trial has a process of its own, which
is forked before anything has a thread, so that it costs no start of an interpreter.

Where a process is killed is counted in what it does to files: each opening, listing, renaming or
removing in the work folder, before it happens. The places after an effect are fail points, which
the program itself reads from its environment; then the trial is made without a fork.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
from desks import Desk, ask

from ipc_protocol.work import ToolResult, UseTool
from orchestrator.failpoints import VARIABLE

FILE_EVENTS = frozenset({"open", "os.mkdir", "os.remove", "os.rename", "os.scandir"})


class Trial(msgspec.Struct):
    """Make `calls`, one after the other, for the one delivery in `folder`, and die before the
    `die_at`th thing that is done to a file."""

    folder: str
    calls: list[UseTool]
    die_at: int = 0


class Came(msgspec.Struct):
    """`results` is None where the process was killed."""

    results: list[ToolResult] | None


async def made(trial: Trial) -> Came:
    desk = Desk(Path(trial.folder))
    await desk.open()
    if await desk.reader.fetch("SELECT count(*) FROM message") == [(0,)]:
        await desk.ask()
    effects = desk.effects(tools=("fs.write",), steps=8)
    attempt = await desk.attempt()
    _die_at(trial.die_at, str(desk.folder / "work"))
    results = [await ask(effects, attempt, call) for call in trial.calls]
    await desk.store.close()
    return msgspec.convert({"results": msgspec.to_builtins(results)}, Came)


def _die_at(nth: int, work: str) -> None:
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in FILE_EVENTS and _concerns(arguments[0], work):
            done += 1
            if done == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _concerns(file: object, work: str) -> bool:
    """Whatever is no absolute path is relative to an open folder, of which only tools have any."""
    path = Path(os.fsdecode(file) if isinstance(file, str | bytes | os.PathLike) else "")
    return not path.is_absolute() or path.is_relative_to(work)


def main() -> None:
    for line in sys.stdin:
        trial = msgspec.json.decode(line, type=Trial)
        if VARIABLE in os.environ:
            answer = msgspec.json.encode(asyncio.run(made(trial)))
        else:
            answer = _forked(trial)
        print(answer.decode(), flush=True)


def _forked(trial: Trial) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(msgspec.json.encode(asyncio.run(made(trial))))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return answer if code == 0 else msgspec.json.encode(Came(results=None))


if __name__ == "__main__":
    main()
