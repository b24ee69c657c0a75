"""Native code of components, and how the daemon knows that it is its own.

Theory of operation. Native code is run as it is: whoever can change it runs what he likes in a
worker. So each entry is two files: `HASH.native` is exactly what the library maps, `HASH.json` a
line with an HMAC and a line with what it is of (the component, the settings it is good for, the
digest of the native code, and the shape that decides about grants). The key of the HMAC is the
daemon's own, made once. An entry is opened first, checked and hashed through that descriptor, and
this same descriptor is what workers are given: no name is looked up in between. Whatever does not
hold is told, removed and compiled anew; it is never handed out.

An entry whose two files are not from the same compilation, as a crash between them would leave it,
fails the same checks. All of it blocks, so callers run it in a thread.
"""

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from inference_client.fetch import disk_full
from ipc_protocol.components import Compiled, ComponentInfo, ComponentShape
from ipc_protocol.errors import Failure
from orchestrator.components import limits
from orchestrator.components.files import ComponentFile
from orchestrator.components.private import (
    PART,
    Foreign,
    TooLong,
    content,
    keep,
    make_folder,
    new_part,
    open_own,
    write_file,
)

log = logging.getLogger(__name__)

NATIVE: Final = ".native"
SIDECAR: Final = ".json"
KEY: Final = "key"

NATIVE_MODE: Final = 0o444
"""Workers map it as their own users; nobody else enters the folder. Nobody ever writes to it."""

_DAY_SECONDS: Final = 24 * 3600


class _Sidecar(msgspec.Struct, frozen=True):
    """What is known of an entry, and signed."""

    sha256: str
    size_bytes: int
    settings: str
    native_sha256: str
    native_bytes: int
    compile_us: int
    memory_bytes_peak: int
    shape: ComponentShape


class _Refused(Exception):
    """An entry may not be used, and why."""


class NativeCode:
    """Native code that was found to be ours, open for reading, until it is closed or forgotten."""

    def __init__(self, info: ComponentInfo, file: FileIO) -> None:
        self.info = info
        self._file = file

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


class Draft:
    """The empty file that a compiler writes to; it is adopted or discarded."""

    def __init__(self, folder: Path) -> None:
        self.file, self.path = new_part(folder)

    def close(self) -> None:
        """Nothing is left of it unless it was adopted, and has another name now."""
        self.file.close()
        self.path.unlink(missing_ok=True)


