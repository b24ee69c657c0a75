"""The tasks that agents keep for themselves."""

from typing import Literal

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.work import TaskChange
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction


class Task(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    owner: str
    title: str
    state: Literal["open", "doing", "done", "dropped"]
    note: str
    correlation: str | None
    created_us: int
    changed_us: int


def change_task(
    tx: Transaction,
    change: TaskChange,
    conversation: int | None = None,
    correlation: str | None = None,
) -> int:
    """Create a task of the actor, or update one of its own. Returns its id.

    Raises `store.ownership` if the task is another's or does not exist.
    """
    if change.id is None:
        task = tx.insert(
            "INSERT INTO task (owner, title, state, note, conversation, created_us, changed_us)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (
                tx.actor,
                change.title or "untitled",
                change.state or "open",
                change.note,
                conversation,
                tx.now_us,
                tx.now_us,
            ),
        )
    else:
        task = change.id
        if tx.row("SELECT 1 FROM task WHERE id = ? AND owner = ?", (task, tx.actor)) is None:
            raise Failure(
                "store.ownership",
                f"{tx.actor!r} has no task {task}.",
                "Change one of your own tasks, or create a new one.",
                task=task,
            )
        tx.execute(
            "UPDATE task SET title = coalesce(?, title), state = coalesce(?, state),"
            " note = CASE WHEN ?3 = '' THEN note ELSE ?3 END, changed_us = ? WHERE id = ?",
            (change.title, change.state, change.note, tx.now_us, task),
        )
    written = tx.row("SELECT title, state FROM task WHERE id = ?", (task,))
    assert written is not None
    tx.emit(
        "task.changed",
        task=task,
        agent=tx.actor,
        correlation=correlation,
        title=written[0],
        state=written[1],
    )
    return task


def tasks_of(query: Query, owner: str | None = None, *, unfinished: bool = False) -> list[Task]:
    """Tasks of `owner` (None: everybody), oldest first."""
    rows = query.rows(
        "SELECT t.id, t.owner, t.title, t.state, t.note, c.correlation, t.created_us,"
        " t.changed_us FROM task t LEFT JOIN conversation c ON c.id = t.conversation"
        " WHERE (?1 IS NULL OR t.owner = ?1) AND (NOT ?2 OR t.state IN ('open', 'doing'))"
        " ORDER BY t.id",
        (owner, unfinished),
    )
    fields = Task.__struct_fields__
    return [Task(**dict(zip(fields, row, strict=True))) for row in rows]
