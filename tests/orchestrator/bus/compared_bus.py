"""Compares all that the bus has written and keeps in memory with its model."""

from collections import Counter, defaultdict
from typing import Any

from modelled_bus import ModelledBus

from orchestrator.bus.credit import Credits, credits_of
from orchestrator.bus.inboxes import Inboxes, inboxes_of
from orchestrator.store.database import Database
from orchestrator.store.transaction import Transaction
from orchestrator.store.writer import Request, Writer


class ComparedBus:
    """Needs what `DrivenBus` has."""

    database: Database
    writer: Writer
    model: ModelledBus

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.database.rows(sql)

    def compare(self) -> None:
        self._compare_conversations()
        self._compare_messages()
        self._compare_deliveries()
        self._compare_effects()
        self._compare_memory()
        self._require_nothing_lost()

    def _compare_conversations(self) -> None:
        rows = self.rows(
            "SELECT id, correlation, state, class, round, asked, messages, composer, reply"
            " FROM conversation ORDER BY id"
        )
        expected = [
            (
                each.number,
                each.name,
                each.state,
                each.rank,
                each.round,
                int(each.asked),
                each.messages,
                None if each.composer is None else each.composer.number,
                each.reply,
            )
            for each in sorted(self.model.conversations, key=lambda each: each.number)
        ]
        assert rows == expected

    def _compare_messages(self) -> None:
        rows = self.rows(
            "SELECT id, conversation, round, topic, sender, class, payload, cause, produced_by,"
            " hops, composed, fallback, publisher_id, expires_us FROM message ORDER BY id"
        )
        expected = [
            (
                each.number,
                each.conversation.number,
                each.round,
                each.topic,
                each.sender,
                each.rank,
                each.payload,
                each.cause_number if each.cause is None else each.cause.number,
                None if each.made_by is None else each.made_by.number,
                each.hops,
                int(each.composed),
                each.fallback,
                each.publisher_id,
                each.expires_us,
            )
            for each in sorted(self.model.messages, key=lambda each: each.number)
        ]
        assert rows == expected

    def _compare_deliveries(self) -> None:
        rows = self.rows(
            "SELECT d.id, d.message, d.agent, d.class, d.state, d.composing, d.screened,"
            " d.must_take, d.deferred, d.deaths, d.run, d.parked_reason, d.parked_until_us,"
            " d.outcome, CASE d.state WHEN 'leased' THEN d.incarnation END, d.begun_us, d.seed,"
            " s.component FROM delivery d LEFT JOIN setting s ON s.id = d.setting ORDER BY d.id"
        )
        expected = [
            (
                each.number,
                each.message.number,
                each.agent,
                each.rank,
                each.state,
                int(each.composing),
                int(each.screened),
                int(each.must_take),
                int(each.deferred),
                each.deaths,
                each.run,
                each.reason,
                each.until_us,
                each.outcome,
                each.holder if each.state == "leased" else None,
                *(each.begun or (None, None, None)),
            )
            for each in sorted(self.model.deliveries, key=lambda each: each.number)
        ]
        for row, each in zip(rows, expected, strict=True):
            assert row == each

    def _compare_effects(self) -> None:
        """Memories, tasks, state and dead letters are there once."""
        model = self.model
        memories = Counter(self.rows("SELECT owner, text, delivery FROM memory"))
        assert memories == Counter((o, text, each.number) for o, text, each in model.memories)
        tasks = {row[0]: row[1:] for row in self.rows("SELECT id, owner, title FROM task")}
        assert tasks == model.tasks
        state = {row[:2]: row[2] for row in self.rows("SELECT owner, key, value FROM state")}
        assert state == model.state
        letters = self.rows(
            "SELECT id, code, sender, receiver IS NULL, replayed_as FROM dead_letter ORDER BY id"
        )
        assert letters == [
            (
                each.number,
                each.code,
                each.sender,
                int(each.message is None),
                None if each.replayed_as is None else each.replayed_as.number,
            )
            for each in sorted(model.letters, key=lambda each: each.number)
        ]

    def _compare_memory(self) -> None:
        """What is counted in memory is what the tables say."""
        look = Request(_kept, "bus", None)
        self.writer.commit([look])
        credits, inboxes = look.result
        counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for agent, sender, count in self.rows(
            "SELECT d.agent, m.sender, count(*) FROM delivery d JOIN message m ON m.id = d.message"
            " WHERE d.state NOT IN ('done', 'dead') AND NOT d.composing GROUP BY 1, 2"
        ):
            counted[agent][sender] = count
        for agent, held in inboxes._held.items():
            assert held == counted[agent], f"{agent}: {held}, not {counted[agent]}"
            assert inboxes._totals[agent] == counted[agent].total()
        model = self.model
        assert set(credits._by_agent) == set(model.workers)
        for agent, worker in model.workers.items():
            credit = credits.of(agent)
            assert (credit.incarnation, credit.window) == (worker.name, worker.window)
            leased = [each.number for each in model.held(worker.name)]
            assert sorted(credit.held) == sorted(leased)
            hands = model.hands.get(worker.name, [])
            assert sorted(each.number for each in hands) == sorted(leased)
            if len(leased) < worker.window:
                waiting = [d for d in model.deliveries if d.agent == agent and model.leasable(d)]
                assert not waiting, f"{worker} has room, and {waiting} waits"

    def _require_nothing_lost(self) -> None:
        """What was accepted is done, dead or under way, and what is under way can go on."""
        model = self.model
        ended = Counter(each.state for each in model.deliveries)
        assert ended.total() + model.cleaned == model.accepted
        for each in model.deliveries:
            if each.state == "parked":
                waits = each.waits_for is not None and not each.waits_for.answered
                assert each.until_us is not None or waits or each.reason == "job", each
        for talk in model.conversations:
            if talk.state == "open":
                assert model.under_way(talk), f"nobody will ever answer {talk}"
            if talk.state == "composing":
                assert talk.composer is not None and not talk.composer.finished


def _kept(tx: Transaction, _: None) -> tuple[Credits, Inboxes]:
    return credits_of(tx), inboxes_of(tx)
