"""Every call that one transaction makes to its disk fails once, in turn.

Whatever fails, the caller was told the truth: what was acknowledged is there, and what was refused
is not there, or was left unknown by a store that takes no more and says so. Nothing is ever there
in part, and a healthy disk is all it takes to go on.
"""

import asyncio
import errno
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import crash_states
import faulty_disk
import pytest
from faulted_store import (
    INDEX_PAGES,
    Folder,
    held_log,
    prepare,
    prepare_long_log,
    restart_log,
    write_ballast,
)
from faulty_disk import CHANGING, Failing, FaultyDisk
from planned_load import Load

from ipc_protocol.errors import Failure
from orchestrator.store import store as store_module
from orchestrator.store.store import Store
from orchestrator.store.transaction import Transaction

KINDS: Final = {
    "eio": Failing(0, errno.EIO),
    "eio-for-good": Failing(0, errno.EIO, lasting=True),
    "eio-dropped": Failing(0, errno.EIO, dropping=True),
    "enospc": Failing(0, errno.ENOSPC),
    "enospc-for-good": Failing(0, errno.ENOSPC, lasting=True),
}

CALLS_MAX: Final = 10_000
"""More than anything here makes."""

OPENING_STRIDE: Final = 23
"""Of the calls that make a store or open one, one in so many fails in the short run."""

Act = Callable[[], Coroutine[Any, Any, object]]
Operation = Callable[[Load], Coroutine[Any, Any, Act]]


async def publishing(load: Load) -> Act:
    return lambda: load.publish("job.all", "tried")


async def completing(load: Load) -> Act:
    await load.employ("planner")
    (held,) = load.take("planner")
    await load.journal("planner", held)
    return lambda: load.complete("planner", held)


DONE: Final[dict[Operation, str]] = {
    publishing: "SELECT 1 FROM message WHERE CAST(payload AS TEXT) LIKE 'tried %'",
    completing: "SELECT 1 FROM delivery WHERE state = 'done'",
}
"""What finds a row once the operation is done."""


# ---- Where the transaction finds the store ------------------------------------------------------


async def nothing(load: Load) -> None:
    """Go straight to the transaction."""


class Situation(NamedTuple):
    folder: Folder
    ready: Callable[[Load], AbstractAsyncContextManager[None]] = lambda load: nullcontext()
    """What happens around the transaction."""
    first: Callable[[Load], Coroutine[Any, Any, None]] = nothing
    """What the store's upkeep does just before it, on the same disk."""
    calls: frozenset[str] = frozenset(("xWrite", "xSync", "xShmLock"))
    """Those that it is about."""


@pytest.fixture(scope="module")
def killed() -> Iterator[Folder]:
    with tempfile.TemporaryDirectory(prefix="disk-", dir=crash_states.scratch()) as folder:
        yield asyncio.run(prepare(Path(folder)))


@pytest.fixture(scope="module")
def long_log(killed: Folder) -> Iterator[Folder]:
    with tempfile.TemporaryDirectory(prefix="disk-", dir=crash_states.scratch()) as folder:
        yield asyncio.run(prepare_long_log(Path(folder), killed))


@pytest.fixture
def at_work(killed: Folder) -> Situation:
    return Situation(killed)


@pytest.fixture
def at_a_checkpoint(killed: Folder) -> Situation:
    """The log is written back, begins anew with the transaction, and is cut to what that needs."""
    calls = frozenset(("xRead", "xWrite", "xSync", "xTruncate"))
    return Situation(killed, first=restart_log, calls=calls)


@pytest.fixture
def at_the_end_of_an_index(long_log: Folder) -> Situation:
    """The log is as long as the first segment of its index, and cannot be restarted."""
    calls = frozenset(("xWrite", "xSync", "xShmMap"))
    return Situation(long_log, ready=lambda load: held_log(load, INDEX_PAGES - 6, 1), calls=calls)


@pytest.fixture(params=["at_work", "at_a_checkpoint", "at_the_end_of_an_index"])
def situation(request: pytest.FixtureRequest) -> Situation:
    found: Situation = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module", autouse=True)
