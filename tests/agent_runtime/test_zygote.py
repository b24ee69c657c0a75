"""What the zygote says about the end of a worker."""

import signal

from agent_runtime.zygote import WorkerExit


def described(number: int) -> str:
    return WorkerExit(pid=1, agent="opsclaw", exit_status=None, signal=number).description


def test_a_worker_that_a_real_time_signal_killed_is_described_by_its_number() -> None:
    assert described(36) == "killed by signal 36"
    assert described(signal.SIGKILL) == "killed by SIGKILL"


def test_a_compiler_that_used_up_its_cpu_time_is_described_by_its_limit() -> None:
    exit_ = WorkerExit(
        pid=1, agent="echo", exit_status=None, signal=signal.SIGKILL, cpu_seconds_max=60
    )
    assert exit_.description == "used up its 60 s of CPU time, and was killed for it"
