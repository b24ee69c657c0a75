"""How a publishing program runs: what it is told, when it starts, and what it reports.

Its argument is a `Publisher` as JSON. It says `ready` when it is connected, starts at the time that
it reads from its standard input, and prints its `Outcome`. Whoever started it ends it by its pid.
"""

import os
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec

from orchestrator.bench.bus_pacing import Load, Outcome, Pacer

PAYLOAD_BYTES: Final = 256
READY: Final = "ready"

SILENCE_SECONDS_MAX: Final = 30.0
"""Without one completion, though requests are in flight: something has stopped for good."""

POLL_SECONDS_MAX: Final = 1.0
"""Until a publisher looks whether its time is over."""

_MARK: Final = struct.Struct(">IQ")
_FILLING: Final = bytes(range(256))[: PAYLOAD_BYTES - _MARK.size]

NOTICE: Final = struct.Struct("=I")
"""A consumer of a broker tells each publisher, through a pipe, how many more of its messages are
acknowledged. So the broker is spared a message back."""
NOTICES_BYTES: Final = 64 * 1024
"""What a pipe holds: all of them whole, since each is written at once."""


class Publisher(msgspec.Struct, frozen=True, kw_only=True):
    """What a publishing program is told."""

    address: str
    topic: str
    index: int
    load: Load
    notices: int = -1
    """The descriptor on which a consumer's notices come."""


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """What a consuming program is told. It goes on until it is ended."""

    address: str
    topic: str
    in_flight: int
    """Of all publishers."""
    notices: list[int]
    """The descriptor for each publisher."""


class Line(Protocol):
    """The way of one publisher to a bus, in a program that blocks."""

    sent_at_once_max: int
    """Requests that `send` takes; 1 where it waits for the bus."""

    def send(self, payloads: list[list[bytes]], numbers: range) -> None:
        """Send requests. They leave in one write where the client can do that."""

    def wait_finished(self, timeout_s: float) -> Iterable[int]:
        """The numbers of requests that are handled since; none if nothing comes in time."""


class Notices:
    """Which requests of a publisher are handled, by the notices of a consumer. It consumes the
    messages of one publisher in their order."""

    def __init__(self, told: Publisher) -> None:
        self._descriptor = told.notices
        self._batch = told.load.batch
        self._handled = 0

    def take(self) -> range:
        """The numbers of requests whose last message is handled since."""
        before = self._handled // self._batch
        data = os.read(self._descriptor, NOTICES_BYTES)
        self._handled += sum(count for (count,) in NOTICE.iter_unpack(data))
        return range(before, self._handled // self._batch)


def payload(publisher: int, sequence: int) -> bytes:
    """No two of a run are the same."""
    return _MARK.pack(publisher, sequence) + _FILLING


def sender_of(data: bytes) -> int:
    """The publisher of a payload."""
    publisher: int = _MARK.unpack_from(data)[0]
    return publisher


def payloads(told: Publisher, number: int) -> list[bytes]:
    """Those of one request."""
    first = number * told.load.batch
    return [payload(told.index, first + each) for each in range(told.load.batch)]


def run(connect: Callable[[Publisher], Line], argument: str) -> None:
    """The whole program of a publisher that blocks."""
    told = msgspec.json.decode(argument, type=Publisher)
    line = connect(told)
    start_ns = wait_start()
    report(drive(told, line, start_ns, time.monotonic_ns))


def wait_start() -> int:
    """Say that this program is ready, and wait until the time that it is told."""
    print(READY, flush=True)
    start_ns = int(sys.stdin.readline())
    time.sleep(max(0, start_ns - time.monotonic_ns()) / 1e9)
    return start_ns


def report(outcome: Outcome) -> None:
    """Print it whole: with PYTHONUNBUFFERED a write to a pipe may be short."""
    said = memoryview(msgspec.json.encode(outcome) + b"\n")
    while said:
        said = said[os.write(sys.stdout.fileno(), said) :]


def drive(told: Publisher, line: Line, start_ns: int, now_ns: Callable[[], int]) -> Outcome:
    """Publish until all is handled. Raises `TimeoutError` where nothing is handled any more."""
    pacer = Pacer(told.load, start_ns)
    heard_ns = start_ns
    while not pacer.is_over(at_ns := now_ns()):
        if due := min(line.sent_at_once_max, pacer.due(at_ns)):
            numbers = [pacer.send(at_ns) for _ in range(due)]
            line.send(
                [payloads(told, number) for number in numbers],
                range(numbers[0], numbers[-1] + 1),
            )
        for number in line.wait_finished(_wait_seconds(pacer, now_ns())):
            heard_ns = now_ns()
            pacer.finish(number, heard_ns)
        if pacer.in_flight and now_ns() - heard_ns > SILENCE_SECONDS_MAX * 1e9:
            raise TimeoutError(f"nothing was handled for {SILENCE_SECONDS_MAX:g} s")
    return pacer.outcome()


def _wait_seconds(pacer: Pacer, now_ns: int) -> float:
    if pacer.due(now_ns):
        return 0.0
    wait_ns = pacer.wait_ns(now_ns)
    return POLL_SECONDS_MAX if wait_ns is None else min(POLL_SECONDS_MAX, wait_ns / 1e9)
