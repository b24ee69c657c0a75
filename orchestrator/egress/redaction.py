"""A secret kept out of what its own server answers: error pages like to quote keys. Pure."""

from typing import Final

REDACTED_BYTES_MIN: Final = 8
"""A shorter one is a word like `EMPTY`, as servers without keys want it, and no secret."""

STAND_IN: Final = b"[redacted]"


class Redactor:
    """Feed it an answer piece by piece. The end of a piece that could be the beginning of the
    secret is held back until the next one comes, and only that."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret if len(secret) >= REDACTED_BYTES_MIN else b""
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be passed on now."""
        if not self._secret:
            return data
        text = (self._held + data).replace(self._secret, STAND_IN)
        held = self._begun(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> bytes:
        """What was held back, as nothing more comes."""
        rest, self._held = self._held, b""
        return rest

    def whole(self, text: str) -> str:
        """A text that comes in one piece."""
        if not self._secret:
            return text
        return text.replace(self._secret.decode(), STAND_IN.decode())

    def _begun(self, text: bytes) -> int:
        """How many bytes at the end of `text` are the longest beginning of the secret there."""
        at = max(0, len(text) - len(self._secret) + 1)
        while (at := text.find(self._secret[:1], at)) >= 0:
            if self._secret.startswith(text[at:]):
                return len(text) - at
            at += 1
        return 0
