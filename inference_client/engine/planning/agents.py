"""What the pool has learned of each agent: how long its answers are, how often it asks, and what is
left of its limits.

Pure: no clock, no socket, no model.
"""

import bisect
from dataclasses import dataclass, field
from typing import Final

from inference_client.engine.planning.request import Request
from ipc_protocol.inference import Share

AGENTS_MAX: Final = 1024
"""Agents remembered: five times those of a full host. The one seen longest ago is forgotten."""

EXPECTED_TOKENS: Final = 128
"""The length of an answer of an agent that has given none yet: a short paragraph or a decision. Too
little costs a preemption, too much leaves cells empty."""

WEIGHT: Final = 0.25
"""Of a new observation in a moving mean, so that the last seven make up nine tenths of it."""

RETURN_US: Final = 60_000_000
"""When an agent is expected back that came once: as often as a clock wakes one."""

WEIGHT_MIN: Final = 0.01
"""The least weight of a share, so that nothing is divided by zero."""

MINUTE_US: Final = 60_000_000

SQUEEZES_MAX: Final = 16
"""Doublings of what is expected: more than any context holds, and far from what a float cannot."""


@dataclass(eq=False)
class Agent:
    seen_us: int = 0
    requests: int = 0
    gap_us: float = RETURN_US
    length: float | None = None
    deviation: float = 0.0
    hashes: list[int] = field(default_factory=list)
    reuse: float = 1.0
    running: int = 0
    tokens_per_minute: int = 0
    balance: float = 0.0
    balance_us: int = 0


class Agents:
    """The planner is its only writer."""

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def arrived(self, request: Request) -> None:
        agent = self._get(request.agent)
        now_us = request.arrived_us
        if agent.requests:
            gap = max(now_us - agent.seen_us, 0)
            agent.gap_us = (
                gap if agent.requests == 1 else agent.gap_us + WEIGHT * (gap - agent.gap_us)
            )
        agent.requests += 1
        agent.seen_us = max(agent.seen_us, now_us)
        self._limit(agent, request.share, now_us)
        if len(self._agents) > AGENTS_MAX:
            self._forget()

    def started(self, request: Request) -> None:
        self._get(request.agent).running += 1

    def prompted(self, request: Request) -> None:
        """Learn what part of its last prompt the agent begins with again, in whole blocks."""
        agent = self._get(request.agent)
        if agent.hashes:
            common = bisect.bisect_left(
                range(1, min(len(agent.hashes), len(request.hashes)) + 1),
                True,
                key=lambda blocks: agent.hashes[blocks - 1] != request.hashes[blocks - 1],
            )
            agent.reuse += WEIGHT * (common / len(agent.hashes) - agent.reuse)
        agent.hashes = list(request.hashes)

    def reuse(self, name: str) -> float:
        """The part of what the agent leaves behind that it is expected to need again."""
        agent = self._agents.get(name)
        return 1.0 if agent is None else agent.reuse

    def stopped(self, request: Request) -> None:
        self._get(request.agent).running -= 1

    def answered(self, request: Request) -> None:
        """Learn from the length of an answer, as a mean and the mean deviation from it."""
        agent = self._get(request.agent)
        produced = request.produced_tokens
        if agent.length is None:
            agent.length, agent.deviation = produced, produced / 2
            return
        error = produced - agent.length
        agent.length += WEIGHT * error
        agent.deviation += WEIGHT * (abs(error) - agent.deviation)

    def expected_tokens(self, request: Request) -> int:
        """How many tokens the request is expected to produce yet; at least 1 if it may.

        Each time that it ran out of cells, twice as many.
        """
        agent = self._agents.get(request.agent)
        length: float = EXPECTED_TOKENS
        if agent is not None and agent.length is not None:
            length = agent.length + agent.deviation
        length *= 2.0 ** min(request.squeezes, SQUEEZES_MAX)
        rest = request.tokens_max - request.produced_tokens
        return min(rest, max(1, round(length) - request.produced_tokens))

    def return_us(self, name: str, now_us: int) -> float:
        """In how long the agent is expected back.

        As long as its requests are usually apart; one that has stayed away for longer than that is
        expected to stay away as long again.
        """
        agent = self._agents.get(name)
        if agent is None:
            return RETURN_US
        return max(agent.gap_us, now_us - agent.seen_us, 1)

    def has_returned(self, name: str) -> bool:
        agent = self._agents.get(name)
        return agent is not None and agent.requests > 1

    def runs(self, name: str) -> int:
        agent = self._agents.get(name)
        return agent.running if agent is not None else 0

    def spend(self, name: str, tokens: int, now_us: int) -> None:
        """Take tokens out of the minute's share; more than there are become a debt."""
        agent = self._get(name)
        if agent.tokens_per_minute:
            self._refill(agent, now_us)
            agent.balance -= tokens

    def allowed_in_us(self, name: str, now_us: int) -> int:
        """0, or after how long the agent's minute has room for a request again.

        A token bucket: it holds the tokens of one minute and fills evenly. A request may begin when
        anything is in it, since nobody knows what it will cost.
        """
        agent = self._agents.get(name)
        if agent is None or not agent.tokens_per_minute:
            return 0
        self._refill(agent, now_us)
        if agent.balance >= 1:
            return 0
        return int((1 - agent.balance) * MINUTE_US / agent.tokens_per_minute) + 1

    def _get(self, name: str) -> Agent:
        return self._agents.setdefault(name, Agent())

    def _limit(self, agent: Agent, share: Share, now_us: int) -> None:
        if share.tokens_per_minute != agent.tokens_per_minute:
            agent.tokens_per_minute = share.tokens_per_minute
            agent.balance, agent.balance_us = share.tokens_per_minute, now_us

    def _refill(self, agent: Agent, now_us: int) -> None:
        earned = max(now_us - agent.balance_us, 0) * agent.tokens_per_minute / MINUTE_US
        agent.balance = min(agent.balance + earned, agent.tokens_per_minute)
        agent.balance_us = max(agent.balance_us, now_us)

    def _forget(self) -> None:
        idle = [name for name, agent in self._agents.items() if not agent.running]
        if idle:
            del self._agents[min(idle, key=lambda name: self._agents[name].seen_us)]
