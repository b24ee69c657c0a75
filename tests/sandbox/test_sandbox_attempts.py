"""What a confined worker cannot do, each with the same attempt succeeding without the sandbox."""

import os
import platform
import socket
from pathlib import Path
from typing import Any

import pytest
from hosts import HostProcess

_REFUSED_BY_SECCOMP = {"refused": "EPERM"}
_ONLY_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")


def assert_only_outside(host: HostProcess, stopped_by: Any, attempt: str, **arguments: Any) -> None:
    """The sandbox is what stops it: the same attempt succeeds with the sandbox off."""
    assert host.attempt(attempt, "off", **arguments).keys() == {"value"}
    assert host.attempt(attempt, **arguments) == stopped_by


def test_every_layer_reports_that_it_is_enforced(host: HostProcess) -> None:
    worker = host.fork()
    states = {one["layer"]: one["state"] for one in worker["reports"]}
    host.do("kill", pid=worker["pid"])
    host.do("reap", pid=worker["pid"])
    assert states.pop("cgroup") == "not-applicable"
    assert states.pop("identity") in ("enforced", "not-applicable")
    assert states == dict.fromkeys(
        [
            "namespaces",
            "descriptors",
            "root",
            "rlimits",
            "no-new-privileges",
            "landlock",
            "seccomp",
        ],
        "enforced",
    )


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/proc/self/status", "/dev/null", "/bin/sh", "/sys/kernel/mm", "/tmp"]
)
def test_no_path_of_the_host_exists(host: HostProcess, path: str) -> None:
    assert_only_outside(host, {"refused": "ENOENT"}, "stat_path", path=path)


def test_the_hosts_files_cannot_be_opened(host: HostProcess) -> None:
    assert_only_outside(host, {"refused": "ENOENT"}, "open_path", path="/etc/passwd")


def test_the_root_holds_the_scratch_space_and_nothing_else(host: HostProcess) -> None:
    assert host.attempt("list_root") == {"refused": "EACCES"}  # Landlock hides even that
    assert "proc" in host.attempt("list_root", "off")["value"]


def test_the_root_cannot_be_written(host: HostProcess) -> None:
    assert host.attempt("write_root")["refused"] in ("EROFS", "EACCES")


def test_no_path_leads_back_to_the_hosts_root(host: HostProcess) -> None:
    assert_only_outside(host, {"refused": "EACCES"}, "leave_root_upwards")


def test_the_scratch_space_can_be_used(host: HostProcess) -> None:
    assert host.attempt("use_scratch") == {"value": ["b"]}


def test_the_scratch_space_is_bounded_in_bytes(host: HostProcess) -> None:
    assert host.attempt("fill_scratch") == {"refused": "ENOSPC"}


def test_the_scratch_space_is_bounded_in_files(host: HostProcess) -> None:
    assert host.attempt("make_many_files") == {"refused": "ENOSPC"}


def test_nothing_in_the_scratch_space_can_be_made_runnable(host: HostProcess) -> None:
    assert host.attempt("run_from_scratch") == _REFUSED_BY_SECCOMP


def test_two_workers_share_no_scratch_space(host: HostProcess) -> None:
    assert host.attempt("use_scratch") == host.attempt("use_scratch")


def test_no_unix_socket_can_be_connected(host: HostProcess, tmp_path: Path) -> None:
    # A short path beneath a folder that an ordinary user may enter.
    path = Path("/tmp") / f"attempt-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            path.chmod(0o777)
            listener.listen()
            assert_only_outside(host, _REFUSED_BY_SECCOMP, "connect_unix", address=str(path))
        finally:
            path.unlink()


def test_no_abstract_socket_can_be_connected(host: HostProcess) -> None:
    name = f"attempt-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        assert_only_outside(host, _REFUSED_BY_SECCOMP, "connect_unix", address="@" + name)


def test_no_port_of_the_loopback_can_be_connected(host: HostProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert_only_outside(host, _REFUSED_BY_SECCOMP, "connect_inet", port=port)


def test_no_netlink_socket_can_be_opened(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "open_netlink")


def test_no_descriptor_can_be_passed_on(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "pass_descriptor")


def test_the_zygote_cannot_be_signalled(host: HostProcess) -> None:
    # Without the sandbox it is the same user's process, as far as the kernel cares.
    target = host.process.pid
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "signal_process", target=target)
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "open_pidfd", target=target)


def test_the_limits_of_the_zygote_cannot_be_read(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "read_limits_of", target=host.process.pid)


def test_a_worker_is_process_1_of_its_own_world(host: HostProcess) -> None:
    assert host.attempt("own_pid") == {"value": 1}
    assert host.attempt("own_pid", "off")["value"] > 1