def only_when_told() -> Iterator[None]:
    """The log is written back when a test says so, and is cut then; by itself it only grows."""
    limits = {"PASS_BYTES": 2**40, "LOG_BYTES_HARD": 2**40, "LOG_BYTES_SOFT": 2**40}
    with crash_states.small_reserve(), crash_states.log_limits(0, **limits):
        yield


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with faulty_disk.faulty_disk() as disk:
        yield disk


# ---- One transaction ----------------------------------------------------------------------------


async def attempt(
    disk: FaultyDisk, situation: Situation, operation: Operation, failing: Failing
) -> str | None:
    """Try `operation` while the disk fails as told. Returns how it ended: *done*, or the code of
    its failure; None if it made no such call."""
    with ExitStack() as stack:
        folder = stack.enter_context(situation.folder.copied())
        left: Folder | None = None
        async with folder.opened() as load:
            act = await operation(load)
            async with situation.ready(load):
                disk.fail(failing)
                await situation.first(load)
                began = len(disk.calls)
                ended = await outcome(act)
                if disk.failed_at is None:
                    disk.heal()
                    assert ended == "done"
                    temporary = "xOpen" in disk.calls[began:]
                    assert not temporary, "a temporary file is one more that can fail"
                    return None
                what = f"{failing} ({disk.calls[disk.failed_at]}): {ended}"
                if ended != "done":
                    left = stack.enter_context(folder.copied())
                if ended == "store.unavailable":
                    await require_stopped(disk, load.store, began, what)
                elif ended == "store.full":
                    disk.heal()
                    assert await outcome(act) == "done", what
            # A store that has failed is closed by a daemon that stops, on the disk as it is.
        disk.heal()
        if ended != "store.unavailable":
            assert folder.holds(DONE[operation]), what
        await folder.require_sound(what)
        if left is not None:
            if ended == "store.full":
                assert not left.holds(DONE[operation]), what
            await left.require_sound(f"{what}, and killed before it was closed")
        return ended


async def calls_of(disk: FaultyDisk, situation: Situation, operation: Operation) -> list[str]:
    """The calls that `operation` makes while nothing fails."""
    assert await attempt(disk, situation, operation, Failing(CALLS_MAX, errno.EIO)) is None
    calls = [*disk.calls]
    assert situation.calls <= set(calls), "the situation is not what it is meant to be"
    return calls


def first_and_last(calls: list[str], wanted: frozenset[str]) -> set[int]:
    """Where each of the calls that are wanted is made for the first and for the last time."""
    lasts = {call: number for number, call in enumerate(calls)}
    firsts = {call: number for number, call in reversed([*enumerate(calls)])}
    return {where[call] for where in (firsts, lasts) for call in wanted}


async def outcome(act: Act) -> str:
    try:
        await act()
    except Failure as failure:
        assert failure.code in ("store.full", "store.unavailable")
        return failure.code
    return "done"


async def require_stopped(disk: FaultyDisk, store: Store, began: int, what: str) -> None:
    """The store says that it has failed, has not tried again, and does not even if asked to."""
    assert disk.failed_at is not None
    if disk.failed_at >= began:
        assert not CHANGING & set(disk.calls[disk.failed_at + 1 :]), what
    async with asyncio.timeout(10):
        failure = await store.wait_failed()
    assert failure.code == "store.unavailable"
    calls = len(disk.calls)
    assert await outcome(lambda: store.apply(write_ballast, "ballast", 1)) == "store.unavailable"
    assert len(disk.calls) == calls, what


async def require_truth(
    disk: FaultyDisk, situation: Situation, operation: Operation, kind: str, *, every: bool
) -> None:
    calls = await calls_of(disk, situation, operation)
    chosen = range(len(calls)) if every else sorted(first_and_last(calls, situation.calls))
    ends: Counter[str | None] = Counter()
    for number in chosen:
        if calls[number] in KINDS[kind].codes:
            ends[await attempt(disk, situation, operation, KINDS[kind]._replace(at=number))] += 1
    print(f"{operation.__name__}, {kind}: {len(calls)} calls, {dict(ends)}")
    # A sync that fails leaves it unknown what is on the disk, a write that finds no room does not.
    assert ends["store.unavailable"] >= 1
    assert (ends["store.full"] >= 1) == kind.startswith("enospc")
    assert ends[None] <= len(chosen) // 10, "it does not make the same calls each time"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", [publishing, completing])
