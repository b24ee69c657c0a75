"""How workers come and go: forked, reaped, killed, and never outliving the zygote."""

import os
import select

import pytest
from hosts import HostMaker, HostProcess

_SECONDS_MAX = 10


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_of_a_worker_is_reported(host: HostProcess, status: int) -> None:
    pid = host.fork()["pid"]
    host.attempt_in(pid, "leave", status=status)
    exits = host.do("reap", pid=pid)["exits"]
    assert exits == [[pid, "tested", f"exited with status {status}"]]


def test_an_uncaught_exception_is_shown_in_the_log(host: HostProcess) -> None:
    pid = host.fork()["pid"]
    host.do("log")
    host.attempt_in(pid, "fail")
    assert host.do("reap", pid=pid)["exits"] == [[pid, "tested", "exited with status 70"]]
    assert "ValueError: a fault of the worker's own" in host.do("log")["text"]


def test_what_a_worker_writes_to_standard_error_reaches_the_log(host: HostProcess) -> None:
    host.do("log")
    host.attempt("write_log", text="a line of its own\n")
    assert host.do("log")["text"] == "a line of its own\n"


def test_a_killed_worker_is_reaped_and_reported(host: HostProcess) -> None:
    pid = host.fork()["pid"]
    host.do("kill", pid=pid)
    assert host.do("reap", pid=pid)["exits"] == [[pid, "tested", "killed by SIGKILL"]]


@pytest.mark.parametrize("end", ["crash", "abort"])
def test_a_crash_is_a_death_although_the_worker_is_process_1(host: HostProcess, end: str) -> None:
    pid = host.fork()["pid"]
    host.attempt_in(pid, end)
    [(_, _, description)] = host.do("reap", pid=pid)["exits"]
    assert description.startswith("killed by SIG")


def test_a_dead_worker_cannot_be_killed_again(host: HostProcess) -> None:
    pid = host.fork()["pid"]
    host.do("kill", pid=pid)
    host.do("reap", pid=pid)
    assert host.do("kill", pid=pid)["error"] == "UnknownWorker"


def test_the_death_of_one_worker_leaves_the_others_alone(host: HostProcess) -> None:
    first, second = host.fork()["pid"], host.fork()["pid"]
    host.do("kill", pid=first)
    host.do("reap", pid=first)
    assert host.attempt_in(second, "own_pid") == {"value": 1}
    host.do("kill", pid=second)
    host.do("reap", pid=second)


@pytest.mark.parametrize("mode", ["strict", "standard", "off"])
def test_a_fork_leaks_no_descriptor(host: HostProcess, mode: str) -> None:
    worker = host.fork(mode)
    assert worker["leaked"] == 0
    host.do("kill", pid=worker["pid"])
    host.do("reap", pid=worker["pid"])


@pytest.mark.parametrize("mode", ["strict", "off"])
def test_workers_die_with_the_zygote(make_host: HostMaker, mode: str) -> None:
    host = make_host()
    worker_fd = os.pidfd_open(host.fork(mode)["pid"])
    alive = select.poll()
    alive.register(worker_fd, select.POLLIN)
    assert not alive.poll(0)
    host.process.kill()
    assert alive.poll(_SECONDS_MAX * 1000)
    os.close(worker_fd)


def test_a_zygote_that_ends_in_order_kills_and_reaps_its_workers(make_host: HostMaker) -> None:
    host = make_host()
    worker_fd = os.pidfd_open(host.fork()["pid"])
    host.close()
    assert host.process.returncode == 0
    alive = select.poll()
    alive.register(worker_fd, select.POLLIN)
    assert alive.poll(0)
    os.close(worker_fd)


def test_a_process_with_threads_refuses_to_fork_and_names_them(make_host: HostMaker) -> None:
    host = make_host()
    host.do("start_thread")
    answer = host.do("fork", mode="strict")
    assert answer["error"] == "ThreadsRunning"
    assert "2 threads" in answer["text"]
