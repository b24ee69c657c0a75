"""Components, kept by their content: `HASH.wasm` in one folder, each whole and on disk.

A component comes from a path that the configuration names, or in pieces over the control socket,
since the daemon may not be able to read what a person can. An upload has no state but its file,
`HASH.upload`: whoever goes on with it says where, and is told how far it is. Whatever leaves this
folder was compared with its hash, so that a file which was damaged is missing instead of wrong.

All of it blocks, so callers run it in a thread.
"""

import errno
import logging
import os
import re
import stat
import threading
import time
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from inference_client.fetch import disk_full
from ipc_protocol.errors import Failure
from orchestrator.components import limits
from orchestrator.components.private import (
    PART,
    Foreign,
    TooLong,
    content,
    keep,
    make_folder,
    new_part,
    open_own,
    write_all,
)

log = logging.getLogger(__name__)

SHA256: Final = re.compile(r"[0-9a-f]{64}")

KEPT: Final = ".wasm"
UPLOAD: Final = ".upload"


class ComponentFile(msgspec.Struct, frozen=True):
    """A component that is kept. `sha256` is in hexadecimal."""

    sha256: str
    size_bytes: int
    path: Path


class Uploaded(msgspec.Struct, frozen=True):
    """How far an upload is: where to go on, or the file once it is whole."""

    received_bytes: int
    file: ComponentFile | None = None


