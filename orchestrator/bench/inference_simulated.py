"""From what the simulation of the planning says, as JSON, to rows of the table. Pure."""

from typing import Final

import msgspec

from orchestrator.bench.inference_measures import Figure
from orchestrator.bench.inference_rows import POOL, Promise, rows
from orchestrator.cli.measure import Measure

FIFO: Final = "first come, first served"
GOODPUT: Final = "goodput"
LONGEST: Final = "longest wait for a first token"
FAIRNESS: Final = "fairness index"
PROMISES: Final = tuple(Promise(POOL, FIFO, figure) for figure in (GOODPUT, LONGEST, FAIRNESS))
"""Nothing is promised in numbers here: the properties are proved by tests."""


class OfClass(msgspec.Struct, frozen=True):
    """One class of requests on one server."""

    goodput_tokens_per_second: float
    longest_wait_seconds: float
    fairness: float

    def figures(self) -> dict[str, Figure]:
        return {
            GOODPUT: Figure(self.goodput_tokens_per_second, "tokens/s", "higher"),
            LONGEST: Figure(self.longest_wait_seconds, "s", "lower"),
            FAIRNESS: Figure(self.fairness, "index", "higher"),
        }


class Server(msgspec.Struct, frozen=True):
    classes: dict[str, OfClass]


class Simulation(msgspec.Struct, frozen=True):
    """The same arrivals on both."""

    minutes: float
    pool: Server
    fifo: Server


def simulated(said: bytes) -> list[Measure]:
    """The rows. Raises `msgspec.DecodeError` for what is no simulation."""
    simulation = msgspec.json.decode(said, type=Simulation)
    name = f"three times more agents than slots, {simulation.minutes:g} simulated minutes"
    return [
        row
        for priority, ours in simulation.pool.classes.items()
        for row in rows(
            f"{name}, {priority}",
            {POOL: ours.figures(), FIFO: simulation.fifo.classes[priority].figures()},
            PROMISES,
        )
    ]
