"""Plain files: regular ones with a single name, of which nobody knows elsewhere."""

import os
import stat

from ipc_protocol.errors import Failure


def require_plain_file(path: str, status: os.stat_result) -> None:
    """Raises `Failure` for the file at `path` of that status if it is anything else."""
    if stat.S_ISDIR(status.st_mode):
        raise Failure("tool.failed", f"{path!r} is a folder.", "Name a file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise Failure("tool.failed", f"{path!r} is not a regular file.", "Use another name.")
    if status.st_nlink != 1:
        raise Failure(
            "tool.failed", f"{path!r} has a second name elsewhere.", "Use a file of its own."
        )


def read_at_most(file: int, bytes_max: int) -> bytes:
    """Up to `bytes_max` bytes: files of /proc say size 0 and come in pieces."""
    pieces: list[bytes] = []
    missing = bytes_max
    while missing and (piece := os.read(file, missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
