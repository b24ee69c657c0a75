"""The body of a compiler, unconfined: what it answers, and what it writes."""

import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmtime import wat2wasm
from wat_components import agent

from agent_runtime.component import compiler, library
from agent_runtime.component.compiler import Compiler
from agent_runtime.wire import BlockingLine
from ipc_protocol.components import Compile, Compiled
from ipc_protocol.errors import Problem
from ipc_protocol.events import ErrorReceived, Hello, ResultReceived
from ipc_protocol.frames import typed
from ipc_protocol.methods import COMPILER_COMPILE, WORKER_START

SECONDS_MAX = 60


class Asker:
    """The other end of a compiler's line, and its two files."""

    def __init__(self, folder: Path, component: bytes, native: Path) -> None:
        file = folder / "component"
        file.write_bytes(component)
        self.files = [os.open(file, os.O_RDONLY), os.open(native, os.O_RDWR | os.O_CREAT)]
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(SECONDS_MAX)
        self.status: int | None = None
        self._thread = threading.Thread(target=self._run, args=(Compiler(theirs, *self.files),))
        self._theirs = theirs
        self._thread.start()
        self._line = BlockingLine(self.sock, Hello(name="orchestrator"), initiator=True)

    def _run(self, served: Compiler) -> None:
        self.status = served.run()
        self._theirs.close()

    def ask(self, method: str = COMPILER_COMPILE.name) -> Compiled | Problem:
        while not self._line.session.may_request:
            self._line.receive()
        stream, data = self._line.session.request(method, Compile())
        self._line.send(data)
        while True:
            for event in self._line.receive():
                if isinstance(event, ResultReceived) and event.stream == stream:
                    return typed(event.value, Compiled)
                if isinstance(event, ErrorReceived) and event.stream == stream:
                    return event.problem

    def close(self) -> int | None:
        """Hang up. Returns the exit status of the compiler."""
        self.sock.close()
        self._thread.join(SECONDS_MAX)
        while self.files:
            os.close(self.files.pop())
        return self.status


@pytest.fixture
def native(tmp_path: Path) -> Path:
    return tmp_path / "native"


def compiled(tmp_path: Path, component: bytes, native: Path) -> Compiled | Problem:
    asker = Asker(tmp_path, component, native)
    try:
        return asker.ask()
    finally:
        asker.close()


def code_of(answer: Compiled | Problem) -> str:
    assert isinstance(answer, Problem)
    return answer.code


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_component_is_described_and_its_native_code_can_be_loaded(
    tmp_path: Path, native: Path, version: str
) -> None:
    answer = compiled(tmp_path, bytes(wat2wasm(agent(version))), native)
    assert isinstance(answer, Compiled)
    assert answer.shape.world == f"agent@{version}"
    assert f"agent-net:core/bus@{version}" in answer.shape.imports
    assert answer.settings == library.settings_id()
    assert answer.native_bytes == native.stat().st_size
    assert answer.compile_us > 0
    assert answer.memory_bytes_peak > 0
    with native.open("rb") as file:
        loaded = library.load_component(file.fileno())
    assert f"agent-net:core/lifecycle@{version}" in library.describe(loaded).exports


@pytest.mark.parametrize("found", [b"", b"no Wasm at all", b"\0asm\x01\0\0\0"])
def test_what_is_no_component_is_refused_and_nothing_is_written(
    tmp_path: Path, native: Path, found: bytes
) -> None:
    assert code_of(compiled(tmp_path, found, native)) == "component.malformed"
    assert native.stat().st_size == 0


def test_a_component_of_no_world_is_refused_and_nothing_is_written(
    tmp_path: Path, native: Path
) -> None:
    assert code_of(compiled(tmp_path, bytes(wat2wasm("(component)")), native)) == "component.world"
    assert native.stat().st_size == 0


def test_a_component_that_is_too_large_is_not_read(
    tmp_path: Path, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "COMPONENT_BYTES_MAX", 1000)
    answer = compiled(tmp_path, bytes(1001), native)
    assert isinstance(answer, Problem)
    assert answer.code == "component.compile"
    assert answer.details == {"size_bytes": 1001, "size_bytes_max": 1000}


def test_a_full_disk_is_told_from_a_fault_of_the_component(tmp_path: Path) -> None:
    answer = compiled(tmp_path, bytes(wat2wasm(agent())), Path("/dev/full"))
    assert code_of(answer) == "store.full"


def test_native_code_that_is_larger_than_may_be_written_is_the_components_fault(
    tmp_path: Path, native: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        answer = compiled(tmp_path, bytes(wat2wasm(agent())), native)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(answer, Problem)
    assert answer.code == "component.compile"
    assert answer.details["native_bytes"] > 8192


@pytest.fixture
def asker(tmp_path: Path, native: Path) -> Iterator[Asker]:
    asker = Asker(tmp_path, bytes(wat2wasm(agent())), native)
    yield asker
    asker.close()


def test_a_compiler_compiles_once(asker: Asker) -> None:
    assert isinstance(asker.ask(), Compiled)
    assert code_of(asker.ask()) == "request.invalid"


def test_a_compiler_knows_no_other_method(asker: Asker) -> None:
    assert code_of(asker.ask(WORKER_START.name)) == "request.unknown-method"
    assert isinstance(asker.ask(), Compiled)


def test_a_compiler_leaves_in_order_when_its_line_ends(asker: Asker) -> None:
    asker.ask()
    assert asker.close() == 0


def test_a_peer_that_breaks_the_protocol_ends_the_compiler_with_a_failure(asker: Asker) -> None:
    asker.ask()
    asker.sock.sendall(b"\xff" * 64)
    asker._thread.join(SECONDS_MAX)
    assert asker.status == 1
