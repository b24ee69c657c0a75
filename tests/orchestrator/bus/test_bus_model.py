"""The bus against a model of it: publishers, workers, people, crashes, upgrades and time at random.

`modelled_bus` says what must be true, `driven_bus` makes each step with both and compares all that
there is. Before many of the steps the same is tried and fails: in its reducer, in a part of one, or
since the disk is full; that must change nothing, neither in the tables nor in memory.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from driven_bus import DrivenBus, Step
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from modelled_steps import Steps
from modelled_things import URGENCIES, Agent, Delivery

from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import (
    Completion,
    Evidence,
    Finished,
    MemoryEntry,
    Outgoing,
    StateChange,
    TaskChange,
)
from orchestrator.bus.opening import Publish
from orchestrator.bus.retention import Clean, Cleaned, clean
from orchestrator.store.migration import open_current

T = TypeVar("T")

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US


def agents() -> list[Agent]:
    return [
        Agent(
            "alfa",
            rank=2,
            inbox=4,
            consumes=("work.>",),
            publishes=("more.a", "note.x", "void.x", "user.reply"),
            delegates=("bravo",),
            screened=False,
            state_max=400,
        ),
        Agent(
            "bravo",
            rank=1,
            inbox=3,
            consumes=("work.a", "more.*", "note.*"),
            publishes=("work.b", "note.x", "user.reply"),
            delegates=("alfa", "delta"),
            state_max=400,
        ),
        Agent(
            "carol",
            rank=2,
            inbox=2,
            consumes=("note.*",),
            publishes=("user.reply", "work.c"),
            conductor=True,
        ),
        Agent(
            "delta",
            rank=4,
            inbox=16,
            consumes=("work.>", "late.x"),
            publishes=("user.reply", "work.a"),
            state_max=400,
            active=False,
        ),
    ]


TOPICS: Final = (
    "work.a",
    "work.b.c",
    "more.a",
    "note.x",
    "late.x",
    "user.reply",
    "void.x",
    "agent.alfa",
    "agent.bravo",
    "agent.carol",
    "agent.delta",
    "agent.nobody",
    "Not a topic",
)

RARELY: Final = st.sampled_from((False, False, False, False, True))
PICK: Final = st.integers(0, 2**16)
FAULT: Final = st.sampled_from(("", "", "", "", "", "raise", "part", "full"))
RANKS: Final = st.sampled_from((None, *URGENCIES))
AGENTS: Final = st.sampled_from(("alfa", "bravo", "carol", "delta"))
PAYLOAD: Final = st.sampled_from((b"x", b"y", b"z" * 300))
PAYLOADS: Final = st.one_of(
    st.lists(PAYLOAD, min_size=1, max_size=5),
    st.just([b""] * 7),
    st.just([b"z" * (PAYLOAD_BYTES_MAX + 1)]),
)


@st.composite
def requests(draw: Any) -> Publish:
    payloads = draw(PAYLOADS)
    ids = st.lists(
        st.sampled_from([f"m{n}" for n in range(12)]),
        min_size=len(payloads),
        max_size=len(payloads),
        unique=True,
    )
    return Publish(
        topic=draw(st.sampled_from(("work.a", "work.b.c", *TOPICS))),
        payloads=payloads,
        correlation=draw(st.sampled_from((None, None, None, "c1", "c2", "c3"))),
        priority=draw(RANKS),
        expires_us=None,
        message_ids=draw(st.one_of(st.just(()), ids)),
        screened=draw(st.sampled_from((True, True, False))),
        asked=draw(st.booleans()),
    )


OUTPUTS: Final = st.one_of(
    st.just([]),
    st.lists(
        st.builds(Outgoing, topic=st.sampled_from(TOPICS), payload=PAYLOAD, priority=RANKS),
        max_size=4,
    ),
    st.just([Outgoing(topic="user.reply", payload=b"Done.")]),
    st.just([Outgoing(topic="more.a", payload=b"and more"), Outgoing(topic="work.b", payload=b"")]),
    st.just(
        [Outgoing(topic="agent.bravo", payload=b"yours"), Outgoing(topic="agent.alfa", payload=b"")]
    ),
    st.just([Outgoing(topic="work.a", payload=b"again")] * 9),
    st.just([Outgoing(topic="user.reply", payload=b"%d" % n) for n in range(66)]),
)


@st.composite
def completions(draw: Any) -> Completion:
    kind = draw(st.sampled_from(("plain", "plain", "plain", "rich", "rich", "deferred")))
    if kind == "plain":
        return Completion(outcome=draw(st.sampled_from(("acted", "ignored"))), reason="as told")
    if kind == "deferred":
        wait_us = draw(st.sampled_from((0, 60 * SECOND_US, 400 * DAY_US)))
        outputs = draw(st.sampled_from(([], [], [], [Outgoing(topic="work.a", payload=b"")])))
        return Completion(
            outcome="deferred",
            reason="later",
            until_us=1_800_000_000_000_000 + wait_us,
            outputs=outputs,
        )
    return Completion(
        outcome=draw(st.sampled_from(("acted", "ignored", "delegated", "failed"))),
        reason="as told",
        outputs=draw(OUTPUTS),
        left_out=draw(st.sampled_from((0, 0, 0, 3))),
        state=draw(
            st.lists(
                st.builds(
                    StateChange,
                    key=st.sampled_from(("k", "l")),
                    value=st.sampled_from((b"1", b"2", None, b"v" * 500)),
                ),
                max_size=2,
            )
        ),
        tasks=draw(
            st.lists(
                st.builds(
                    TaskChange,
                    id=st.sampled_from((None, None, 1, 2)),
                    title=st.sampled_from(("dig", "fill")),
                ),
                max_size=2,
            )
        ),
    )


class BusMachine(RuleBasedStateMachine):
    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "agentd.db"
        self.bus = DrivenBus(path, self.template, agents())
        self.model = self.bus.model
        self.steps = Steps(self.model)
        self.workers = 0

    def teardown(self) -> None:
        self.bus.close()
        self.folder.cleanup()

    @initialize(windows=st.lists(st.integers(0, 5), min_size=3, max_size=3))
    def start_workers(self, windows: list[int]) -> None:
        for agent, window in zip(("alfa", "bravo", "carol"), windows, strict=True):
            self.workers += 1
            self.bus.do(self.steps.grant(agent, f"w{self.workers}", window, ""))

    # ---- Choosing -------------------------------------------------------------------------------

    def chosen(self, things: Sequence[T], pick: int) -> T:
        return things[pick % len(things)]

    def in_hands(self) -> list[Delivery]:
        """What is leased, the first of each worker before the others."""
        hands = [each for each in self.model.hands.values() if each]
        return [each[0] for each in hands] + [one for each in hands for one in each[1:]]

    def any_worker(self, pick: int) -> str:
        return f"w{pick % (self.workers + 1)}"

    def any_delivery(self, pick: int) -> int:
        return self.chosen([each.number for each in self.model.deliveries] or [1], pick)

    # ---- Publishers -----------------------------------------------------------------------------

    @rule(
        request=requests(),
        lasts_us=st.sampled_from((None, None, None, 0, 30 * SECOND_US)),
        fault=FAULT,
    )
    def publish(self, request: Publish, lasts_us: int | None, fault: str) -> None:
        self.bus.do(self.steps.publish(self._lasting(request, lasts_us)), fault=fault)

    @rule(many=st.lists(requests(), min_size=2, max_size=5), fault=FAULT)
    def publish_all(self, many: list[Publish], fault: str) -> None:
        self.bus.do(self.steps.publish_all(many), fault=fault)

    def _lasting(self, request: Publish, lasts_us: int | None) -> Publish:
        if lasts_us is None:
            return request
        return Publish(
            **{
                **{name: getattr(request, name) for name in request.__struct_fields__},
                "expires_us": self.model.now_us + lasts_us,
            }
        )

    @precondition(lambda self: self.model.messages)
    @rule(
        pick=PICK,
        owner=st.sampled_from((None, "alfa", "bravo", "carol", "delta")),
        score=st.booleans(),
        fault=FAULT,
    )
    def screen(self, pick: int, owner: str | None, score: bool, fault: str) -> None:
        waiting = [e.message for e in self.model.deliveries if not e.screened and not e.finished]
        message = self.chosen(waiting or self.model.messages, pick)
        evidence = {
            name: Evidence(agent=name, score=0.5, margin=0.1, scores={}, nobody=0.0, nearest="")
            for name in self.model.agents
            if score
        }
        self.bus.do(self.steps.screen(message, evidence, owner), fault=fault)

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

    # ---- People ---------------------------------------------------------------------------------

    @precondition(lambda self: self.in_hands())
    @rule(pick=PICK, fault=FAULT)
    def ask(self, pick: int, fault: str) -> None:
        self.bus.do(self.steps.ask(self.chosen(self.in_hands(), pick)), fault=fault)

    @precondition(lambda self: self.model.questions)
    @rule(pick=PICK, fault=FAULT)
    def reply(self, pick: int, fault: str) -> None:
        self.bus.do(self.steps.reply(self.chosen(self.model.questions, pick)), fault=fault)

    @rule(name=st.sampled_from(("delta", "delta", "alfa", "bravo", "carol")), fault=FAULT)
    def come_or_go(self, name: str, fault: str) -> None:
        agent = self.model.agents[name]
        if agent.active:
            self.bus.do(self.steps.retire(agent), fault=fault)
        self.bus.do(self.steps.add(agent), fault=fault)

    @rule(name=AGENTS, rarely=RARELY)
    def retire(self, name: str, rarely: bool) -> None:
        if rarely and self.model.agents[name].active:
            self.bus.do(self.steps.retire(self.model.agents[name]))

    @precondition(lambda self: self.model.letters)
    @rule(pick=PICK, count=st.integers(1, 4), again=st.booleans(), fault=FAULT)
    def replay(self, pick: int, count: int, again: bool, fault: str) -> None:
        first = pick % len(self.model.letters)
        letters = self.model.letters[first : first + count]
        self.bus.do(self.steps.replay(letters, again=again), fault=fault)

    @precondition(lambda self: self.model.letters)
    @rule(pick=PICK, count=st.integers(1, 9), fault=FAULT)
    def purge(self, pick: int, count: int, fault: str) -> None:
        first = pick % len(self.model.letters)
        self.bus.do(self.steps.purge(self.model.letters[first : first + count]), fault=fault)

    # ---- Time and trouble -----------------------------------------------------------------------

    @rule(
        wait_us=st.sampled_from(
            (SECOND_US, 2 * SECOND_US, 31 * SECOND_US, 3600 * SECOND_US, 8 * DAY_US)
        ),
        resume=st.booleans(),
        fault=FAULT,
    )
    def wait(self, wait_us: int, resume: bool, fault: str) -> None:
        self.model.now_us += wait_us
        if resume:
            self.bus.do(self.steps.resume_due(), fault=fault)
            due_us = self.bus.do(self.steps.resume_due())[0].next_due_us
            assert due_us == self.model.next_due_us()

    @rule(age_us=st.sampled_from((0, DAY_US)), limit=st.sampled_from((3, 256)))
    def clean(self, age_us: int, limit: int) -> None:
        before_us = self.model.now_us - age_us + 1

        def follow(_: Cleaned) -> None:
            self.bus.forget_cleaned(before_us)

        order = Clean(before_us=before_us, limit=limit)
        self.bus.do(Step(clean, "bus", order, follow))

    @rule(rarely=RARELY, with_delta=st.booleans(), window=st.integers(0, 5))
    def daemon_dies(self, rarely: bool, with_delta: bool, window: int) -> None:
        if not rarely:
            return
        configured = [
            each for each in self.model.agents.values() if with_delta or each.name != "delta"
        ]
        self.model.now_us += SECOND_US
        self.bus.crash(configured)
        self.start_workers([window, 2, 2])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, which every run begins with a copy of."""
    path = tmp_path_factory.mktemp("model") / "empty.db"
    database = open_current(path)
    database.execute("PRAGMA journal_mode = DELETE")
    database.close()
    return path


def run(template: Path, examples: int, steps: int) -> None:
    machine = type("Machine", (BusMachine,), {"template": template})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_the_bus_does_what_its_model_does(template: Path) -> None:
    run(template, examples=40, steps=40)


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_the_bus_does_what_its_model_does_for_long(template: Path) -> None:
    run(template, examples=1000, steps=80)
