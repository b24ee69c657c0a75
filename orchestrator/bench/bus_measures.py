"""What `agentd bench bus` measures, what is promised of it, and the rows of its table. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from orchestrator.bench.bus_pacing import Load, interval_ns
from orchestrator.cli.measure import Measure

WARMUP_SECONDS: Final = 0.5
"""Until a worker has run its code once and every buffer has grown."""
WARMUP_SHARE_MAX: Final = 0.2
"""Of the time that is counted, for runs that are very short."""

OPEN_FRAMES_MAX: Final = 1024
"""Requests that an open loop may have in flight: as many as one connection of agentd takes. At any
load that a bus can bear they are far fewer."""
OPEN_BATCH: Final = 64
SHARES: Final = (0.1, 0.5, 0.9)
"""Of the highest rate, for the latencies under load."""

LOW_LOAD: Final = "round trip, one message at a time"
LOW_LOAD_EXPECTED_MS: Final = 0.7
"""The median, on two cores: two commits."""
STORED: Final = (1_000, 100_000, 1_000_000)
GROWTH_BATCH: Final = 64
GROWTH_IN_FLIGHT: Final = 1024
GROWTH_SHARE_MIN: Final = 0.9
"""Of the rate with a thousand stored, with more of them."""

Better = Literal["higher", "lower"]


class Rate(NamedTuple):
    """A closed loop."""

    publishers: int
    batch: int
    in_flight: int
    """Messages of all publishers."""
    expected: float | None = None
    """Messages a second, on two cores."""

    @property
    def name(self) -> str:
        who = "1 publisher" if self.publishers == 1 else f"{self.publishers} publishers"
        return f"rate, {who}, {self.batch} to a frame, {self.in_flight} in flight"

    def load(self, seconds: float) -> Load:
        """That of each publisher."""
        return Load(batch=self.batch, in_flight=self.in_flight // self.publishers, **_time(seconds))


RATES: Final = (
    Rate(1, 64, 1024, expected=80_000),
    Rate(4, 64, 1024, expected=80_000),
    Rate(1, 1, 256, expected=20_000),
    Rate(4, 1, 256, expected=20_000),
    Rate(1, 1, 8),
)


class Figure(NamedTuple):
    """One of those who are measured has this."""

    value: float
    unit: str
    better: Better
    expected: float | None = None


Figures = Mapping[str, Figure]
"""By the name of the measure."""


class Compared(NamedTuple):
    """A peer, and its figures."""

    label: str
    figures: Figures
    promised: frozenset[Better]
    """What is promised to be better than this peer's: rates are *higher*, latencies *lower*."""


def low_load(seconds: float) -> Load:
    """One message in flight, the next one as soon as it is handled."""
    return Load(batch=1, in_flight=1, **_time(seconds))


def open_load(rate: float, seconds: float) -> Load:
    """By a schedule, at `rate` messages a second."""
    return Load(
        batch=OPEN_BATCH,
        in_flight=OPEN_BATCH * OPEN_FRAMES_MAX,
        interval_ns=interval_ns(rate, OPEN_BATCH),
        **_time(seconds),
    )


def open_name(share: float) -> str:
    """Each of those who are measured has a highest rate of its own."""
    return f"round trip at {share * 100:.0f} % of its highest rate, {OPEN_BATCH} to a frame"


def counted_load(messages: int) -> Load:
    """So many messages, or up to one frame more, as fast as they are handled."""
    return Load(
        batch=GROWTH_BATCH, in_flight=GROWTH_IN_FLIGHT, requests=-(-messages // GROWTH_BATCH)
    )


def growth_name(stored: int) -> str:
    return f"rate with {stored:,} stored, {GROWTH_BATCH} to a frame, {GROWTH_IN_FLIGHT} in flight"


def growth(rates: Mapping[int, float]) -> dict[str, Figure]:
    """The figures of rates by the number that was stored; the least number is the measure."""
    least = rates[min(rates)]
    return {
        growth_name(stored): Figure(
            rate,
            "messages/s",
            "higher",
            None if stored == min(rates) else GROWTH_SHARE_MIN * least,
        )
        for stored, rate in rates.items()
    }


def rows(ours: Figures, peers: Sequence[Compared]) -> list[Measure]:
    """Each figure with what is promised of it, and then once more beside every peer that has it."""
    made = []
    for name, figure in ours.items():
        made.append(
            Measure(
                measure=name,
                value=figure.value,
                unit=figure.unit,
                expected=figure.expected,
                met=_met(figure, figure.expected),
            )
        )
        made += [_beside(name, figure, peer) for peer in peers if name in peer.figures]
    return made


def _beside(name: str, figure: Figure, peer: Compared) -> Measure:
    theirs = peer.figures[name].value
    expected = theirs if figure.better in peer.promised else None
    return Measure(
        measure=name,
        value=figure.value,
        unit=figure.unit,
        peer=peer.label,
        peer_value=theirs,
        ratio=figure.value / theirs,
        expected=expected,
        met=_met(figure, expected),
    )


def _met(figure: Figure, expected: float | None) -> bool | None:
    if expected is None:
        return None
    return figure.value >= expected if figure.better == "higher" else figure.value <= expected


def _time(seconds: float) -> dict[str, int]:
    warmup = min(WARMUP_SECONDS, WARMUP_SHARE_MAX * seconds)
    return {"warmup_ns": round(warmup * 1e9), "duration_ns": round(seconds * 1e9)}
