"""Unix sockets that others find by their path: the control socket and the gateway's.

A path is taken over from a daemon that was killed, never from one that answers, and what lies there
and is no socket is never touched: a mistyped path may be somebody's file.

A lock beside the path is held from the probe until the new socket listens: of two daemons that find
the same dead socket, the second would else remove what the first has just bound. The lock's file is
kept, because one that is unlinked can be locked by two.
"""

import contextlib
import errno
import fcntl
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
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        try:
            _is_socket(path)  # before a lock is left beside somebody's file
            with _locked(path):
                _clear(path)
                identity = _bind(listener, path, mode)
                listener.listen(backlog)
        except OSError as error:
            raise cannot_listen(path, error) from error
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


def _is_socket(path: Path) -> bool:
    """Whether there is a socket at `path`. Raises `ListenError` for anything else there."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(kind):
        raise ListenError(
            f"{path} exists and is no socket; it is left alone. Choose another path for the "
            "socket, or move away what is there."
        )
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(f"{path}.lock", flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:  # somebody is about to listen there
            raise in_use(path) from error
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove what a program left that was killed: a socket on which nobody listens."""
    if not _is_socket(path):
        return
    if _answers(path):
        raise in_use(path)
    path.unlink(missing_ok=True)


def _bind(listener: socket.socket, path: Path, mode: int) -> tuple[int, int]:
    mask = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
        return _identity(path)
    finally:
        os.umask(mask)


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
