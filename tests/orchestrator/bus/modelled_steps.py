"""Each request to the bus together with what the model makes of it."""

from collections.abc import Sequence
from typing import Any

from driven_bus import Step, registration
from modelled_bus import ModelledBus, Refusal
from modelled_things import Agent, Delivery, Letter, Message, Question, Worker

from ipc_protocol.errors import Failure
from ipc_protocol.work import Completion, Evidence, Finished, ReadState, Setting, UseTool
from orchestrator.bus.attention import (
    AnswerAttention,
    RequestAttention,
    answer_attention,
    request_attention,
)
from orchestrator.bus.completion import Complete, Completed, complete
from orchestrator.bus.completions import CompleteAll, complete_all
from orchestrator.bus.evidence import Screening, attach_screening
from orchestrator.bus.leasing import (
    Fail,
    GiveWay,
    Grant,
    Park,
    Release,
    ReleaseLeases,
    Resumed,
    ResumeDue,
    Wake,
    fail,
    give_way,
    grant,
    park,
    release,
    release_leases,
    resume_due,
    wake,
)
from orchestrator.bus.limits import MESSAGE_TTL_US
from orchestrator.bus.opening import Accepted, Publish
from orchestrator.bus.publishing import publish, publish_all
from orchestrator.bus.registration import AddAgent, RetireAgent, add_agent, retire_agent
from orchestrator.bus.replaying import (
    Purge,
    Replay,
    Replayed,
    purge_letters,
    replay_letters,
)
from orchestrator.bus.rows import ParkedReason
from orchestrator.bus.store_effects import PerformInStore, perform_in_store


