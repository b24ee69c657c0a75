"""Decoding threads give way to others, and come back."""

import os
import subprocess
import sys
import time

import pytest

from inference_client.engine import threads
from inference_client.engine.threads import CALM_WINDOWS, Cores, Occupancy


def test_all_threads_decode_while_nobody_else_needs_a_core():
    assert [Occupancy(2, 2).measured(others) for others in (0.0, 0.1, 0.3)] == [2, 2, 2]


@pytest.mark.parametrize(("others", "left"), [(0.5, 3), (1.0, 3), (2.1, 2), (3.0, 1), (9.0, 1)])
def test_a_busy_neighbour_is_left_its_cores(others, left):
    assert Occupancy(4, 4).measured(others) == left


def test_fewer_threads_than_cores_need_not_give_way_at_once():
    assert Occupancy(2, 4).measured(2.0) == 2


def test_a_thread_comes_back_when_its_core_has_been_free_for_a_while():
    cores = Occupancy(2, 2)
    cores.measured(1.0)
    assert [cores.measured(0.0) for _ in range(CALM_WINDOWS)] == [1] * (CALM_WINDOWS - 1) + [2]


def test_a_neighbour_that_works_now_and_then_keeps_its_core():
    cores = Occupancy(2, 2)
    found = [cores.measured(others) for _ in range(10) for others in (1.0, 0.0)]
    assert set(found) == {1}


def test_threads_come_back_one_at_a_time():
    cores = Occupancy(3, 3)
    cores.measured(3.0)
    found = [cores.measured(0.0) for _ in range(2 * CALM_WINDOWS)]
    assert found[CALM_WINDOWS - 1] == 2
    assert found[-1] == 3


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is not shared out")
def test_a_real_neighbour_is_noticed():
    count = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    cores = Cores(count)
    try:
        end = time.monotonic() + 30
        while cores.poll() == count:
            assert time.monotonic() < end, "nobody noticed"
            time.sleep(0.05)
    finally:
        for process in busy:
            process.kill()
            process.wait()
        cores.close()
    assert cores.threads < count


def test_its_own_work_is_no_neighbour(monkeypatch):
    cores = Cores(1)
    monkeypatch.setattr(threads, "WINDOW_SECONDS", 0.05)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        cores.poll()
    cores.close()
    assert cores.threads == 1


def test_without_proc_all_threads_decode(monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "STAT", tmp_path / "missing")
    cores = Cores(1)
    assert cores.poll() == 1
    cores.close()
