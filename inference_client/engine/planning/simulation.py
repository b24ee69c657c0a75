"""The policy of the pool against first come, first served, in simulated time.

    python -m inference_client.engine.planning.simulation [--seed N] [--minutes 60] [--json]

Twelve agents of five classes share four slots, and ask for all that those can do. The very same
arrivals go to two servers: the real planner, and a peer that takes requests in the order in which
they came, each in the free slot with the longest common prefix, with all slots in every batch and
prefill in chunks of 512, as llama-server does. Both pay for a step by the same `StepCosts`, and
neither computes anything: tokens are numbers, and time passes by addition.

Printed are, for each class: *goodput*, the tokens a second of answers that came within the limit of
their class; the longest wait for a first token; and the fairness among its agents, as the index of
Jain, Chiu and Hawe (1984), (sum x)^2 / (n sum x^2), where x is the part of an agent's tokens that
came in time: 1 if all of them are treated alike, 1/n if one has everything.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from inference_client.engine.planning.planner import Planner, Policy
from inference_client.engine.planning.prefixes import common_prefix
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import SlotTable, SwapIn, SwapOut
from inference_client.engine.planning.swap import SwapArea
from ipc_protocol.values import PRIORITIES, Priority

SECOND_US: Final = 1_000_000

SLOTS: Final = 4
CELLS: Final = 8192
WAITING_MAX: Final = 100_000
"""Nobody is refused, so that the two servers have the same work."""

PREAMBLE_TOKENS: Final = 128
IDENTITY_TOKENS: Final = 384
QUESTION_TOKENS: Final = (16, 128)
ANSWER_TOKENS: Final = (8, 160)
"""Of a prompt: in common, of the agent, and anew each time, from and to; and of an answer."""

AGENTS: Final[dict[Priority, int]] = {
    "urgent": 1,
    "high": 2,
    "normal": 4,
    "low": 3,
    "background": 2,
}
"""Three times as many agents as slots."""

GAP_US: Final = 10 * SECOND_US
"""Between two requests of an agent, on average: together about what one processor core can do if it
computes no identity twice, and far more than it can if it does."""

IN_TIME_US: Final[dict[Priority, int]] = {
    "urgent": 3 * SECOND_US,
    "high": 10 * SECOND_US,
    "normal": 30 * SECOND_US,
    "low": 120 * SECOND_US,
    "background": 600 * SECOND_US,
}
"""From arrival to the end of the answer: somebody waits; a task waits; a day's work goes on."""

PREFILL_TOKENS: Final = 512


@dataclass(frozen=True)
class StepCosts:
    """What a step takes, in microseconds: as measured with SmolLM2-135M on one processor core.

    There a batch is about the sum of its tokens: 160 tokens a second are decoded by one sequence,
    133 by four together, and 230 are prefilled. A byte is moved to or from host memory at 4 GB/s.
    """

    base_us: int = 400
    decode_us: int = 6_000
    prefill_us: int = 4_300
    token_bytes: int = 23_040
    byte_us: float = 0.00025

    def step_us(self, decodes: int, prefill: int) -> int:
        return self.base_us + self.decode_us * decodes + self.prefill_us * prefill

    def swap_us(self, size: int) -> int:
        return int(size * self.byte_us)


@dataclass(eq=False)
class Arrival:
    """A request of the load, and what became of it."""

    id: int
    at_us: int
    agent: str
    priority: Priority
    prompt: list[int]
    tokens: int
    first_us: int | None = None
    end_us: int | None = None

    @property
    def in_time(self) -> bool:
        return self.end_us is not None and self.end_us - self.at_us <= IN_TIME_US[self.priority]


class Server(Protocol):
    """What serves a load, one step after the other."""

    @property
    def idle(self) -> bool: ...

    def submit(self, arrival: Arrival) -> None: ...

    def step(self, now_us: int) -> int:
        """Do one step, and return how long it took."""


def load(seed: int, minutes: float) -> list[Arrival]:
    """Arrivals of all agents, in their order: each a Poisson process."""
    chance = random.Random(seed)
    words = itertools.count()
    preamble = [next(words) for _ in range(PREAMBLE_TOKENS)]
    arrivals: list[Arrival] = []
    for priority, count in AGENTS.items():
        for number in range(count):
            identity = [next(words) for _ in range(IDENTITY_TOKENS)]
            at_us = chance.expovariate(1 / GAP_US)
            while at_us < minutes * 60 * SECOND_US:
                question = [next(words) for _ in range(chance.randint(*QUESTION_TOKENS))]
                arrivals.append(
                    Arrival(
                        len(arrivals) + 1,
                        int(at_us),
                        f"{priority}-{number}",
                        priority,
                        preamble + identity + question,
                        chance.randint(*ANSWER_TOKENS),
                    )
                )
                at_us += chance.expovariate(1 / GAP_US)
    return sorted(arrivals, key=lambda arrival: arrival.at_us)


