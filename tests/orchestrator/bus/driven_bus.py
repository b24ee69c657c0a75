"""The real bus and its model, side by side: every step is made with both, then all is compared.

The reducers run under the real writer, in the thread of the test. What they hand over is taken as
the store's receivers take it: after the commit, in order.
"""

import contextlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelled_bus import ModelledBus, Refusal
from modelled_things import URGENCIES, Agent, Delivery, Letter, Message

from ipc_protocol.errors import Failure
from orchestrator.bus.credit import Credits, credits_of
from orchestrator.bus.inboxes import Inboxes, inboxes_of
from orchestrator.bus.leasing import ReleaseLeases, release_leases
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.store.database import Database
from orchestrator.store.migration import open_current
from orchestrator.store.transaction import Transaction
from orchestrator.store.writer import Request, Writer


class Step(NamedTuple):
    """A request to the real bus, and what the model makes of it and of its answer."""

    reducer: Callable[[Transaction, Any], Any]
    actor: str
    arguments: Any
    follow: Callable[[Any], object]
    """Raises `Refusal` where the bus has to refuse it."""


class BrokenDown(Exception):
    """A reducer that fails after it has done all its work."""


def breaks_down(step: Step) -> Step:
    def reducer(tx: Transaction, arguments: Any) -> None:
        step.reducer(tx, arguments)
        raise BrokenDown

    return step._replace(reducer=reducer)


def breaks_down_in_part(step: Step) -> Step:
    """A part of a reducer fails, which goes on and changes nothing else."""

    def reducer(tx: Transaction, arguments: Any) -> None:
        try:
            with tx.nested():
                step.reducer(tx, arguments)
                raise Failure("request.invalid", "The part fails.")
        except Failure:
            return

    return step._replace(reducer=reducer)


def fills_the_disk(step: Step) -> Step:
    def reducer(tx: Transaction, arguments: Any) -> None:
        with contextlib.suppress(Failure):
            step.reducer(tx, arguments)
        with tx.acting_as("bus"):
            tx.execute(
                "INSERT INTO prompt_set (hash, prompts, first_us)"
                " VALUES ('large', json_quote(hex(zeroblob(4000000))), 0)"
            )

    return step._replace(reducer=reducer)


def registration(agent: Agent) -> Registration:
    return Registration(
        name=agent.name,
        role="conductor" if agent.conductor else "agent",
        consumes=list(agent.consumes),
        publishes=list(agent.publishes),
        delegates=list(agent.delegates),
        inbox=agent.inbox,
        priority=URGENCIES[agent.rank],
        screened=agent.screened,
        state_max=agent.state_max,
    )


