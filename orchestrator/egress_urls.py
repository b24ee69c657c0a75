"""Which URLs a grant covers: its own, and what lies below its path. Pure.

A URL is a scheme, a host, a port and a path of plain words, and nothing else: no user, no query, no
fragment, no percent sign, no `.` or `..` that a server might resolve, no `//` that a client might.
What is not written so is refused and never mended, so that no two readers can disagree about it.
"""

import ipaddress
import re
from typing import Final, Self

import msgspec

from ipc_protocol.errors import Failure

URL_CHARACTERS_MAX: Final = 512
"""Those of well-known servers have fewer than 100."""

PATH_CHARACTERS_MAX: Final = 256
"""`/chat/completions` has 17."""

_PATH: Final = r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = rf"{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\]"
_URL: Final = re.compile(rf"(https?)://({_HOST})(?::([0-9]{{1,5}}))?({_PATH}*)/?")
_BELOW: Final = re.compile(rf"{_PATH}+")

EXPECTED: Final = "`https://HOST[:PORT]/PATH` of plain words, without user, query or fragment"


class UrlError(ValueError):
    """The text is no URL that can be granted. What it says does not repeat the text, in which there
    may be a password."""


class GrantedUrl(msgspec.Struct, frozen=True):
    """A server, and where on it a grant begins. `host` is lower-case, `prefix` ends without `/`."""

    scheme: str
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `UrlError`."""
        found = _URL.fullmatch(text) if len(text) <= URL_CHARACTERS_MAX else None
        if found is None:
            raise UrlError(f"it is not {EXPECTED}")
        scheme, host, port, prefix = found.groups()
        if host.startswith("["):
            _check_literal(host)
        number = int(port) if port else {"http": 80, "https": 443}[scheme]
        if not 1 <= number <= 65_535:
            raise UrlError("its port is no number from 1 to 65535")
        return cls(scheme, host.lower(), number, prefix)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{self.prefix}"

    def below(self, path: str) -> str:
        """The URL of `path` below this one. Raises `egress.not-permitted`."""
        if len(path) > PATH_CHARACTERS_MAX or not _BELOW.fullmatch(path):
            raise Failure(
                "egress.not-permitted",
                f"{path[:PATH_CHARACTERS_MAX]!r} is no path below {self}.",
                "A path is `/` and plain words, without `.`, `..`, `//`, `%` and `?`.",
            )
        return f"{self}{path}"

    @property
    def keeps_secrets(self) -> bool:
        """Whether what is sent there can be read by nobody on the way: by TLS, or within this
        machine."""
        if self.scheme == "https" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def _check_literal(host: str) -> None:
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError as error:
        raise UrlError(f"{host} is no IPv6 address") from error
