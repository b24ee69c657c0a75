"""Follows what one program writes to its standard error, and puts it into the daemon's log."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Final

from orchestrator.supervision.lines import PAUSE_US, LineLimit, LineSplitter

log = logging.getLogger(__name__)

READ_BYTES: Final = 64 * 1024
"""A whole pipe at once."""

STDERR_SECONDS_MAX: Final = 1.0
"""How long the log is read after a death; whoever else holds it open is not waited for."""


class ChildLog:
    """The log of one program from its start to its end, under its name. Only one loop may use it.

    It takes `read_fd`, and reads at the rate of `lines`; `keep` is given every line that was read,
    also those that are left out of the log.
    """

    def __init__(self, name: str, read_fd: int, keep: Callable[[str], None] | None = None) -> None:
        self._name = name
        self._keep = keep
        self._ended = asyncio.Event()
        self._reading = asyncio.create_task(self._read(read_fd), name=f"log of {name}")

    async def wait_end(self) -> None:
        """The program is dead: wait for its last words, which may still be on their way."""
        self._ended.set()
        await asyncio.wait((self._reading,), timeout=STDERR_SECONDS_MAX)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self, read_fd: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=READ_BYTES)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
        )
        splitter, limit = LineSplitter(), LineLimit(_now_us())
        try:
            while data := await reader.read(READ_BYTES):
                self._log(splitter.feed(data), len(data), limit)
                if limit.exhausted:
                    await self._pause()
        finally:
            self._log(splitter.finish(), 0, limit)
            self._write(limit.finish())
            transport.close()

    async def _pause(self) -> None:
        """A dead program's last words are not held up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_US / 1e6):
                await self._ended.wait()

    def _log(self, lines: list[str], read_bytes: int, limit: LineLimit) -> None:
        if self._keep is not None:
            for line in lines:
                self._keep(line)
        self._write(limit.admit(lines, read_bytes, _now_us()))

    def _write(self, lines: list[str]) -> None:
        for line in lines:
            log.info("%s: %s", self._name, line)


def _now_us() -> int:
    return time.monotonic_ns() // 1000
