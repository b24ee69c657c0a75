"""A real zygote and its workers, as the orchestrator sees them: their logs, and its death."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from ipc_protocol.aio import Handlers
from ipc_protocol.components import Compile
from ipc_protocol.errors import Failure
from ipc_protocol.methods import COMPILER_COMPILE
from ipc_protocol.work import Fork
from orchestrator.supervision.lines import LINES_BURST_MAX
from orchestrator.workers import ANSWER_SECONDS_MAX, Worker, Zygote, ZygoteDied

SECONDS_MAX = 60


def fork_of(agent: str, sandbox: str = "off") -> Fork:
    """Unconfined, so that this test may write where the worker does."""
    return Fork(
        token=0,
        uid=None,
        agent=agent,
        sandbox=sandbox,  # type: ignore[arg-type]
        memory_bytes_max=1 << 28,
        scratch_bytes_max=1 << 20,
    )


@contextlib.asynccontextmanager
async def running_zygote() -> AsyncIterator[Zygote]:
    restarts: list[str] = []
    zygote = Zygote(lambda: 0, restarts.append)
    running = asyncio.create_task(zygote.run())
    try:
        async with asyncio.timeout(SECONDS_MAX):
            yield zygote
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def a_worker(zygote: Zygote, agent: str = "opsclaw") -> AsyncIterator[Worker]:
    def fork(token: int) -> Fork:
        return msgspec.structs.replace(fork_of(agent), token=token)

    async with zygote.worker(fork, Handlers()) as worker:
        yield worker


async def write_errors(worker: Worker, data: bytes) -> None:
    """Write to the standard error of the worker, as its own code would."""
    path = Path(f"/proc/{worker.pid}/fd/2")
    await asyncio.to_thread(path.write_bytes, data)


async def test_a_worker_speaks_in_its_own_name_and_draws_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        running_zygote() as zygote,
        a_worker(zygote) as worker,
        a_worker(zygote, "devclaw") as other,
    ):
        await write_errors(worker, b"zygote: forged\n\x1b[2Jgone\rworker/devclaw: forged\n")
        await write_errors(other, b"mine")
    said = [line for line in caplog.messages if line.startswith(("worker/", "zygote:"))]
    assert sorted(said) == [
        "worker/devclaw: mine",
        "worker/opsclaw: zygote: forged",
        "worker/opsclaw: \N{REPLACEMENT CHARACTER}[2Jgone\N{REPLACEMENT CHARACTER}"
        "worker/devclaw: forged",
    ]


async def test_a_worker_that_floods_its_log_is_cut_short_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    lines = 5 * LINES_BURST_MAX
    async with running_zygote() as zygote, a_worker(zygote) as worker:
        await write_errors(worker, b"noise\n" * lines)
    said = [line for line in caplog.messages if line.startswith("worker/opsclaw: ")]
    told = [line for line in said if "left out" in line]
    noise = len(said) - len(told)
    assert LINES_BURST_MAX <= noise < 2 * LINES_BURST_MAX
    assert sum(int(line.split()[2]) for line in told) == lines - noise


async def test_a_worker_leaves_no_descriptor_behind() -> None:
    async with running_zygote() as zygote:
        async with a_worker(zygote):
            pass
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        theirs = len(os.listdir(f"/proc/{zygote.pid}/fd"))  # noqa: PTH208
        async with a_worker(zygote):
            pass
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        assert len(os.listdir(f"/proc/{zygote.pid}/fd")) == theirs  # noqa: PTH208


# ---- Descriptors of a role -----------------------------------------------------------------------


@contextlib.contextmanager
def file_of(path: Path, content: bytes) -> Iterator[int]:
    path.write_bytes(content)
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


async def test_native_code_that_cannot_be_loaded_is_a_failure_of_the_component(
    tmp_path: Path,
) -> None:
    def fork(token: int) -> Fork:
        return msgspec.structs.replace(fork_of("opsclaw"), token=token, native=True)

    async with running_zygote() as zygote:
        with (
            file_of(tmp_path / "native", b"no native code") as native,
            pytest.raises(Failure) as no,
        ):
            async with zygote.worker(fork, Handlers(), (native,)):
                pass
        assert no.value.code == "component.compile"
        assert await up(zygote) == zygote.pid


async def test_a_fork_without_the_descriptors_of_its_role_is_refused(tmp_path: Path) -> None:
    def fork(token: int) -> Fork:
        return msgspec.structs.replace(fork_of("echo"), token=token, role="compiler")

    async with running_zygote() as zygote:
        with file_of(tmp_path / "component", b"") as component, pytest.raises(Failure) as no:
            async with zygote.worker(fork, Handlers(), (component,)):
                pass
        assert no.value.code == "request.invalid"
        assert "3 descriptors" in str(no.value)
        assert await up(zygote) == zygote.pid


async def test_a_compiler_speaks_in_its_own_name_and_leaves_no_descriptor_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fork(token: int) -> Fork:
        return msgspec.structs.replace(fork_of("echo"), token=token, role="compiler")

    caplog.set_level(logging.INFO)
    async with running_zygote() as zygote:
        await up(zygote)
        theirs = len(os.listdir(f"/proc/{zygote.pid}/fd"))  # noqa: PTH208
        with (
            file_of(tmp_path / "component", b"no component") as component,
            file_of(tmp_path / "native", b"") as native,
        ):
            async with zygote.worker(fork, Handlers(), (component, native)) as compiler:
                await write_errors(compiler, b"compiling")
                with pytest.raises(Failure) as no:
                    await compiler.connection.call(COMPILER_COMPILE, Compile())
        assert no.value.code == "component.malformed"
        assert len(os.listdir(f"/proc/{zygote.pid}/fd")) == theirs  # noqa: PTH208
    assert "compiler/echo: compiling" in caplog.messages


# ---- When the zygote dies ------------------------------------------------------------------------


async def up(zygote: Zygote) -> int:
    async with a_worker(zygote):
        assert zygote.pid is not None
        return zygote.pid


async def fork_only(zygote: Zygote) -> None:
    async with a_worker(zygote):
        pass


async def test_a_zygote_that_dies_during_a_fork_is_told_from_a_refusal() -> None:
    async with running_zygote() as zygote:
        pid = await up(zygote)
        os.kill(pid, signal.SIGSTOP)
        forking = [asyncio.create_task(told_at(zygote)) for _ in range(3)]
        await asyncio.sleep(0.1)  # until the requests lie in its socket
        os.kill(pid, signal.SIGKILL)
        # It is told once the dead one is forgotten, so that the next attempt waits for a new one.
        assert await asyncio.gather(*forking) == [None] * 3
        assert await up(zygote) != pid


async def told_at(zygote: Zygote) -> int | None:
    """Fork; the zygote that is up in the moment in which the death of one is told."""
    with pytest.raises(ZygoteDied):
        await fork_only(zygote)
    return zygote.pid


async def test_a_zygote_whose_end_nobody_has_noticed_yet_is_not_asked_in_a_circle() -> None:
    async with running_zygote() as zygote:
        pid = await up(zygote)
        kill_unnoticed(pid)
        assert await told_at(zygote) is None


async def test_a_zygote_that_is_stuck_in_a_fork_is_killed_and_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_zygote() as zygote:
        pid = await up(zygote)
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr("orchestrator.workers.ANSWER_SECONDS_MAX", 0.1)
            assert await told_at(zygote) is None
        assert await up(zygote) != pid


async def test_a_zygote_that_is_stuck_when_it_is_to_kill_is_killed_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_zygote() as zygote:
        with monkeypatch.context() as patched:
            async with a_worker(zygote) as worker:
                pid = zygote.pid
                assert pid is not None
                os.kill(pid, signal.SIGSTOP)
                patched.setattr("orchestrator.workers.ANSWER_SECONDS_MAX", 0.1)
            assert not worker.exited.result().own
        assert await up(zygote) != pid


async def test_every_answer_of_the_zygote_puts_off_what_it_still_owes() -> None:
    async with running_zygote() as zygote, a_worker(zygote):
        line = zygote._line
        assert line is not None
        async with asyncio.timeout(SECONDS_MAX) as other:
            line.deadlines[0] = other
            await fork_only(zygote)
            del line.deadlines[0]
            left = other.when()
            assert left is not None
            assert left < asyncio.get_running_loop().time() + ANSWER_SECONDS_MAX


def kill_unnoticed(pid: int) -> None:
    """Kill, and wait here for the death: the loop hears of it only afterwards."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_a_worker_that_went_down_with_the_zygote_has_not_failed_itself() -> None:
    async with running_zygote() as zygote:
        with pytest.raises(ZygoteDied):
            async with a_worker(zygote) as worker:
                assert zygote.pid is not None
                os.kill(zygote.pid, signal.SIGKILL)
                await worker.connection.wait_closed()
                raise Failure("protocol.closed", "The connection is closed.")


async def test_a_failure_of_the_worker_itself_comes_out_as_it_is() -> None:
    async with running_zygote() as zygote:
        with pytest.raises(Failure, match="its own"):
            async with a_worker(zygote):
                raise Failure("request.internal", "A fault of its own.")


async def test_more_workers_than_forks_at_once_are_all_forked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.workers.FORKS_MAX", 1)
    async with running_zygote() as zygote:
        await asyncio.gather(*(fork_only(zygote) for _ in range(4)))