class Pooled:
    """The planner, over a cache that is not there."""

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        swap = SwapArea(SLOTS * CELLS * costs.token_bytes, costs.token_bytes)
        table = SlotTable(SLOTS, CELLS)
        self.planner = Planner(
            RequestQueue(WAITING_MAX), table, Policy(width=1, context=CELLS), swap
        )
        self._arrivals: dict[int, Arrival] = {}

    @property
    def idle(self) -> bool:
        return self.planner.idle

    def submit(self, arrival: Arrival) -> None:
        self._arrivals[arrival.id] = arrival
        prompt = list(arrival.prompt)
        self.planner.submit(
            Request(
                arrival.id, arrival.agent, arrival.priority, prompt, arrival.tokens, arrival.at_us
            )
        )

    def step(self, now_us: int) -> int:
        step = self.planner.plan(now_us)
        moved_us = 0
        for operation in step.operations:
            if isinstance(operation, SwapOut | SwapIn):
                moved_us += self._move(operation)
        decodes = sum(row.request.ready for row in step.rows)
        tokens = sum(len(row.tokens) for row in step.rows)
        elapsed_us = self._costs.step_us(decodes, tokens - decodes)
        self.planner.commit(step, elapsed_us)
        elapsed_us += moved_us
        for row in step.rows:
            if row.outputs:
                self._answer(row.request, now_us + elapsed_us)
        return elapsed_us

    def _move(self, operation: SwapOut | SwapIn) -> int:
        if isinstance(operation, SwapOut):
            size = operation.bytes_max
        else:
            tokens = self.planner.slots.slots[operation.slot].tokens
            size = self.planner.swap.size_of(len(tokens))
        took_us = self._costs.swap_us(size)
        self.planner.swapped(operation, size, took_us)
        return took_us

    def _answer(self, request: Request, now_us: int) -> None:
        arrival = self._arrivals[request.id]
        arrival.first_us = arrival.first_us or now_us
        self.planner.produce(request, [-request.produced_tokens - 1])
        if request.produced_tokens >= request.tokens_max:
            arrival.end_us = now_us
            self.planner.finish(request)
            del self._arrivals[request.id]


@dataclass(eq=False)
class FifoSlot:
    tokens: list[int] = field(default_factory=list)
    arrival: Arrival | None = None
    left: int = 0
    """Tokens of the prompt that are still to be computed."""
    produced: int = 0


class Fifo:
    """First come, first served."""

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._slots = [FifoSlot() for _ in range(SLOTS)]
        self._waiting: list[Arrival] = []
        self.prefilled_tokens = 0

    @property
    def idle(self) -> bool:
        return not self._waiting and all(slot.arrival is None for slot in self._slots)

    def submit(self, arrival: Arrival) -> None:
        self._waiting.append(arrival)

    def step(self, now_us: int) -> int:
        while self._waiting and any(slot.arrival is None for slot in self._slots):
            self._start(self._waiting.pop(0))
        decoding = [slot for slot in self._slots if slot.arrival is not None and not slot.left]
        budget, answering = PREFILL_TOKENS, list(decoding)
        for slot in self._slots:
            chunk = min(slot.left, budget)
            budget -= chunk
            slot.left -= chunk
            if chunk and not slot.left:
                answering.append(slot)
        prefill = PREFILL_TOKENS - budget
        self.prefilled_tokens += prefill
        elapsed_us = self._costs.step_us(len(decoding), prefill)
        for slot in answering:
            self._answer(slot, now_us + elapsed_us)
        return elapsed_us

    def _start(self, arrival: Arrival) -> None:
        free = [slot for slot in self._slots if slot.arrival is None]
        slot = max(free, key=lambda one: common_prefix(one.tokens, arrival.prompt))
        known = min(common_prefix(slot.tokens, arrival.prompt), len(arrival.prompt) - 1)
        slot.tokens, slot.arrival = arrival.prompt, arrival
        slot.left, slot.produced = len(arrival.prompt) - known, 0

    def _answer(self, slot: FifoSlot, now_us: int) -> None:
        arrival = slot.arrival
        assert arrival is not None
        arrival.first_us = arrival.first_us or now_us
        slot.produced += 1
        if slot.produced >= arrival.tokens:
            arrival.end_us, slot.arrival = now_us, None


