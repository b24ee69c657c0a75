"""Whose turn it is while a delivery is in a worker's hands. Pure.

*working*: the worker's, which has to show progress. *performing*: the daemon's, which carries out
the one effect that the worker has asked for. *ended*: nobody's; the delivery is completed, parked,
refused, or its worker is gone, and what the worker still asks for is refused.
"""

from typing import Final, Literal

from orchestrator.bus.lifecycle import Lifecycle

Turn = Literal["working", "performing", "ended"]
TurnEvent = Literal["ask", "answer", "end"]

TURN: Final = Lifecycle[Turn, TurnEvent](
    "turn",
    {
        ("working", "ask"): "performing",
        ("performing", "answer"): "working",
        ("working", "end"): "ended",
        ("performing", "end"): "ended",
        ("ended", "answer"): "ended",
        ("ended", "end"): "ended",
    },
)
