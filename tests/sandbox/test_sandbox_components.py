"""Workers with the native code of a component, and compilers: what more they may, and no more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import HostMaker, HostProcess
from wasmtime import wat2wasm

from agent_runtime.component import library

_WAT = """
(component
  (core module $module
    (memory 1)
    (func (export "answer") (result i32) (i32.load (i32.const 0)))
    (func (export "spin") (loop (br 0)))
    (data (i32.const 0) "\\2a\\00\\00\\00"))
  (core instance $instance (instantiate $module))
  (func (export "answer") (result u32) (canon lift (core func $instance "answer")))
  (func (export "spin") (canon lift (core func $instance "spin"))))
"""
_MEMORY_BYTES_MAX = 160 << 20  # one memory reserves 64 MiB of it
_LONG_SECONDS = 60
_BRIEFLY_SECONDS = 0.05


@pytest.fixture
def native(tmp_path: Path) -> str:
    file = tmp_path / "native"
    file.write_bytes(library.serialize(library.compile_component(bytes(wat2wasm(_WAT)))))
    return str(opened_to_all(file))


def opened_to_all(file: Path) -> Path:
    """The file; its folders too, since the host may be an ordinary user."""
    file.chmod(0o666)
    for folder in file.parents:
        if folder.owner() != "root" or folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    return file


@pytest.fixture
def worker(host: HostProcess, native: str) -> Iterator[int]:
    pid = host.fork(given=[native], memory_bytes_max=_MEMORY_BYTES_MAX)["pid"]
    yield pid
    host.do("kill", pid=pid)
    host.do("reap", pid=pid)


@pytest.fixture
def compiler(host: HostProcess, tmp_path: Path) -> Iterator[int]:
    pid = fork_compiler(host, tmp_path)["pid"]
    yield pid
    host.do("kill", pid=pid)
    host.do("reap", pid=pid)


def fork_compiler(host: HostProcess, folder: Path, **options: int) -> dict:
    component, result = folder / "component", folder / "result"
    component.write_bytes(b"the component")
    result.write_bytes(b"")
    given = [str(opened_to_all(component)), str(opened_to_all(result))]
    return host.fork(given=given, compiles=True, **options)


def call(host: HostProcess, pid: int, export: str, seconds: float) -> object:
    answer = host.attempt_in(pid, "call_component", export=export, seconds=seconds)
    return answer.get("value", answer)


# ---- A worker with a component -------------------------------------------------------------------


def test_a_component_that_was_mapped_before_runs_in_the_sealed_worker(
    host: HostProcess, worker: int
) -> None:
    assert call(host, worker, "answer", _LONG_SECONDS) == 42


def test_an_endless_loop_ends_at_its_deadline_and_the_next_call_has_one_of_its_own(
    host: HostProcess, worker: int
) -> None:
    assert call(host, worker, "spin", _BRIEFLY_SECONDS) == "interrupt"
    assert call(host, worker, "answer", _LONG_SECONDS) == 42
    assert call(host, worker, "spin", _BRIEFLY_SECONDS) == "interrupt"


def test_both_threads_are_under_the_filter_and_without_privileges(worker: int) -> None:
    tasks = list(Path(f"/proc/{worker}/task").iterdir())
    statuses = [dict(status_of(task / "status")) for task in tasks]
    assert len(statuses) == 2
    for status in statuses:
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert set(status["CapEff"] + status["CapPrm"] + status["CapBnd"]) == {"0"}


def status_of(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        yield name, value.strip()


def test_no_further_thread_can_be_started(host: HostProcess, worker: int) -> None:
    assert host.attempt("start_thread", "off") == {"value": None}
    assert host.attempt_in(worker, "start_thread") == {"refused": "RuntimeError"}


def test_without_seccomp_the_limit_on_processes_still_holds(
    make_host: HostMaker, native: str
) -> None:
    host = make_host("--refuse", "seccomp")
    pid = host.fork("standard", given=[native], memory_bytes_max=_MEMORY_BYTES_MAX)["pid"]
    assert host.attempt_in(pid, "start_thread") == {"refused": "RuntimeError"}
    assert host.attempt_in(pid, "fork") == {"refused": "EAGAIN"}
    assert call(host, pid, "spin", _BRIEFLY_SECONDS) == "interrupt"


def test_a_worker_with_a_component_can_make_no_memory_executable(
    host: HostProcess, worker: int
) -> None:
    assert host.attempt_in(worker, "make_executable") == {"refused": "EPERM"}
    assert host.attempt_in(worker, "map_executable") == {"refused": "EPERM"}


def test_it_may_take_as_much_memory_as_one_without(host: HostProcess, worker: int) -> None:
    less, more = _MEMORY_BYTES_MAX - (8 << 20), _MEMORY_BYTES_MAX + (8 << 20)
    assert host.attempt_in(worker, "take_memory", bytes=less) == {"value": less}
    assert host.attempt_in(worker, "take_memory", bytes=more) == {"refused": "MemoryError"}


def test_its_native_code_cannot_be_written(host: HostProcess, worker: int) -> None:
    descriptors = named_descriptors(worker)
    assert descriptors.keys() == {"native"}
    assert len(host.attempt_in(worker, "open_descriptors")["value"]) == 3 + 1 + 1
    mapped = descriptors["native"]
    assert host.attempt_in(worker, "write_descriptor", fd=mapped) == {"refused": "EBADF"}


def named_descriptors(pid: int) -> dict[str, int]:
    """Of files on the host's disks, by the name of each."""
    links = {int(link.name): link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {link.name: fd for fd, link in links.items() if link.is_absolute() and fd > 2}


def test_code_that_cannot_be_loaded_is_a_typed_error_and_leaves_nobody_behind(
    host: HostProcess, tmp_path: Path
) -> None:
    file = tmp_path / "native"
    file.write_bytes(b"no native code")
    refusal = host.fork(given=[str(opened_to_all(file))])
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children").read_text()
    assert refusal["layer"] == "load"
    assert refusal["code"].startswith("component.")
    assert refusal["message"]
    assert refusal["leaked"] == 0
    assert children == ""


def test_a_fork_with_a_component_leaks_no_descriptor(host: HostProcess, native: str) -> None:
    worker = host.fork(given=[native])
    assert worker["leaked"] == 0
    host.do("kill", pid=worker["pid"])
    host.do("reap", pid=worker["pid"])


# ---- A compiler ----------------------------------------------------------------------------------


def test_a_compiler_makes_memory_executable_but_never_writable_as_well(
    host: HostProcess, compiler: int
) -> None:
    assert host.attempt("make_executable_while_writable", "off") == {"value": 0}
    assert host.attempt_in(compiler, "make_executable") == {"value": 0}
    assert host.attempt_in(compiler, "make_executable_while_writable") == {"refused": "EPERM"}
    assert host.attempt_in(compiler, "map_executable") == {"refused": "EPERM"}


@pytest.mark.parametrize(
    ("attempt", "stopped_by"),
    [
        ("fork", "EPERM"),
        ("start_thread", "RuntimeError"),
        ("execute", "EPERM"),
        ("open_netlink", "EPERM"),
        ("make_memory_file", "EPERM"),
        ("write_root", "EROFS"),
        ("list_root", "EACCES"),
    ],
)
def test_a_compiler_is_confined_as_a_worker_is(
    host: HostProcess, compiler: int, attempt: str, stopped_by: str
) -> None:
    assert host.attempt_in(compiler, attempt) == {"refused": stopped_by}


def test_a_compiler_has_its_two_files_and_no_other(host: HostProcess, compiler: int) -> None:
    files = named_descriptors(compiler)
    assert files.keys() == {"component", "result"}
    assert len(host.attempt_in(compiler, "open_descriptors")["value"]) == 3 + 1 + len(files)
    answer = host.attempt_in(compiler, "read_descriptor", fd=files["component"])
    assert answer == {"value": "the component"}
    assert host.attempt_in(compiler, "write_descriptor", fd=files["result"]) == {"value": 7}


def test_a_compiler_that_uses_up_its_cpu_time_is_killed_and_the_exit_says_so(
    host: HostProcess, tmp_path: Path
) -> None:
    pid = fork_compiler(host, tmp_path, cpu_seconds_max=1)["pid"]
    host.attempt_in(pid, "burn_cpu")
    [(_, _, description)] = host.do("reap", pid=pid)["exits"]
    assert description == "used up its 1 s of CPU time, and was killed for it"
