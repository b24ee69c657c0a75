"""The audit trail: who did what, each entry chained to the one before by its hash.

An entry's hash covers the hash before it and the entry's canonical JSON, so no entry can be changed
or taken out of the middle without breaking the chain. That the newest entries were cut off shows
only to somebody who kept a later hash elsewhere.
"""

import hashlib
from typing import Any, Final

import msgspec

from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction

GENESIS: Final = bytes(32)


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """`action` is a verb with its subsystem (`attention.answer`), `subject` what it was done to."""

    action: str
    subject: str
    data: dict[str, Any] = {}


def record_audit(tx: Transaction, entry: Audit) -> int:
    """Append an entry in the name of the transaction's actor. Returns its id."""
    last = tx.row("SELECT hash FROM audit ORDER BY id DESC LIMIT 1")
    previous = GENESIS if last is None else last[0]
    data = msgspec.json.encode(entry.data, order="sorted").decode()
    digest = chained(previous, tx.actor, entry.action, entry.subject, data, tx.now_us)
    return tx.insert(
        "INSERT INTO audit (owner, action, subject, data, at_us, previous, hash)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (tx.actor, entry.action, entry.subject, data, tx.now_us, previous, digest),
    )


def chained(previous: bytes, actor: str, action: str, subject: str, data: str, at_us: int) -> bytes:
    """SHA-256 over the hash before and the entry as a JSON array."""
    entry = msgspec.json.encode([actor, action, subject, data, at_us])
    return hashlib.sha256(previous + entry).digest()


def first_broken(query: Query) -> int | None:
    """The id of the first entry that does not follow from the one before, or None."""
    previous = GENESIS
    rows = query.rows(
        "SELECT id, owner, action, subject, data, at_us, previous, hash FROM audit ORDER BY id"
    )
    for identity, owner, action, subject, data, at_us, claimed, digest in rows:
        if claimed != previous or digest != chained(previous, owner, action, subject, data, at_us):
            assert isinstance(identity, int)
            return identity
        previous = digest
    return None
