"""What an agent keeps under keys of its own choice, and how much it is."""

from collections.abc import Sequence

from ipc_protocol.work import StateChange
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction


def change_state(tx: Transaction, changes: Sequence[StateChange]) -> None:
    """Set and delete keys of the actor's state, in their order."""
    for change in changes:
        if change.value is None:
            tx.execute("DELETE FROM state WHERE owner = ? AND key = ?", (tx.actor, change.key))
        else:
            tx.execute(
                "INSERT INTO state (owner, key, value, changed_us) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (owner, key) DO UPDATE"
                " SET value = excluded.value, changed_us = excluded.changed_us",
                (tx.actor, change.key, change.value, tx.now_us),
            )


def read_state(query: Query, agent: str, key: str) -> bytes | None:
    """What `agent` keeps under `key`."""
    found = query.row("SELECT value FROM state WHERE owner = ? AND key = ?", (agent, key))
    return None if found is None else found[0]


def state_bytes(query: Query, agent: str) -> int:
    """The size of all that `agent` keeps: keys, values, and 64 bytes for each row."""
    found = query.row("SELECT bytes FROM state_size WHERE owner = ?", (agent,))
    return 0 if found is None else found[0]