class ComponentFiles:
    """The components in one folder, which no other program uses."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        # What is added, uploaded and removed at once would count and clean up after each other.
        self._changing = threading.Lock()

    def add(self, source: Path | int) -> ComponentFile:
        """Keep the component at a path that an operator wrote, or of a descriptor.

        Raises `component.unknown` for what cannot be opened, `component.malformed` for what is no
        file, `component.compile` for what is too large, and `store.full`.
        """
        with _opened(source) as file, self._changing, disk_full(self._folder):
            try:
                known = content(file, limits.COMPONENT_BYTES_MAX)
                return self._intact(known.sha256) or self._copy(file)
            except TooLong:
                raise _too_large(_named(source)) from None

    def append(self, sha256: str, offset: int, data: bytes, total_bytes: int) -> Uploaded:
        """Take in a piece of an upload, or none (`data` empty) to hear how far it is.

        A piece that is not the next one is left out, and the answer says which would be. The file
        is there with the last piece. Raises `request.invalid` for what is not the component of that
        hash, `component.compile` for what is too large, `component.busy` and `store.full`.
        """
        _require_hash(sha256)
        if total_bytes > limits.COMPONENT_BYTES_MAX:
            raise _too_large("The component")
        with self._changing, disk_full(self._folder):
            kept = self._intact(sha256)
            if kept is not None:
                return Uploaded(kept.size_bytes, kept)
            part = self._folder / f"{sha256}{UPLOAD}"
            self._require_room(part)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
            with FileIO(os.open(part, flags, 0o600), "r+") as file:
                return self._take_in(file, part, sha256, offset, data, total_bytes)

    def find(self, sha256: str) -> ComponentFile | None:
        """The component of that hash, if it is kept. It is not read, so it may be damaged."""
        _require_hash(sha256)
        path = self._path(sha256)
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        return ComponentFile(sha256, status.st_size, path)

    def open(self, sha256: str) -> FileIO:
        """The component, to be read. Raises `component.unknown`."""
        _require_hash(sha256)
        file = self._open_intact(sha256)
        if file is None:
            raise Failure(
                "component.unknown",
                f"The component {sha256} is not kept here, or not any more.",
                "Add its file again.",
                sha256=sha256,
            )
        return file

    def remove_unused(self, in_use: set[str]) -> list[str]:
        """Remove all components but those of these hashes, and what was never finished.

        For the start, before anybody adds something that is not in use yet. Returns the hashes.
        """
        removed = []
        with self._changing:
            for path in self._folder.iterdir():
                if path.suffix == KEPT and path.stem not in in_use:
                    path.unlink()
                    removed.append(path.stem)
                elif path.suffix == PART:
                    path.unlink()
            self._remove_abandoned()
        return sorted(removed)

    # -- within

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{KEPT}"

    def _copy(self, source: FileIO) -> ComponentFile:
        """What counts is what was copied: the source may have changed since it was hashed."""
        file, part = new_part(self._folder)
        with file:
            try:
                size_bytes = 0
                while piece := os.pread(source.fileno(), limits.PIECE_BYTES, size_bytes):
                    size_bytes += len(piece)
                    if size_bytes > limits.COMPONENT_BYTES_MAX:
                        raise TooLong
                    write_all(file, piece)
                sha256 = content(file, limits.COMPONENT_BYTES_MAX).sha256
                keep(file, part, self._path(sha256))
            except (OSError, TooLong):
                part.unlink()
                raise
        return ComponentFile(sha256, size_bytes, self._path(sha256))

    def _intact(self, sha256: str) -> ComponentFile | None:
        file = self._open_intact(sha256)
        if file is None:
            return None
        file.close()
        return self.find(sha256)

    def _open_intact(self, sha256: str) -> FileIO | None:
        """What is kept under that hash. What has another content is removed."""
        path = self._path(sha256)
        try:
            file = open_own(path)
            if _has_content(file, sha256):
                return file
            file.close()
            reason = "it was damaged"
        except FileNotFoundError:
            return None
        except Foreign as foreign:
            reason = str(foreign)
        log.warning("the kept component %s is removed: %s", sha256, reason)
        path.unlink(missing_ok=True)
        return None

    def _take_in(
        self, file: FileIO, part: Path, sha256: str, offset: int, data: bytes, total_bytes: int
    ) -> Uploaded:
        received_bytes = os.fstat(file.fileno()).st_size
        if max(received_bytes, offset + len(data)) > total_bytes:
            part.unlink()
            raise Failure(
                "request.invalid",
                f"The upload of {sha256} is longer than the {total_bytes} bytes it should have.",
                "Begin again.",
            )
        if offset == received_bytes:
            write_all(file, data)
            received_bytes += len(data)
        if received_bytes < total_bytes:
            return Uploaded(received_bytes)
        if not _has_content(file, sha256):
            part.unlink()
            raise Failure(
                "request.invalid",
                f"What came is not the component {sha256}: its hash is another one.",
                "The file changed while it was read. Begin again.",
            )
        path = self._path(sha256)
        keep(file, part, path)
        return Uploaded(received_bytes, ComponentFile(sha256, received_bytes, path))

    def _require_room(self, part: Path) -> None:
        self._remove_abandoned(but=part)
        others = [path for path in self._folder.glob(f"*{UPLOAD}") if path != part]
        if len(others) >= limits.UPLOADS_MAX:
            raise Failure(
                "component.busy",
                f"{len(others)} other components are being uploaded.",
                f"Try again when they are done. One that was given up makes room after "
                f"{limits.UPLOAD_IDLE_SECONDS_MAX:g} s.",
            )

    def _remove_abandoned(self, but: Path | None = None) -> None:
        for path in self._folder.glob(f"*{UPLOAD}"):
            idle_s = time.time() - path.lstat().st_mtime
            if path != but and idle_s > limits.UPLOAD_IDLE_SECONDS_MAX:
                path.unlink()


def _require_hash(sha256: str) -> None:
    """It becomes the name of a file."""
    if SHA256.fullmatch(sha256) is None:
        raise Failure(
            "request.invalid",
            "A component is named by its SHA-256, 64 hexadecimal digits in lower case.",
            "Use the hash that `agentd component check` shows.",
        )


def _has_content(file: FileIO, sha256: str) -> bool:
    try:
        return content(file, limits.COMPONENT_BYTES_MAX).sha256 == sha256
    except TooLong:
        return False


def _too_large(name: str) -> Failure:
    return Failure(
        "component.compile",
        f"{name} is larger than {limits.COMPONENT_BYTES_MAX // 2**20} MiB.",
        "Leave out what it does not need: its debugging sections most of all.",
        bytes_max=limits.COMPONENT_BYTES_MAX,
    )


_CURES: Final = {
    errno.ENOENT: "Check the path.",
    errno.EACCES: "Allow the user that this runs as to read it and to enter the folders above it.",
}


def _opened(source: Path | int) -> FileIO:
    """A path of the configuration is as good as its file: links are followed."""
    if isinstance(source, int):
        _require_regular(source, source)
        return FileIO(source, "r", closefd=False)
    try:
        file = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(
            "component.unknown",
            f"{_named(source)} cannot be opened: {error.strerror}.",
            _CURES.get(error.errno or 0, "Name a .wasm file."),
        ) from error
    try:
        _require_regular(file, source)
    except Failure:
        os.close(file)
        raise
    return FileIO(file, "r")


def _require_regular(file: int, source: Path | int) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise Failure(
            "component.malformed",
            f"{_named(source)} is not a regular file.",
            "Name a .wasm file.",
        )


def _named(source: Path | int) -> str:
    return "The component" if isinstance(source, int) else f"The component {source}"
