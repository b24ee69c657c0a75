"""What a path within a work folder may look like. Pure: looks at the text, never at the disk."""

import unicodedata
from typing import Final

from ipc_protocol.errors import Failure
from orchestrator.tools import limits

SCRATCH_PREFIX: Final = ".agentd-write"
"""How the names begin under which writes lie until they are complete; nobody else may use one."""

_UNPRINTABLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def parse_path(text: str) -> tuple[str, ...]:
    """The names along a relative path; empty for the folder itself. Raises `Failure`."""
    if text.startswith("/"):
        raise _refused(text, "starts with a slash")
    if len(text) > limits.PATH_CHARACTERS_MAX:
        raise _refused(text, f"has over {limits.PATH_CHARACTERS_MAX} characters")
    names = tuple(name for name in text.split("/") if name not in ("", "."))
    if len(names) > limits.PATH_DEPTH_MAX:
        raise _refused(text, f"is over {limits.PATH_DEPTH_MAX} names deep")
    for name in names:
        _check_name(text, name)
    return names


def scratch_name(key: str) -> str:
    """Where the write with that idempotency key lies until it is complete."""
    return f"{SCRATCH_PREFIX}-{key}"


def _check_name(text: str, name: str) -> None:
    if name == "..":
        raise _refused(text, "contains '..'")
    if name.startswith(SCRATCH_PREFIX):
        raise _refused(text, f"uses a name that begins with {SCRATCH_PREFIX}, which is reserved")
    # Control and format characters make two names look alike; a surrogate cannot be encoded.
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        raise _refused(text, "contains a character that cannot be printed")
    if len(name.encode()) > limits.PATH_NAME_BYTES_MAX:
        raise _refused(text, f"has a name of over {limits.PATH_NAME_BYTES_MAX} bytes")


def _refused(text: str, why: str) -> Failure:
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    return Failure(
        "tool.failed",
        f"The path {shown!r} {why}.",
        "Use a path within your work folder, like notes/today.md.",
    )
