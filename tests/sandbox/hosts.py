"""A real zygote in a process of its own, as root and as an ordinary user: `host.py`, driven."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parent.parent
_ORDINARY_UID = 1500

HostMaker = Callable[..., "HostProcess"]


class HostProcess:
    """`host.py` in a process of its own."""

    def __init__(self, *options: str, wrapper: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, str(_HERE / "host.py"), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
            text=True,
        )

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the host died with {self.process.wait()}"
        return json.loads(answer)

    def fork(self, mode: str = "strict", **options: Any) -> dict[str, Any]:
        """`given` are paths of files whose descriptors it gets, beside its socket and its log."""
        worker = self.do("fork", mode=mode, **options)
        assert "error" not in worker, worker
        return worker

    def attempt_in(self, pid: int, attempt: str, **arguments: Any) -> dict[str, Any]:
        return self.do("attempt", pid=pid, attempt=attempt, arguments=arguments)

    def attempt(self, attempt: str, mode: str = "strict", **arguments: Any) -> dict[str, Any]:
        """One attempt in a worker of its own."""
        pid = self.fork(mode)["pid"]
        answer = self.attempt_in(pid, attempt, **arguments)
        self.do("kill", pid=pid)
        self.do("reap", pid=pid)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=20)


def options_of(kind: str) -> tuple[str, ...]:
    if os.geteuid() == 0:
        return () if kind == "root" else ("--uid", str(_ORDINARY_UID))
    if kind == "root":
        pytest.skip("needs root")
    return ()
