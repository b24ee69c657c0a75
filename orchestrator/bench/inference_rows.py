"""What is promised of inference, and the rows of the table of `agentd bench inference`. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from orchestrator.bench.inference_measures import (
    AGAIN,
    DECODED,
    GAP,
    OUT,
    PREFILLED,
    REQUESTS,
    TOTAL,
    VALID,
    WALL,
    Figure,
    Figures,
    first_token,
)
from orchestrator.bench.inference_scenarios import LOW, URGENT
from orchestrator.cli.measure import Measure

POOL: Final = "pool"
"""The daemon, over HTTP."""
ENGINE: Final = "engine alone"
"""Its engine, over its own protocol."""
SERVER: Final = "llama-server"
CEILING: Final = "llama-batched-bench"
IDLE: Final = "pool, idle"
LOW_ALONE: Final = "pool, low work alone"

Measured = Mapping[str, Figures]
"""By who was measured."""


class Promise(NamedTuple):
    """`ours` has so many times the figure of `peer`: of a rate at least, of a time at most its
    reciprocal. Without `factor` the two are only shown side by side."""

    ours: str
    peer: str
    figure: str
    factor: float | None = None


URGENT_50: Final = first_token(URGENT, 50)
URGENT_99: Final = first_token(URGENT, 99)

BURST: Final = {
    "cpu": (
        Promise(POOL, SERVER, TOTAL, 1.0),
        Promise(POOL, CEILING, TOTAL, 0.9),
        Promise(ENGINE, CEILING, TOTAL, 0.97),
        Promise(POOL, SERVER, OUT),
    ),
    "gpu": (
        Promise(POOL, SERVER, TOTAL, 1.5),
        Promise(POOL, CEILING, TOTAL),
        Promise(ENGINE, CEILING, TOTAL),
        Promise(POOL, SERVER, OUT),
    ),
}
NEIGHBOUR: Final = (Promise(POOL, SERVER, TOTAL),)
PREAMBLE: Final = (Promise(POOL, SERVER, WALL, 3.0),)
IDENTITIES: Final = (Promise(POOL, SERVER, WALL, 1.2), Promise(POOL, SERVER, AGAIN))
TYPED: Final = (
    Promise(POOL, SERVER, REQUESTS, 1.8),
    Promise(POOL, SERVER, DECODED),
    Promise(POOL, SERVER, VALID),
)
URGENCY: Final = (
    Promise(POOL, IDLE, URGENT_50, 1 / 3),
    Promise(POOL, IDLE, URGENT_99),
    Promise(POOL, SERVER, URGENT_50, 100.0),
    Promise(POOL, SERVER, URGENT_99),
    Promise(POOL, SERVER, first_token(LOW, 50)),
    Promise(POOL, SERVER, first_token(LOW, 99)),
    Promise(POOL, LOW_ALONE, TOTAL, 0.95),
    Promise(POOL, SERVER, TOTAL),
)
LONG_PROMPT: Final = (Promise(POOL, SERVER, GAP), Promise(POOL, SERVER, PREFILLED))

ALL_VALID: Final = 1.0
"""Whatever the peer does."""


def rows(scenario: str, measured: Measured, promises: Sequence[Promise]) -> list[Measure]:
    """One row for each promise whose parties were measured, and one for ours without its peer."""
    return [
        _row(scenario, promise, measured)
        for promise in promises
        if promise.figure in measured.get(promise.ours, {})
    ]


def _row(scenario: str, promise: Promise, measured: Measured) -> Measure:
    figure = measured[promise.ours][promise.figure]
    theirs = measured.get(promise.peer, {}).get(promise.figure)
    expected = ALL_VALID if promise.figure == VALID else _expected(promise, theirs)
    return Measure(
        measure=f"{scenario}: {promise.figure}{_by(promise.ours)}",
        value=figure.value,
        unit=figure.unit,
        peer=promise.peer if theirs else None,
        peer_value=theirs.value if theirs else None,
        ratio=figure.value / theirs.value if theirs and theirs.value else None,
        expected=expected,
        met=None if expected is None else _keeps(figure, expected),
    )


def _by(ours: str) -> str:
    return "" if ours == POOL else f", {ours}"


def _expected(promise: Promise, theirs: Figure | None) -> float | None:
    if promise.factor is None or theirs is None:
        return None
    if theirs.better == "higher":
        return theirs.value * promise.factor
    return theirs.value / promise.factor


def _keeps(figure: Figure, expected: float) -> bool:
    return figure.value >= expected if figure.better == "higher" else figure.value <= expected
