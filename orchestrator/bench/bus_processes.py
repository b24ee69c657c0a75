"""Processes of a measurement: started, awaited within a time, and ended by their own pid.

A run is some publishers and, for a broker, a consumer. All of them are connected before the first
one starts, and all start at the same time.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.bench.bus_pacing import Load, Outcome
from orchestrator.bench.bus_program import READY, Consumer, Publisher

START_SECONDS_MAX: Final = 30.0
"""Until a program is connected: its imports take 0.2 s, or 10 s from a cold disk."""
GRACE_SECONDS: Final = 60.0
"""For a run beyond its own time: programs give up by themselves after half of that."""
STOP_SECONDS_MAX: Final = 20.0
HEADROOM_NS: Final = 50_000_000
"""Between telling the publishers when to start and that time."""
OUTPUT_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of an outcome: a latency has 9 digits, and a run has a few million requests at the most."""
LOG_LINES: Final = 12
PR_SET_PDEATHSIG: Final = 1

_libc: Final = ctypes.CDLL(None)


class Side(NamedTuple):
    """One of those who are measured, while it is up."""

    label: str
    address: str
    publisher: Sequence[str]
    """The command of its publishing program, without what it is told."""
    consumer: Sequence[str] = ()
    """And of its consuming one, if it does not bring its own."""


async def measure(side: Side, load: Load, publishers: int, folder: Path) -> list[Outcome]:
    """One run; `load` is that of each of `publishers`. Raises `Failure`."""
    seconds = (load.warmup_ns + load.duration_ns) / 1e9
    try:
        async with asyncio.timeout(START_SECONDS_MAX + seconds + GRACE_SECONDS):
            return await _run(side, load, publishers, folder)
    except TimeoutError as error:
        raise _failed(side.label, "did not end in time", folder) from error


async def _run(side: Side, load: Load, publishers: int, folder: Path) -> list[Outcome]:
    async with contextlib.AsyncExitStack() as stack:
        pipes = [_pipe(stack) for _ in range(publishers)] if side.consumer else []
        if side.consumer:
            told = Consumer(
                address=side.address,
                topic=TOPIC,
                in_flight=load.in_flight * publishers,
                notices=[writing for _, writing in pipes],
            )
            await _ready(stack, side, (*side.consumer, _json(told)), told.notices, folder)
        programs = []
        for index in range(publishers):
            notices = pipes[index][0] if pipes else -1
            publisher = Publisher(
                address=side.address, topic=TOPIC, index=index, load=load, notices=notices
            )
            passed = [notices] if pipes else []
            command = (*side.publisher, _json(publisher))
            programs.append(await _ready(stack, side, command, passed, folder))
        start = f"{time.monotonic_ns() + HEADROOM_NS}\n".encode()
        for program in programs:
            assert program.stdin is not None
            program.stdin.write(start)
        return [await _outcome(side, program, folder) for program in programs]


TOPIC: Final = "bench.in"


def _json(told: msgspec.Struct) -> str:
    return msgspec.json.encode(told).decode()


def _pipe(stack: contextlib.AsyncExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    stack.callback(os.close, writing)
    return reading, writing


async def _ready(
    stack: contextlib.AsyncExitStack,
    side: Side,
    command: Sequence[str],
    passed: Sequence[int],
    folder: Path,
) -> asyncio.subprocess.Process:
    program = await stack.enter_async_context(
        running((sys.executable, "-m", *command), folder, passed=passed)
    )
    assert program.stdout is not None
    if (await program.stdout.readline()).decode().strip() != READY:
        raise _failed(side.label, "did not become ready", folder)
    return program


async def _outcome(side: Side, program: asyncio.subprocess.Process, folder: Path) -> Outcome:
    assert program.stdout is not None
    said = await program.stdout.readline()
    status = await program.wait()
    try:
        return msgspec.json.decode(said, type=Outcome)
    except msgspec.DecodeError as error:
        how = f"ended with status {status} and left {len(said)} bytes that are no outcome"
        raise _failed(side.label, how, folder) from error


def _failed(label: str, how: str, folder: Path) -> Failure:
    return Failure(
        "request.internal",
        f"A program that measures {label} {how}:\n{tail(folder)}",
        "Try again on a machine that is less busy.",
    )


def log_of(folder: Path) -> Path:
    """Where the programs in `folder` say what goes wrong."""
    return folder / "bench.log"


def tail(folder: Path) -> str:
    """The last that they said."""
    path = log_of(folder)
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    return "\n".join(lines[-LOG_LINES:]) or "(it said nothing)"


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str], folder: Path, *, passed: Sequence[int] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process, until the block is left; it ends with this one, however this one ends."""
    with log_of(folder).open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=folder,
            pass_fds=passed,
            preexec_fn=_end_with_parent,
            limit=OUTPUT_BYTES_MAX,
        )
    try:
        yield process
    finally:
        await _stop(process)


def _end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask, wait, kill, and wait for its death."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await process.wait()
    except TimeoutError:
        process.kill()
    finally:
        await process.wait()
