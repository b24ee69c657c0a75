"""Components compiled by real, confined compilers: shared, kept, limited, and ended."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import wasmtime
import wat_components as wat

from agent_runtime.component.compiler import COMPONENT_BYTES_MAX
from agent_runtime.sandbox.limits import NATIVE_CODE_BYTES_MAX
from ipc_protocol.aio import Handlers
from ipc_protocol.components import Compiled, Library
from ipc_protocol.errors import Failure
from ipc_protocol.work import Fork
from orchestrator.components import limits
from orchestrator.components.cache import Draft, NativeCache
from orchestrator.components.compiling import (
    CompileLimits,
    Compiler,
    Confinement,
    Progress,
    Ready,
)
from orchestrator.components.files import ComponentFile, ComponentFiles
from orchestrator.workers import Zygote

pytestmark = pytest.mark.timeout(60)
BUSY_TICKS: Final = 10
"""Of processor time, of which the kernel counts 100 in a second: a fork takes less."""

ECHO: Final = wat.agent("0.2.0", imports=(wat.STATE,))
CONFINEMENT: Final = Confinement(sandbox="strict", uid=65_519 if os.geteuid() == 0 else None)


def hostile(size: int, copies: int = 1) -> str:
    """An agent with a jump table whose edges carry `size` values to each of `size` blocks.

    Its length grows with `size`, and what it takes to compile with the square: 1000 make 10 kB of
    Wasm that take 14 s and 6 GB. Copies of it take more time, and not more memory.
    """
    results = "i64 " * size
    blocks = "block (type $carried) " * size
    values = " ".join(f"local.get {1 + index % 50}" for index in range(size))
    targets = " ".join(map(str, range(size)))
    function = f"""(func (param i32 {"i64 " * 50}) (result {results})
      {blocks} {values} local.get 0 br_table {targets} {"end " * size})"""
    module = f"(core module (type $carried (func (result {results}))) {function * copies})"
    return f"{ECHO.rstrip().removesuffix(')')} {module})"


SHORT: Final = hostile(200, 60)
LONG: Final = hostile(200, 1000)
"""Two seconds and half a minute of compiling, with 100 MB of memory."""


class Keeping:
    """What an orchestrator keeps of components, with a zygote that compiles them."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder = folder / "state"
        self.zygote = zygote
        self.files = ComponentFiles(self.folder)
        self.refusals = 0
        self.compiled: list[str] = []
        self.cache = NativeCache
        self.compiler = self.opened()

    def opened(self, compile_limits: CompileLimits = CompileLimits()) -> Compiler:  # noqa: B008
        return Compiler(
            self.zygote,
            self.files,
            self.cache(self.folder, self._refuse),
            CONFINEMENT,
            lambda seconds, outcome: self.compiled.append(outcome),
            compile_limits,
        )

    def _refuse(self) -> None:
        self.refusals += 1

    def add(self, text: str) -> ComponentFile:
        path = self.folder / "source"
        path.write_bytes(wasmtime.wat2wasm(text))
        try:
            return self.files.add(path)
        finally:
            path.unlink()

    def native(self, file: ComponentFile) -> Path:
        return self.folder / "native" / f"{file.sha256}.native"

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "native").iterdir())


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    zygote = Zygote(lambda: 0, lambda name: None)
    running = asyncio.create_task(zygote.run())
    try:
        yield zygote
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def keeping(tmp_path: Path, zygote: Zygote) -> Keeping:
    return Keeping(tmp_path, zygote)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def read(ready: Ready) -> bytes:
    return os.pread(ready.native_fd, ready.info.native_bytes + 1, 0)


# ---- Compiled once -------------------------------------------------------------------------------


async def test_a_component_is_compiled_and_described(keeping: Keeping) -> None:
    file = keeping.add(ECHO)
    ready = await keeping.compiler.ensure(file)
    assert ready.info.sha256 == file.sha256
    assert ready.info.size_bytes == file.size_bytes
    assert ready.info.shape.world == "agent@0.2.0"
    assert ready.info.shape.grants == ["state"]
    assert read(ready) == keeping.native(file).read_bytes()
    assert len(read(ready)) == ready.info.native_bytes
    assert keeping.compiled == ["ok"]
    ready.close()


