"""Requests of publishers and workers together with what the model makes of them."""

from collections.abc import Sequence
from typing import Any

from driven_bus import Step
from modelled_bus import ModelledBus, Refusal
from modelled_things import Delivery, Message, Worker

from ipc_protocol.errors import Failure
from ipc_protocol.work import Completion, Evidence, Finished, ReadState, Setting
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
from orchestrator.bus.opening import Accepted, Publish
from orchestrator.bus.publishing import publish, publish_all
from orchestrator.bus.rows import ParkedReason
from orchestrator.bus.store_effects import PerformInStore, perform_in_store


class WorkSteps:
    """What publishers, the screening and workers ask for."""

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

    def fail(
        self, number: int, worker: str, *, worker_died: bool, final: bool, anew: bool, rest: bool
    ) -> Step:
        arguments = Fail(
            delivery=number,
            incarnation=worker,
            error="as told",
            worker_died=worker_died,
            final=final,
            anew=anew,
            rest=rest,
        )

        def follow(answer: Any) -> None:
            state = self.model.fail(
                number, worker, worker_died=worker_died, final=final, anew=anew, rest=rest
            )
            assert answer == state

        return Step(fail, "bus", arguments, follow)
