"""From token pieces to text that may be shown: whole characters, and nothing of a stop string.

A token may end in the middle of a character, and a stop string may begin in one token and end in
another. Both are held back until it is certain what they are. Pure.
"""

import codecs
from bisect import bisect_left


class TextStream:
    """Feed it the bytes of each token; it returns the text that is certain."""

    def __init__(self, stop: list[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = sorted(string for string in stop if string)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.text = ""
        """Everything that was returned so far."""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text that this piece makes certain. After a stop string nothing more comes."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back, now that nothing follows. Half a character becomes U+FFFD."""
        rest = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            rest += self._held
            self.text += self._held
        self._held = ""
        return rest

    def _release(self, fresh: str) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = text[: min(found)], ""
        else:
            certain = len(text) - self._undecided(text)
            text, self._held = text[:certain], text[certain:]
        self.text += text
        return text

    def _undecided(self, text: str) -> int:
        """The length of the longest end of the text that may be the beginning of a stop string.

        In their order, those that begin so stand together, behind the place of the beginning. A
        long end is passed over once for each of its characters, however often it is looked at.
        """
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            end = text[start:]
            place = bisect_left(self._stop, end)
            if place < len(self._stop) and self._stop[place].startswith(end):
                return len(end)
        return 0
