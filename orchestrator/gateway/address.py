"""Where the gateway listens: `127.0.0.1:9464`, `[::1]:9464` or `unix:/run/agentd/http`. Pure."""

import ipaddress
from typing import TypeAlias

import msgspec

from orchestrator.sockets import PATH_BYTES_MAX


class AddressError(Exception):
    """The address is not one, or not one that may be listened on."""


class InternetAddress(msgspec.Struct, frozen=True):
    """`host` is an IP address: a name could come to mean another one. Port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(msgspec.Struct, frozen=True):
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address: TypeAlias = InternetAddress | UnixAddress


def parse_address(text: str, *, beyond_loopback: bool) -> Address:
    """Raises `AddressError`. `beyond_loopback` also allows addresses that others can reach."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise AddressError(f"{text!r}: a Unix socket needs an absolute path.")
        if len(path.encode()) > PATH_BYTES_MAX:
            raise AddressError(f"{text!r}: the path is over {PATH_BYTES_MAX} bytes.")
        return UnixAddress(path)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise AddressError(
            f"{text!r} is no address; expected 127.0.0.1:9464, [::1]:9464 or unix:/PATH."
        ) from error
    if not (port.isascii() and port.isdecimal() and int(port) <= 65_535):
        raise AddressError(f"{text!r}: the port is a number from 0 to 65535.")
    if not address.is_loopback and not beyond_loopback:
        raise AddressError(
            f"{text!r} can be reached by others, who would read all metrics, and the keys of other "
            "programs on their way. Use 127.0.0.1 or a Unix socket, or allow it explicitly."
        )
    return InternetAddress(str(address), int(port))
