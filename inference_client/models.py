"""The models of one installation: GGUF files, and an index that gives them names.

`pull` fetches a model that agentd knows and verifies it before it is moved into place; `add` gives
a name to a file that is already there, wherever it lies. Nothing half-done is ever visible: a pull
works in a folder of its own, which is removed whatever happens, and the index is replaced whole.

Functions here block; call them from a thread where a loop runs.
"""

import contextlib
import difflib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from inference_client import gguf
from inference_client.fetch import SOURCES, Progress, disk_full, fetch, verified
from ipc_protocol.errors import Failure

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
INDEX: Final = "index.json"
CONTEXT_TOKENS: Final = 8192
"""The context for which `fits` is worked out when the caller names none."""


@dataclass(frozen=True)
class Entry:
    """A registered model. `problem` says why it cannot be used, and then the rest is unknown."""

    name: str
    path: Path
    size: int = 0
    architecture: str = ""
    parameters: int = 0
    context: int = 0
    quantization: str = ""
    needed_bytes: int = 0
    fits: bool = False
    problem: str = ""


class _Index(msgspec.Struct):
    """The file `index.json`: paths by name, relative to the folder where they lie in it."""

    models: dict[str, str] = {}


def default_cache() -> Path:
    """Where downloads are shared by all installations of one user."""
    if chosen := os.environ.get("AGENTD_MODELS_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "agentd"


class Registry:
    """The models in one folder. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return sorted(self._load().models)

    def entries(self, context_tokens: int = CONTEXT_TOKENS) -> list[Entry]:
        """Every registered model, and whether it fits into the memory that is available now."""
        available = memory_available_bytes()
        models = self._load().models
        return [
            _describe(name, self.folder / models[name], context_tokens, available)
            for name in sorted(models)
        ]

    def resolve(self, name: str) -> Path:
        """The file of a model. Raises `model.unknown` with the nearest name."""
        models = self._load().models
        if name in models:
            return self.folder / models[name]
        near = difflib.get_close_matches(name, [*models, *SOURCES], n=1)
        if name in SOURCES:
            cure = f"Fetch it with `agentd models pull {name}`."
        elif near:
            cure = f"Did you mean {near[0]!r}?"
        else:
            cure = f"Registered are: {', '.join(sorted(models)) or 'none'}."
        raise Failure("model.unknown", f"There is no model named {name!r}.", cure, name=name)

    def add(self, path: Path, name: str) -> Entry:
        """Register a GGUF file where it lies. Raises `model.invalid` if it is not a model."""
        if not NAME.fullmatch(name):
            raise Failure(
                "request.invalid",
                f"{name!r} is not a name for a model.",
                "Use lower-case letters, digits, dots, dashes and underscores, at most 64.",
            )
        path = path.resolve()
        gguf.read(path)
        with self._locked():
            self._register(name, path)
        return _describe(name, path, CONTEXT_TOKENS, memory_available_bytes())

    def pull(
        self, name: str, *, progress: Progress | None = None, cache: Path | None = None
    ) -> Entry:
        """Fetch a known model, from `cache` if it is there. Returns its entry.

        Raises `model.unknown`, `model.unavailable` where it cannot be fetched, `model.invalid` for
        the wrong bytes, and `store.full`.
        """
        source = SOURCES.get(name)
        if source is None:
            known = ", ".join(SOURCES)
            near = difflib.get_close_matches(name, SOURCES, n=1)
            raise Failure(
                "model.unknown",
                f"There is no model named {name!r} to fetch.",
                f"Did you mean {near[0]!r}?" if near else f"Known are: {known}.",
                name=name,
            )
        told = progress or _silent
        target = self.folder / Path(source.member).name
        with disk_full(self.folder), self._locked():
            if not verified(target, source, told):
                with self._workshop() as workshop:
                    fetched = fetch(source, workshop, told, cache)
                    fetched.replace(target)
            self._register(name, target)
        return _describe(name, target, CONTEXT_TOKENS, memory_available_bytes())

    # -- the folder

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _workshop(self) -> Iterator[Path]:
        """A folder for work in progress; those of processes that died are removed as well."""
        for left in self.folder.glob(".pull-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=self.folder) as workshop:
            yield Path(workshop)

    def _load(self) -> _Index:
        path = self.folder / INDEX
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Index)
        except FileNotFoundError:
            return _Index()
        except msgspec.DecodeError as error:
            raise Failure(
                "model.invalid",
                f"{path} is not an index of models: {error}.",
                "Delete it, and pull or add the models again.",
            ) from error

    def _register(self, name: str, path: Path) -> None:
        index = self._load()
        inside = path.is_relative_to(self.folder)
        index.models[name] = str(path.relative_to(self.folder) if inside else path)
        with disk_full(self.folder):
            _write_whole(self.folder / INDEX, msgspec.json.format(msgspec.json.encode(index)))


def memory_available_bytes() -> int:
    """What the kernel thinks can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("every Linux since 3.14 says MemAvailable")


def _describe(name: str, path: Path, context_tokens: int, available: int) -> Entry:
    try:
        header = gguf.read(path)
    except Failure as failure:
        return Entry(name=name, path=path, problem=failure.problem.message)
    tokens = min(context_tokens, header.context or context_tokens)
    needed = header.size + header.kv_bytes_per_token * tokens
    return Entry(
        name=name,
        path=path,
        size=header.size,
        architecture=header.architecture,
        parameters=header.parameters,
        context=header.context,
        quantization=header.quantization,
        needed_bytes=needed,
        fits=needed <= available,
    )


def _silent(_: str, __: int, ___: int) -> None:
    """Progress that nobody wants to see."""


def _write_whole(path: Path, data: bytes) -> None:
    """Replace a file by another one, such that a crash leaves the old or the new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