async def test_the_native_code_is_what_the_library_maps(keeping: Keeping) -> None:
    ready = await keeping.compiler.ensure(keeping.add(ECHO))
    settings = (await keeping.zygote.library()).settings
    assert ready.info.details["settings"] == settings
    assert read(ready)[:4] == b"\x7fELF"
    ready.close()


async def test_a_sealed_worker_of_another_user_can_map_it(keeping: Keeping) -> None:
    ready = await keeping.compiler.ensure(keeping.add(ECHO))

    def fork(token: int) -> Fork:
        return Fork(
            token=token,
            agent="echo",
            sandbox=CONFINEMENT.sandbox,
            uid=None if CONFINEMENT.uid is None else CONFINEMENT.uid - 1,
            memory_bytes_max=2**28,
            scratch_bytes_max=2**20,
            native=True,
        )

    async with keeping.zygote.worker(fork, Handlers(), (ready.native_fd,)) as worker:
        assert not worker.exited.done()
    ready.close()


async def test_what_is_in_the_cache_is_not_compiled_again_by_another_daemon(
    keeping: Keeping,
) -> None:
    file = keeping.add(ECHO)
    first = await keeping.compiler.ensure(file)
    again = await keeping.opened().ensure(file)
    assert keeping.compiled == ["ok"]
    assert again.info == first.info
    assert again.native_fd != first.native_fd
    first.close()
    again.close()


async def test_all_who_ask_at_once_share_one_compilation_and_one_descriptor(
    keeping: Keeping,
) -> None:
    file = keeping.add(ECHO)
    held = await asyncio.gather(*(keeping.compiler.ensure(file) for _ in range(5)))
    assert keeping.compiled == ["ok"]
    assert len({ready.native_fd for ready in held}) == 1
    for ready in held:
        ready.close()


async def test_the_descriptor_is_closed_by_the_last_who_holds_it(keeping: Keeping) -> None:
    file = keeping.add(ECHO)
    (await keeping.compiler.ensure(file)).close()
    before = descriptors()
    first, second = await asyncio.gather(*(keeping.compiler.ensure(file) for _ in range(2)))
    first.close()
    first.close()
    assert read(second)
    second.close()
    assert descriptors() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second.native_fd)


async def test_tampered_native_code_is_compiled_anew(keeping: Keeping) -> None:
    file = keeping.add(ECHO)
    ready = await keeping.compiler.ensure(file)
    honest = read(ready)
    ready.close()
    keeping.native(file).write_bytes(b"\x90" * len(honest))
    ready = await keeping.compiler.ensure(file)
    assert b"\x90" * 100 not in read(ready)
    assert keeping.compiled == ["ok", "ok"]
    assert keeping.refusals == 1
    ready.close()


async def test_progress_is_told_with_an_estimate(keeping: Keeping) -> None:
    told: list[Progress] = []
    slow = keeping.add(LONG)
    with pytest.raises(Failure):
        await keeping.opened(CompileLimits(seconds_max=1.0)).ensure(slow, told.append)
    assert told[0] == Progress(0.0, 0.0)
    assert told[-1].elapsed_s > told[-2].elapsed_s
    assert told[-1].expected_s == slow.size_bytes / 2e6


async def test_the_library_is_that_of_the_zygote_that_is_up(keeping: Keeping) -> None:
    settings = (await keeping.zygote.library()).settings
    zygote = keeping.zygote.pid
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    assert (await keeping.zygote.library()).settings == settings
    assert keeping.zygote.pid not in (None, zygote)


def test_what_is_kept_can_be_compiled_and_what_is_compiled_can_be_kept() -> None:
    assert limits.COMPONENT_BYTES_MAX == COMPONENT_BYTES_MAX
    assert limits.NATIVE_BYTES_MAX == NATIVE_CODE_BYTES_MAX


