"""The part of the state machine that publishes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from driven_bus import DrivenBus
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)
from modelled_agents import agents
from modelled_requests import (
    FAULT,
    PICK,
    SECOND_US,
    requests,
)
from modelled_steps import Steps
from modelled_things import Delivery

from ipc_protocol.work import (
    Evidence,
)
from orchestrator.bus.opening import Publish

T = TypeVar("T")


class Publishers(RuleBasedStateMachine):
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