class Steps:
    """Steps for one model."""

    def __init__(self, model: ModelledBus) -> None:
        self.model = model

    # ---- Publishers -----------------------------------------------------------------------------

    def publish(self, request: Publish) -> Step:
        def follow(answer: Any) -> None:
            self._published(request, answer)

        return Step(publish, "operator", request, follow)

    def publish_all(self, requests: Sequence[Publish]) -> Step:
        def follow(answers: Any) -> None:
            for request, answer in zip(requests, answers, strict=True):
                self._expect(lambda each=answer, this=request: self._published(this, each), answer)

        return Step(publish_all, "operator", requests, follow)

    def _expect(self, follow: Any, answer: Any) -> None:
        """The answer to a part of a step."""
        try:
            follow()
        except Refusal as refusal:
            assert isinstance(answer, Failure) and answer.code == refusal.code, answer
        else:
            assert not isinstance(answer, Failure), answer

    def _published(self, request: Publish, answer: Accepted) -> None:
        messages, repeated = self.model.publish(request)
        assert isinstance(answer, Accepted), answer
        assert answer.repeated == repeated
        fresh = [each for each in messages if not each.number]
        for message, number, name in zip(
            messages, answer.messages, answer.correlations, strict=True
        ):
            talk = message.conversation
            talk.name, message.number = talk.name or name, message.number or number
            assert (talk.name, message.number) == (name, number)
        if fresh:
            assert tuple(answer.subscribers) == fresh[0].receipt
        else:
            first = min(messages, key=lambda each: each.number)
            assert set(first.receipt) <= set(answer.subscribers)

    def screen(self, message: Message, evidence: dict[str, Evidence], owner: str | None) -> Step:
        arguments = Screening(message=message.number, evidence=evidence, fallback=owner)

        def follow(answer: Any) -> None:
            waiting = [
                each
                for each in self.model.deliveries
                if each.message is message and each.state == "queued" and not each.screened
            ]
            if waiting and owner is not None:
                message.fallback = owner
            for each in waiting:
                each.screened, each.evidence = True, evidence.get(each.agent)
                each.ready_since, each.displaced = self.model.step - 1, True
            assert answer == len(waiting)

        return Step(attach_screening, "bus", arguments, follow)

    # ---- Workers --------------------------------------------------------------------------------

    def grant(self, agent: str, worker: str, window: int, component: str) -> Step:
        setting = Setting(loop=1, component=component, prompts={"triage": component})
        arguments = Grant(agent=agent, incarnation=worker, window=window, setting=setting)

        def follow(_: Any) -> None:
            self.model.workers[agent] = Worker(worker, window, component)

        return Step(grant, "bus", arguments, follow)

    def complete(
        self,
        agent: str,
        number: int,
        worker: str,
        completion: Completion,
        *,
        screened: bool = False,
    ) -> Step:
        arguments = Complete(
            delivery=number, incarnation=worker, completion=completion, screened=screened
        )

        def follow(answer: Any) -> None:
            expected = self.model.complete(agent, number, worker, completion, screened=screened)
            self._completed(expected, answer)

        return Step(complete, agent, arguments, follow)

    def _completed(self, expected: dict[str, object], answer: Completed) -> None:
        assert isinstance(answer, Completed), answer
        assert answer.state == expected["state"], (answer, expected)
        assert answer.repeated == expected.get("repeated", False)
        assert answer.full == expected.get("full", [])
        for kind in ("messages", "dead_letters", "memories", "tasks"):
            assert len(getattr(answer, kind)) == expected.get(kind, 0), (kind, answer, expected)

    def complete_all(self, agent: str, worker: str, finished: Sequence[Finished]) -> Step:
        arguments = CompleteAll(incarnation=worker, finished=finished)

        def follow(answers: Any) -> None:
            for each, answer in zip(finished, answers, strict=True):
                self._expect(
                    lambda one=each, said=answer: self._one(agent, worker, one, said), answer
                )

        return Step(complete_all, agent, arguments, follow)

    def _one(self, agent: str, worker: str, one: Finished, answer: Completed) -> None:
        expected = self.model.complete(agent, one.delivery, worker, one.completion, screened=False)
        self._completed(expected, answer)

    def read_state(self, delivery: Delivery, key: str) -> Step:
        agent = delivery.agent
        arguments = PerformInStore(
            delivery=delivery.number,
            incarnation=delivery.holder or "",
            step=delivery.steps,
            effect=ReadState(key=key),
            started_us=self.model.now_us,
        )

        def follow(answer: Any) -> None:
            there = self.model.state.get((agent, key))
            delivery.read.setdefault(key, there)
            delivery.steps += 1
            assert answer.value == there

        return Step(perform_in_store, agent, arguments, follow)

    def park(self, delivery: Delivery, reason: ParkedReason, until_us: int | None) -> Step:
        worker = delivery.holder or ""
        arguments = Park(
            delivery=delivery.number, incarnation=worker, reason=reason, until_us=until_us
        )

        def follow(_: Any) -> None:
            found = self.model.require_held(delivery.number, worker)
            self.model.park(found, reason, until_us, rest=True)

        return Step(park, "bus", arguments, follow)

    def wake(self, delivery: Delivery) -> Step:
        def follow(answer: Any) -> None:
            parked = delivery.state == "parked"
            if parked:
                self.model.queue(delivery, displaced=True)
            assert answer == parked

        return Step(wake, "bus", Wake(delivery=delivery.number), follow)

    def resume_due(self) -> Step:
        def follow(answer: Resumed) -> None:
            assert answer.count == self.model.resume_due()
            assert answer.next_due_us is None or answer.next_due_us > 0

        return Step(resume_due, "bus", ResumeDue(), follow)

    def give_way(self, number: int, worker: str) -> Step:
        arguments = GiveWay(incarnation=worker, delivery=number)

        def follow(_: Any) -> None:
            found = self.model.require_held(number, worker)
            self.model.queue(found, displaced=False)
            self.model.give_back(worker, told=True)

        return Step(give_way, "bus", arguments, follow)

    def release(self, worker: str) -> Step:
        def follow(_: Any) -> None:
            self.model.give_back(worker, told=True)

        return Step(release, "bus", Release(incarnation=worker), follow)

    def release_leases(self, worker: str) -> Step:
        """As when it has died."""

        def follow(answer: Any) -> None:
            workers = self.model.workers
            for agent in [name for name, each in workers.items() if each.name == worker]:
                del workers[agent]
            assert answer == len(self.model.give_back(worker, told=False))

        return Step(release_leases, "bus", ReleaseLeases(incarnation=worker), follow)

    def fail(self, number: int, worker: str, **more: bool) -> Step:
        arguments = Fail(delivery=number, incarnation=worker, error="as told", **more)

        def follow(answer: Any) -> None:
            assert answer == self.model.fail(number, worker, **more)

        return Step(fail, "bus", arguments, follow)

    # ---- People ---------------------------------------------------------------------------------

    def ask(self, delivery: Delivery) -> Step:
        """Its worker has a question to a person."""
        worker, run, step = delivery.holder or "", delivery.run, delivery.steps
        arguments = RequestAttention(
            delivery=delivery.number,
            incarnation=worker,
            step=step,
            effect=UseTool(name="ask", arguments={}),
            question="May I?",
        )

        def follow(answer: Any) -> None:
            model = self.model
            model.require_held(delivery.number, worker)
            same = [
                each
                for each in model.questions
                if (each.delivery, each.run, each.step) == (delivery, run, step)
                and not each.answered
            ]
            question = same[0] if same else Question(delivery, run, step, answer)
            if not same:
                model.questions.append(question)
            assert answer == question.number
            model.park(delivery, "attention", None, rest=True)
            delivery.waits_for = question

        return Step(request_attention, delivery.agent, arguments, follow)

    def reply(self, question: Question) -> Step:
        arguments = AnswerAttention(attention=question.number, text="Yes.")

        def follow(_: Any) -> None:
            if question.answered:
                raise Refusal("attention.unknown")
            question.answered = True
            delivery = question.delivery
            if delivery.waits_for is question and delivery.run == question.run:
                delivery.tool_used = True
                delivery.steps += 1
                self.model.queue(delivery, displaced=True)

        return Step(answer_attention, "operator", arguments, follow)

    def retire(self, agent: Agent) -> Step:
        def follow(answer: Any) -> None:
            agent.active, agent.retired = False, True
            undone = [d for d in self.model.deliveries if d.agent == agent.name and not d.finished]
            assert answer == len(undone)

        return Step(retire_agent, "bus", RetireAgent(name=agent.name, by="operator"), follow)

    def add(self, agent: Agent) -> Step:
        arguments = AddAgent(agent=registration(agent), by="operator")

        def follow(_: Any) -> None:
            if agent.active or (agent.conductor and self.model.conductor is not None):
                raise Refusal("request.invalid")
            agent.active, agent.retired = True, False

        return Step(add_agent, "bus", arguments, follow)

    # ---- Dead letters ---------------------------------------------------------------------------

    def purge(self, letters: Sequence[Letter]) -> Step:
        arguments = Purge(letters=[each.number for each in letters])

        def follow(answer: Any) -> None:
            for each in letters:
                self.model.letters.remove(each)
            assert answer == len(letters)

        return Step(purge_letters, "operator", arguments, follow)

    def replay(self, letters: Sequence[Letter], *, again: bool) -> Step:
        arguments = Replay(letters=[each.number for each in letters], again=again)

        def follow(answers: Sequence[Replayed]) -> None:
            for letter, answer in zip(letters, answers, strict=True):
                try:
                    letter.replayed_as = self._replayed(letter, again=again)
                except Refusal as refusal:
                    assert answer.problem is not None, f"{refusal.code} expected: {answer}"
                    assert answer.problem.code == refusal.code, answer
                else:
                    assert answer.problem is None, answer

        return Step(replay_letters, "operator", arguments, follow)

    def _replayed(self, letter: Letter, *, again: bool) -> Message:
        model, died = self.model, letter.delivery
        talk = died.message.conversation
        if letter.replayed_as is not None and not again:
            raise Refusal("deadletter.replayed")
        if letter.message is None:
            return self._said_again(letter)
        agent = model.agents[died.agent]
        if not agent.active:
            raise Refusal("agent.unknown")
        message = Message(
            conversation=talk,
            round=letter.message.round,
            topic=letter.topic,
            sender=letter.sender,
            rank=died.rank,
            payload=letter.payload,
            expires_us=model.now_us + MESSAGE_TTL_US,
            cause=letter.message.cause,
        )
        if died.composing:
            if (talk.state, talk.round) != ("answered", letter.message.round):
                raise Refusal("deadletter.unsendable")
            model.contribute(talk)
            talk.messages += 1
            model.compose(talk, message, agent.name, died.rank)
            return message
        if model.room(agent.name, letter.sender) < 1:
            raise Refusal("bus.backpressure")
        model.contribute(talk)
        talk.messages += 1
        message.round = talk.round
        model.messages.append(message)
        model.accepted += 1
        again_of = Delivery(
            message=message,
            agent=agent.name,
            rank=died.rank,
            screened=died.screened or not agent.screened,
            must_take=died.must_take,
            evidence=died.evidence,
        )
        model.deliver(again_of)
        return message

    def _said_again(self, letter: Letter) -> Message:
        model, died = self.model, letter.delivery
        talk = died.message.conversation
        if letter.code == "work.left-out":
            raise Refusal("deadletter.unsendable")
        sender = model.agents[letter.sender]
        if not (sender.active or sender.retired):
            raise Refusal("agent.unknown")
        route = model.route(letter.sender, letter.topic, size=len(letter.payload))
        if route.error:
            raise Refusal(route.error)
        model.contribute(talk)
        talk.messages += 1
        message = Message(
            conversation=talk,
            round=talk.round,
            topic=letter.topic,
            sender=letter.sender,
            rank=min(talk.rank, died.rank),
            payload=letter.payload,
            expires_us=model.now_us + MESSAGE_TTL_US,
            cause=died.message,
        )
        model.post(message, route.receivers, screened=False, must_take=route.direct)
        if not route.receivers:
            model.settle(talk)
        return message
