"""The worker that the daemon forks, strictly confined, with the least that a brain can do."""

import subprocess
import sys
from pathlib import Path

from agent_runtime.gathering import GATHERED_MAX

MESSAGES = 20 * GATHERED_MAX
SECONDS_MAX = 60


def test_a_sealed_worker_gathers_completions_and_hears_of_withdrawals() -> None:
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "sealed_echo.py"), str(MESSAGES)],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    finished, frames, code = run.stdout.split()
    assert int(finished) == MESSAGES
    assert MESSAGES // GATHERED_MAX <= int(frames) < MESSAGES
    assert code == "request.cancelled"
