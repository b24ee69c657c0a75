"""Threads that use a type for the first time at once."""

import subprocess
import sys
from typing import Final

import pytest

RACE: Final = """
import sys, threading, types
import msgspec
from orchestrator.store.typed import build_types

SOURCE = "import msgspec\\n" \\
    "class Inner(msgspec.Struct):\\n    x: 'int'\\n    y: 'dict[str, int]'\\n" \\
    "class Outer(msgspec.Struct):\\n" + "".join(
        f"    f{number}: 'list[Inner] | None' = None\\n" for number in range(12))

def raced(number):
    module = types.ModuleType(f"module_{number}")
    sys.modules[module.__name__] = module
    exec(SOURCE, module.__dict__)
    if BUILT:
        build_types.__wrapped__()
    barrier = threading.Barrier(4)

    def decode():
        barrier.wait()
        msgspec.json.decode(b'{"f1": [{"x": 1, "y": {"a": 1}}]}', type=module.Outer)

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

sys.setswitchinterval(1e-6)
for number in range(ROUNDS):
    raced(number)
"""


@pytest.mark.parametrize(("built", "rounds", "status"), [(True, 60, 0), (False, 3000, -11)])
def test_types_that_are_built_before_can_be_used_by_many(
    built: bool, rounds: int, status: int
) -> None:
    """The second case is the control: without that the process dies. Should it ever live, msgspec
    is mended, and `build_types` is not needed."""
    program = RACE.replace("BUILT", str(built)).replace("ROUNDS", str(rounds))
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == status
