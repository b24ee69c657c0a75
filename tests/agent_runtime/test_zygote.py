"""What the zygote says about the end of a worker."""

import signal

from agent_runtime.zygote import WorkerExit


def described(number: int) -> str:
    return WorkerExit(pid=1, agent="opsclaw", exit_status=None, signal=number).description


def test_a_worker_that_a_real_time_signal_killed_is_described_by_its_number() -> None:
    assert described(36) == "killed by signal 36"
    assert described(signal.SIGKILL) == "killed by SIGKILL"