def test_a_worker_is_never_root(host: HostProcess) -> None:
    ids = host.attempt("own_ids")["value"]
    assert len(set(ids)) == 1
    assert ids[0] >= 1000


def test_the_hosts_name_cannot_be_read(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "host_name")


def test_no_memory_can_be_mapped_executable(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "map_executable")
    assert host.attempt("map_plain").keys() == {"value"}


def test_no_memory_can_be_made_executable(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "make_executable")


def test_no_file_in_memory_can_be_made(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "make_memory_file")


def test_nothing_can_be_forked(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "fork")


def test_nothing_can_be_executed(host: HostProcess) -> None:
    assert host.attempt("execute") == _REFUSED_BY_SECCOMP
    assert host.attempt("execute", "off") == {"value": "closed"}  # it became /bin/true


@_ONLY_X86
@pytest.mark.parametrize(
    ("name", "number", "arguments"),
    [
        ("clone", 56, [17]),
        ("unshare", 272, [0x10000000]),
        ("io_uring_setup", 425, [1]),
        ("keyctl", 250, [0, -3, 1]),
        ("shmget", 29, [0, 4096, 0o1600]),
        ("inotify_init1", 294, [0]),
        ("setpriority", 141, [0, 0, 19]),
        ("personality", 135, [0xFFFFFFFF]),
        ("perf_event_open", 298, []),
        ("ptrace", 101, []),
        ("bpf", 321, []),
        ("process_vm_readv", 310, []),
        ("userfaultfd", 323, []),
        ("add_key", 248, []),
        ("mount", 165, []),
        ("umount2", 166, []),
        ("landlock_create_ruleset", 444, [0, 0, 1]),
    ],
)
def test_a_call_that_no_worker_needs_is_refused(
    host: HostProcess, name: str, number: int, arguments: list[int]
) -> None:
    answer = host.attempt("system_call", number=number, arguments=arguments)
    assert answer == _REFUSED_BY_SECCOMP, name


@_ONLY_X86
@pytest.mark.parametrize(
    ("number", "arguments"), [(425, [1]), (29, [0, 4096, 0o1600]), (294, [0]), (141, [0, 0, 19])]
)
def test_such_a_call_is_answered_otherwise_without_the_sandbox(
    host: HostProcess, number: int, arguments: list[int]
) -> None:
    answer = host.attempt("system_call", "off", number=number, arguments=arguments)
    assert answer != _REFUSED_BY_SECCOMP


def test_a_worker_cannot_become_dumpable_again(host: HostProcess) -> None:
    assert_only_outside(host, _REFUSED_BY_SECCOMP, "control_process", arguments=[4, 1])


def test_memory_beyond_the_limit_is_a_memory_error(host: HostProcess) -> None:
    assert_only_outside(host, {"refused": "MemoryError"}, "take_memory", bytes=80 << 20)


def test_memory_within_the_limit_is_given(host: HostProcess) -> None:
    assert host.attempt("take_memory", bytes=48 << 20) == {"value": 48 << 20}


def test_descriptors_are_bounded(host: HostProcess) -> None:
    assert_only_outside(host, {"refused": "EMFILE"}, "take_descriptors")


@pytest.mark.parametrize("mode", ["strict", "off"])
def test_no_descriptor_is_inherited_but_the_socket_and_the_streams(
    host: HostProcess, mode: str
) -> None:
    found = host.attempt("open_descriptors", mode)["value"]
    assert found[:3] == [0, 1, 2]
    assert len(found) == 4


def test_two_workers_draw_different_random_numbers(host: HostProcess) -> None:
    drawn = {host.attempt("random_number")["value"] for _ in range(4)}
    assert len(drawn) == 4


@pytest.mark.parametrize("loop", ["run_uvloop", "run_asyncio"])
def test_a_loop_answers_over_the_socket_without_any_file(host: HostProcess, loop: str) -> None:
    pid = host.fork()["pid"]
    assert host.attempt_in(pid, "open_path", path=os.__file__) == {"refused": "ENOENT"}
    assert host.attempt_in(pid, loop, message="grüße") == {"value": {"echo": "grüße"}}
    assert host.do("reap", pid=pid)["exits"] == [[pid, "tested", "exited with status 0"]]


def test_what_python_imports_late_is_already_there(host: HostProcess) -> None:
    pid = host.fork()["pid"]
    assert "ZeroDivisionError" in host.attempt_in(pid, "describe_exception")["value"]
    assert host.attempt_in(pid, "encode_domain") == {"value": "xn--bcher-kva.example"}
    assert host.attempt_in(pid, "handle_own_signal") == {"value": True}
    host.do("kill", pid=pid)
    host.do("reap", pid=pid)
