"""No row is written by anybody but its owner: every table of the schema, every kind of write."""

from typing import Any

import apsw
import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.work import MemoryEntry, Note, Noted, TaskChange, UseTool
from orchestrator.bus.attention import RequestAttention, request_attention
from orchestrator.bus.journal import Append, append_journal
from orchestrator.bus.observations import HealthEvent, Span, record_span, report_health
from orchestrator.bus.routing import BUS, OPERATOR, SUPERVISOR
from orchestrator.bus.tool_calls import BeginToolCall, begin_tool_call
from orchestrator.bus.versions import InstallVersion, install_version
from orchestrator.store.audit import Audit, record_audit
from orchestrator.store.transaction import Transaction

Bus = Any
"""The fixture `bus`."""

TABLES = (
    "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table'"
    " AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'memory_%'"
    " AND name <> 'acting'"
)


@pytest.fixture
async def full_bus(bus: Bus) -> Bus:
    """A row in every table."""
    entry = MemoryEntry(text="t", outcome="success", lesson="l", importance=0.5)
    await bus.ask(topic="ops.disk")
    await bus.do_next(
        "opsclaw",
        ("ops.secret", "lost"),
        memories=[entry],
        tasks=[TaskChange(id=None, title="t")],
    )
    await bus.ask(topic="ops.disk")
    delivery = await bus.leased("opsclaw")
    writing = UseTool(name="fs.write", arguments={})
    call = BeginToolCall(delivery=delivery, incarnation="w1", step=0, effect=writing)
    await bus.store.apply(begin_tool_call, "opsclaw", call)
    note = Append(
        delivery=delivery,
        incarnation="w1",
        step=1,
        effect=Note(phase="act", summary="n"),
        result=Noted(),
        started_us=1,
    )
    await bus.store.apply(append_journal, "opsclaw", note)
    request = RequestAttention(
        delivery=delivery,
        incarnation="w1",
        step=0,
        effect=UseTool(name="attention.request", arguments={}),
        question="May I?",
    )
    await bus.store.apply(request_attention, "opsclaw", request)
    await bus.store.apply(report_health, SUPERVISOR, HealthEvent(kind="k", detail="d"))
    await bus.store.apply(record_span, BUS, Span(name="s", started_us=1, finished_us=2))
    await bus.store.apply(record_audit, OPERATOR, Audit(action="a", subject="s"))
    await bus.store.apply(
        lambda tx, _: tx.execute(
            "INSERT INTO state (owner, key, value, changed_us) VALUES ('opsclaw', 'k', x'00', 1)"
        ),
        "opsclaw",
        None,
    )
    version = InstallVersion(
        agent="opsclaw",
        sha256="0" * 64,
        size_bytes=1,
        world="agent@0.2.0",
        source="upgrade",
        by=OPERATOR,
    )
    await bus.store.apply(install_version, BUS, version)
    return bus


async def test_every_table_refuses_foreign_writes(full_bus: Bus) -> None:
    tables = [row[0] for row in await full_bus.reader.fetch(TABLES)]
    assert len(tables) == 19, tables
    for table in tables:
        columns = await full_bus.reader.fetch(f"SELECT name FROM pragma_table_info('{table}')")
        column = columns[0][0]
        for sql in (
            f"INSERT INTO {table} SELECT * FROM {table} LIMIT 1",
            f"UPDATE {table} SET {column} = {column}",
            f"DELETE FROM {table}",
        ):
            assert await full_bus.value(f"SELECT count(*) FROM {table}"), f"{table} is empty"
            for actor in ("devclaw", OPERATOR):
                if table == "audit" and actor == OPERATOR and sql.startswith("INSERT"):
                    continue  # It is the operator's own entry.
                with pytest.raises(Failure) as refused:
                    await full_bus.store.apply(execute, actor, sql)
                assert refused.value.code == "store.ownership", (actor, sql)


async def test_nobody_says_who_acts_but_the_program(full_bus: Bus) -> None:
    for sql in (
        "UPDATE acting SET name = 'bus'",
        "INSERT INTO acting (id, name) VALUES (2, 'bus')",
        "DELETE FROM acting",
    ):
        with pytest.raises(Failure) as refused:
            await full_bus.store.apply(execute, "devclaw", sql)
        assert refused.value.code == "store.ownership", sql
    assert await full_bus.value("SELECT count(*) FROM acting WHERE name IS NULL") == 1


async def test_what_an_agent_owns_is_not_the_buss(full_bus: Bus) -> None:
    for table in ("state", "state_size", "task", "memory", "attention"):
        with pytest.raises(Failure):
            await full_bus.store.apply(execute, BUS, f"DELETE FROM {table}")
        await full_bus.store.apply(execute, "opsclaw", f"DELETE FROM {table}")


async def test_nobody_gives_a_row_to_another(full_bus: Bus) -> None:
    with pytest.raises(Failure):
        await full_bus.store.apply(execute, "opsclaw", "UPDATE memory SET owner = 'devclaw'")


async def test_the_operator_changes_nothing_of_a_question_but_its_answer(full_bus: Bus) -> None:
    answer = "state = 'answered', answer = 'y', answered_by = 'operator', answered_us = 1"
    for change in ("question = 'Other?'", "owner = 'operator'", "step = 9"):
        with pytest.raises(Failure):
            await full_bus.store.apply(
                execute, OPERATOR, f"UPDATE attention SET {answer}, {change}"
            )
    await full_bus.store.apply(execute, OPERATOR, f"UPDATE attention SET {answer}")


async def test_nobody_rewrites_the_audit_trail(full_bus: Bus) -> None:
    for sql in ("UPDATE audit SET subject = 'x'", "DELETE FROM audit"):
        with pytest.raises(Failure):
            await full_bus.store.apply(execute, OPERATOR, sql)


async def test_another_program_cannot_write_at_all(full_bus: Bus) -> None:
    other = apsw.Connection(str(full_bus.path))
    with pytest.raises(apsw.SQLError, match="no such function: actor"):
        other.execute("DELETE FROM memory")
    other.close()


def execute(tx: Transaction, sql: str) -> None:
    tx.execute(sql)
