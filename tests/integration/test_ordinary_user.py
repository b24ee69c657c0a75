"""The daemon as an ordinary user: nothing it does needs root, and its sandbox is as tight.

Where the tests themselves run as root, everything happens as a user without any privilege. An
interpreter or a clone that lies in root's home is out of reach for that user, so it is shown to it
in a mount namespace in which that home can be passed through and has nothing else in it.
"""

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Final

import pytest
from daemons import Installation, RunningDaemon, short_folder

from agent_runtime.sandbox.apply import REQUIRED_LAYERS

pytestmark = pytest.mark.model

UID: Final = 1500
REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent
NEEDED: Final = tuple(Path(path).resolve() for path in (sys.base_prefix, sys.prefix, REPOSITORY))
"""The interpreter, what is installed for it, and the program."""


def closed_folders() -> list[Path]:
    """The outermost folders on the way to what is needed that others may not pass."""
    ways = {folder for path in NEEDED for folder in path.parents}
    closed = {folder for folder in ways if not folder.stat().st_mode & stat.S_IXOTH}
    return [folder for folder in closed if closed.isdisjoint(folder.parents)]


def shown(closed: Path) -> str:
    """Shell commands that put an open folder over `closed`, with only what is needed in it."""
    steps = [
        f"exec 9<{quote(str(closed))}",
        f"mount -t tmpfs -o mode=755 none {quote(str(closed))}",
    ]
    for path in NEEDED:
        if path.is_relative_to(closed):
            held = quote(f"/proc/self/fd/9/{path.relative_to(closed)}")
            steps.append(f"mkdir -p {quote(str(path))}")
            steps.append(f"mount --no-canonicalize --bind {held} {quote(str(path))}")
    return " && ".join([*steps, "exec 9<&-"])


def as_ordinary_user() -> list[str]:
    """What to put before a command, so that it runs without privileges."""
    if os.geteuid() != 0:
        return []
    for path in NEEDED:
        if not path.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"{path} is for its owner only: no other user can run the program")
    dropped = f'exec setpriv --reuid {UID} --regid {UID} --clear-groups --bounding-set -all "$@"'
    steps = " && ".join([*map(shown, closed_folders()), dropped])
    return ["unshare", "--mount", "sh", "-c", steps, "sh"]


@pytest.fixture
def daemon(model_path: Path) -> Iterator[RunningDaemon]:
    with short_folder() as folder:
        installation = Installation.create(folder, model_path)
        # The model is where its user can read it.
        shutil.copy(model_path, folder / "model.gguf")
        installation.configure(model={"default": {"file": "model.gguf"}})
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, UID, UID)
        with installation.running(as_ordinary_user()) as daemon:
            yield daemon


def test_an_ordinary_user_has_the_same_sandbox_and_gets_answers(daemon: RunningDaemon) -> None:
    status = daemon.status()
    assert Path(f"/proc/{status['pid']}").stat().st_uid != 0
    assert status["sandbox"] == "strict"
    for agent in status["agents"]:
        states = {report["layer"]: report["state"] for report in agent["sandbox"]}
        assert "missing" not in states.values(), agent
        # There is no other user that it could give an agent; every other layer stands.
        required = {layer: states[layer] for layer in REQUIRED_LAYERS - {"identity"}}
        assert set(required.values()) == {"enforced"}, agent
    trace = daemon.answered("Is the load too high or the memory used up?", "ordinary")
    assert trace["conversation"]["reply"].strip()
    (opsclaw,) = (one for one in trace["deliveries"] if one["agent"] == "opsclaw")
    assert opsclaw["outcome"] == "acted"