class DrivenBus:
    def __init__(self, path: Path, template: Path, agents: Sequence[Agent]) -> None:
        self.path = path
        shutil.copyfile(template, path)
        self.model = ModelledBus(agents)
        self.numbers_seen = {"message": 0, "delivery": 0}
        self._learned: set[Message] = set()
        self._open()
        self.register([agent for agent in agents if agent.active])

    def _open(self) -> None:
        self.database: Database = open_current(self.path)
        # What the tests compare does not depend on what the disk does.
        self.database.execute("PRAGMA synchronous = OFF")
        self.writer = Writer(
            self.database, lambda: self.model.now_us, lambda _: None, follows=lambda _: False
        )

    def register(self, agents: Sequence[Agent]) -> None:
        arguments = RegisterAgents(agents=[registration(agent) for agent in agents])
        self.commit([Step(register_agents, "bus", arguments, lambda _: None)])

    def crash(self, agents: Sequence[Agent]) -> None:
        """The daemon dies and starts again, with `agents` in its configuration."""
        model = self.model
        self.database.abandon()
        self._open()
        model.workers.clear()
        for each in model.deliveries:
            if each.state == "leased":
                model.queue(each, displaced=False)
        model.hands.clear()
        for agent in model.agents.values():
            agent.active = agent in agents and not agent.retired
        held = ReleaseLeases()
        self.register(agents)
        self.commit([Step(release_leases, "bus", held, lambda _: None)])
        self.compare()

    def close(self) -> None:
        self.database.close()

    # ---- Steps ----------------------------------------------------------------------------------

    def do(self, *steps: Step, fault: str = "") -> list[Any]:
        """Make `steps` in one commit and compare. With a fault, they fail first, and must have
        changed nothing."""
        if fault:
            self._fail(steps, fault)
        answers = self.commit(list(steps))
        self.compare()
        return answers

    def _fail(self, steps: Sequence[Step], fault: str) -> None:
        if fault == "full":
            pages = self.database.pragma("page_count")
            self.database.execute(f"PRAGMA max_page_count = {pages + 200}")
            requests = [Request(s.reducer, s.actor, s.arguments) for s in steps[:-1]]
            last = fills_the_disk(steps[-1])
            requests.append(Request(last.reducer, last.actor, last.arguments))
            self.writer.commit(requests)
            self.database.execute("PRAGMA max_page_count = 1073741823")
            for request in requests:
                assert isinstance(request.error, Failure) and request.error.code == "store.full"
        else:
            broken = breaks_down if fault == "raise" else breaks_down_in_part
            requests = [
                Request(each.reducer, each.actor, each.arguments) for each in map(broken, steps)
            ]
            self.writer.commit(requests)
        for request in requests:
            assert (not request.outcome.handed and not request.outcome.undo) or not request.error
            assert not request.outcome.handed, "something is handed over that did not happen"
        self.model.step += 1
        self.compare()

    def commit(self, steps: Sequence[Step]) -> list[Any]:
        requests = [Request(each.reducer, each.actor, each.arguments) for each in steps]
        self.writer.commit(requests)
        assert self.writer.failed is None, self.writer.failed
        answers: list[Any] = []
        for step, request in zip(steps, requests, strict=True):
            error = request.error
            if error is not None and not isinstance(error, Failure):
                raise error
            self.model.step += 1
            answer = request.result if error is None else error
            self._follow(step, answer)
            self._learn_numbers()
            self.model.hand(request.outcome.handed)
            answers.append(answer)
        return answers

    def _follow(self, step: Step, answer: Any) -> None:
        try:
            step.follow(answer)
        except Refusal as refusal:
            assert isinstance(answer, Failure), f"{refusal.code} expected, not {answer}"
            assert answer.code == refusal.code, answer
        else:
            assert not isinstance(answer, Failure), answer

    # ---- What the tables say --------------------------------------------------------------------

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.database.rows(sql)

    def _learn_numbers(self) -> None:
        """Find the rows of what is new in the model."""
        model = self.model
        names = dict(self.rows("SELECT correlation, id FROM conversation"))
        for talk in model.conversations:
            talk.number = talk.number or names[talk.name]
        self._learn_messages()
        known = {each.number for each in model.deliveries}
        found: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        for number, message, agent in self.rows("SELECT id, message, agent FROM delivery"):
            if number not in known:
                found[message, agent].append(number)
        new: list[Delivery] = [each for each in model.deliveries if not each.number]
        for each in new:
            each.number = found[each.message.number, each.agent].pop(0)
        self._require_new("delivery", [each.number for each in new])
        self._learn_letters()

    def _learn_messages(self) -> None:
        model = self.model
        found: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
        rows = self.rows("SELECT id, conversation, sender, topic, payload FROM message ORDER BY id")
        for number, *key in rows:
            if number > self.numbers_seen["message"]:
                found[tuple(key)].append(number)
        new: list[Message] = [each for each in model.messages if each not in self._learned]
        by_sender: defaultdict[str, list[int]] = defaultdict(list)
        for each in new:
            numbers = found[each.conversation.number, each.sender, each.topic, each.payload]
            assert numbers, f"{each} is missing"
            each.number = each.number or numbers[0]
            numbers.remove(each.number)
            by_sender[each.sender].append(each.number)
        self._learned.update(new)
        by_sender.pop("bus", None)
        for numbers in by_sender.values():
            assert numbers == sorted(numbers), "messages of one sender are not in its order"
        self._require_new("message", [each.number for each in new])

    def _require_new(self, table: str, numbers: Sequence[int]) -> None:
        assert all(number > self.numbers_seen[table] for number in numbers), "used twice"
        self.numbers_seen[table] = max([self.numbers_seen[table], *numbers])

    def _learn_letters(self) -> None:
        model = self.model
        known = {each.number for each in model.letters}
        found: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
        rows = self.rows(
            "SELECT id, delivery, code, topic, payload, message FROM dead_letter ORDER BY id"
        )
        for number, *key in rows:
            if number not in known:
                found[tuple(key)].append(number)
        new: list[Letter] = [each for each in model.letters if not each.number]
        for each in new:
            message = None if each.message is None else each.message.number
            key = (each.delivery.number, each.code, each.topic, each.payload, message)
            assert found[key], f"dead letter {key} is missing: {dict(found)}"
            each.number = found[key].pop(0)

    def forget_cleaned(self, before_us: int) -> None:
        """Drop from the model what retention has deleted, and check that it could go."""
        model = self.model
        there = {
            table: {row[0] for row in self.rows(f"SELECT id FROM {table}")}
            for table in ("conversation", "message", "delivery")
        }
        gone = [each for each in model.deliveries if each.number not in there["delivery"]]
        assert all(each.finished for each in gone), "what is under way was deleted"
        messages = [each for each in model.messages if each.number not in there["message"]]
        talks = [each for each in model.conversations if each.number not in there["conversation"]]
        buried = {id(each.delivery.message.conversation) for each in model.letters}
        touched = {each.message.conversation for each in gone} | {*talks}
        for talk in touched | {each.conversation for each in messages}:
            assert talk.state == "answered" and not model.under_way(talk), talk
            assert talk.answered_us is not None and talk.answered_us < before_us
            assert id(talk) not in buried, "the conversation of a dead letter was deleted"
        model.cleaned += len(gone)
        model.deliveries = [each for each in model.deliveries if each not in gone]
        model.messages = [each for each in model.messages if each not in messages]
        model.conversations = [each for each in model.conversations if each not in talks]
        assert {each.message for each in model.deliveries} <= {*model.messages}
        assert {each.conversation for each in model.messages} <= {*model.conversations}

    # ---- Comparing ------------------------------------------------------------------------------

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
