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
        self._left = limits.LOG_BYTES_PER_CALL_MAX

    def begin_call(self) -> None:
        self._left = limits.LOG_BYTES_PER_CALL_MAX

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
        for line in text.splitlines():
            self._line(f"{level}: ", line)

    def write_stderr(self, data: bytes) -> None:
        if self._left <= 0:
            return
        self._partial += data
        while (end := self._partial.find(b"\n")) >= 0:
            self._line("stderr: ", self._partial[:end].decode(errors="replace"))
            del self._partial[: end + 1]
        if len(self._partial) > limits.LOG_LINE_CHARS_MAX:
            self._flush_partial()

    def _flush_partial(self) -> None:
        if self._partial:
            self._line("stderr: ", self._partial.decode(errors="replace"))
            self._partial.clear()

    def _line(self, prefix: str, text: str) -> None:
        if self._left <= 0:
            return
        line = prefix + escaped(shortened(text, limits.LOG_LINE_CHARS_MAX))
        self._left -= len(line) + 1
        self._write(line)
        if self._left <= 0:
            bound = limits.LOG_BYTES_PER_CALL_MAX
            self._write(
                f"component: it has said over {bound} characters in one call; no more is kept"
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
