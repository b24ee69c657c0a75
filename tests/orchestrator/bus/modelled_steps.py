"""Each request to the bus together with what the model makes of it."""

from collections.abc import Sequence
from typing import Any

from driven_bus import Step, registration
from modelled_bus import Refusal
from modelled_things import Agent, Delivery, Letter, Message, Question
from modelled_work import WorkSteps

from ipc_protocol.work import UseTool
from orchestrator.bus.attention import (
    AnswerAttention,
    RequestAttention,
    answer_attention,
    request_attention,
)
from orchestrator.bus.limits import MESSAGE_TTL_US
from orchestrator.bus.registration import AddAgent, RetireAgent, add_agent, retire_agent
from orchestrator.bus.replaying import (
    Purge,
    Replay,
    Replayed,
    purge_letters,
    replay_letters,
)


class Steps(WorkSteps):
    """Steps for one model."""

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
            model.require_budget(talk)
            model.contribute(talk)
            talk.messages += 1
            model.compose(talk, message, agent.name, died.rank)
            return message
        if model.room(agent.name, letter.sender) < 1:
            raise Refusal("bus.backpressure")
        model.require_budget(talk)
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
        model.require_budget(talk)
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
