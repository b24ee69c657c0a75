"""The log of a real store under real load, with bounds that a test reaches in a second."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ipc_protocol.errors import Failure
from orchestrator.store import checkpointing
from orchestrator.store.database import Database, Query
from orchestrator.store.store import Store
from orchestrator.store.transaction import Transaction
from orchestrator.store.upkeep import Alarm

KIB = 1024
HARD = 1024 * KIB
WAIT_SECONDS_MAX = 30.0

READ_ON = """
import sys, apsw
database = apsw.Connection(sys.argv[1])
database.execute("BEGIN")
database.execute("SELECT count(*) FROM state").fetchall()
print("reading", flush=True)
sys.stdin.read()
"""
"""Another program, which keeps reading an old state until its input ends."""


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PASS_BYTES": 64 * KIB,
        "TAIL_BYTES_MAX": 32 * KIB,
        "LOG_BYTES_SOFT": 256 * KIB,
        "LOG_BYTES_HARD": HARD,
        "READER_SECONDS_MAX": 0.2,
        "READS_HELD_SECONDS_MAX": 0.5,
        "ALARM_SECONDS": 0.1,
        "REFUSED_SECONDS": 0.05,
    }.items():
        monkeypatch.setattr(checkpointing, name, value)


@pytest.fixture
async def store(path: Path, clock: Any) -> AsyncIterator[Store]:
    opened = await Store.open(path, clock_us=clock)
    yield opened
    await opened.close()


def put(tx: Transaction, key: int) -> None:
    tx.execute(
        "INSERT INTO state (owner, key, value, changed_us) VALUES (?, ?, zeroblob(32768), ?)"
        " ON CONFLICT (owner, key) DO UPDATE SET value = excluded.value",
        (tx.actor, str(key), tx.now_us),
    )


async def write(store: Store, times: int) -> None:
    for number in range(times):
        await store.apply(put, "opsclaw", number % 16)


async def write_until(store: Store, done: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not done.is_set():
            await write(store, 1)


async def wait_small(store: Store) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while store.condition.log >= checkpointing.LOG_BYTES_SOFT:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def next_alarm(store: Store) -> Alarm:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        return await store.alarms.get()


def log_file(store: Store) -> int:
    return store.path.with_name("agentd.db-wal").stat().st_size


async def test_a_log_is_bounded_though_commits_never_pause(store: Store) -> None:
    await write(store, 1500)  # 48 MiB
    assert log_file(store) < 8 * HARD
    await wait_small(store)
    assert store.alarms.empty()


async def test_what_is_written_meanwhile_is_all_there(store: Store, path: Path) -> None:
    await asyncio.gather(*(store.apply(put, "opsclaw", number) for number in range(300)))
    other = Database(path, writable=False)
    assert other.rows("SELECT count(*) FROM state") == [(300,)]
    assert other.pragma("integrity_check") == "ok"
    other.close()


async def test_a_reader_that_stays_too_long_is_ended_and_the_log_is_small_again(
    store: Store,
) -> None:
    reader = store.reader("slow")
    loop, reading, ended = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def read_on(query: Query) -> None:
        query.rows("SELECT count(*) FROM state")
        loop.call_soon_threadsafe(reading.set)
        while True:
            query.row("SELECT 1")

    async def read() -> None:
        try:
            await reader.view(read_on)
        finally:
            ended.set()

    task = asyncio.create_task(read())
    await reading.wait()
    await write_until(store, ended)
    with pytest.raises(Failure) as failure:
        await task
    assert failure.value.code == "store.slow-reader"
    await wait_small(store)
    # The next read of the same subsystem is as good as any.
    assert await reader.fetch("SELECT count(*) > 0 FROM state") == [(1,)]


async def test_a_single_statement_is_ended_too(store: Store) -> None:
    await write(store, 1)
    ended = asyncio.Event()
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT count(*) FROM state UNION ALL SELECT i + 1 FROM n)"
        " SELECT count(*) FROM n"
    )

    async def read() -> None:
        try:
            await store.reader("slow").fetch(endless)
        finally:
            ended.set()

    task = asyncio.create_task(read())
    await write_until(store, ended)
    with pytest.raises(Failure) as failure:
        await task
    assert failure.value.code == "store.slow-reader"


async def test_a_slow_reader_is_left_alone_while_the_log_is_small(store: Store) -> None:
    reader = store.reader("slow")
    loop, reading, done = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def read_on(query: Query) -> int:
        loop.call_soon_threadsafe(reading.set)
        query.rows("SELECT count(*) FROM state")
        asyncio.run_coroutine_threadsafe(done.wait(), loop).result()
        return len(query.rows("SELECT * FROM state"))

    task = asyncio.create_task(reader.view(read_on))
    await reading.wait()
    while reader.reading_seconds() < 3 * checkpointing.READER_SECONDS_MAX:
        await write(store, 1)
        await asyncio.sleep(0.1)
    assert store.condition.log < HARD
    done.set()
    assert await task >= 0


async def test_a_program_outside_raises_an_alarm_that_ends_when_it_lets_go(store: Store) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READ_ON, str(store.path), stdin=PIPE, stdout=PIPE
    )
    assert program.stdout is not None and program.stdin is not None
    assert await program.stdout.readline() == b"reading\n"
    await write(store, 100)
    raised = await next_alarm(store)
    assert (raised.kind, raised.over) == ("store.log", False)
    assert str(store.path) in raised.detail
    assert raised.data["log_bytes"] >= HARD
    assert store.condition.log_alarm
    # Nothing is written any more: the log is restarted all the same.
    program.stdin.close()
    over = await next_alarm(store)
    assert await program.wait() == 0
    assert (over.kind, over.over) == ("store.log", True)
    assert not store.condition.log_alarm
    before = log_file(store)
    await write(store, 20)
    assert log_file(store) <= before, "the log did not begin anew"


async def test_a_closed_store_leaves_one_file_with_everything(store: Store, path: Path) -> None:
    await store.reader("other").fetch("SELECT 1 FROM state")
    await write(store, 20)
    await store.close()
    names = {each.name for each in path.parent.iterdir()}
    assert names == {"agentd.db", "agentd.db.lock", "agentd.db.reserve"}
