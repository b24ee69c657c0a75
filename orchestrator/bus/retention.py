"""Deletes what is finished and older than the retention window, a few rows at a time.

A conversation goes as a whole: once it is answered, nothing of it is under way, and its answer is
older than the window, its messages, deliveries, journal and spans are deleted, and then itself. So
what one that goes on may still need is there, and a publisher's id for a message keeps doubles out
for at least the window: it goes with its message. Health events and spans of no delivery go when
they are older than the window.

What stays: dead letters until a person purges them, and their conversations as they are, for the
trace and for sending them again; memories, tasks, state and questions to people, which belong to
agents; the audit trail; prompts and settings, which are few. The newest row of each table stays
too: SQLite gives out the highest id plus one, and an id that was used twice would mean two things
to whatever has kept it, a memory or an answered question.

Ids grow with time, so the oldest come first without an index on time. A *place* is how far the ids
have been looked at; what was kept on the way is looked at again when somebody begins anew.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from orchestrator.store.database import Value
from orchestrator.store.transaction import Transaction

ROWS_MAX: Final = 256
"""Rows that one reducer deletes, pages of long contents counted as rows: two milliseconds, which is
what the others of its commit wait for it."""

CONVERSATIONS_MAX: Final = 128
"""Conversations that one reducer looks at: 0.1 ms where all of them are kept."""

PAGE_BYTES: Final = 4096
"""Of the database. A long content is a chain of pages, each of which has to be read to be freed."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The last ids that were looked at."""

    conversation: int = 0
    health: int = 0
    span: int = 0


class Clean(msgspec.Struct, frozen=True, kw_only=True):
    """Delete up to `limit` rows of what ended before `before_us`, beginning behind `after`."""

    before_us: int
    limit: int = ROWS_MAX
    after: Place = Place()


