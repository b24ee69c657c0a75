"""Splits what a program writes to its standard error into lines of bounded length. Pure."""

from typing import Final

LINE_BYTES_MAX: Final = 2000
"""A line of a traceback or of llama.cpp is far shorter; what is longer is no message for people."""


class LineSplitter:
    """Feed it bytes as they come. The rest of a line that is too long is dropped."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._line_bytes_max = line_bytes_max
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, empty ones left out."""
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
        return [text] if text else []

    def _extend(self, piece: bytes) -> None:
        self._begun += piece[: self._line_bytes_max - len(self._begun)]
