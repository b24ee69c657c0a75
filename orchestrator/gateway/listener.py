"""Binds the gateway's address before anybody is told that it is ready."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.gateway.address import Address, UnixAddress

BACKLOG: Final = 64
"""A scraper and a few health checks; whoever sends more at once waits in its own kernel."""


class ListenError(Exception):
    """The address cannot be bound, with the cure."""


@contextlib.contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """A bound and listening socket. Raises `ListenError`. A Unix socket's path goes with it."""
    if isinstance(address, UnixAddress):
        path = Path(address.path)
        _clear_stale(path)
        sock = _bound(socket.AF_UNIX, address.path, address)
        path.chmod(0o660)
        created = path.stat().st_ino
        try:
            with sock:
                yield sock
        finally:
            # Only its own: another gateway may have taken the path meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == created:
                    path.unlink()
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with _bound(family, (address.host, address.port), address) as sock:
            yield sock


def _bound(
    family: socket.AddressFamily, where: str | tuple[str, int], address: Address
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ListenError(
                f"{address} is in use. Stop the program that listens there (ss -lp shows it), or "
                "choose another address."
            ) from error
        raise ListenError(
            f"Cannot listen on {address}: {os.strerror(error.errno or 0)}."
        ) from error
    return sock


def _clear_stale(path: Path) -> None:
    """Remove what a gateway left that was killed: a socket on which nobody listens."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            except OSError:
                return