class Cleaned(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that were deleted, by table, and the place to go on from.

    With `done` the place is the first row that is too young, and `oldest_us` its time, or None if
    there is none. Until then `oldest_us` is the time of what comes next, as far as it is known.
    """

    rows: dict[str, int]
    after: Place
    done: bool
    oldest_us: int | None


def clean(tx: Transaction, arguments: Clean) -> Cleaned:
    """Delete the oldest of what nobody needs any more. Runs as the bus."""
    rows: dict[str, int] = {}
    health = _observations(tx, "health", arguments, rows)
    span = _observations(tx, "span", arguments, rows)
    conversation = _conversations(tx, arguments, rows)
    parts = (health, span, conversation)
    return Cleaned(
        rows={table: count for table, count in rows.items() if count},
        after=Place(conversation=conversation.after, health=health.after, span=span.after),
        done=all(part.done for part in parts),
        oldest_us=min(
            (part.oldest_us for part in parts if part.oldest_us is not None), default=None
        ),
    )


class _Part(msgspec.Struct, frozen=True):
    after: int
    done: bool
    oldest_us: int | None


def _is_young(at_us: int, tx: Transaction, before_us: int) -> bool:
    """Whatever has a greater id is younger still. A time to come is of a clock that was wrong."""
    return before_us <= at_us <= tx.now_us


# ---- Health events and spans ---------------------------------------------------------------------

_OBSERVED: Final = {
    "health": "SELECT id, at_us, 0 FROM health WHERE id > ? ORDER BY id LIMIT ?",
    "span": "SELECT id, finished_us,"
    " EXISTS (SELECT 1 FROM delivery WHERE delivery.id = span.delivery)"
    " FROM span WHERE id > ? ORDER BY id LIMIT ?",
}
"""Id, time, and whether it is part of something that is kept."""


def _observations(tx: Transaction, table: str, arguments: Clean, rows: dict[str, int]) -> _Part:
    after: int = getattr(arguments.after, table)
    room = arguments.limit - sum(rows.values())
    looked_at = tx.rows(_OBSERVED[table], (after, room))
    newest = tx.row(f"SELECT max(id) FROM {table}")
    assert newest is not None
    old: list[int] = []
    for identity, at_us, needed in looked_at:
        young = _is_young(at_us, tx, arguments.before_us)
        if young or identity == newest[0]:
            rows[table] = _delete_owned(tx, table, old)
            return _Part(after, True, at_us if young else None)
        after = identity
        if not needed and at_us < arguments.before_us:
            old.append(identity)
    rows[table] = _delete_owned(tx, table, old)
    return _Part(after, len(looked_at) < room, None)


def _delete_owned(tx: Transaction, table: str, ids: Iterable[int]) -> int:
    """Delete rows that only their owners may: it is theirs that they grow old."""
    listed = _json(ids)
    owners = tx.rows(
        f"SELECT DISTINCT owner FROM {table} WHERE id IN (SELECT value FROM json_each(?))",
        (listed,),
    )
    count = 0
    for (owner,) in owners:
        with tx.acting_as(owner):
            count += _delete(
                tx,
                f"DELETE FROM {table} WHERE id IN (SELECT value FROM json_each(?)) AND owner = ?",
                (listed, owner),
            )
    return count


# ---- Conversations -------------------------------------------------------------------------------

_FINISHED: Final = (
    "SELECT value FROM json_each(?)"
    " WHERE NOT EXISTS (SELECT 1 FROM dead_letter l WHERE l.conversation = value)"
    " AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.conversation = value"
    " AND d.finished_us IS NULL AND d.composing = 0)"
)

_NEWEST: Final = (
    "SELECT max(id) FROM conversation"
    " UNION ALL SELECT conversation FROM message WHERE id = (SELECT max(id) FROM message)"
    " UNION ALL SELECT conversation FROM delivery WHERE id = (SELECT max(id) FROM delivery)"
)

_CONTENTS: Final = (
    "SELECT m.id, length(m.payload), d.id, d.finished_us,"
    f" (SELECT sum(1 + (octet_length(request) + octet_length(result)) / {PAGE_BYTES})"
    "   FROM journal j WHERE j.delivery = d.id)"
    " FROM json_each(?) c CROSS JOIN message m ON m.conversation = c.value"
    " LEFT JOIN delivery d ON d.message = m.id LIMIT ?"
)
"""Messages with their deliveries, and the cost of each delivery's journal."""


def _conversations(tx: Transaction, arguments: Clean, rows: dict[str, int]) -> _Part:
    before_us, after = arguments.before_us, arguments.after.conversation
    looked_at = tx.rows(
        "SELECT id, state, opened_us, answered_us FROM conversation WHERE id > ?"
        " ORDER BY id LIMIT ?",
        (after, CONVERSATIONS_MAX),
    )
    done, oldest_us = len(looked_at) < CONVERSATIONS_MAX, None
    old: list[int] = []
    last = after
    for identity, state, opened_us, answered_us in looked_at:
        oldest_us = opened_us
        if _is_young(opened_us, tx, before_us):
            done = True
            break
        last = identity
        if state == "answered" and answered_us < before_us:
            old.append(identity)
    else:
        oldest_us = None if done else oldest_us
    newest = {row[0] for row in tx.rows(_NEWEST)}
    old = [row[0] for row in tx.rows(_FINISHED, (_json(old),)) if row[0] not in newest]
    room = arguments.limit - sum(rows.values())
    if _delete_contents(tx, old, room, rows):
        return _Part(last, done, oldest_us)
    return _Part(after, False, oldest_us)  # What is left of them comes next.


def _delete_contents(
    tx: Transaction, conversations: list[int], room: int, rows: dict[str, int]
) -> bool:
    """Delete what there is room for. True if there is no more of them to delete."""
    contents = tx.rows(_CONTENTS, (_json(conversations), room))
    whole = len(contents) < room
    messages: list[int] = []
    finished: list[int] = []
    cost = 0
    for message, payload_bytes, delivery, finished_us, journal in contents:
        if cost >= room:
            whole = False
            break
        cost += 1 + (journal or 0)
        if not messages or messages[-1] != message:
            messages.append(message)
            cost += 1 + payload_bytes // PAGE_BYTES
        if finished_us is not None:
            finished.append(delivery)
    listed = _json(finished)
    for table in ("journal", "tool_call"):
        rows[table] = _delete(
            tx,
            f"DELETE FROM {table} WHERE delivery IN (SELECT value FROM json_each(?))",
            (listed,),
        )
    spans = tx.rows(
        "SELECT id FROM span WHERE delivery IN (SELECT value FROM json_each(?))"
        " AND id <> (SELECT max(id) FROM span)",
        (listed,),
    )
    rows["span"] += _delete_owned(tx, "span", [row[0] for row in spans])
    rows["delivery"] = _delete(
        tx, "DELETE FROM delivery WHERE id IN (SELECT value FROM json_each(?))", (listed,)
    )
    # What holds something that is not finished stays, and so does what holds that.
    rows["message"] = _delete(
        tx,
        "DELETE FROM message WHERE id IN (SELECT value FROM json_each(?))"
        " AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.message = message.id)",
        (_json(messages),),
    )
    rows["conversation"] = _delete(
        tx,
        "DELETE FROM conversation WHERE id IN (SELECT value FROM json_each(?))"
        " AND NOT EXISTS (SELECT 1 FROM message m WHERE m.conversation = conversation.id)",
        (_json(conversations),),
    )
    # Where nothing can go although it is listed, there is nothing to be gained by listing it again.
    return whole or not (finished or rows["message"])


def _delete(tx: Transaction, sql: str, bindings: tuple[Value, ...]) -> int:
    tx.execute(sql, bindings)
    changed = tx.row("SELECT changes()")
    assert changed is not None
    count: int = changed[0]
    return count


def _json(ids: Iterable[int]) -> str:
    return msgspec.json.encode(list(ids)).decode()