def serve(server: Server, arrivals: Sequence[Arrival]) -> int:
    """Let the arrivals come, and the server work until all are answered. Returns when it was."""
    now_us = 0
    coming = iter(arrivals)
    following = next(coming, None)
    while following is not None or not server.idle:
        if server.idle and following is not None:
            now_us = max(now_us, following.at_us)
        while following is not None and following.at_us <= now_us:
            server.submit(following)
            following = next(coming, None)
        now_us += server.step(now_us)
    return now_us


def jain(parts: Sequence[float]) -> float:
    """The fairness index of Jain, Chiu and Hawe; 0 if nobody has anything."""
    squares = sum(part * part for part in parts)
    return sum(parts) ** 2 / (len(parts) * squares) if squares else 0.0


def measured(arrivals: Sequence[Arrival], minutes: float) -> dict[str, dict[str, float]]:
    """The figures of each class that came."""
    figures: dict[str, dict[str, float]] = {}
    for priority in PRIORITIES:
        own = [arrival for arrival in arrivals if arrival.priority == priority]
        if not own:
            continue
        waits = [arrival.first_us - arrival.at_us for arrival in own if arrival.first_us]
        parts = []
        for agent in sorted({arrival.agent for arrival in own}):
            asked = [arrival for arrival in own if arrival.agent == agent]
            timely = sum(arrival.tokens for arrival in asked if arrival.in_time)
            parts.append(timely / sum(arrival.tokens for arrival in asked))
        good = sum(arrival.tokens for arrival in own if arrival.in_time)
        figures[priority] = {
            "requests": len(own),
            "in_time": sum(arrival.in_time for arrival in own) / len(own),
            "goodput_tokens_per_second": good / (minutes * 60),
            "longest_wait_seconds": max(waits) / SECOND_US,
            "fairness": jain(parts),
        }
    return figures


def compare(seed: int, minutes: float) -> dict[str, Any]:
    """Both servers under the same load."""
    costs = StepCosts()
    pooled, fifo = Pooled(costs), Fifo(costs)
    result: dict[str, Any] = {"seed": seed, "minutes": minutes}
    servers: list[tuple[str, Server]] = [("pool", pooled), ("fifo", fifo)]
    for name, server in servers:
        arrivals = load(seed, minutes)
        end_us = serve(server, arrivals)
        result[name] = {"classes": measured(arrivals, minutes), "seconds": end_us / SECOND_US}
    result["pool"]["prefilled_tokens"] = pooled.planner.counters.prefill_tokens
    result["fifo"]["prefilled_tokens"] = fifo.prefilled_tokens
    return result


def table(result: dict[str, Any]) -> str:
    """The comparison for people, a class in each line."""
    lines = [
        f"{result['minutes']:g} minutes of arrivals, seed {result['seed']}: "
        f"the pool / first come, first served",
        f"{'class':<12}{'requests':>9}{'in time %':>14}{'goodput tok/s':>18}"
        f"{'longest wait s':>20}{'fairness':>16}",
    ]
    for priority, pool in result["pool"]["classes"].items():
        fifo = result["fifo"]["classes"][priority]

        def pair(key: str, form: str, of: Any = pool, to: Any = fifo, scale: float = 1) -> str:
            return f"{of[key] * scale:{form}} / {to[key] * scale:{form}}"

        lines.append(
            f"{priority:<12}{pool['requests']:>9}{pair('in_time', '.1f', scale=100):>14}"
            f"{pair('goodput_tokens_per_second', '.1f'):>18}"
            f"{pair('longest_wait_seconds', '.2f'):>20}{pair('fairness', '.3f'):>16}"
        )
    for key, text in (("seconds", "done after s"), ("prefilled_tokens", "tokens prefilled")):
        lines.append(f"{text}: {result['pool'][key]:.0f} / {result['fifo'][key]:.0f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m inference_client.engine.planning.simulation",
        description="The pool against first come, first served, in simulated time.",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = compare(options.seed, options.minutes)
    print(json.dumps(result, indent=2) if options.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
