"""The deliveries in a worker's hands, and how they leave them."""

import asyncio
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.work import Delivery, EffectResult, EmitHealth, Phase
from orchestrator.bus.handing import Leased
from orchestrator.effects import Attempt
from orchestrator.supervision.hang import WORKER_PATIENCE_US
from orchestrator.turn import TURN, Turn
from orchestrator.workers import Worker

Interruption = Literal["parked", "hung", "withdrawn"]
"""What ends an attempt before the worker has: an effect that waits for a person or for something
more urgent, a worker that does nothing, or one that takes an effect back, which only its own death
excuses."""


EndingKind = Literal["completed", "parked", "retried", "refused"]


class Ending(msgspec.Struct, frozen=True):
    """How deliveries left the hands of a worker that lives."""

    kind: EndingKind
    """Of the last one that it worked on."""
    completed: int = 0
    """Deliveries that it completed."""
    condition: EmitHealth | None = None
    """What the agent said of itself meanwhile, if that was not good."""

    left: bool = False
    """The worker was left in the middle of it: what it waited for failed, or will be long."""

    exceeded: str = ""
    """Which of its budgets a delivery has used up, in words."""


class Batch(msgspec.Struct):
    """The batch in the worker's hands."""

    worker: Worker
    incarnation: str
    deliveries: Sequence[Leased]
    interrupted: "asyncio.Future[Interruption]"
    over: asyncio.Event
    """Nobody waits for its effects any more."""
    moved: asyncio.Event
    """It has come to another delivery since somebody looked."""
    began_us: int
    phase_us: int
    trial: bool = False
    """The worker is on probation: what it fails at is not held against the delivery."""
    at: int = 0
    """The place in the batch of the delivery that it works on; behind the last at the end."""
    attempt: Attempt | None = None
    """At that delivery, once it has asked for an effect."""
    answered: bool = False
    """The worker itself has said how it ended."""
    condition: EmitHealth | None = None
    phase: Phase | None = None
    turn: Turn = "working"
    obstacle: Failure | None = None
    """What an effect met that is not the worker's doing."""
    exceeded: str = ""
    """What it was refused for having used up a budget."""
    performing: "asyncio.Task[EffectResult] | None" = None
    """An effect under way. A tool goes on when the worker dies, until it is written down."""
    tool: bool = False
    """That effect is a tool."""
    timer: asyncio.TimerHandle | None = None

    @property
    def leased(self) -> Leased:
        """What it works on, or worked on last."""
        return self.deliveries[min(self.at, len(self.deliveries) - 1)]

    @property
    def delivery(self) -> Delivery:
        return self.leased.delivery

    @property
    def behind(self) -> list[int]:
        """Deliveries of the batch that it has not begun."""
        return [each.delivery.delivery for each in self.deliveries[self.at + 1 :]]

    def place_of(self, delivery: int) -> int | None:
        for place, leased in enumerate(self.deliveries):
            if leased.delivery.delivery == delivery:
                return place
        return None

    def interrupt(self, why: Interruption) -> None:
        if not self.interrupted.done():
            self.interrupted.set_result(why)
        self.turn = TURN.after(self.turn, "end")

    @property
    def hung(self) -> bool:
        return self.interrupted.done() and self.interrupted.result() == "hung"


REASONS: Final[dict[Interruption, str]] = {
    "hung": f"The worker did nothing for {WORKER_PATIENCE_US / 1e6:g} s.",
    "withdrawn": "The worker took back an effect that it had asked for.",
}