class NativeCache:
    """The native code below one folder, which no other program uses.

    `on_refused` is called for every entry that had to be removed.
    """

    def __init__(self, folder: Path, on_refused: Callable[[], None]) -> None:
        self._folder = folder / "native"
        make_folder(folder)
        make_folder(self._folder)
        self._key = _load_key(folder / KEY)
        self._on_refused = on_refused

    def find(self, sha256: str, settings: str) -> NativeCode | None:
        """The native code of a component, if there is one for these settings that is ours."""
        try:
            return self._open(sha256, settings)
        except FileNotFoundError:
            self._remove(sha256)  # one of the two files may be there
            return None
        except (Foreign, _Refused) as refused:
            reason = str(refused)
        log.warning(
            "the native code kept of component %s is not used: %s; it is compiled anew",
            sha256,
            reason,
        )
        self._on_refused()
        self._remove(sha256)
        return None

    def draft(self) -> Draft:
        """Raises `store.full`."""
        with disk_full(self._folder):
            return Draft(self._folder)

    def adopt(self, draft: Draft, component: ComponentFile, compiled: Compiled) -> None:
        """Keep what a compiler wrote, which must be dead by now: it had the file open.

        Raises `component.compile` for what is not as long as the compiler says, and `store.full`.
        """
        with disk_full(self._folder):
            try:
                native = content(draft.file, limits.NATIVE_BYTES_MAX)
            except TooLong:
                raise _too_large(component) from None
            if not native.size_bytes or native.size_bytes != compiled.native_bytes:
                raise Failure(
                    "component.compile",
                    f"The compiler wrote {native.size_bytes} bytes for {component.sha256} and said "
                    f"{compiled.native_bytes}.",
                    "Look into the log for what the compiler said.",
                )
            sidecar = _Sidecar(
                sha256=component.sha256,
                size_bytes=component.size_bytes,
                settings=compiled.settings,
                native_sha256=native.sha256,
                native_bytes=native.size_bytes,
                compile_us=compiled.compile_us,
                memory_bytes_peak=compiled.memory_bytes_peak,
                shape=compiled.shape,
            )
            signed = self._signed(sidecar)
            os.fchmod(draft.file.fileno(), NATIVE_MODE)
            keep(draft.file, draft.path, self._native(component.sha256))
            write_file(self._sidecar(component.sha256), signed)

    def remove_unused(self, in_use: set[str]) -> list[str]:
        """Remove what no agent uses and is old, or too much; and what was never finished.

        For the start, before anything is compiled. Returns the hashes.
        """
        now_s = time.time()
        unused: list[tuple[float, int, str]] = []
        for path in self._folder.iterdir():
            if path.suffix == PART:
                path.unlink()
            elif path.suffix == NATIVE and path.stem not in in_use:
                status = path.lstat()
                unused.append((now_s - status.st_mtime, status.st_size, path.stem))
        removed, kept_bytes = [], 0
        for age_s, size_bytes, sha256 in sorted(unused):
            kept_bytes += size_bytes
            if (
                age_s > limits.UNUSED_DAYS_MAX * _DAY_SECONDS
                or kept_bytes > limits.UNUSED_BYTES_MAX
            ):
                self._remove(sha256)
                removed.append(sha256)
        return sorted(removed)

    # -- within

    def _native(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{NATIVE}"

    def _sidecar(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{SIDECAR}"

    def _open(self, sha256: str, settings: str) -> NativeCode:
        """Raises `FileNotFoundError`, `Foreign` and `_Refused`."""
        file = open_own(self._native(sha256), others_may_read=True)
        with contextlib.ExitStack() as unless_good:
            unless_good.callback(file.close)
            known = self._read_sidecar(sha256)
            if known.sha256 != sha256:
                raise _Refused(f"its description is that of component {known.sha256}")
            if known.settings != settings:
                raise _Refused(
                    f"it is good for {known.settings} of the library, which is now {settings}"
                )
            try:
                found = content(file, known.native_bytes)
            except TooLong:
                raise _Refused("it is longer than it was") from None
            if found.size_bytes != known.native_bytes:
                raise _Refused("it is shorter than it was")
            if not hmac.compare_digest(found.sha256, known.native_sha256):
                raise _Refused("it was changed")
            # When it was used last, for `remove_unused`.
            os.utime(file.fileno())
            unless_good.pop_all()
        info = ComponentInfo(
            sha256=sha256,
            size_bytes=known.size_bytes,
            shape=known.shape,
            native_bytes=known.native_bytes,
            compile_us=known.compile_us,
            details={"settings": settings, "memory_bytes_peak": known.memory_bytes_peak},
        )
        return NativeCode(info, file)

    def _read_sidecar(self, sha256: str) -> _Sidecar:
        try:
            with open_own(self._sidecar(sha256)) as file:
                data = os.pread(file.fileno(), limits.SIDECAR_BYTES_MAX, 0)
        except FileNotFoundError:
            raise _Refused("its description is missing") from None
        except Foreign as foreign:
            raise _Refused(f"of its description, {foreign}") from None
        signature, _, body = data.partition(b"\n")
        if not hmac.compare_digest(signature, self._signature(body)):
            raise _Refused("its description is not one that this daemon wrote")
        return msgspec.json.decode(body, type=_Sidecar)

    def _signed(self, sidecar: _Sidecar) -> bytes:
        body = msgspec.json.encode(sidecar)
        data = self._signature(body) + b"\n" + body
        if len(data) > limits.SIDECAR_BYTES_MAX:
            raise Failure(
                "component.compile",
                f"The description of component {sidecar.sha256} has {len(data)} bytes, over the "
                f"limit of {limits.SIDECAR_BYTES_MAX}.",
                "Import and export less.",
            )
        return data

    def _signature(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).hexdigest().encode()

    def _remove(self, sha256: str) -> None:
        self._native(sha256).unlink(missing_ok=True)
        self._sidecar(sha256).unlink(missing_ok=True)


def _load_key(path: Path) -> bytes:
    """The daemon's key. One that others may know is replaced, and with it all it has signed."""
    try:
        with open_own(path) as file:
            key = os.pread(file.fileno(), limits.KEY_BYTES + 1, 0)
        if len(key) == limits.KEY_BYTES:
            return key
        reason = "it has another length"
    except FileNotFoundError:
        return _make_key(path)
    except Foreign as foreign:
        reason = str(foreign)
    log.warning(
        "the key %s is replaced: %s; all components are compiled anew",
        path,
        reason,
    )
    return _make_key(path)


def _make_key(path: Path) -> bytes:
    key = secrets.token_bytes(limits.KEY_BYTES)
    write_file(path, key)
    return key


def _too_large(component: ComponentFile) -> Failure:
    return Failure(
        "component.compile",
        f"The native code of component {component.sha256} is larger than "
        f"{limits.NATIVE_BYTES_MAX // 2**20} MiB.",
        "Leave out what it does not need.",
        bytes_max=limits.NATIVE_BYTES_MAX,
    )
