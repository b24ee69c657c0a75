"""What a program writes to its standard error, as lines of bounded length and at a bounded rate.
Pure.

A worker is hostile: it may write without end, write no line at all, or write what a terminal obeys
and what looks like somebody else's line.
"""

from collections.abc import Sequence
from typing import Final

from orchestrator.printable import printable

LINE_BYTES_MAX: Final = 2000
"""A line of a traceback or of llama.cpp is far shorter; what is longer is no message for people."""

LINES_PER_SECOND_MAX: Final = 64
"""More is not read by people as it comes, and a hundred such programs are a log of 13 MB/s at the
very most."""

LINES_BURST_MAX: Final = 256
"""At once: a model's loading, or a few of the longest tracebacks."""

PAUSE_US: Final = 1_000_000
"""How long nothing is read of a program that is over its rate. Its pipe fills up meanwhile, and its
next write waits, so that it costs the daemon no more than a pipe's content in this time."""

assert LINES_PER_SECOND_MAX * PAUSE_US // 1_000_000 > 1  # what was left out is said in a line


class LineSplitter:
    """Feed it bytes as they come. The rest of a line that is too long is dropped."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._line_bytes_max = line_bytes_max
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, printable, empty ones left out."""
        *complete, rest = data.split(b"\n")
        lines: list[str] = []
        for piece in complete:
            self._extend(piece)
            lines.extend(self.finish())
        self._extend(rest)
        return lines

    def finish(self) -> list[str]:
        """What came since the last end of a line, if anything."""
        text = self._begun.decode(errors="replace").rstrip()
        self._begun.clear()
        return [printable(text, keep="\t")] if text else []

    def _extend(self, piece: bytes) -> None:
        self._begun += piece[: self._line_bytes_max - len(self._begun)]


class LineLimit:
    """How many lines of one program are let through: a bucket of `burst` that fills at a rate."""

    def __init__(
        self,
        now_us: int,
        *,
        per_second: int = LINES_PER_SECOND_MAX,
        burst: int = LINES_BURST_MAX,
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._room = float(burst)
        self._filled_us = now_us
        self._dropped = 0

    @property
    def exhausted(self) -> bool:
        """Nothing more is let through now: leave it unread for `PAUSE_US`."""
        return self._room < 1

    def admit(self, lines: Sequence[str], read_bytes: int, now_us: int) -> list[str]:
        """Those of `lines` that are let through, after a line that says how many were not.

        Bytes without a line end, of which `read_bytes` counts all, use up the rate as well.
        """
        self._fill(now_us)
        told = self._tell()
        passed = lines[: int(self._room)]
        self._dropped += len(lines) - len(passed)
        self._room = max(0.0, self._room - max(len(passed), read_bytes / LINE_BYTES_MAX))
        return [*told, *passed]

    def finish(self) -> list[str]:
        """The line that says how many were not let through, if there are any, whatever the rate."""
        self._room += 1
        return self._tell()

    def _tell(self) -> list[str]:
        if not self._dropped or self.exhausted:
            return []
        self._room -= 1
        lines = "1 line" if self._dropped == 1 else f"{self._dropped} lines"
        self._dropped = 0
        return [f"… {lines} left out, over {self._per_second} a second"]

    def _fill(self, now_us: int) -> None:
        gained = (now_us - self._filled_us) * self._per_second / 1e6
        self._room = min(float(self._burst), self._room + gained)
        self._filled_us = now_us
