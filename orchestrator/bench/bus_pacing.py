"""When a publisher sends, and what is counted of it. Pure.

A publisher sends requests of a number of messages each. In a *closed loop* it sends whenever fewer
messages are in flight than it may have; that finds the highest rate. In an *open loop* it sends by
a schedule that does not care how the answers come: a latency is counted from the moment that the
schedule says, so that a request which had to wait behind a slow one has its wait counted too.

All times are nanoseconds of the monotonic clock, which the processes of one machine share.
"""

import math
from collections.abc import Sequence

import msgspec


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one publisher does."""

    batch: int
    """Messages of a request, which is one frame of agentd."""
    in_flight: int
    """Messages that may be published and not handled yet. An open loop sends late what would be
    more, and its wait counts."""
    warmup_ns: int = 0
    """Not counted, at the beginning."""
    duration_ns: int = 0
    """Counted, after that; longer where it takes longer until one request of that time is
    handled, so that there is always something to report."""
    requests: int = 0
    """Send exactly so many instead, and count all of them."""
    interval_ns: int = 0
    """Of the schedule of an open loop; 0 for a closed one."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one publisher saw."""

    published: int
    """Messages, all of which were handled."""
    counted: int
    """Messages whose completion came while it was counted."""
    elapsed_ns: int
    """How long it was counted."""
    latencies_ns: list[int]
    """One of each request that was due while it was counted, until all of it was handled."""


class Pacer:
    """Decides what one publisher sends, and keeps its figures."""

    def __init__(self, load: Load, start_ns: int) -> None:
        assert 0 < load.batch <= load.in_flight
        assert (load.requests > 0) is not (load.duration_ns > 0)
        self._load = load
        self._start_ns = start_ns
        self._begin_ns = start_ns + load.warmup_ns
        self._end_ns = self._begin_ns + load.duration_ns if load.duration_ns else None
        self._total = load.requests or _scheduled(load)
        self._due_ns: dict[int, int] = {}
        """Of the requests in flight."""
        self._sent = 0
        self._counted = 0
        self._last_ns = start_ns
        self._latencies_ns: list[int] = []

    @property
    def in_flight(self) -> int:
        """Requests that are sent and not handled."""
        return len(self._due_ns)

    def is_over(self, now_ns: int) -> bool:
        """All is sent and handled."""
        return not self._due_ns and self._left(now_ns) == 0

    def due(self, now_ns: int) -> int:
        """How many requests to send now."""
        room = self._load.in_flight // self._load.batch - len(self._due_ns)
        due = min(room, self._left(now_ns))
        if self._load.interval_ns:
            due = min(due, self._by_schedule(now_ns) - self._sent)
        return max(0, due)

    def wait_ns(self, now_ns: int) -> int | None:
        """Until the schedule wants something sent; None where only an answer can change that."""
        room = self._load.in_flight // self._load.batch - len(self._due_ns)
        if not self._load.interval_ns or room <= 0 or self._left(now_ns) == 0:
            return None
        return max(0, self._scheduled_ns(self._sent) - now_ns)

    def send(self, now_ns: int) -> int:
        """One request is sent: its number, from 0."""
        number = self._sent
        self._sent += 1
        self._due_ns[number] = self._scheduled_ns(number) if self._load.interval_ns else now_ns
        return number

    def finish(self, number: int, now_ns: int) -> None:
        """All messages of a request are handled. Raises `KeyError` if it is not in flight."""
        due_ns = self._due_ns.pop(number)
        self._last_ns = now_ns
        if self._end_ns is not None and not self._latencies_ns:
            self._end_ns = max(self._end_ns, now_ns + 1)
        if self._is_counted(now_ns):
            self._counted += self._load.batch
        if self._is_counted(due_ns):
            self._latencies_ns.append(now_ns - due_ns)

    def outcome(self) -> Outcome:
        return Outcome(
            published=self._sent * self._load.batch,
            counted=self._counted,
            elapsed_ns=(self._end_ns or self._last_ns) - self._begin_ns,
            latencies_ns=self._latencies_ns,
        )

    def _left(self, now_ns: int) -> int:
        """Requests that are still to be sent, as many as there is room for where time decides."""
        if self._total:
            return self._total - self._sent
        assert self._end_ns is not None
        is_open = now_ns < self._end_ns or not self._latencies_ns
        return self._load.in_flight if is_open else 0

    def _by_schedule(self, now_ns: int) -> int:
        return (now_ns - self._start_ns) // self._load.interval_ns + 1

    def _scheduled_ns(self, number: int) -> int:
        return self._start_ns + number * self._load.interval_ns

    def _is_counted(self, at_ns: int) -> bool:
        return at_ns >= self._begin_ns and (self._end_ns is None or at_ns < self._end_ns)


def _scheduled(load: Load) -> int:
    """The requests of an open loop's whole time; 0 for a closed one, which time alone ends."""
    if not load.interval_ns:
        return 0
    return math.ceil((load.warmup_ns + load.duration_ns) / load.interval_ns)


def interval_ns(rate: float, batch: int) -> int:
    """Between two requests of `batch` messages, for `rate` messages a second."""
    return max(1, round(batch / rate * 1e9))


def rate(outcomes: Sequence[Outcome]) -> float:
    """Messages a second that publishers had handled who were counted at the same time."""
    return sum(one.counted / one.elapsed_ns * 1e9 for one in outcomes if one.elapsed_ns)


def percentile_ms(outcomes: Sequence[Outcome], share: float) -> float:
    """The latency that `share` of the requests did not exceed: the nearest rank, no mean of two."""
    ordered = sorted(latency for one in outcomes for latency in one.latencies_ns)
    if not ordered:
        raise ValueError("no request was counted")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1e6
