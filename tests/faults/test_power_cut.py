"""The power goes at any moment: what was acknowledged is there, nothing is there in part.

A load on a real store is recorded down to what it writes and syncs, from the creation of its file
on, with checkpoints beside the commits. `recorded_disk` makes up what a disk may hold after a power
cut anywhere in the record, the program starts on that and goes on, and `load_checker` compares what
it finds with what was promised. With a weaker `synchronous` the same harness has to find losses.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Final

import apsw
import crash_states
import load_checker
import pytest
from crash_states import STORE, Recording
from recorded_disk import (
    Create,
    Disk,
    Operation,
    Remove,
    Rename,
    Sync,
    SyncFolder,
    Truncate,
    Write,
    put,
)

SEED: Final = 20
LOG_HEADER_BYTES: Final = 32
ROUNDS: Final = 2


def files_of(recording: Recording) -> dict[int, str]:
    """The last name of each file."""
    names: dict[int, str] = {}
    for operation in recording.operations:
        match operation:
            case Create(name, file):
                names[file] = name
            case Rename(name, to):
                names = {file: to if each == name else each for file, each in names.items()}
    return names


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return crash_states.record(tmp_path_factory.mktemp("recorded"), rounds=ROUNDS)


def test_the_record_has_everything_that_a_power_cut_may_meet(recording: Recording) -> None:
    """Else the proof below would not be about what it says."""
    files = files_of(recording)
    writes = [each for each in recording.operations if isinstance(each, Write)]
    begun = Counter(
        files[each.file]
        for each in writes
        if each.offset == 0 and len(each.data) == LOG_HEADER_BYTES
    )
    assert begun[crash_states.LOG] > 4, "the log begins anew"
    kinds = Counter(
        (type(each).__name__, files[each.file])
        for each in recording.operations
        if isinstance(each, Write | Sync | Truncate)
    )
    assert kinds["Sync", STORE] > 8, "there are checkpoints"
    assert kinds["Truncate", crash_states.LOG] > 0
    names = [
        each
        for each in recording.operations
        if isinstance(each, Create | Rename | Remove | SyncFolder)
    ]
    renamed = names.index(Rename(f"{STORE}.new", STORE))
    assert names[renamed + 1] == SyncFolder(), "the new store has its name on disk"
    assert Remove(crash_states.LOG) in names, "it is closed and opened again"
    assert {each.kind for each in recording.promises} == {
        "registered",
        "published",
        "leased",
        "journaled",
        "completed",
    }


def test_no_power_cut_takes_anything_that_was_acknowledged(recording: Recording) -> None:
    tally = crash_states.examined(recording, crash_states.cuts(recording, 240, SEED))
    print(tally)
    assert tally.states == 240
    assert not tally.kinds, tally


def test_a_power_cut_after_a_power_cut_takes_nothing_either(
    tmp_path: Path, recording: Recording
) -> None:
    require_safe_again(tmp_path, recording, cuts=2, states=20)


def require_safe_again(folder: Path, recording: Recording, *, cuts: int, states: int) -> None:
    """Start on what power cuts have left, and cut the power then."""
    for cut in crash_states.cuts(recording, cuts, SEED):
        there = folder / str(cut.seed)
        there.mkdir()
        again = crash_states.record_after(recording, cut, there)
        tally = crash_states.examined(again, crash_states.cuts(again, states, SEED))
        print(f"after {cut}: {tally}")
        assert not tally.kinds, f"after {cut}: {tally}"


@pytest.mark.parametrize(("synchronous", "kind"), [("NORMAL", "lost"), ("OFF", "corrupt")])
def test_the_same_harness_finds_what_a_weaker_store_loses(
    tmp_path: Path, synchronous: str, kind: str
) -> None:
    recording = crash_states.record(tmp_path, synchronous=synchronous, rounds=ROUNDS)
    tally = crash_states.examined(recording, crash_states.cuts(recording, 50, SEED))
    print(synchronous, tally)
    assert tally.kinds[kind] >= 3, tally


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_no_power_cut_of_ten_thousand_takes_anything(tmp_path: Path) -> None:
    states = 0
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        recording = crash_states.record(folder, rounds=ROUNDS + seed // 2)
        tally = crash_states.examined(recording, crash_states.cuts(recording, 2000, seed))
        print(tally)
        assert not tally.kinds, tally
        states += tally.states
    assert states == 10_000


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_thousand_power_cuts_after_power_cuts_take_nothing_either(
    tmp_path: Path, recording: Recording
) -> None:
    require_safe_again(tmp_path, recording, cuts=20, states=50)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_without_a_sync_for_each_commit_a_thousand_power_cuts_lose_a_lot(tmp_path: Path) -> None:
    recording = crash_states.record(tmp_path, synchronous="NORMAL", rounds=ROUNDS)
    tally = crash_states.examined(recording, crash_states.cuts(recording, 1000, SEED))
    print(tally)
    assert tally.kinds["lost"] >= 50, tally


# ---- What a disk may hold -----------------------------------------------------------------------


def possible(*operations: Operation) -> set[tuple[tuple[str, bytes], ...]]:
    """What four hundred power cuts after these leave."""
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    chance = random.Random(SEED)
    return {tuple(sorted(disk.after_power_cut(chance).items())) for _ in range(400)}


NAMED: Final = (Create("a", 0), SyncFolder())


def test_what_was_synced_is_there_whatever_was_not() -> None:
    synced = (*NAMED, Write(0, 0, b"one"), Sync(0, 3))
    assert possible(*synced) == {(("a", b"one"),)}
    assert {dict(each)["a"][:3] for each in possible(*synced, Write(0, 3, b"two"))} == {b"one"}


def test_what_was_not_synced_may_be_there_or_not() -> None:
    left = possible(*NAMED, Write(0, 0, b"one"))
    assert {(("a", b"one"),), (("a", b""),)} <= left


def test_a_write_may_be_torn_between_two_sectors() -> None:
    left = {dict(each)["a"] for each in possible(*NAMED, Write(0, 0, b"x" * 1024))}
    assert b"x" * 512 in left
    assert bytes(512) + b"x" * 512 in left


def test_an_earlier_write_may_be_missing_under_a_later_one() -> None:
    left = {dict(each)["a"] for each in possible(*NAMED, Write(0, 0, b"1"), Write(0, 512, b"2"))}
    assert bytes(512) + b"2" in left


def test_a_sync_says_nothing_about_what_was_written_after_it_began() -> None:
    left = possible(*NAMED, Write(0, 0, b"one"), Sync(0, 2))
    assert (("a", b""),) in left


def test_a_name_is_only_there_once_its_folder_is_synced() -> None:
    left = possible(Create("a", 0), Write(0, 0, b"one"), Sync(0, 2), Rename("a", "b"))
    assert {(), (("a", b"one"),), (("b", b"one"),)} == left


def test_a_removed_file_may_come_back() -> None:
    assert possible(*NAMED, Remove("a")) == {(), (("a", b""),)}


# ---- The checker --------------------------------------------------------------------------------


@pytest.fixture
def after_the_load(tmp_path: Path, recording: Recording) -> Path:
    disk = Disk()
    for operation in recording.operations:
        disk.apply(operation)
    put(disk.whole(), tmp_path)
    return tmp_path / STORE


def test_the_checker_finds_nothing_where_nothing_is_wrong(
    after_the_load: Path, recording: Recording
) -> None:
    assert load_checker.faults_of(after_the_load, recording.promises) == []


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("DELETE FROM delivery WHERE id = 5", "lost"),
        ("DELETE FROM topic_subscription WHERE agent = 'keeper'", "lost"),
        ("UPDATE message SET payload = x'41' WHERE id = 1", "lost"),
        ("DELETE FROM journal WHERE delivery = 1 AND step = 1", "lost"),
        ("UPDATE delivery SET begun_us = NULL, seed = NULL, setting = NULL WHERE id = 2", "lost"),
        ("DELETE FROM message WHERE produced_by = 1", "half"),
        ("DELETE FROM memory WHERE delivery = 1", "half"),
        ("DELETE FROM state WHERE owner = 'builder'", "half"),
        ("UPDATE conversation SET reply = '' WHERE id = 1", "half"),
        ("UPDATE conversation SET state = 'open' WHERE id = 1", "half"),
        (
            "DELETE FROM message WHERE id ="
            " (SELECT max(id) FROM message WHERE CAST(payload AS TEXT) LIKE '%-of-%')",
            "half",
        ),
        (
            "INSERT INTO message SELECT id + 1000, conversation, round, topic, sender, class,"
            " payload, cause, produced_by, hops, composed, fallback, NULL, sent_us, expires_us"
            " FROM message WHERE id = 2",
            "half",
        ),
        ("DELETE FROM memory_text_docsize", "corrupt"),
        ("DELETE FROM memory_vector_rowids WHERE rowid = 1", "corrupt"),
        ("UPDATE delivery SET setting = 77 WHERE id = 1", "corrupt"),
    ],
)
def test_the_checker_finds_what_is_wrong(
    after_the_load: Path, recording: Recording, damage: str, kind: str
) -> None:
    connection = apsw.Connection(str(after_the_load))
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.execute(damage)
    assert connection.changes() > 0, "the damage is done"
    connection.close()
    kinds = {fault.kind for fault in load_checker.faults_of(after_the_load, recording.promises)}
    assert kind in kinds
