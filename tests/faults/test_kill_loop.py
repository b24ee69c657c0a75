"""Kills at every point and at any time: each accepted message has exactly its effects.

`AGENTD_KILL_SEED` makes a run again with the same kills.
"""

import asyncio
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from daemons import short_folder
from effects_checker import Sent, check
from kill_agents import TOPOLOGY, topology_of
from kill_loop import AT_RANDOM, KillLoop, Outcome
from kill_plan import FAIL_POINTS

from orchestrator import failpoints

SHORT_KILLS: Final = 24
SHORT_LIVES: Final = 4
LONG_KILLS: Final = 1000
LONG_LIVES: Final = 6
LONG_SECONDS_MAX: Final = 2 * 3600
"""Four times what it takes on two cores that have nothing else to do."""

TALKING_KILLS: Final = 12
TALKING_LIVES: Final = 3
LONG_TALKING_KILLS: Final = 200

VICTIMS: Final = {"daemon", "worker", "zygote", "engine", "all at once"}


@dataclass(frozen=True)
class Run:
    """A short run: what came of it, and the last database that it has left."""

    outcome: Outcome
    database: Path
    load: list[Sent]


def seed() -> str:
    return os.environ.get("AGENTD_KILL_SEED") or secrets.token_hex(4)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with short_folder() as folder:
        loop = KillLoop(folder, seed(), SHORT_LIVES)
        print(f"AGENTD_KILL_SEED={loop.outcome.seed}")
        asyncio.run(loop.run(SHORT_KILLS))
        yield Run(loop.outcome, loop.database, loop.load)


def test_each_message_has_exactly_its_effects_over_a_few_dozen_kills(run: Run) -> None:
    print(run.outcome.table)
    assert not run.outcome.problems, "\n".join(run.outcome.problems)
    assert run.outcome.kills.total() >= SHORT_KILLS
    assert run.outcome.accepted == len(run.load) > 0


