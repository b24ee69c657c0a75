"""Whether there is room, and what the reserve is for."""

import os
import re
from pathlib import Path

import pytest

from ipc_protocol.errors import Failure
from orchestrator.store.reserve import Reserve
from orchestrator.store.space import (
    NEXT,
    RESERVE_BYTES_MAX,
    RESERVE_SHARE,
    Marks,
    after,
    at_start,
    marks_for,
    seen,
)

MARKS = Marks(reserve=10, low=10, high=20)


def test_the_reserve_is_a_small_part_of_a_small_disk() -> None:
    assert marks_for(16 * RESERVE_SHARE).reserve == 16
    large = marks_for(1 << 50)
    assert large == Marks(
        reserve=RESERVE_BYTES_MAX, low=RESERVE_BYTES_MAX, high=2 * RESERVE_BYTES_MAX
    )


def test_the_intake_closes_and_opens_at_different_marks() -> None:
    assert after("open", seen("open", 9, MARKS)) == "closed"
    assert after("open", seen("open", 10, MARKS)) == "open"
    assert after("closed", seen("closed", 19, MARKS)) == "closed"
    assert after("closed", seen("closed", 9, MARKS)) == "closed"
    assert after("closed", seen("closed", 20, MARKS)) == "open"


def test_a_reserve_that_was_given_up_is_made_before_the_intake_opens() -> None:
    assert after("open", "full") == after("closed", "full") == after("spent", "full") == "spent"
    assert after("spent", seen("spent", 29, MARKS)) == "spent"
    assert after("spent", seen("spent", 9, MARKS)) == "spent"
    assert after("spent", seen("spent", 30, MARKS)) == "open"


def test_nothing_gives_a_reserve_back_before_there_is_room_for_it() -> None:
    assert {after for (_, event), after in NEXT.items() if event != "room"} == {"closed", "spent"}


def test_a_store_starts_as_it_stopped() -> None:
    assert at_start(True, 10, MARKS) == "open"
    assert at_start(True, 9, MARKS) == "closed"
    assert at_start(False, 20, MARKS) == "open"
    assert at_start(False, 19, MARKS) == "spent"


# ---- The file ------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "agentd.db"


def test_the_reserve_is_allocated_and_not_only_long(database: Path) -> None:
    reserve = Reserve(database)
    reserve.open()
    assert reserve.state == "open"
    file = (database.parent / "agentd.db.reserve").stat()
    assert file.st_size == reserve.held > 0
    assert file.st_blocks * 512 >= file.st_size
    reserve.admit()


def test_a_full_disk_gives_the_reserve_up_and_says_what_helps(database: Path) -> None:
    reserve = Reserve(database)
    reserve.open()
    held = reserve.held
    reserve.found_full()
    assert reserve.state == "spent" and reserve.held == 0
    assert os.listdir(database.parent) == []  # noqa: PTH208
    with pytest.raises(Failure, match=re.escape(str(database))) as failure:
        reserve.admit()
    assert failure.value.code == "store.full"
    assert failure.value.problem.details["wanted_bytes"] == 3 * held
    # There is room on this disk, so the next look finds it.
    assert reserve.look() == "open"
    assert reserve.held == held
    reserve.admit()


def test_a_reserve_of_an_earlier_run_is_taken_over(database: Path) -> None:
    Reserve(database).open()
    file = database.parent / "agentd.db.reserve"
    before = file.stat().st_ino
    again = Reserve(database)
    again.open()
    assert (again.state, file.stat().st_ino) == ("open", before)
    file.write_bytes(b"half")
    Reserve(database).open()
    assert file.stat().st_size == again.held
