"""Components without a daemon: a zygote and a compiler of one's own, for the length of a command.

What is checked or run here is confined like everything that a daemon runs, and its native code is
kept in a folder of the user's, so that the second command on a component does not compile it again.
One command at a time uses that folder; the next one waits.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from ipc_protocol.errors import Failure
from orchestrator.components.cache import NativeCache
from orchestrator.components.compiling import Compiler, Confinement, Progress, Ready
from orchestrator.components.files import ComponentFiles
from orchestrator.workers import Zygote, worker_uid

Sandbox = Literal["strict", "standard", "off"]

ZYGOTE_SECONDS_MAX: Final = 30.0
"""Until a zygote says which library it has: its imports take 0.3 s, or 10 s from a cold disk."""

UID: Final = worker_uid(0)
"""Whatever is run here runs as the first of those who run nothing else."""


class Workbench:
    """A zygote and a compiler that are up."""

    def __init__(
        self, zygote: Zygote, compiler: Compiler, files: ComponentFiles, sandbox: Sandbox
    ) -> None:
        self.zygote = zygote
        self.sandbox: Sandbox = sandbox
        self._compiler = compiler
        self._files = files

    async def compiled(
        self, path: Path, on_progress: Callable[[Progress], None] | None = None
    ) -> Ready:
        """The native code of the component at `path`. Raises `component.*`, `sandbox.refused`."""
        file = await asyncio.to_thread(self._files.add, path)
        return await self._compiler.ensure(file, on_progress)


def default_folder() -> Path:
    """Where the native code of this user's components is kept between commands."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "agentd" / "components"


@contextlib.asynccontextmanager
async def workbench(folder: Path, sandbox: Sandbox) -> AsyncIterator[Workbench]:
    """Raises `request.internal` where no zygote comes up."""
    with _alone(folder):
        files = ComponentFiles(folder / "files")
        cache = NativeCache(folder, on_refused=lambda: None)
        zygote = Zygote(_now_us, on_restart=lambda _: None)
        confinement = Confinement(sandbox=sandbox, uid=UID)
        compiler = Compiler(zygote, files, cache, confinement, on_compile=lambda _, __: None)
        living = asyncio.create_task(zygote.run(), name="zygote")
        try:
            await _require_up(zygote)
            yield Workbench(zygote, compiler, files, sandbox)
        finally:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
            files.remove_unused(set())
            cache.remove_unused(set())


async def _require_up(zygote: Zygote) -> None:
    try:
        async with asyncio.timeout(ZYGOTE_SECONDS_MAX):
            await zygote.library()
    except TimeoutError as error:
        raise Failure(
            "request.internal",
            f"The zygote, which runs components, did not come up in {ZYGOTE_SECONDS_MAX:g} s.",
            "`python -m agent_runtime --help`, with the Python of agentd, says what is missing.",
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for the other commands. Nothing else is served meanwhile, so this may block."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _now_us() -> int:
    return time.time_ns() // 1000