@pytest.mark.faults
@pytest.mark.timeout(LONG_SECONDS_MAX)
def test_each_message_has_exactly_its_effects_over_a_thousand_kills(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with short_folder() as folder:
        loop = KillLoop(folder, seed(), LONG_LIVES)
        print(f"AGENTD_KILL_SEED={loop.outcome.seed}")
        outcome = asyncio.run(loop.run(LONG_KILLS))
    with capsys.disabled():
        print(f"\n{outcome.table}")
    assert not outcome.problems, "\n".join(outcome.problems)
    assert {victim for victim, _ in outcome.kills} == VICTIMS
    assert {place for _, place in outcome.kills} == {*FAIL_POINTS, AT_RANDOM}


@pytest.fixture(scope="module")
def talking_run(model_path: Path) -> Iterator[Run]:
    """A short run in which agents ask the model, whose engine is killed in the middle of it."""
    with short_folder() as folder:
        loop = KillLoop(folder, seed(), TALKING_LIVES, model_path)
        print(f"AGENTD_KILL_SEED={loop.outcome.seed}")
        asyncio.run(loop.run(TALKING_KILLS))
        yield Run(loop.outcome, loop.database, loop.load)


@pytest.mark.model
def test_each_question_to_the_model_is_answered_once_over_a_dozen_kills(talking_run: Run) -> None:
    print(talking_run.outcome.table)
    assert not talking_run.outcome.problems, "\n".join(talking_run.outcome.problems)
    assert talking_run.outcome.kills.total() >= TALKING_KILLS
    assert talking_run.outcome.kills["model", AT_RANDOM] > 0


@pytest.mark.faults
@pytest.mark.model
@pytest.mark.timeout(LONG_SECONDS_MAX)
def test_each_question_to_the_model_is_answered_once_over_hundreds_of_kills(
    model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with short_folder() as folder:
        loop = KillLoop(folder, seed(), LONG_LIVES, model_path)
        print(f"AGENTD_KILL_SEED={loop.outcome.seed}")
        outcome = asyncio.run(loop.run(LONG_TALKING_KILLS))
    with capsys.disabled():
        print(f"\n{outcome.table}")
    assert not outcome.problems, "\n".join(outcome.problems)
    assert {victim for victim, _ in outcome.kills} == {*VICTIMS, "model"}


def test_no_fail_point_is_left_out() -> None:
    assert FAIL_POINTS.keys() == set(failpoints.NAMES)


# ---- The control: what the checker is there to find, it finds ------------------------------------

LEAF: Final = "(SELECT max(id) FROM delivery WHERE agent = 'left')"
PASSED_ON: Final = "(SELECT max(id) FROM message WHERE sender = 'relay')"
ACCEPTED: Final = "(SELECT max(id) FROM message WHERE sender = 'operator')"


def doubled(table: str, row: str, changed: str = "") -> str:
    """Insert a copy of a row under a new id. `changed` is more to set in the copy."""
    return (
        f"CREATE TEMP TABLE copy AS SELECT * FROM {table} WHERE id = {row};"
        f"UPDATE copy SET id = (SELECT max(id) + 1 FROM {table}){changed};"
        f"INSERT INTO {table} SELECT * FROM copy"
    )


TAMPERED: Final = {
    "a lost delivery": (f"DELETE FROM delivery WHERE id = {LEAF}", "deliveries lost"),
    "a lost message": (f"DELETE FROM message WHERE id = {PASSED_ON}", "messages lost"),
    "a lost publish": (f"DELETE FROM message WHERE id = {ACCEPTED}", "messages lost"),
    "a doubled delivery": (doubled("delivery", LEAF), "deliveries doubled"),
    "a doubled message": (doubled("message", PASSED_ON), "messages doubled"),
    "a doubled publish": (doubled("message", ACCEPTED), "messages doubled"),
    "a publish that nobody has a receipt for": (
        doubled("message", ACCEPTED, ", publisher_id = 'north/999999'"),
        "messages doubled",
    ),
    "another payload": (
        f"UPDATE message SET payload = x'00' WHERE id = {PASSED_ON}",
        "not what caused them",
    ),
    "a delivery that was left": (
        f"UPDATE delivery SET state = 'leased', finished_us = NULL WHERE id = {LEAF}",
        "deliveries not done",
    ),
    "a delivery that was ignored": (
        f"UPDATE delivery SET outcome = 'ignored' WHERE id = {LEAF}",
        "not acted on",
    ),
    "the first that is last": (
        "UPDATE delivery SET finished_us = 9999999999999999 - finished_us WHERE agent = 'left'",
        "out of order",
    ),
    "a lost count": (
        "UPDATE state SET value = x'0100000000000000' WHERE owner = 'counter'",
        "counter has counted 1",
    ),
    "a lost memory": (
        "DELETE FROM memory WHERE id = (SELECT max(id) FROM memory)",
        "memories of diarist that are missing",
    ),
    "a doubled memory": (
        doubled("memory", "(SELECT max(id) FROM memory)"),
        "memories of diarist that are too many",
    ),
    "a doubled effect": (
        doubled("health", "(SELECT max(id) FROM health WHERE kind = 'agent')"),
        "health events of crier that are too many",
    ),
    "a dead letter": (
        "INSERT INTO dead_letter (conversation, sender, topic, payload, class, code, reason,"
        " attempts, causes, died_us) VALUES (1, 'left', 'x', x'', 2, 'x', '', 5, '[]', 0)",
        "dead letters",
    ),
}
"""What is done to a copy of the database, and what the checker says of it."""


@pytest.mark.parametrize(("change", "complaint"), TAMPERED.values(), ids=TAMPERED)
def test_the_checker_finds(run: Run, tmp_path: Path, change: str, complaint: str) -> None:
    copy = tmp_path / "agentd.db"
    shutil.copy(run.database, copy)
    tamper(copy, change)
    problems = check(copy, TOPOLOGY, run.load).problems
    assert any(complaint in problem for problem in problems), problems


ANSWER: Final = "(SELECT max(delivery) FROM journal WHERE kind = 'infer')"

TAMPERED_ANSWERS: Final = {
    "a lost answer": (
        f"DELETE FROM journal WHERE kind = 'infer' AND delivery = {ANSWER}",
        "that are missing",
    ),
    "a doubled answer": (
        f"CREATE TEMP TABLE copy AS SELECT * FROM journal WHERE delivery = {ANSWER}"
        " AND kind = 'infer'; UPDATE copy SET step = 99; INSERT INTO journal SELECT * FROM copy",
        "that came again",
    ),
    "half an answer": (
        """UPDATE journal SET result = json_set(result, '$.text', '"half') """
        f"WHERE kind = 'infer' AND delivery = {ANSWER}",
        "that are not whole",
    ),
}


@pytest.mark.model
@pytest.mark.parametrize(("change", "complaint"), TAMPERED_ANSWERS.values(), ids=TAMPERED_ANSWERS)
def test_the_checker_finds_of_answers(
    talking_run: Run, tmp_path: Path, change: str, complaint: str, model_path: Path
) -> None:
    copy = tmp_path / "agentd.db"
    shutil.copy(talking_run.database, copy)
    tamper(copy, change)
    problems = check(copy, topology_of(model_path), talking_run.load).problems
    assert any("answers to" in one and complaint in one for one in problems), problems


def test_the_checker_finds_a_load_that_the_database_knows_nothing_of(run: Run) -> None:
    unknown = run.load[0]._replace(number=10**6)
    problems = check(run.database, TOPOLOGY, [*run.load, unknown]).problems
    assert any("messages lost" in problem for problem in problems)


def tamper(path: Path, change: str) -> None:
    """Change a database past its triggers and its unique indexes."""
    with closing(sqlite3.connect(path)) as connection:
        rules = connection.execute(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'index')"
            " AND sql IS NOT NULL"
        ).fetchall()
        for kind, name in rules:
            connection.execute(f"DROP {kind} {name}")
        before = connection.total_changes
        connection.executescript(change)
        assert connection.total_changes > before, "nothing was there to be changed"
        connection.commit()
