"""The states of a delivery. Pure.

*queued* waits for its agent, *leased* is with a worker, *parked* waits for anything but the
processor, *done* has its completion applied, *dead* has become a dead letter.
"""

from typing import Final, Literal

from orchestrator.bus.lifecycle import Lifecycle

DeliveryState = Literal["queued", "leased", "parked", "done", "dead"]
DeliveryEvent = Literal["lease", "complete", "park", "wake", "release", "die"]

STATES: Final[tuple[DeliveryState, ...]] = ("queued", "leased", "parked", "done", "dead")
EVENTS: Final[tuple[DeliveryEvent, ...]] = (
    "lease",
    "complete",
    "park",
    "wake",
    "release",
    "die",
)

DELIVERY: Final = Lifecycle[DeliveryState, DeliveryEvent](
    "delivery",
    {
        ("queued", "lease"): "leased",
        ("queued", "die"): "dead",
        ("leased", "complete"): "done",
        ("leased", "park"): "parked",
        ("leased", "release"): "queued",
        ("leased", "die"): "dead",
        ("parked", "wake"): "queued",
        ("parked", "die"): "dead",
    },
)
