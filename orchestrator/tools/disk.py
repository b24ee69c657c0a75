"""The disk report `@disk`: how full the real file systems of the host are, in a few short lines.

`parse_mounts` and `describe` are plain functions of their arguments; `report` asks the kernel and
may block, so callers run it in a thread.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from orchestrator.printable import printable
from orchestrator.tools import limits

MOUNTS_FILE: Final = Path("/proc/self/mountinfo")
_WITHOUT_DEVICE: Final = frozenset({"zfs", "bcachefs", "overlay"})
"""Real storage, although its source is not a device node."""
_READ_ONLY: Final = frozenset({"squashfs", "iso9660", "erofs", "udf"})
"""Images that are always full."""
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    path: str
    device: str
    """Major and minor number: bind mounts of one file system share it."""


class Space(NamedTuple):
    path: str
    total_bytes: int
    free_bytes: int
    """What an ordinary user can still have."""
    used_percent: int


def parse_mounts(content: str) -> list[Mount]:
    """The file systems of mountinfo (proc(5)) that hold data, each once, by its shortest path.

    Network shares are left out as well: asking one that does not answer never returns.
    """
    shortest: dict[str, Mount] = {}
    for line in content.splitlines():
        before, separator, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(source) < 2:
            continue
        mount = Mount(_unescaped(fields[4]), fields[2])
        if mount.path != "/" and not _holds_data(source[0], source[1]):
            continue
        known = shortest.get(mount.device)
        if known is None or len(mount.path) < len(known.path):
            shortest[mount.device] = mount
    return sorted(shortest.values())


def _holds_data(kind: str, source: str) -> bool:
    return kind in _WITHOUT_DEVICE or (source.startswith("/dev/") and kind not in _READ_ONLY)


def _unescaped(path: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found.group(1), 8)), path)


def describe(spaces: Iterable[Space]) -> str:
    """The fullest first, within the limit of a host answer."""
    lines: list[str] = []
    length = 0
    for space in sorted(spaces, key=lambda space: (-space.used_percent, space.path)):
        line = (
            f"{printable(space.path[:80])} {space.used_percent}% "
            f"of {_size(space.total_bytes)} used, "
            f"{_size(space.free_bytes)} free"
        )
        length += len(line) + 1
        if length > limits.HOST_OUTPUT_CHARACTERS_MAX:
            break
        lines.append(line)
    return "\n".join(lines) or "No file system holds data here."


def _size(size_bytes: int) -> str:
    """In powers of ten, as disks are sold and `df -H` shows them."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9)):
        if size_bytes >= 10 * factor:
            return f"{size_bytes // factor} {unit}"
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes // 10**6} MB"


def measure(path: str) -> Space | None:
    """How full the file system at `path` is, or None when it has no size. Raises `OSError`."""
    status = os.statvfs(path)
    used = status.f_blocks - status.f_bfree
    reachable = used + status.f_bavail
    if not reachable:
        return None
    return Space(
        path,
        status.f_blocks * status.f_frsize,
        status.f_bavail * status.f_frsize,
        -(-100 * used // reachable),  # rounded up, as df does: 100 % means full
    )


def report() -> str:
    spaces: list[Space] = []
    for mount in parse_mounts(MOUNTS_FILE.read_text(errors="surrogateescape")):
        # It may be hidden from the daemon, or have been unmounted since.
        with contextlib.suppress(OSError):
            space = measure(mount.path)
            if space is not None:
                spaces.append(space)
    return describe(spaces)
