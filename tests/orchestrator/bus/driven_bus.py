"""The real bus and its model, side by side: every step is made with both, then all is compared.

The reducers run under the real writer, in the thread of the test. What they hand over is taken as
the store's receivers take it: after the commit, in order.
"""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compared_bus import ComparedBus
from driven_steps import Step, breaks_down, breaks_down_in_part, fills_the_disk
from modelled_bus import ModelledBus, Refusal
from modelled_things import URGENCIES, Agent, Delivery, Letter, Message

from ipc_protocol.errors import Failure
from orchestrator.bus.leasing import ReleaseLeases, release_leases
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.store.migration import open_current
from orchestrator.store.writer import Request, Writer

__all__ = ["DrivenBus", "Step", "empty_store", "registration"]


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


def empty_store(folder: Path) -> Path:
    """A store with nothing in it, to be copied."""
    path = folder / "empty.db"
    database = open_current(path)
    database.execute("PRAGMA journal_mode = DELETE")
    database.close()
    return path


class DrivenBus(ComparedBus):
    def __init__(self, path: Path, template: Path, agents: Sequence[Agent]) -> None:
        self.path = path
        shutil.copyfile(template, path)
        self.model = ModelledBus(agents)
        self.numbers_seen = {"message": 0, "delivery": 0, "dead_letter": 0}
        self._learned: set[Message] = set()
        self._open()
        self.register([agent for agent in agents if agent.active])

    def _open(self) -> None:
        self.database = open_current(self.path)
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
        for number, *columns in rows:
            if number not in known:
                found[tuple(columns)].append(number)
        new: list[Letter] = [each for each in model.letters if not each.number]
        for each in new:
            message = None if each.message is None else each.message.number
            key = (each.delivery.number, each.code, each.topic, each.payload, message)
            assert found[key], f"dead letter {key} is missing: {dict(found)}"
            each.number = found[key].pop(0)
        self._require_new("dead_letter", [each.number for each in new])

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
