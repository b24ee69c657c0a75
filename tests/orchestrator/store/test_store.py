"""Reducers, group commit, durability, readers and changes, on real files."""

import asyncio
from pathlib import Path
from typing import Any

import apsw
import pytest

from ipc_protocol.errors import Failure
from orchestrator.store.audit import Audit, first_broken, record_audit
from orchestrator.store.changes import LAGGED, Change, Changes
from orchestrator.store.database import Database
from orchestrator.store.migration import migrate, migrations, open_current
from orchestrator.store.store import Store
from orchestrator.store.transaction import Transaction
from orchestrator.store.writer import Request, Writer

Clock = Any
"""The fixture `clock`: callable, with a `now_us` to move."""

INSERT = "INSERT INTO state (owner, key, value, changed_us) VALUES (?, ?, x'00', ?)"


def put(tx: Transaction, key: str) -> str:
    tx.execute(INSERT, (tx.actor, key, tx.now_us))
    tx.emit("state.put", key=key)
    return key


def refuse(tx: Transaction, key: str) -> str:
    put(tx, key)
    raise Failure("work.budget", "no")


def keys(path: Path) -> list[str]:
    other = Database(path, writable=False)
    try:
        return [row[0] for row in other.rows("SELECT key FROM state ORDER BY key")]
    finally:
        other.close()


def open_files(folder: Path) -> list[Path]:
    """Those below `folder` that this process holds open."""
    held = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [file for file in held if file.is_relative_to(folder)]


# ---- Reducers -----------------------------------------------------------------------------------


async def test_a_result_is_readable_by_others_when_the_caller_has_it(
    store: Store, path: Path
) -> None:
    assert await store.apply(put, "opsclaw", "a") == "a"
    assert keys(path) == ["a"]


