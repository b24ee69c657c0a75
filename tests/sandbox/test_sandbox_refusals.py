"""Hosts that lack a layer: strict refuses with the reason, standard reports, off applies nothing.

Nothing is mocked: user namespaces are taken away by the kernel's own limit in a nested namespace,
and other layers by a system call filter, which is how a container engine takes them away.
"""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from hosts import HostMaker, HostProcess

_NO_USER_NAMESPACES = (
    "unshare",
    "--user",
    "--map-current-user",
    "--keep-caps",
    "sh",
    "-c",
    'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"',
    "sh",
)


def can_limit_user_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_NO_USER_NAMESPACES, "true"], check=False).returncode == 0


@pytest.fixture
def host_without_user_namespaces() -> HostProcess:
    if not can_limit_user_namespaces():
        pytest.skip("this host does not let a nested user namespace lower its own limit")
    return HostProcess("--keep-user", wrapper=_NO_USER_NAMESPACES)


def states_of(answer: dict) -> dict[str, str]:
    return {one["layer"]: one["state"] for one in answer["reports"]}


def test_strict_refuses_where_user_namespaces_are_refused(
    host_without_user_namespaces: HostProcess,
) -> None:
    host = host_without_user_namespaces
    refusal = host.fork()
    host.close()
    assert refusal["layer"] == "namespaces"
    assert refusal["errno"] == "ENOSPC"
    assert "max_user_namespaces" in refusal["cure"] or "user.max" in refusal["cure"]
    assert states_of(refusal)["namespaces"] == "missing"
    assert refusal["leaked"] == 0


def test_standard_takes_the_layers_that_are_left(
    host_without_user_namespaces: HostProcess,
) -> None:
    host = host_without_user_namespaces
    worker = host.fork("standard")
    states = states_of(worker)
    answer = host.attempt_in(worker["pid"], "open_path", path="/etc/passwd")
    host.close()
    assert states["namespaces"] == "missing"
    assert states["seccomp"] == states["landlock"] == states["rlimits"] == "enforced"
    assert answer == {"refused": "EACCES"}


@pytest.mark.parametrize(
    ("call", "layer"),
    [
        ("landlock_create_ruleset", "landlock"),
        ("pivot_root", "root"),
        ("unshare", "namespaces"),
        ("prlimit64", "rlimits"),
        ("capset", "no-new-privileges"),
        ("seccomp", "seccomp"),
    ],
)
def test_strict_names_the_layer_that_the_host_lacks(
    make_host: HostMaker, call: str, layer: str
) -> None:
    host = make_host("--refuse", call)
    refusal = host.fork()
    assert refusal["layer"] == layer
    assert refusal["errno"] == "ENOSYS"
    assert refusal["cure"]
    assert refusal["reports"][-1]["state"] == "missing"
    assert refusal["leaked"] == 0


@pytest.mark.parametrize(
    ("call", "layer"),
    [("landlock_create_ruleset", "landlock"), ("pivot_root", "root"), ("seccomp", "seccomp")],
)
def test_standard_starts_without_it_and_says_so(
    make_host: HostMaker, call: str, layer: str
) -> None:
    worker = make_host("--refuse", call).fork("standard")
    missing = [one["layer"] for one in worker["reports"] if one["state"] == "missing"]
    assert missing == [layer]


def test_off_applies_nothing_and_says_so(host: HostProcess) -> None:
    worker = host.fork("off")
    states = states_of(worker)
    host.do("kill", pid=worker["pid"])
    host.do("reap", pid=worker["pid"])
    assert states.pop("cgroup") == "not-applicable"
    assert states.pop("descriptors") == "enforced"
    assert set(states.values()) == {"missing"}


@pytest.mark.parametrize(
    ("option", "call", "layer", "message"),
    [
        ("--refuse", "landlock_create_ruleset", "landlock", "Function not implemented"),
        ("--kill", "unshare", "fork", "killed by SIGSYS"),
        ("--kill", "pivot_root", "fork", "killed by SIGSYS"),
        ("--hang", "unshare", "fork", "not sealed in time"),
        ("--hang", "pivot_root", "fork", "not sealed in time"),
    ],
)
def test_a_failed_fork_says_why_and_leaves_nobody_behind(
    make_host: HostMaker, option: str, call: str, layer: str, message: str
) -> None:
    host = make_host(option, call)
    refusal = host.fork()
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children").read_text()
    assert refusal["layer"] == layer
    assert message in refusal["message"]
    assert children == ""
    assert refusal["leaked"] == 0


@pytest.fixture
def host_without_seccomp(make_host: HostMaker) -> HostProcess:
    """Workers of it lack the layer that answers most attempts first."""
    return make_host("--refuse", "seccomp")


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        ("own_pid", {"value": 1}),
        ("host_name", {"value": "worker"}),
        ("open_netlink", {"value": 3}),  # but it speaks for an empty network
        ("write_root", {"refused": "EROFS"}),
        ("list_root", {"refused": "EACCES"}),
        ("fork", {"refused": "EAGAIN"}),
        ("execute", {"refused": "ENOENT"}),
    ],
)
def test_without_seccomp_the_other_layers_still_hold(
    host_without_seccomp: HostProcess, attempt: str, answer: dict
) -> None:
    assert host_without_seccomp.attempt(attempt, "standard") == answer


def test_without_seccomp_nobody_can_be_signalled(host_without_seccomp: HostProcess) -> None:
    host = host_without_seccomp
    for attempt in ("signal_process", "open_pidfd", "read_limits_of"):
        answer = host.attempt(attempt, "standard", target=host.process.pid)
        assert answer == {"refused": "ESRCH"}, attempt


def test_without_seccomp_nobody_can_be_connected(host_without_seccomp: HostProcess) -> None:
    host = host_without_seccomp
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        name = f"attempt-{os.getpid()}"
        abstract.bind("\0" + name)
        abstract.listen()
        port = server.getsockname()[1]
        # Landlock answers for TCP before the empty network can.
        assert host.attempt("connect_inet", "standard", port=port) == {"refused": "EACCES"}
        assert host.attempt("connect_unix", "standard", address="@" + name) == {
            "refused": "ECONNREFUSED"
        }


def test_without_landlock_the_root_is_seen_to_be_empty(make_host: HostMaker) -> None:
    host = make_host("--refuse", "landlock_create_ruleset")
    assert host.attempt("list_root", "standard") == {"value": ["scratch"]}
    assert host.attempt("leave_root_upwards", "standard") == {"value": ["scratch"]}
    assert host.attempt("write_root", "standard") == {"refused": "EROFS"}


def test_without_a_private_root_landlock_hides_every_file(make_host: HostMaker) -> None:
    host = make_host("--refuse", "pivot_root")
    answer = host.attempt("open_path", "standard", path="/etc/passwd")
    assert answer == {"refused": "EACCES"}
