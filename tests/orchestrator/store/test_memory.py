"""Hybrid search over real FTS5 and vector tables."""

import struct
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc_protocol.errors import Failure
from ipc_protocol.work import MemoryEntry
from orchestrator.store.database import Database
from orchestrator.store.memory import Forget, Remember, forget, remember, search
from orchestrator.store.migration import open_current
from orchestrator.store.store import Store

NOW_US = 1_800_000_000_000_000


def vector(axis: int) -> bytes:
    return struct.pack("<256f", *(1.0 if place == axis else 0.0 for place in range(256)))


def memory(text: str, axis: int | None = None, importance: float = 0.5) -> Remember:
    entry = MemoryEntry(text=text, outcome="success", lesson="", importance=importance)
    return Remember(entry=entry, vector=None if axis is None else vector(axis))


async def found(store: Store, owner: str, text: str, axis: int | None = None) -> list[str]:
    near = None if axis is None else vector(axis)
    memories = await store.reader("test").view(search, owner, text, near, 5, NOW_US)
    return [each.text for each in memories]


async def test_a_memory_is_found_by_its_words_and_by_its_meaning(store: Store) -> None:
    await store.apply(remember, "opsclaw", memory("rotated the logs on /var", 1))
    await store.apply(remember, "opsclaw", memory("answered a greeting", 2))
    assert await found(store, "opsclaw", "the log rotates") == ["rotated the logs on /var"]
    assert (await found(store, "opsclaw", "", 2))[0] == "answered a greeting"


async def test_an_agent_finds_only_its_own_memories(store: Store) -> None:
    await store.apply(remember, "devclaw", memory("disk full", 1))
    assert await found(store, "opsclaw", "disk full", 1) == []


async def test_a_memory_without_a_vector_is_found_by_words(store: Store) -> None:
    await store.apply(remember, "opsclaw", memory("disk full"))
    assert await found(store, "opsclaw", "disk", 1) == ["disk full"]


async def test_a_forgotten_memory_is_in_neither_index(store: Store) -> None:
    identity = await store.apply(remember, "opsclaw", memory("disk full", 1))
    assert await store.apply(forget, "opsclaw", Forget(memory=identity))
    assert not await store.apply(forget, "opsclaw", Forget(memory=identity))
    assert await found(store, "opsclaw", "disk", 1) == []


async def test_nobody_forgets_for_another(store: Store) -> None:
    identity = await store.apply(remember, "opsclaw", memory("disk full"))
    with pytest.raises(Failure) as refused:
        await store.apply(forget, "devclaw", Forget(memory=identity))
    assert refused.value.code == "store.ownership"


async def test_a_changed_memory_is_found_by_its_new_words_and_vector(store: Store) -> None:
    identity = await store.apply(remember, "opsclaw", memory("disk full", 1))
    await store.apply(
        lambda tx, _: tx.execute(
            "UPDATE memory SET text = 'printer jam', embedding = ? WHERE id = ?",
            (vector(7), identity),
        ),
        "opsclaw",
        None,
    )
    assert await found(store, "opsclaw", "disk") == []
    assert await found(store, "opsclaw", "printer", 7) == ["printer jam"]


@pytest.fixture(scope="module")
def searchable(tmp_path_factory: pytest.TempPathFactory) -> Database:
    path = Path(tmp_path_factory.mktemp("recall")) / "agentd.db"
    database = open_current(path)
    database.actor = "opsclaw"
    database.execute(
        "INSERT INTO memory (owner, text, outcome, lesson, importance, created_us)"
        " VALUES ('opsclaw', 'disk full', 'success', 'rotate', 0.5, 1)"
    )
    return database


@given(st.text() | st.text(alphabet='"*()^:-+ANDORNT{}\0 a'))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_safe_query(searchable: Database, text: str) -> None:
    search(searchable, "opsclaw", text, None, 5, NOW_US)


def test_a_vector_of_the_wrong_length_is_a_defect(searchable: Database) -> None:
    with pytest.raises(apsw.ConstraintError):
        searchable.execute(
            "INSERT INTO memory (owner, text, outcome, lesson, importance, embedding, created_us)"
            " VALUES ('opsclaw', '', 'success', '', 0.5, x'00', 1)"
        )
