"""Server-sent events (HTML standard, 9.2.6), as they come in pieces of any length.

Bytes in, the data of whole events out. Only the field `data` is of use here; comments, names and
ids are skipped. Pure.
"""

import codecs
from typing import Final

from ipc_protocol.errors import Failure

EVENT_CHARACTERS_MAX: Final = 1024 * 1024
"""One event: a token with 20 others and their bytes has 4 KiB, a whole answer some hundred."""


class EventReader:
    """Feed it bytes; it returns the data of each event that they complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="strict")
        self._line = ""
        self._data: list[str] = []
        self._held = 0
        """Characters in `_data`."""
        self._after_return = False
        """The last character was a CR, and a LF behind it belongs to it."""

    def feed(self, data: bytes) -> list[str]:
        """Raises `egress.failed` for what is no text, or too long."""
        try:
            text = self._decoder.decode(data)
        except UnicodeDecodeError as error:
            raise _broken("is not UTF-8") from error
        if self._after_return and text:
            text = text.removeprefix("\n")
            self._after_return = False
        self._after_return = self._after_return or text.endswith("\r")
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        events: list[str] = []
        for line in lines:
            self._extend(line)
            events += self._end_line()
        self._extend(rest)
        return events

    def _extend(self, piece: str) -> None:
        if self._held + len(self._line) + len(piece) > EVENT_CHARACTERS_MAX:
            raise _broken(f"has an event of more than {EVENT_CHARACTERS_MAX} characters")
        self._line += piece

    def _end_line(self) -> list[str]:
        line, self._line = self._line, ""
        if not line:
            data, self._data, self._held = self._data, [], 0
            return ["\n".join(data)] if data else []
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
            self._held += len(line)
        return []


def _broken(fault: str) -> Failure:
    return Failure(
        "egress.failed",
        f"The stream of the remote server {fault}.",
        "See whether `url` names a server that speaks OpenAI's interface.",
        reason="broken",
    )
