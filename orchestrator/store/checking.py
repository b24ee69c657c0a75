"""Whether a store is in order: the file, its schema, the audit trail, and what the bus promises.

Each check is one statement of its own on a read-only connection, so it sees one snapshot and works
beside a running daemon. It shares no code with the bus: what it finds is counted from the tables.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.store.audit import first_broken
from orchestrator.store.database import Database, Query
from orchestrator.store.migration import migrations, recognise, refuse_what_is_no_file

PROBLEMS_SHOWN_MAX: Final = 5
"""Of one check; their number is told."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found. `detail` is empty when there is nothing to say."""

    check: str
    state: Literal["ok", "failed", "skipped"]
    detail: str = ""


INVARIANTS: Final[dict[str, tuple[str, str]]] = {
    "deliveries": (
        "a delivery has no message, or not the conversation of its message",
        "SELECT 'delivery ' || delivery.id FROM delivery"
        " LEFT JOIN message ON message.id = delivery.message"
        " WHERE message.conversation IS NOT delivery.conversation",
    ),
    "messages": (
        "a message has no conversation, or a cause that is not older",
        "SELECT 'message ' || message.id FROM message"
        " LEFT JOIN conversation ON conversation.id = message.conversation"
        " WHERE conversation.id IS NULL OR message.cause >= message.id",
    ),
    "conversations": (
        "a conversation is answered and has unfinished deliveries",
        "SELECT DISTINCT 'conversation ' || conversation.id FROM delivery"
        " JOIN conversation ON conversation.id = delivery.conversation"
        " WHERE delivery.finished_us IS NULL AND delivery.composing = 0"
        " AND conversation.state = 'answered'",
    ),
    "composing": (
        "a conversation is being composed, and the delivery that does it is not there or finished",
        "SELECT 'conversation ' || conversation.id FROM conversation"
        " LEFT JOIN delivery ON delivery.id = conversation.composer"
        " AND delivery.conversation = conversation.id AND delivery.finished_us IS NULL"
        " WHERE conversation.state = 'composing' AND delivery.id IS NULL",
    ),
    "leases": (
        "a delivery is leased to nobody, or finished without a time",
        "SELECT 'delivery ' || id FROM delivery"
        " WHERE (state = 'leased' AND incarnation IS NULL)"
        " OR (state IN ('done', 'dead')) <> (finished_us IS NOT NULL)",
    ),
    "receivers": (
        "an unfinished delivery belongs to an agent that does not exist",
        "SELECT 'delivery ' || delivery.id FROM delivery"
        " LEFT JOIN agent ON agent.name = delivery.agent"
        " WHERE delivery.finished_us IS NULL AND agent.name IS NULL",
    ),
    "journal": (
        "a journal entry belongs to no delivery, or to a run that has not begun",
        "SELECT 'delivery ' || journal.delivery || ', step ' || journal.step FROM journal"
        " LEFT JOIN delivery ON delivery.id = journal.delivery"
        " WHERE delivery.id IS NULL OR journal.run > delivery.run",
    ),
    "state sizes": (
        "the counted size of an agent's state is not its size",
        "WITH counted AS (SELECT owner, sum(64 + octet_length(key) + length(value)) AS bytes"
        " FROM state GROUP BY owner)"
        " SELECT 'agent ' || coalesce(counted.owner, state_size.owner) FROM counted"
        " FULL JOIN state_size ON state_size.owner = counted.owner"
        " WHERE coalesce(counted.bytes, 0) <> coalesce(state_size.bytes, 0)",
    ),
    "memory words": (
        "a memory is not in the index of words, or only there",
        "SELECT 'memory ' || coalesce(memory.id, words.id) FROM memory"
        " FULL JOIN memory_text_docsize AS words ON words.id = memory.id"
        " WHERE memory.id IS NULL OR words.id IS NULL",
    ),
    "memory vectors": (
        "a memory's embedding is not in the index of vectors, or only there",
        "SELECT 'memory ' || coalesce(memory.id, vectors.rowid)"
        " FROM (SELECT id FROM memory WHERE embedding IS NOT NULL) AS memory"
        " FULL JOIN memory_vector_rowids AS vectors ON vectors.rowid = memory.id"
        " WHERE memory.id IS NULL OR vectors.rowid IS NULL",
    ),
}
"""Name of each check: what it says of a row that it finds, and the statement that finds them."""


def check(path: Path, told: Callable[[str], None] = lambda name: None) -> Iterator[Finding]:
    """Look at the store at `path`, which is only read. `told` hears of each check as it begins."""
    told("schema")
    try:
        refuse_what_is_no_file(path)
        database = Database(path, writable=False)
    except Failure as failure:
        yield Finding(check="schema", state="failed", detail=failure.problem.message)
        return
    try:
        yield from _check(database, told)
    finally:
        database.close()


def _check(database: Database, told: Callable[[str], None]) -> Iterator[Finding]:
    schema = _schema(database)
    yield schema
    if schema.state == "failed":
        return
    told("file")
    yield _attempt(Finding(check="file", state="ok"), lambda: _integrity(database))
    told("foreign keys")
    keys = "PRAGMA foreign_key_check"
    yield _attempt(
        Finding(check="foreign keys", state="ok"),
        lambda: [f"{table} {row}" for table, row, *_ in database.rows(keys)],
    )
    told("audit")
    yield _attempt(Finding(check="audit", state="ok"), lambda: _audit(database))
    current = database.pragma("user_version") == len(migrations())
    for name, (meaning, sql) in INVARIANTS.items():
        told(name)
        if current:
            yield _attempt(Finding(check=name, state="ok"), _finder(database, sql), meaning)
        else:
            detail = "it is looked at in the present schema only"
            yield Finding(check=name, state="skipped", detail=detail)


def _schema(database: Database) -> Finding:
    try:
        recognise(database)
        version, known = database.pragma("user_version"), len(migrations())
    except Failure as failure:
        return Finding(check="schema", state="failed", detail=failure.problem.message)
    later = "" if version == known else f"; the next start carries it to {known}"
    return Finding(check="schema", state="ok", detail=f"version {version}{later}")


def _finder(query: Query, sql: str) -> Callable[[], list[str]]:
    return lambda: [row[0] for row in query.rows(sql)]


def _attempt(good: Finding, find: Callable[[], list[str]], meaning: str = "") -> Finding:
    """Run a check that returns what is wrong; `good` if it returns nothing."""
    try:
        problems = find()
    except Failure as failure:
        problems = [failure.problem.message]
    if not problems:
        return good
    shown = ", ".join(problems[:PROBLEMS_SHOWN_MAX])
    more = len(problems) - PROBLEMS_SHOWN_MAX
    detail = f"{meaning}: {shown}" if meaning else shown
    if more > 0:
        detail = f"{detail}, and {more} more"
    return msgspec.structs.replace(good, state="failed", detail=detail)


def _integrity(database: Database) -> list[str]:
    lines = [row[0] for row in database.rows("PRAGMA integrity_check")]
    return [] if lines == ["ok"] else lines


def _audit(query: Query) -> list[str]:
    broken = first_broken(query)
    return [] if broken is None else [f"entry {broken} does not follow from the one before it"]
