"""Binds the gateway's address before anybody is told that it is ready."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator import sockets
from orchestrator.gateway.address import Address, InternetAddress, UnixAddress

BACKLOG: Final = 64
"""A scraper and a few health checks; whoever sends more at once waits in its own kernel. Who serves
a crowd listens again, with a longer one."""

SOCKET_MODE: Final = 0o660
"""A scraper of the daemon's group may read the metrics, and its programs may ask the models."""


@contextlib.contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """A bound and listening socket. Raises `ListenError`. A Unix socket's path goes with it."""
    if isinstance(address, UnixAddress):
        path = Path(address.path)
        with sockets.listening(path, mode=SOCKET_MODE, backlog=BACKLOG) as sock:
            yield sock
    else:
        with _bound(address) as sock:
            yield sock


def _bound(address: InternetAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise sockets.cannot_listen(address, error) from error
    return sock
