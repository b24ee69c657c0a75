"""Tools with effects outside the database, killed at every step: nothing is done twice, nothing is
lost silently, and what nobody knows is said to be unknown.

Each trial is a real process with a real store and real files (`killed_calls`).
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from desks import AGENT, Desk, ask
from killed_calls import Came, Trial

from ipc_protocol.errors import Failure
from ipc_protocol.work import Refused, ToolResult, UseTool
from orchestrator.budget import Spent
from orchestrator.bus.tool_calls import BeginToolCall, begin_tool_call
from orchestrator.effects import Attempt
from orchestrator.failpoints import VARIABLE
from orchestrator.tools.paths import SCRATCH_PREFIX, scratch_name

PROGRAM = Path(__file__).with_name("killed_calls.py")
ROOT = PROGRAM.parents[2]

WRITE = UseTool(name="fs.write", arguments={"path": "notes/a.txt", "content": "new"})
AGAIN = UseTool(name="fs.write", arguments={"path": "notes/a.txt", "content": "newer"})
WRITTEN = ToolResult(ok=True, output="Wrote 3 bytes to notes/a.txt.")

Make = Callable[[Trial], Came]


def started(**environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    """Makes a trial in a process of its own."""
    with started() as program:
        assert program.stdin is not None
        assert program.stdout is not None

        def made(trial: Trial) -> Came:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(msgspec.json.encode(trial).decode() + "\n")
            program.stdin.flush()
            return msgspec.json.decode(program.stdout.readline(), type=Came)

        yield made
        program.stdin.close()


def killed_at(failpoint: str, trial: Trial) -> None:
    with started(**{VARIABLE: failpoint}) as program:
        said, _ = program.communicate(msgspec.json.encode(trial).decode() + "\n")
    assert (program.returncode, said) == (-signal.SIGKILL, "")


class Place:
    """The folder of one trial, with what was in the file before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "work" / "notes" / "a.txt"
        if not self.file.exists():
            self.file.parent.mkdir(parents=True)
            self.file.write_text("old")

    def copied(self, folder: Path) -> "Place":
        shutil.copytree(self.folder, folder)
        return Place(folder)

    def trial(self, *calls: UseTool, die_at: int = 0) -> Trial:
        return Trial(folder=str(self.folder), calls=list(calls or (WRITE,)), die_at=die_at)

    def staged(self) -> list[str]:
        names = (path.name for path in (self.folder / "work").iterdir())
        return [name for name in names if name.startswith(SCRATCH_PREFIX)]


def killed_everywhere(make: Make, folder: Path) -> Iterator[Place]:
    """Places in which the write was killed, each before another thing that it does to a file."""
    for step in itertools.count(1):
        place = Place(folder / str(step))
        if make(place.trial(die_at=step)).results is not None:
            return
        yield place


def test_a_write_is_made_once_wherever_it_is_killed(make: Make, tmp_path: Path) -> None:
    staged = []
    for place in killed_everywhere(make, tmp_path):
        assert place.file.read_text() == "old"
        staged.append(len(place.staged()))
        assert make(place.trial()).results == [WRITTEN]
        assert place.file.read_text() == "new"
        assert place.staged() == []
    # Before it was ready, and between that and its being put in its place.
    assert (staged.count(0), staged.count(1)) >= (3, 3)


@pytest.mark.parametrize("failpoint", ["effect.performed", "effect.journaled"])
def test_a_write_that_was_made_is_not_made_again(
    make: Make, tmp_path: Path, failpoint: str
) -> None:
    place = Place(tmp_path)
    killed_at(failpoint, place.trial())
    assert place.file.read_text() == "new"
    before = place.file.stat()
    assert make(place.trial()).results == [WRITTEN]
    assert place.file.stat() == before


def test_a_write_of_which_nobody_can_tell_is_unknown_and_left_alone(
    make: Make, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    killed_at("effect.performed", place.trial())
    place.file.write_text("a person's")
    for _ in range(2):
        (result,) = make(place.trial()).results or []
        assert (result.ok, result.unknown) == (False, True)
        assert "not known whether fs.write happened" in result.output
        assert place.file.read_text() == "a person's"
    # The agent decides: what it asks for next is another call.
    _, written = make(place.trial(WRITE, WRITE)).results or []
    assert written == WRITTEN
    assert place.file.read_text() == "new"


def test_what_was_journaled_is_true_whatever_became_of_the_file(make: Make, tmp_path: Path) -> None:
    place = Place(tmp_path)
    killed_at("effect.journaled", place.trial())
    place.file.write_text("a person's")
    assert make(place.trial()).results == [WRITTEN]
    assert place.file.read_text() == "a person's"


def test_finding_out_may_be_killed_as_well(make: Make, tmp_path: Path) -> None:
    # The last thing that it does is to put in its place what is staged.
    *_, place = killed_everywhere(make, tmp_path / "first")
    for step in itertools.count(1):
        copy = place.copied(tmp_path / "second" / str(step))
        if make(copy.trial(die_at=step)).results is not None:
            break
        assert len(copy.staged()) == 1
        assert make(copy.trial()).results == [WRITTEN]
        assert copy.file.read_text() == "new"
        assert copy.staged() == []
    assert step > 3


def test_what_a_dead_delivery_has_staged_is_cleared_away(make: Make, tmp_path: Path) -> None:
    place = Place(tmp_path)
    left = tmp_path / "work" / scratch_name("of a delivery that is dead")
    left.write_bytes(b"x")
    assert make(place.trial()).results == [WRITTEN]
    assert not left.exists()


# ---- What has begun is looked into before anything else ------------------------------------------


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    await made.open()
    await made.ask()
    yield made
    await made.store.close()


async def begun(desk: Desk, effect: UseTool = WRITE) -> Attempt:
    """An attempt at a delivery whose first call was in flight when something died."""
    first = await desk.attempt()
    call = BeginToolCall(
        delivery=first.delivery, incarnation=first.incarnation, step=1, effect=effect
    )
    await desk.store.apply(begin_tool_call, AGENT, call)
    return await desk.attempt()


async def test_a_grant_that_was_withdrawn_hides_nothing(desk: Desk) -> None:
    result = await ask(desk.effects(tools=()), await begun(desk), WRITE)
    assert isinstance(result, ToolResult)
    assert result.unknown


async def test_a_budget_that_is_used_up_hides_nothing(desk: Desk) -> None:
    effects = desk.effects(tools=("fs.write",))
    attempt = await begun(desk)
    attempt.spent = Spent(steps=1)
    result = await ask(effects, attempt, WRITE)
    assert isinstance(result, ToolResult)
    assert result.unknown
    assert isinstance(await ask(effects, attempt, WRITE), Refused)


async def test_another_request_than_the_one_that_began_is_a_mismatch(desk: Desk) -> None:
    effects = desk.effects(tools=("fs.write",))
    with pytest.raises(Failure) as caught:
        await ask(effects, await begun(desk), AGAIN)
    assert caught.value.code == "journal.mismatch"


async def test_a_call_that_could_not_be_made_did_not_begin(desk: Desk) -> None:
    effects = desk.effects(tools=("fs.write",))
    outside = UseTool(name="fs.write", arguments={"path": "../a", "content": ""})
    result = await ask(effects, await desk.attempt(), outside)
    assert isinstance(result, ToolResult)
    assert (result.ok, result.unknown) == (False, False)
    assert await desk.reader.fetch("SELECT count(*) FROM tool_call") == [(0,)]