async def test_a_refused_reducer_does_not_take_its_neighbours_along(
    store: Store, path: Path
) -> None:
    results = await asyncio.gather(
        store.apply(put, "opsclaw", "a"),
        store.apply(refuse, "opsclaw", "b"),
        store.apply(lambda tx, key: tx.execute("SELECT nonsense"), "opsclaw", "c"),
        store.apply(put, "opsclaw", "d"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [str, Failure, apsw.SQLError, str]
    assert keys(path) == ["a", "d"]


async def test_a_reducer_sees_its_clock_stand_still(store: Store, clock: Clock) -> None:
    def twice(tx: Transaction, _: None) -> tuple[int, int]:
        first = tx.now_us
        clock.now_us += 5
        return first, tx.now_us

    first, second = await store.apply(twice, "opsclaw", None)
    assert first == second


async def test_acting_as_another_ends_with_its_block(store: Store) -> None:
    def actors(tx: Transaction, _: None) -> list[str]:
        with tx.acting_as("bus"):
            inside = tx.actor
        return [inside, tx.actor]

    assert await store.apply(actors, "opsclaw", None) == ["bus", "opsclaw"]


async def test_a_cached_value_is_taken_back_with_what_it_was_derived_from(store: Store) -> None:
    def cached(tx: Transaction, value: str) -> str:
        return tx.cached("value", lambda: value)

    def cached_and_refused(tx: Transaction, value: str) -> None:
        tx.forget("value")
        cached(tx, value)
        raise Failure("work.budget", "no")

    with pytest.raises(Failure):
        await store.apply(cached_and_refused, "opsclaw", "none")
    assert await store.apply(cached, "opsclaw", "one") == "one"
    assert await store.apply(cached, "opsclaw", "two") == "one"
    with pytest.raises(Failure):
        await store.apply(cached_and_refused, "opsclaw", "three")
    assert await store.apply(cached, "opsclaw", "four") == "one"


async def test_a_value_that_was_forgotten_is_derived_again(store: Store) -> None:
    def derived_again(tx: Transaction, value: str) -> str:
        tx.forget("value")
        return tx.cached("value", lambda: value)

    def derived(tx: Transaction, value: str) -> str:
        return tx.cached("value", lambda: value)

    assert await store.apply(derived_again, "opsclaw", "one") == "one"
    assert await store.apply(derived_again, "opsclaw", "two") == "two"
    assert await store.apply(derived, "opsclaw", "three") == "two"


async def test_many_writes_share_commits(store: Store, path: Path) -> None:
    await asyncio.gather(*(store.apply(put, "opsclaw", f"{n:04d}") for n in range(5000)))
    assert len(keys(path)) == 5000


async def test_a_caller_that_goes_away_does_not_take_its_write_back(
    store: Store, path: Path
) -> None:
    task = asyncio.create_task(store.apply(put, "opsclaw", "a"))
    await asyncio.sleep(0)
    task.cancel()
    await store.apply(put, "opsclaw", "b")
    assert keys(path) == ["a", "b"]


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    with pytest.raises(Failure) as failure:
        await store.apply(put, "opsclaw", "a")
    assert failure.value.code == "store.unavailable"


async def test_what_was_handed_over_before_closing_is_written(path: Path, clock: Clock) -> None:
    store = await Store.open(path, clock_us=clock)
    tasks = [asyncio.create_task(store.apply(put, "opsclaw", str(n))) for n in range(9)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*tasks) == [str(n) for n in range(9)]


# ---- Commits that fail --------------------------------------------------------------------------


class FailingDatabase(Database):
    """Fails its COMMIT as a disk would whose fsync fails."""

    def execute(self, sql: str, bindings: Any = ()) -> None:
        if sql == "COMMIT":
            raise self._translated(apsw.IOError("disk I/O error"))
        super().execute(sql, bindings)


def test_after_a_failed_commit_the_writer_writes_nothing_more(path: Path, clock: Clock) -> None:
    open_current(path).close()
    writer = Writer(FailingDatabase(path, writable=True), clock, lambda batch: None)
    first = [Request(put, "opsclaw", "a"), Request(refuse, "opsclaw", "b")]
    writer.commit(first)
    later = [Request(put, "opsclaw", "c")]
    writer.commit(later)
    for request in first + later:
        assert isinstance(request.error, Failure)
        assert request.error.code == "store.unavailable"
        assert not request.outcome.changes
    assert writer.failed is not None
    assert keys(path) == []


async def test_a_store_without_room_refuses_the_batch_and_goes_on(store: Store, path: Path) -> None:
    def fill(tx: Transaction, _: None) -> None:
        tx.execute(
            "INSERT INTO state (owner, key, value, changed_us)"
            " VALUES ('opsclaw', 'big', zeroblob(9000000), 1)"
        )

    def limit(tx: Transaction, pages: int) -> None:
        tx.rows(f"PRAGMA max_page_count = {pages}")

    await store.apply(put, "opsclaw", "a")
    await store.apply(limit, "opsclaw", 200)
    with pytest.raises(Failure) as failure:
        await store.apply(fill, "opsclaw", None)
    assert failure.value.code == "store.full"
    await store.apply(limit, "opsclaw", 1_000_000)
    await store.apply(put, "opsclaw", "b")
    assert keys(path) == ["a", "b"]


async def test_a_failed_store_is_announced(store: Store) -> None:
    def broken(tx: Transaction, _: None) -> None:
        raise Failure("store.unavailable", "the disk is gone")

    with pytest.raises(Failure):
        await store.apply(broken, "opsclaw", None)
    failure = await store.wait_failed()
    assert "the disk is gone" in str(failure)
    with pytest.raises(Failure):
        await store.apply(put, "opsclaw", "a")


async def test_a_failed_store_is_closed_as_it_is(store: Store, path: Path) -> None:
    def broken(tx: Transaction, _: None) -> None:
        raise Failure("store.unavailable", "the disk is gone")

    await store.apply(put, "opsclaw", "a")
    files = [path, path.with_name(f"{path.name}-wal")]
    with pytest.raises(Failure):
        await store.apply(broken, "opsclaw", None)
    before = [file.read_bytes() for file in files]
    await store.close()
    assert [file.read_bytes() for file in files] == before
    assert keys(path) == ["a"]


async def test_a_store_that_cannot_be_opened_is_not_held_open(path: Path, clock: Clock) -> None:
    open_current(path).close()
    reserve = path.with_name(f"{path.name}.reserve")
    reserve.mkdir()
    with pytest.raises(Failure, match="reserve cannot be made"):
        await Store.open(path, clock_us=clock)
    assert open_files(path.parent) == []
    reserve.rmdir()
    await (await Store.open(path, clock_us=clock)).close()


# ---- Changes ------------------------------------------------------------------------------------


async def test_changes_are_published_after_their_commit_and_only_then(
    store: Store, path: Path
) -> None:
    with store.changes.subscribe(["state.put"], capacity=10) as changes:
        with pytest.raises(Failure):
            await store.apply(refuse, "opsclaw", "a")
        await store.apply(put, "opsclaw", "b")
        change = await anext(changes)
    assert change.data == {"key": "b"}
    assert keys(path) == ["b"]
    with pytest.raises(StopAsyncIteration):
        await anext(changes)


def change(number: int, kind: str = "number") -> Change:
    return Change(kind=kind, data={"number": number}, at_us=number)


async def test_a_slow_subscriber_is_told_how_much_it_missed_and_where() -> None:
    changes = Changes()
    slow = changes.subscribe(None, capacity=2)
    changes.publish_nowait([change(number) for number in range(5)])
    first = [await anext(slow) for _ in range(3)]
    changes.publish_nowait([change(9)])
    last = await anext(slow)
    assert [each.data.get("number") for each in (*first, last)] == [0, 1, None, 9]
    assert first[2].kind == LAGGED
    assert first[2].data == {"lost": 3}


async def test_a_subscription_takes_only_its_kinds() -> None:
    changes = Changes()
    some = changes.subscribe({"a"}, capacity=2)
    changes.publish_nowait([change(1, "b"), change(2, "a")])
    assert (await anext(some)).data == {"number": 2}


async def test_a_closed_subscription_ends_after_what_it_holds() -> None:
    changes = Changes()
    full = changes.subscribe(None, capacity=1)
    changes.publish_nowait([change(1), change(2)])
    changes.close()
    assert [each.kind async for each in full] == ["number", LAGGED]
    assert [each async for each in changes.subscribe(None, capacity=1)] == []


# ---- Readers ------------------------------------------------------------------------------------


async def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(Failure) as failure:
        await store.reader("test").fetch(INSERT, ("opsclaw", "a", 1))
    assert failure.value.code == "store.unavailable"


async def test_a_view_is_one_snapshot(store: Store) -> None:
    reader = store.reader("test")
    loop = asyncio.get_running_loop()

    def count_around_a_write(query: Any) -> tuple[int, int]:
        before = query.row("SELECT count(*) FROM state")[0]
        asyncio.run_coroutine_threadsafe(store.apply(put, "opsclaw", "a"), loop).result()
        return before, query.row("SELECT count(*) FROM state")[0]

    assert await reader.view(count_around_a_write) == (0, 0)
    assert await reader.fetch("SELECT count(*) FROM state") == [(1,)]


# ---- The file -----------------------------------------------------------------------------------


async def test_a_store_keeps_what_it_was_given(path: Path, clock: Clock) -> None:
    for key in ("a", "b"):
        store = await Store.open(path, clock_us=clock)
        await store.apply(put, "opsclaw", key)
        await store.close()
    assert keys(path) == ["a", "b"]


async def test_two_daemons_do_not_share_a_store(store: Store, path: Path, clock: Clock) -> None:
    with pytest.raises(Failure, match="another agentd"):
        await Store.open(path, clock_us=clock)


def refusal(path: Path) -> Failure:
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(Failure) as failure:
        open_current(path)
    assert failure.value.code == "store.unavailable"
    assert (path.read_bytes() if path.exists() else None) == before
    return failure.value


def test_a_newer_schema_is_refused(path: Path) -> None:
    database = open_current(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert "version 99" in str(refusal(path))


def test_a_foreign_database_is_refused(path: Path) -> None:
    apsw.Connection(str(path)).execute("CREATE TABLE theirs (a)")
    assert "another program" in str(refusal(path))


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)
    assert "damaged" in str(refusal(path))


def test_an_emptied_file_is_refused(path: Path) -> None:
    path.touch()
    assert "empty" in str(refusal(path))


def test_a_damaged_page_is_refused(path: Path) -> None:
    open_current(path).close()
    content = bytearray(path.read_bytes())
    for page in range(4, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    assert "damaged" in str(refusal(path))


def test_a_log_without_its_database_is_refused(path: Path) -> None:
    path.with_name(f"{path.name}-wal").write_bytes(b"log")
    assert "gone" in str(refusal(path))


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(Failure, match="cannot be written"):
        await Store.open(tmp_path / "nowhere" / "agentd.db", clock_us=clock)


def test_a_half_made_file_of_an_earlier_start_is_made_again(path: Path) -> None:
    path.with_name(f"{path.name}.new").write_bytes(b"half")
    database = open_current(path)
    assert database.pragma("user_version") == len(migrations())
    database.close()


@pytest.mark.parametrize("version", range(len(migrations()) + 1))
def test_every_past_version_is_carried_forward(tmp_path: Path, version: int) -> None:
    old, new = (Database(tmp_path / name, writable=True) for name in ("old.db", "new.db"))
    migrate(old, migrations()[:version])
    migrate(old, migrations())
    migrate(new, migrations())
    schema = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    assert old.rows(schema) == new.rows(schema)
    assert old.pragma("user_version") == len(migrations())


ROWS_OF_VERSION_1 = """
INSERT INTO agent VALUES (1, 'opsclaw', 'agent', 'active', 2, 64, '["ops.>"]', '[]', 1, 1);
INSERT INTO topic_subscription VALUES ('opsclaw', 'ops.>');
INSERT INTO conversation VALUES (1, 'c1', 'open', 2, 1, 'operator', 1, NULL, NULL, 1, NULL);
INSERT INTO message
  VALUES (1, 1, 1, 'ops.disk', 'operator', 2, x'00', NULL, NULL, 0, 0, NULL, NULL, 1, 9);
INSERT INTO delivery (id, message, conversation, agent, class, state, composing, screened,
  must_take, queued_us, run) VALUES
  (1, 1, 1, 'opsclaw', 2, 'queued', 0, 1, 0, 1, 1),
  (2, 1, 1, 'opsclaw', 2, 'queued', 0, 1, 0, 1, 0);
INSERT INTO prompt_set VALUES ('h', '{}', 1);
INSERT INTO journal VALUES
  (1, 0, -1, 'beginning', NULL, zeroblob(32), 'null', '{"now_us":1,"seed":7,"loop":1,"prompts":{}}',
    0, 0, 'h', 1, 1),
  (1, 0, 0, 'infer', 'act', zeroblob(32), '{}', '{"a":"b"}', 7, 5, NULL, 2, 3),
  (1, 1, -1, 'beginning', NULL, zeroblob(32), 'null',
    '{"now_us":4,"seed":8,"loop":1,"prompts":{},"component":"c"}', 0, 0, 'h', 4, 4),
  (1, 1, 0, 'infer', 'act', zeroblob(32), '{}', '{"a":"c"}', 7, 5, NULL, 5, 6);
"""
BEGUN = """
SELECT delivery.id, begun_us, seed, loop, component, prompt_set
FROM delivery LEFT JOIN setting ON setting.id = setting ORDER BY delivery.id
"""
OWN_ROWS_OF_VERSION_1 = """
INSERT INTO state VALUES ('opsclaw', 'ä', x'010203', 1), ('opsclaw', 'b', x'', 1);
"""


def test_what_version_1_wrote_is_kept(tmp_path: Path) -> None:
    database = Database(tmp_path / "old.db", writable=True)
    migrate(database, migrations()[:1])
    database.actor = "bus"
    database.execute(ROWS_OF_VERSION_1)
    database.actor = "opsclaw"
    database.execute(OWN_ROWS_OF_VERSION_1)
    database.actor = ""
    kept = "SELECT * FROM journal WHERE (run, step) <> (1, -1) ORDER BY run, step"
    before = database.rows(kept)
    migrate(database, migrations())
    assert len(before) == 3
    assert database.rows("SELECT * FROM journal ORDER BY run, step") == before
    assert database.rows(BEGUN) == [(1, 4, 8, 1, "c", "h"), (2, None, None, None, None, None)]
    assert database.rows("PRAGMA foreign_key_check") == []
    assert database.pragma("integrity_check") == "ok"
    assert database.rows("SELECT owner, bytes FROM state_size") == [
        ("opsclaw", 64 + len("ä".encode()) + 3 + 64 + 1)
    ]
    found = database.rows("SELECT name, state, screened, state_max, retired_by FROM agent")
    assert found == [("opsclaw", "active", 1, 0, None)]
    database.actor = "opsclaw"
    with pytest.raises(Failure, match="belongs to the bus"):
        database.execute("DELETE FROM journal")
    database.close()


def test_a_migration_that_fails_leaves_the_version_before(tmp_path: Path) -> None:
    database = Database(tmp_path / "old.db", writable=True)
    with pytest.raises(apsw.SQLError):
        migrate(database, ["CREATE TABLE a (b)", "CREATE TABLE c (d); nonsense"])
    assert database.pragma("user_version") == 1
    assert database.row("SELECT 1 FROM sqlite_schema WHERE name = 'c'") is None


def test_every_commit_is_synchronous(path: Path) -> None:
    database = open_current(path)
    assert database.pragma("journal_mode") == "wal"
    assert database.pragma("synchronous") == 2
    database.close()


@pytest.mark.parametrize("writable", [True, False])
def test_no_statement_needs_a_temporary_file(path: Path, writable: bool) -> None:
    open_current(path).close()
    database = Database(path, writable=writable)
    assert database.pragma("temp_store") == 2
    database.close()


# ---- The audit trail ----------------------------------------------------------------------------


async def test_the_audit_trail_notices_a_changed_entry(store: Store, path: Path) -> None:
    for number in range(3):
        entry = Audit(action="test.act", subject=str(number), data={"b": 1, "a": 2})
        await store.apply(record_audit, "operator", entry)
    reader = store.reader("test")
    assert await reader.view(first_broken) is None
    await store.close()
    forger = apsw.Connection(str(path))
    forger.create_scalar_function("actor", lambda: "operator", 0)
    forger.execute("DROP TRIGGER audit_update_ownership")
    forger.execute("UPDATE audit SET subject = 'other' WHERE id = 2")
    forger.close()
    assert first_broken(open_current(path)) == 2
