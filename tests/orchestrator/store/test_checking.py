"""Each check finds what it is there for, in a store that is otherwise in order."""

from pathlib import Path

import pytest

from orchestrator.store.audit import Audit, record_audit
from orchestrator.store.checking import INVARIANTS, PROBLEMS_SHOWN_MAX, Finding, check
from orchestrator.store.database import Database
from orchestrator.store.migration import migrate, migrations, open_current
from orchestrator.store.transaction import Transaction

HEALTHY = """
INSERT INTO agent (id, name, role, state, class, inbox_max, publishes, delegates, registered_us,
  changed_us) VALUES (1, 'opsclaw', 'agent', 'active', 2, 64, '[]', '[]', 1, 1);
INSERT INTO conversation (id, correlation, state, class, round, opened_by, question, opened_us)
  VALUES (1, 'c1', 'open', 2, 1, 'operator', 1, 1);
INSERT INTO message (id, conversation, round, topic, sender, class, payload, hops, composed,
  sent_us, expires_us) VALUES (1, 1, 1, 'ops.disk', 'operator', 2, x'00', 0, 0, 1, 9);
INSERT INTO delivery (id, message, conversation, agent, class, state, composing, screened,
  must_take, queued_us) VALUES (1, 1, 1, 'opsclaw', 2, 'queued', 0, 1, 0, 1);
INSERT INTO journal (delivery, run, step, kind, key_hash, request, result, started_us, finished_us)
  VALUES (1, 0, 0, 'infer', zeroblob(32), '{}', '{}', 2, 3);
"""
OWN = """
INSERT INTO state (owner, key, value, changed_us) VALUES ('opsclaw', 'ä', x'010203', 1);
INSERT INTO memory (id, owner, text, outcome, lesson, importance, embedding, created_us) VALUES
  (1, 'opsclaw', 'a disk', 'success', 'look first', 0.5, zeroblob(1024), 1),
  (2, 'opsclaw', 'a fan', 'success', 'listen', 0.5, NULL, 1);
"""

BROKEN = {
    "foreign keys": "DELETE FROM message",
    "deliveries": "UPDATE delivery SET conversation = 7",
    "messages": "UPDATE message SET cause = 1",
    "conversations": "UPDATE conversation SET state = 'answered', reply = '', answered_us = 1",
    "composing": "UPDATE conversation SET state = 'composing', composer = 7",
    "leases": "UPDATE delivery SET state = 'leased'",
    "receivers": "DELETE FROM agent",
    "journal": "UPDATE journal SET run = 1",
    "state sizes": "UPDATE state_size SET bytes = bytes - 1",
    "memory words": "INSERT INTO memory_text (rowid, text, lesson) VALUES (7, 'a', 'b')",
    "memory vectors": "DELETE FROM memory_vector",
    "audit": "UPDATE audit SET subject = 'other'",
}


@pytest.fixture
def healthy(path: Path) -> Path:
    database = open_current(path)
    for actor, rows in (("bus", HEALTHY), ("opsclaw", OWN)):
        database.actor = actor
        database.execute("BEGIN")
        database.tell_actor()
        database.execute(rows)
        if actor == "bus":
            record_audit(Transaction(database, "bus", 1, {}), Audit(action="a", subject="b"))
        database.commit()
    database.close()
    return path


def found(path: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in check(path)}


def damage(path: Path, sql: str) -> None:
    """Do what no code path can: without constraints, and in everybody's name."""
    database = Database(path, writable=True)
    database.execute("PRAGMA foreign_keys = OFF")
    database.execute("PRAGMA ignore_check_constraints = ON")
    triggers = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE '%_ownership'"
    for (name,) in database.rows(triggers):
        database.execute(f"DROP TRIGGER {name}")
    database.execute(sql)
    database.close()


def test_a_store_in_order_passes_every_check(healthy: Path) -> None:
    findings = found(healthy)
    assert [one for one in findings.values() if one.state != "ok"] == []
    assert set(findings) == {"schema", "file", "foreign keys", "audit", *INVARIANTS}


def test_everything_that_is_checked_is_broken_here() -> None:
    assert {*BROKEN} == {"foreign keys", "audit", *INVARIANTS}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(healthy: Path, name: str) -> None:
    damage(healthy, BROKEN[name])
    finding = found(healthy)[name]
    assert finding.state == "failed"
    assert finding.detail


def test_many_problems_are_counted_and_a_few_are_named(healthy: Path) -> None:
    damage(
        healthy,
        "INSERT INTO state_size WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9)"
        " SELECT 'agent-' || i, i FROM n",
    )
    detail = found(healthy)["state sizes"].detail
    assert detail.count("agent-") == PROBLEMS_SHOWN_MAX
    assert detail.endswith("and 4 more")


def test_a_damaged_page_is_found_by_the_file_itself(healthy: Path) -> None:
    database = Database(healthy, writable=False)
    row = database.row("SELECT rootpage FROM sqlite_schema WHERE name = 'delivery'")
    database.close()
    assert row is not None
    content = bytearray(healthy.read_bytes())
    content[(row[0] - 1) * 4096 : row[0] * 4096] = bytes(4096)
    healthy.write_bytes(content)
    findings = found(healthy)
    assert findings["file"].state == "failed"
    assert "damaged" in findings["deliveries"].detail
    assert findings["audit"].state == "ok", "what can still be read is looked at"


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty"), (b"no database" * 999, "damaged"), (None, "No such file")]
)
def test_what_is_no_database_fails_at_once(path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        path.write_bytes(content)
    [finding] = check(path)
    assert finding.state == "failed" and said in finding.detail


def test_a_newer_schema_fails_and_nothing_is_made_of_it(healthy: Path) -> None:
    damage(healthy, "PRAGMA user_version = 99")
    [finding] = check(healthy)
    assert finding.state == "failed" and "version 99" in finding.detail


def test_an_older_schema_is_in_order_as_far_as_it_can_be_looked_at(path: Path) -> None:
    old = Database(path, writable=True)
    migrate(old, migrations()[:1])
    old.close()
    damage(path, "PRAGMA application_id = 0x61677464")
    findings = found(path)
    assert "carries it to" in findings["schema"].detail
    assert {findings[name].state for name in INVARIANTS} == {"skipped"}
    assert {one.state for one in findings.values()} == {"ok", "skipped"}


def test_a_check_says_what_it_is_at(healthy: Path) -> None:
    said: list[str] = []
    names = [finding.check for finding in check(healthy, said.append)]
    assert said == names
