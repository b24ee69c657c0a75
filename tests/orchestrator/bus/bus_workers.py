"""The part of the state machine that works."""

from typing import Any

from bus_publishers import Publishers
from driven_bus import Step
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)
from modelled_requests import (
    AGENTS,
    FAULT,
    PICK,
    RANKS,
    RARELY,
    SECOND_US,
    completions,
)

from ipc_protocol.work import (
    Completion,
    Finished,
    MemoryEntry,
    StateChange,
)
from orchestrator.bus.opening import Publish


class Workers(Publishers):
    # ---- Workers --------------------------------------------------------------------------------

    @rule(
        agent=AGENTS,
        window=st.integers(0, 5),
        fresh=RARELY,
        other=RARELY,
        early=RARELY,
        fault=FAULT,
    )
    def grant(
        self, agent: str, window: int, fresh: bool, other: bool, early: bool, fault: str
    ) -> None:
        """With `early` a new worker comes before what the former one held is given back."""
        if not any(row for row in self.bus.rows(f"SELECT 1 FROM agent WHERE name = '{agent}'")):
            return
        worker = self.model.workers.get(agent)
        component = "" if worker is None else worker.component
        if other:
            component = "1" if not component else ""
        steps: list[Step] = []
        if worker is None or fresh or other:
            if worker is not None and not early:
                steps.append(self.steps.release_leases(worker.name))
            self.workers += 1
            name = f"w{self.workers}"
        else:
            name = worker.name
        steps.append(self.steps.grant(agent, name, window, component))
        self.bus.do(*steps, fault=fault)

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, completion=completions(), screened=st.booleans(), fault=FAULT)
    def complete(self, pick: int, completion: Completion, screened: bool, fault: str) -> None:
        each = self.chosen(self.in_hands()[:3], pick)
        step = self.steps.complete(
            each.agent, each.number, each.holder or "", completion, screened=screened
        )
        again = fault == "part"
        self.bus.do(step, *([step] if again else []), fault=fault)

    @precondition(lambda self: self.in_hands())
    @rule(completion=completions())
    def complete_next(self, completion: Completion) -> None:
        each = self.in_hands()[0]
        self.bus.do(self.steps.complete(each.agent, each.number, each.holder or "", completion))

    @precondition(lambda self: self.in_hands())
    @rule(completion=completions(), pick=PICK)
    def complete_early(self, completion: Completion, pick: int) -> None:
        each = self.chosen(self.in_hands(), pick)
        self.bus.do(self.steps.complete(each.agent, each.number, each.holder or "", completion))

    @precondition(lambda self: self.in_hands())
    @rule(completion=completions(), pick=PICK)
    def complete_soon(self, completion: Completion, pick: int) -> None:
        each = self.chosen(self.in_hands(), pick)
        self.bus.do(self.steps.complete(each.agent, each.number, each.holder or "", completion))

    @rule(count=st.integers(1, 3), priority=RANKS)
    def publish_plainly(self, count: int, priority: Any) -> None:
        for topic in ("work.a", "note.x"):
            request = Publish(
                topic=topic, payloads=[b"p"] * count, priority=priority, screened=True, asked=True
            )
            self.bus.do(self.steps.publish(request))

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, texts=st.lists(st.sampled_from(("dug", "filled")), min_size=1, max_size=2))
    def complete_and_remember(self, pick: int, texts: list[str]) -> None:
        each = self.chosen(self.in_hands(), pick)
        entries = [
            MemoryEntry(text=text, outcome="success", lesson="", importance=0.5) for text in texts
        ]
        completion = Completion(outcome="acted", reason="as told", memories=entries)
        self.bus.do(self.steps.complete(each.agent, each.number, each.holder or "", completion))

    @precondition(lambda self: self.model.deliveries)
    @rule(pick=PICK, worker=PICK, agent=AGENTS, completion=completions())
    def complete_what_may_not_be_held(
        self, pick: int, worker: int, agent: str, completion: Completion
    ) -> None:
        number = self.any_delivery(pick)
        name = self.any_worker(worker)
        self.bus.do(self.steps.complete(agent, number, name, completion))

    @precondition(lambda self: self.in_hands())
    @rule(
        pick=PICK,
        told=st.lists(st.tuples(st.integers(0, 6), completions()), min_size=1, max_size=6),
        fault=FAULT,
    )
    def complete_all(self, pick: int, told: list[tuple[int, Completion]], fault: str) -> None:
        first = self.chosen(self.in_hands(), pick)
        assert first.holder is not None
        own = [e.number for e in self.model.hands[first.holder]]
        own += [self.any_delivery(pick)]
        chosen = {self.chosen(own, each): completion for each, completion in told}
        finished = [Finished(each, completion) for each, completion in chosen.items()]
        self.bus.do(self.steps.complete_all(first.agent, first.holder, finished), fault=fault)

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, outcome=st.sampled_from(("acted", "ignored")), fault=FAULT)
    def complete_all_there_is(self, pick: int, outcome: Any, fault: str) -> None:
        first = self.chosen(self.in_hands(), pick)
        assert first.holder is not None
        plain = Completion(outcome=outcome, reason="as told")
        finished = [Finished(each.number, plain) for each in self.model.hands[first.holder]]
        self.bus.do(self.steps.complete_all(first.agent, first.holder, finished), fault=fault)

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, key=st.sampled_from(("k", "l")), fault=FAULT)
    def read_state(self, pick: int, key: str, fault: str) -> None:
        self.bus.do(self.steps.read_state(self.chosen(self.in_hands(), pick), key), fault=fault)

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, together=st.booleans(), delete=st.booleans(), value=st.integers(0, 99))
    def read_and_change_state(self, pick: int, together: bool, delete: bool, value: int) -> None:
        """Two deliveries read the same, and the later one is done first; one may be plain."""
        first = self.chosen(self.in_hands(), pick)
        worker = first.holder or ""
        early, *others = self.model.hands[worker][:3]
        for each in {early, *others[-1:]}:
            self.bus.do(self.steps.read_state(each, "k"))
        put = StateChange(key="k", value=None if delete else b"%d" % value)
        change = Completion(outcome="acted", reason="as told", state=[put])
        plain = Completion(outcome="acted", reason="as told")
        told = [(each, plain) for each in others[:-1]]
        told += [(others[-1], change)] if others else []
        told.append((early, change))
        if together:
            finished = [Finished(each.number, completion) for each, completion in told]
            self.bus.do(self.steps.complete_all(early.agent, worker, finished))
            return
        for each, completion in told:
            if each.state == "leased":
                self.bus.do(self.steps.complete(early.agent, each.number, worker, completion))

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, job=st.booleans(), fault=FAULT)
    def park(self, pick: int, job: bool, fault: str) -> None:
        until_us = None if job else self.model.now_us + SECOND_US
        each = self.chosen(self.in_hands(), pick)
        self.bus.do(self.steps.park(each, "job" if job else "retry", until_us), fault=fault)

    @precondition(lambda self: self.model.deliveries)
    @rule(pick=PICK, fault=FAULT)
    def wake(self, pick: int, fault: str) -> None:
        parked = [each for each in self.model.deliveries if each.state == "parked"]
        each = self.chosen(parked or self.model.deliveries, pick)
        self.bus.do(self.steps.wake(each), fault=fault)

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, fault=FAULT)
    def give_way(self, pick: int, fault: str) -> None:
        each = self.chosen(self.in_hands(), pick)
        self.bus.do(self.steps.give_way(each.number, each.holder or ""), fault=fault)

    @rule(pick=PICK, fault=FAULT, dies=st.booleans(), window=st.integers(0, 5))
    def give_back(self, pick: int, fault: str, dies: bool, window: int) -> None:
        """A worker has begun nothing of what it holds, or it dies and has a successor."""
        workers = self.model.workers
        if not dies or not workers:
            self.bus.do(self.steps.release(self.any_worker(pick)), fault=fault)
            return
        agent = self.chosen(sorted(workers), pick)
        former = workers[agent]
        self.workers += 1
        self.bus.do(self.steps.release_leases(former.name), fault=fault)
        self.bus.do(self.steps.grant(agent, f"w{self.workers}", window, former.component))

    @precondition(lambda self: self.in_hands())
    @rule(
        pick=PICK,
        worker_died=st.booleans(),
        final=st.booleans(),
        anew=st.booleans(),
        rest=st.booleans(),
        fault=FAULT,
    )
    def fail(self, pick: int, fault: str, **how: bool) -> None:
        each = self.chosen(self.in_hands(), pick)
        self.bus.do(self.steps.fail(each.number, each.holder or "", **how), fault=fault)

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, final=st.booleans())
    def fail_until_dead(self, pick: int, final: bool) -> None:
        each = self.chosen(self.in_hands(), pick)
        how = {"worker_died": True, "final": final, "anew": False, "rest": False}
        for _ in range(5):
            if each.state == "leased" and not each.finished:
                self.bus.do(self.steps.fail(each.number, each.holder or "", **how))

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, fault=FAULT)
    def work_and_fail_in_one_commit(self, pick: int, fault: str) -> None:
        """Requests of several share a commit, and some of them are refused."""
        first = self.in_hands()[0]
        plain = Completion(outcome="acted", reason="as told")
        asked = Publish(topic="work.a", payloads=[b"x"], screened=True)
        unknown = Publish(topic="void.y", payloads=[b"x"])
        worker = first.holder or ""
        self.bus.do(
            self.steps.publish(asked),
            self.steps.complete(first.agent, first.number, "nobody", plain),
            self.steps.complete(first.agent, first.number, worker, plain),
            self.steps.publish(unknown),
            self.steps.fail(
                first.number, worker, worker_died=True, final=True, anew=False, rest=True
            ),
            self.steps.publish_all([unknown, asked, unknown, asked]),
            fault=fault,
        )
