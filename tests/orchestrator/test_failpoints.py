"""Fail points: a process dies at the place that is named, and only there."""

import os
import signal
import subprocess
import sys

import pytest

from orchestrator import failpoints

PASSES = """
from orchestrator.failpoints import reach
for time in range(3):
    reach("effect.performed")
    reach("effect.journaled")
    print(time, flush=True)
"""


def passing(value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != failpoints.VARIABLE}
    if value is not None:
        environment[failpoints.VARIABLE] = value
    return subprocess.run(
        [sys.executable, "-c", PASSES], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("value", [None, "", "lease.handed", "effect.journaled:4"])
def test_a_place_that_is_not_named_is_passed(value: str | None) -> None:
    passed = passing(value)

    assert (passed.returncode, passed.stdout.split()) == (0, ["0", "1", "2"])


@pytest.mark.parametrize(
    ("value", "before"),
    [("effect.performed", []), ("effect.journaled:1", []), ("effect.performed:3", ["0", "1"])],
)
def test_a_named_place_kills_the_first_or_the_nth_time(value: str, before: list[str]) -> None:
    killed = passing(value)

    assert (killed.returncode, killed.stdout.split()) == (-signal.SIGKILL, before)


def test_a_name_that_is_no_place_is_an_error_that_lists_them() -> None:
    refused = passing("effect.done")

    assert refused.returncode == 1
    assert "'effect.done'" in refused.stderr
    assert all(name in refused.stderr for name in failpoints.NAMES)


@pytest.mark.parametrize("nth", ["", "0", "-1", "two", "1:2", "²"])
def test_a_count_that_is_none_is_an_error(nth: str) -> None:
    with pytest.raises(ValueError, match="not a count"):
        failpoints.armed_by(f"lease.handed:{nth}")
