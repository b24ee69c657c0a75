"""The bus against a model of it: publishers, workers, people, crashes, upgrades and time at random.

`modelled_bus` says what must be true, `driven_bus` makes each step with both and compares all that
there is. Before many of the steps the same is tried and fails: in its reducer, in a part of one, or
since the disk is full; that must change nothing, neither in the tables nor in memory.
"""

from pathlib import Path

import pytest
from bus_workers import Workers
from driven_bus import Step, empty_store
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
    run_state_machine_as_test,
)
from modelled_requests import (
    AGENTS,
    DAY_US,
    FAULT,
    PICK,
    RARELY,
    SECOND_US,
)

from orchestrator.bus.retention import Clean, Cleaned, clean


class BusMachine(Workers):
    """With people, time and trouble."""

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
    return empty_store(tmp_path_factory.mktemp("model"))


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


@pytest.mark.timeout(900)  # finding the shortest way to what is wrong takes minutes
def test_the_bus_does_what_its_model_does(template: Path) -> None:
    run(template, examples=200, steps=30)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_the_bus_does_what_its_model_does_for_long(template: Path) -> None:
    run(template, examples=1500, steps=60)
