"""An agent's memories: writing one, and finding those that fit a text."""

from collections.abc import Sequence
from typing import Final

import msgspec

from ipc_protocol.work import Memory, MemoryEntry
from orchestrator.store import recall
from orchestrator.store.database import VECTOR_BYTES, Query
from orchestrator.store.transaction import Transaction

CANDIDATES_PER_RESULT: Final = 8
CANDIDATES_MIN: Final = 24
CANDIDATES_MAX: Final = 1000
"""How deep each of the two searches looks: fusion needs to see past the places it returns, and
nobody reads a thousand."""


class Remember(msgspec.Struct, frozen=True, kw_only=True):
    """A memory of the transaction's actor. `vector` is its embedding, None without an engine."""

    entry: MemoryEntry
    vector: bytes | None = None
    delivery: int | None = None
    correlation: str | None = None


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    memory: int


def remember(tx: Transaction, arguments: Remember) -> int:
    """Write a memory that belongs to the actor. Returns its id."""
    entry, vector = arguments.entry, arguments.vector
    assert vector is None or len(vector) == VECTOR_BYTES
    importance = min(1.0, max(0.0, entry.importance))
    memory = tx.insert(
        "INSERT INTO memory"
        " (owner, text, outcome, lesson, importance, embedding, delivery, created_us)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            tx.actor,
            entry.text,
            entry.outcome,
            entry.lesson,
            importance,
            vector,
            arguments.delivery,
            tx.now_us,
        ),
    )
    tx.emit(
        "memory.written",
        memory=memory,
        agent=tx.actor,
        delivery=arguments.delivery,
        correlation=arguments.correlation,
        outcome=entry.outcome,
        lesson=entry.lesson,
        importance=importance,
    )
    return memory


def forget(tx: Transaction, arguments: Forget) -> bool:
    """Delete a memory of the actor. False if there is none of that id."""
    if tx.row("SELECT 1 FROM memory WHERE id = ?", (arguments.memory,)) is None:
        return False
    tx.execute("DELETE FROM memory WHERE id = ?", (arguments.memory,))
    tx.emit("memory.forgotten", memory=arguments.memory, agent=tx.actor)
    return True


def search(
    query: Query, owner: str, text: str, vector: bytes | None, limit: int, now_us: int
) -> list[Memory]:
    """The memories of `owner` that fit `text` best, best first. Any text is safe."""
    depth = min(max(CANDIDATES_MIN, CANDIDATES_PER_RESULT * limit), CANDIDATES_MAX)
    rankings = [_by_words(query, owner, text, depth), _by_meaning(query, owner, vector, depth)]
    found = _load(query, sorted({memory for ranking in rankings for memory in ranking}))
    facts = {
        memory.id: recall.Facts(memory.importance, memory.created_us) for memory in found.values()
    }
    return [found[memory] for memory in recall.fuse(rankings, facts, now_us, limit)]


def _by_words(query: Query, owner: str, text: str, depth: int) -> list[int]:
    expression = recall.match_expression(text)
    if expression is None:
        return []
    rows = query.rows(
        "SELECT memory.id FROM memory_text JOIN memory ON memory.id = memory_text.rowid"
        " WHERE memory_text MATCH ? AND memory.owner = ? ORDER BY bm25(memory_text) LIMIT ?",
        (expression, owner, depth),
    )
    return [row[0] for row in rows]


def _by_meaning(query: Query, owner: str, vector: bytes | None, depth: int) -> list[int]:
    if vector is None:
        return []
    rows = query.rows(
        "SELECT rowid FROM memory_vector WHERE embedding MATCH ? AND owner = ? AND k = ?"
        " ORDER BY distance",
        (vector, owner, depth),
    )
    return [row[0] for row in rows]


def _load(query: Query, ids: Sequence[int]) -> dict[int, Memory]:
    rows = query.rows(
        "SELECT id, text, lesson, outcome, importance, created_us FROM memory"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(ids).decode(),),
    )
    return {
        row[0]: Memory(
            id=row[0],
            text=f"{row[1]} {row[2]}".strip(),
            outcome=row[3],
            importance=row[4],
            created_us=row[5],
        )
        for row in rows
    }