# ---- What cannot be compiled ---------------------------------------------------------------------


async def test_what_is_no_component_fails_with_the_reason_of_the_compiler(
    keeping: Keeping,
) -> None:
    with pytest.raises(Failure) as failed:
        await keeping.compiler.ensure(keeping.add("(module)"))
    assert failed.value.code == "component.malformed"
    assert keeping.compiled == ["component.malformed"]
    assert keeping.left() == []


async def test_a_component_of_another_world_is_not_kept(keeping: Keeping) -> None:
    with pytest.raises(Failure) as failed:
        await keeping.compiler.ensure(keeping.add("(component)"))
    assert failed.value.code == "component.world"
    assert keeping.left() == []


async def test_a_component_that_is_not_kept_any_more_is_unknown(keeping: Keeping) -> None:
    file = keeping.add(ECHO)
    file.path.unlink()
    with pytest.raises(Failure) as failed:
        await keeping.compiler.ensure(file)
    assert failed.value.code == "component.unknown"


async def test_code_for_another_library_than_the_zygote_s_is_not_kept(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update of the library between the question and the compilation."""

    async def library() -> Library:
        return Library(settings="of yesterday")

    monkeypatch.setattr(keeping.zygote, "library", library)
    with pytest.raises(Failure, match="became another one"):
        await keeping.compiler.ensure(keeping.add(ECHO))
    assert keeping.left() == []


class Slow(NativeCache):
    """A cache whose disk takes its time, until it is let go on."""

    begun = threading.Event()
    go_on = threading.Event()

    def adopt(self, draft: Draft, component: ComponentFile, compiled: Compiled) -> None:
        self.begun.set()
        assert self.go_on.wait(30)
        super().adopt(draft, component, compiled)


async def test_native_code_is_kept_although_nobody_waits_for_it_any_more(
    keeping: Keeping,
) -> None:
    keeping.cache = Slow
    file = keeping.add(ECHO)
    asking = asyncio.create_task(keeping.opened().ensure(file))
    await asyncio.to_thread(Slow.begun.wait, 30)
    asking.cancel()
    asyncio.get_running_loop().call_later(0.05, Slow.go_on.set)
    await asyncio.gather(asking, return_exceptions=True)
    assert asking.cancelled()
    assert keeping.left() == [f"{file.sha256}.json", f"{file.sha256}.native"]


class Intruder(NativeCache):
    """Somebody who writes to the folder of the cache as soon as there is something in it."""

    def adopt(self, draft: Draft, component: ComponentFile, compiled: Compiled) -> None:
        super().adopt(draft, component, compiled)
        os.truncate(self._native(component.sha256), 1)


async def test_code_that_is_changed_as_soon_as_it_is_written_is_not_handed_out(
    keeping: Keeping, caplog: pytest.LogCaptureFixture
) -> None:
    keeping.cache = Intruder
    with pytest.raises(Failure, match="was changed as soon as it was written"):
        await keeping.opened().ensure(keeping.add(ECHO))
    assert "shorter than it was" in caplog.text
    assert keeping.left() == []


@pytest.mark.parametrize(
    ("limit", "compile_limits"),
    [
        ("time", CompileLimits(seconds_max=0.5)),
        ("cpu", CompileLimits(cpu_seconds_max=1)),
    ],
)
async def test_a_component_that_takes_long_ends_at_the_limit_that_it_reaches(
    keeping: Keeping, limit: str, compile_limits: CompileLimits
) -> None:
    await require_refused(keeping, LONG, limit, compile_limits)


async def test_a_component_that_takes_gigabytes_ends_at_the_limit_on_memory(
    keeping: Keeping,
) -> None:
    await require_refused(
        keeping, hostile(1000), "memory", CompileLimits(memory_bytes_max=200 * 2**20)
    )


async def require_refused(
    keeping: Keeping, text: str, limit: str, compile_limits: CompileLimits
) -> None:
    """It is refused for this limit, nothing of it stays, and the next component is compiled."""
    compiler = keeping.opened(compile_limits)
    with pytest.raises(Failure) as failed:
        await compiler.ensure(keeping.add(text))
    assert failed.value.code == "component.compile"
    assert failed.value.problem.details["limit"] == limit
    assert "build it smaller" in failed.value.problem.cure
    assert keeping.left() == []
    ready = await compiler.ensure(keeping.add(ECHO))
    ready.close()


async def test_a_failure_is_shared_and_the_next_one_tries_again(keeping: Keeping) -> None:
    file = keeping.add("(component)")
    both = await asyncio.gather(
        *(keeping.compiler.ensure(file) for _ in range(2)), return_exceptions=True
    )
    assert [getattr(failure, "code", None) for failure in both] == ["component.world"] * 2
    assert keeping.compiled == ["component.world"]
    with pytest.raises(Failure):
        await keeping.compiler.ensure(file)
    assert keeping.compiled == ["component.world"] * 2


# ---- Given up, killed ----------------------------------------------------------------------------


async def compilers(zygote: Zygote) -> list[int]:
    """The processes that the zygote has forked, by their ids."""
    children = Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children")
    return [int(pid) for pid in (await asyncio.to_thread(children.read_text)).split()]


def busy_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # a process on the way to the compiler, which is gone again
        return 0
    return int(stat.rpartition(")")[2].split()[11])


async def wait_compiler(zygote: Zygote, asking: "asyncio.Task[Ready]") -> int:
    """The process that compiles, once it has been at it for a while."""
    while not asking.done():
        if zygote.pid is not None:
            for pid in await compilers(zygote):
                if await asyncio.to_thread(busy_ticks, pid) >= BUSY_TICKS:
                    return pid
        await asyncio.sleep(0.01)
    raise AssertionError(f"it was over before that: {asking}")


async def test_a_compilation_that_nobody_waits_for_is_ended(keeping: Keeping) -> None:
    asking = asyncio.create_task(keeping.compiler.ensure(keeping.add(LONG)))
    await wait_compiler(keeping.zygote, asking)
    before = descriptors()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await compilers(keeping.zygote) == []
    assert keeping.compiled == ["request.cancelled"]
    assert keeping.left() == []
    assert descriptors() < before


async def test_one_who_gives_up_takes_nothing_from_the_others(keeping: Keeping) -> None:
    file = keeping.add(SHORT)
    first = asyncio.create_task(keeping.compiler.ensure(file))
    await wait_compiler(keeping.zygote, first)
    waits = asyncio.Event()
    second = asyncio.create_task(keeping.compiler.ensure(file, lambda _: waits.set()))
    await waits.wait()
    first.cancel()
    ready = await second
    assert first.cancelled()
    assert keeping.compiled == ["ok"]
    assert read(ready)
    ready.close()


async def test_a_compiler_that_is_killed_is_told_as_such(keeping: Keeping) -> None:
    asking = asyncio.create_task(keeping.compiler.ensure(keeping.add(LONG)))
    os.kill(await wait_compiler(keeping.zygote, asking), signal.SIGKILL)
    with pytest.raises(Failure, match="SIGKILL") as failed:
        await asking
    assert failed.value.problem.details["limit"] == "memory"


async def test_a_compilation_outlives_its_zygote(keeping: Keeping) -> None:
    asking = asyncio.create_task(keeping.compiler.ensure(keeping.add(SHORT)))
    await wait_compiler(keeping.zygote, asking)
    zygote = keeping.zygote.pid
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    ready = await asking
    assert keeping.zygote.pid not in (None, zygote)
    assert keeping.compiled == ["ok"]
    ready.close()


async def test_zygotes_that_die_again_and_again_are_told(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.components.limits.ZYGOTE_DEATHS_MAX", 1)
    asking = asyncio.create_task(keeping.compiler.ensure(keeping.add(SHORT)))
    await wait_compiler(keeping.zygote, asking)
    assert keeping.zygote.pid is not None
    os.kill(keeping.zygote.pid, signal.SIGKILL)
    with pytest.raises(Failure, match="The zygote died 1 times"):
        await asking
    assert keeping.left() == []
