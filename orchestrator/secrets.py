"""Secrets of the operator, read from where the configuration says that they are.

`file:PATH`, `env:NAME` or `credential:NAME` (of systemd). What was read is a `Secret`, which shows
itself to nobody by accident, and no error quotes it: it names the reference and what is wrong.
"""

import os
import stat
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Final, Literal, NoReturn

from ipc_protocol.errors import Failure

SECRET_BYTES_MAX: Final = 8 * 1024
"""The longest tokens in use are signed ones of 2 to 4 KiB, and a header line may have 8 KiB."""

CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
"""Where systemd says in which folder a service finds its credentials."""

EXPECTED: Final = "`file:PATH`, `env:NAME` or `credential:NAME`"


class Secret:
    """A text that is shown by `reveal` alone, not by `str`, `repr`, a format or a pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")


def kind_of(reference: str) -> Literal["file", "env", "credential"] | None:
    """Where a reference leads, or None for what is not one."""
    kind, colon, name = reference.partition(":")
    if not colon or not name or "\0" in name:
        return None
    if kind == "file":
        return "file"
    if kind == "env" and "=" not in name:
        return "env"
    if kind == "credential" and "/" not in name and name not in (".", ".."):
        return "credential"
    return None


def read(reference: str, environment: Mapping[str, str]) -> Secret:
    """The secret that `reference` names. Raises `model.unavailable`; it blocks for one file."""
    kind, name = kind_of(reference), reference.partition(":")[2]
    if kind == "env":
        if name not in environment:
            raise _unreadable(reference, "is not set in the environment of the daemon")
        return _secret(reference, environment[name])
    if kind == "file":
        return _secret(reference, _content(reference, Path(name)))
    if kind == "credential":
        folder = environment.get(CREDENTIALS)
        if folder is None:
            raise _unreadable(reference, "cannot be found, as systemd has given no credentials")
        return _secret(reference, _content(reference, Path(folder) / name))
    # Not quoted: what is no reference may be the key itself.
    raise Failure(
        "model.unavailable",
        f"A key is not {EXPECTED}.",
        "Put the key into a file that only the daemon can read, and its path here.",
    )


def withdraw(references: Iterable[str], environment: MutableMapping[str, str]) -> None:
    """Take secrets out of an environment, so that programs started later do not inherit them."""
    for reference in references:
        if kind_of(reference) == "env":
            environment.pop(reference.partition(":")[2], None)


def _content(reference: str, path: Path) -> str:
    try:
        # Nothing that is opened here may hold the daemon up: a FIFO would, until somebody writes.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(reference, f"cannot be opened: {error.strerror}") from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise _unreadable(reference, "is no regular file")
        if found.st_mode & stat.S_IRWXO:
            raise _unreadable(reference, "can be read or written by every user of this machine")
        content = os.read(file, SECRET_BYTES_MAX + 2)
    except OSError as error:
        raise _unreadable(reference, f"cannot be read: {error.strerror}") from error
    finally:
        os.close(file)
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        # Without its cause, which would quote the content.
        raise _unreadable(reference, "holds what is not plain ASCII") from None


def _secret(reference: str, text: str) -> Secret:
    """`text` without the line end that editors leave behind. It must fit into a header."""
    value = text.removesuffix("\n").removesuffix("\r")
    if not value:
        raise _unreadable(reference, "is empty")
    if len(value) > SECRET_BYTES_MAX:
        raise _unreadable(reference, f"is longer than {SECRET_BYTES_MAX} bytes")
    if not all("!" <= character <= "~" for character in value):
        raise _unreadable(reference, "holds a space, a line end or what is not plain ASCII")
    return Secret(value)


def _unreadable(reference: str, fault: str) -> Failure:
    return Failure(
        "model.unavailable",
        f"The key {reference} {fault}.",
        "The key is one line of ASCII; a file with it is readable by the daemon's user alone.",
        reference=reference,
    )