async def test_whatever_kind_of_call_fails_its_caller_is_told_the_truth(
    disk: FaultyDisk, situation: Situation, operation: Operation, kind: str
) -> None:
    await require_truth(disk, situation, operation, kind, every=False)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", [publishing, completing])
async def test_whichever_call_of_a_transaction_fails_its_caller_is_told_the_truth(
    disk: FaultyDisk, situation: Situation, operation: Operation, kind: str
) -> None:
    await require_truth(disk, situation, operation, kind, every=True)


# ---- Opening ------------------------------------------------------------------------------------


async def opening_calls(disk: FaultyDisk, folder: Folder) -> list[str]:
    with folder.copied() as copy:
        disk.fail(Failing(CALLS_MAX, errno.EIO))
        async with copy.opened():
            disk.heal()
        return [*disk.calls]


async def require_openable(
    disk: FaultyDisk, folder: Folder, kind: str, *, stride: int, wanted: frozenset[str]
) -> None:
    """Whichever call fails while a store is opened, another start on a healthy disk finds it."""
    calls = await opening_calls(disk, folder)
    assert wanted <= set(calls)
    ends: Counter[str] = Counter()
    candidates = [number for number, call in enumerate(calls) if call in KINDS[kind].codes]
    for number in {*candidates[::stride], candidates[-1]}:
        failing = KINDS[kind]._replace(at=number)
        with folder.copied() as copy:
            disk.fail(failing)
            ended = await outcome(partial(opened_and_closed, copy))
            disk.heal()
            ends[ended] += 1
            await copy.require_sound(f"{failing} ({calls[number]}): {ended}")
    print(f"{kind}: {len(calls)} calls, {dict(ends)}")
    assert ends["store.unavailable"] + ends["store.full"] >= 1, "the disk was asked to fail"


async def opened_and_closed(folder: Folder) -> None:
    async with folder.opened():
        pass


CREATING: Final = frozenset(("xOpen", "xWrite", "xSync", "xDelete", "xShmMap"))
RECOVERING: Final = frozenset(("xOpen", "xRead", "xShmMap", "xShmLock"))


@pytest.fixture
def empty(tmp_path: Path) -> Folder:
    return Folder(tmp_path, [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_that_could_not_be_made_is_made_by_the_next_start(
    disk: FaultyDisk, empty: Folder, kind: str
) -> None:
    await require_openable(disk, empty, kind, stride=OPENING_STRIDE * 7, wanted=CREATING)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_that_could_not_be_opened_loses_nothing(
    disk: FaultyDisk, killed: Folder, kind: str
) -> None:
    await require_openable(disk, killed, kind, stride=OPENING_STRIDE, wanted=RECOVERING)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
async def test_whichever_call_fails_while_a_store_is_made_the_next_start_makes_it(
    disk: FaultyDisk, empty: Folder, kind: str
) -> None:
    await require_openable(disk, empty, kind, stride=1, wanted=CREATING)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
async def test_whichever_call_fails_while_a_store_is_opened_it_loses_nothing(
    disk: FaultyDisk, killed: Folder, kind: str
) -> None:
    await require_openable(disk, killed, kind, stride=1, wanted=RECOVERING)


# ---- Room again ---------------------------------------------------------------------------------


async def test_what_the_daemon_must_write_waits_for_room_and_goes_on_by_itself(
    disk: FaultyDisk, killed: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FULL_RETRY_SECONDS", 0.0)
    attempts = itertools.count(1)

    def write_at_the_third_attempt(tx: Transaction, size: int) -> None:
        if next(attempts) == 3:
            disk.heal()
        write_ballast(tx, size)

    with killed.copied() as copy:
        async with copy.opened() as load:
            disk.fail(Failing(0, errno.ENOSPC, lasting=True))
            await load.store.apply_when_room(write_at_the_third_attempt, "ballast", 100_000)
            assert next(attempts) == 4
        await copy.require_sound("the disk was full")
