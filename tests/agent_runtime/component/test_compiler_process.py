"""Compilers in the sandbox, forked by a real zygote: what hostile components cost, and whom."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hostile_components import costly
from wasmtime import wat2wasm
from wat_components import agent

from agent_runtime.component import library
from ipc_protocol.aio import Handlers
from ipc_protocol.components import Compile, Compiled
from ipc_protocol.errors import Failure
from ipc_protocol.methods import COMPILER_COMPILE
from ipc_protocol.work import Fork
from orchestrator.workers import Worker, Zygote

SECONDS_MAX = 120
MEBIBYTE = 1 << 20


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    zygote = Zygote(lambda: 0, lambda _: None)
    running = asyncio.create_task(zygote.run())
    try:
        async with asyncio.timeout(SECONDS_MAX):
            yield zygote
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def a_compiler(
    zygote: Zygote,
    folder: Path,
    component: bytes,
    *,
    cpu_seconds_max: int = 60,
    memory_bytes_max: int = 1024 * MEBIBYTE,
) -> AsyncIterator[Worker]:
    def fork(token: int) -> Fork:
        return Fork(
            token=token,
            agent="tested",
            role="compiler",
            sandbox="strict",
            uid=61184 if os.geteuid() == 0 else None,
            memory_bytes_max=memory_bytes_max,
            scratch_bytes_max=0,
            cpu_seconds_max=cpu_seconds_max,
        )

    with open_files(folder, component) as files:
        async with zygote.worker(fork, Handlers(), files) as compiler:
            yield compiler


@contextlib.contextmanager
def open_files(folder: Path, component: bytes) -> Iterator[tuple[int, int]]:
    folder.mkdir(exist_ok=True)
    (folder / "component").write_bytes(component)
    read = os.open(folder / "component", os.O_RDONLY)
    write = os.open(folder / "native", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield read, write
    finally:
        os.close(read)
        os.close(write)


async def compiled(compiler: Worker) -> Compiled:
    return await compiler.connection.call(COMPILER_COMPILE, Compile())


async def test_a_component_is_compiled_in_the_sandbox(zygote: Zygote, tmp_path: Path) -> None:
    component = bytes(wat2wasm(agent("0.2.0")))
    async with a_compiler(zygote, tmp_path, component) as compiler:
        states = {layer.layer: layer.state for layer in compiler.layers}
        answer = await compiled(compiler)
    assert answer.shape.world == "agent@0.2.0"
    assert set(states.values()) <= {"enforced", "not-applicable"}
    with (tmp_path / "native").open("rb") as file:
        assert library.describe(library.load_component(file.fileno())).exports


async def test_a_refused_component_is_a_typed_error(zygote: Zygote, tmp_path: Path) -> None:
    async with a_compiler(zygote, tmp_path, b"no component") as compiler:
        with pytest.raises(Failure) as refused:
            await compiled(compiler)
    assert refused.value.code == "component.malformed"


async def test_a_component_that_takes_minutes_is_ended_by_its_cpu_limit(
    zygote: Zygote, tmp_path: Path
) -> None:
    component = bytes(wat2wasm(costly(blocks=400)))
    async with a_compiler(zygote, tmp_path / "neighbour", b"") as neighbour:
        pid = zygote.pid
        async with a_compiler(zygote, tmp_path, component, cpu_seconds_max=1) as compiler:
            with pytest.raises(Failure):
                await compiled(compiler)
            exit_ = await compiler.exited
        assert exit_.description == "used up its 1 s of CPU time, and was killed for it"
        await unharmed(zygote, pid, neighbour)


async def test_a_component_that_takes_gigabytes_is_ended_by_its_memory_limit(
    zygote: Zygote, tmp_path: Path
) -> None:
    component = bytes(wat2wasm(costly(blocks=400)))
    async with a_compiler(zygote, tmp_path / "neighbour", b"") as neighbour:
        pid = zygote.pid
        async with a_compiler(
            zygote, tmp_path, component, memory_bytes_max=32 * MEBIBYTE
        ) as compiler:
            with pytest.raises(Failure):
                await compiled(compiler)
            exit_ = await compiler.exited
        assert exit_.own
        assert not exit_.orderly
        assert "CPU" not in exit_.description
        await unharmed(zygote, pid, neighbour)


async def unharmed(zygote: Zygote, pid: int | None, neighbour: Worker) -> None:
    assert zygote.pid == pid
    with pytest.raises(Failure) as refused:
        await compiled(neighbour)
    assert refused.value.code == "component.malformed"


async def test_a_compiler_that_nobody_waits_for_any_more_is_killed(
    zygote: Zygote, tmp_path: Path
) -> None:
    component = bytes(wat2wasm(costly(blocks=400)))
    async with a_compiler(zygote, tmp_path, component) as compiler:
        asking = asyncio.create_task(compiled(compiler))
        await asyncio.sleep(0.1)  # until it is at work, in which it hears nothing
    assert compiler.exited.result().description == "killed by SIGKILL"
    with pytest.raises(Failure):
        await asking
