"""The log of a component: lines of what it says, on the standard error of its worker.

It is read by a person, on a terminal and next to other agents' lines. So a line stays a line,
whatever is in it; each says what it is; and a call that floods its log is cut off.
"""

import unicodedata
from typing import Final, TextIO

from agent_runtime.component import limits

_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters, halves of characters, and separators: a terminal obeys them."""


def escaped(text: str) -> str:
    """`text` with the characters that a terminal obeys as Python writes them: `\\n`, `\\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) in _OBEYED else character
        for character in text
    )


class Log:
    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._partial = bytearray()
        self.begin_call()

    def begin_call(self) -> None:
        self._left = limits.LOG_BYTES_PER_CALL_MAX
        self._lines_left = limits.LOG_LINES_PER_CALL_MAX

    def end_call(self) -> None:
        """What was written to standard error without an end of line becomes one."""
        self._flush_partial()
        self._out.flush()

    def host(self, text: str) -> None:
        """Lines of the host's own, which are never cut off."""
        for line in text.splitlines():
            self._write(f"component: {escaped(line)}")

    def say(self, level: str, text: str) -> None:
        """What the component says at a level. Several lines become several."""
        for line in text.removesuffix("\n").split("\n", limits.LOG_LINES_PER_CALL_MAX):
            self._line(f"{level}: ", line)

    def write_stderr(self, data: bytes) -> None:
        if self._is_full:
            return
        *lines, rest = bytes(self._partial + data).split(b"\n", limits.LOG_LINES_PER_CALL_MAX)
        for line in lines:
            self._line("stderr: ", line.decode(errors="replace"))
        self._partial[:] = rest
        if len(self._partial) > limits.LOG_LINE_CHARS_MAX:
            self._flush_partial()

    def _flush_partial(self) -> None:
        if self._partial:
            self._line("stderr: ", self._partial.decode(errors="replace"))
            self._partial.clear()

    @property
    def _is_full(self) -> bool:
        return self._left <= 0 or self._lines_left <= 0

    def _line(self, prefix: str, text: str) -> None:
        if self._is_full:
            return
        line = prefix + escaped(shortened(text, limits.LOG_LINE_CHARS_MAX))
        self._left -= len(line) + 1
        self._lines_left -= 1
        self._write(line)
        if self._is_full:
            self._write(
                f"component: it has said {limits.LOG_LINES_PER_CALL_MAX} lines, or over"
                f" {limits.LOG_BYTES_PER_CALL_MAX} characters, in one call; no more is kept"
            )

    def _write(self, line: str) -> None:
        # The call must not end because of the locale that the stream was opened in.
        encoding = self._out.encoding or "utf-8"
        self._out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def shortened(text: str, characters_max: int) -> str:
    """`text`, or its beginning and how much is missing."""
    if len(text) <= characters_max:
        return text
    return f"{text[:characters_max]}… ({len(text) - characters_max} more characters)"
