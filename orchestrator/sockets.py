"""Unix sockets that others find by their path: the control socket and the gateway's.

A path is taken over from a daemon that was killed, never from one that answers, and what lies there
and is no socket is never touched: a mistyped path may be somebody's file.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PATH_BYTES_MAX: Final = 107
"""`sun_path` of unix(7) has 108 bytes, the last of which is zero."""


class ListenError(Exception):
    """Nothing can listen there. Says where, why, and what to do."""


@contextlib.contextmanager
def listening(path: Path, *, mode: int, backlog: int) -> Iterator[socket.socket]:
    """A listening socket at `path`, whose file goes when the block is left. Raises `ListenError`.

    `mode` are the permissions of its file from its first moment on. It does not block.
    """
    _clear(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        mask = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
            identity = _identity(path)
            listener.listen(backlog)
        except OSError as error:
            raise cannot_listen(path, error) from error
        finally:
            os.umask(mask)
        try:
            yield listener
        finally:
            # Another one may have taken the path over since.
            with contextlib.suppress(FileNotFoundError):
                if _identity(path) == identity:
                    path.unlink()


def cannot_listen(where: object, error: OSError) -> ListenError:
    """The error for an address that cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return in_use(where)
    return ListenError(
        f"Cannot listen on {where}: {os.strerror(error.errno or 0)}. Choose another one, where "
        "this user may."
    )


def in_use(where: object) -> ListenError:
    return ListenError(
        f"{where} is in use. Stop the program that listens there (`ss -lp` shows it), or choose "
        "another one."
    )


def _clear(path: Path) -> None:
    """Remove what a program left that was killed: a socket on which nobody listens."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenError(
                f"{path} exists and is no socket; it is left alone. Choose another path for the "
                "socket, or move away what is there."
            )
        if _answers(path):
            raise in_use(path)
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_listen(path, error) from error


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True  # its backlog is full
    return True


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
