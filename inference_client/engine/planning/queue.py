"""Which request is next: five strict classes, and within a class fair shares by tokens per agent.

In every class an agent has an account of tokens spent, divided by its weight. The agent with the
lowest account goes first. Its own requests keep their order: those that had to make way before the
others, then by deadline, then by arrival; so a deadline moves a request before others of the same
agent, and nobody else's. An agent that comes back after a while starts at the level of those being
served, so absence earns no credit. This is start-time fair queueing (Goyal, Vin and Cheng, 1996)
with tokens for packet lengths.

Pure: no clock, no socket, no model. The planner is its only writer.
"""

import bisect
import heapq
import itertools
from collections.abc import Container, Iterator
from typing import Final

from inference_client.engine.planning.agents import WEIGHT_MIN
from inference_client.engine.planning.request import NEVER_US, Request
from ipc_protocol.errors import Failure
from ipc_protocol.values import PRIORITIES

ACCOUNTS_MAX: Final = 1024
"""Accounts kept in a class before the lower half is forgotten: five times the agents of a host."""

Place = tuple[bool, int, int, int]
Lane = list[tuple[Place, Request]]


class Accounts:
    """What each agent of one class has spent, in tokens divided by its weight."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._level = 0.0

    def __len__(self) -> int:
        return len(self._spent)

    def of(self, agent: str) -> float:
        return self._spent.get(agent, self._level)

    def join(self, agent: str) -> None:
        """The agent asks for something: what it did not use in its absence is gone."""
        self._spent[agent] = max(self.of(agent), self._level)

    def serve(self, agent: str) -> None:
        """The agent's turn has come, so its account is the level of the class."""
        self._level = max(self._level, self.of(agent))

    def charge(self, agent: str, tokens: float) -> None:
        self._spent[agent] = self.of(agent) + tokens

    def forget(self, needed: Container[str]) -> None:
        """Raise the level over the lower half of the accounts, and drop those.

        An agent without an account starts at the level, so whoever has spent less than that loses
        a little credit; with so many agents that is the price of a bound.
        """
        spent = sorted(self._spent.values())
        self._level = max(self._level, spent[len(spent) // 2])
        self._spent = {
            agent: tokens
            for agent, tokens in self._spent.items()
            if tokens > self._level or agent in needed
        }


class RequestQueue:
    """The waiting requests, at most `waiting_max` of them."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._waiting: dict[int, Request] = {}
        self._lanes: list[dict[str, Lane]] = [{} for _ in PRIORITIES]
        self._accounts = [Accounts() for _ in PRIORITIES]

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: Request) -> bool:
        return request.id in self._waiting

    def push(self, request: Request) -> None:
        """Let a new request wait. Raises `inference.busy` when the queue is full."""
        if len(self._waiting) >= self._waiting_max:
            raise Failure(
                "inference.busy",
                f"{self._waiting_max} requests are waiting for the model already.",
                "Ask again later, or give the engine more slots.",
                waiting=len(self._waiting),
            )
        self._accounts[request.rank].join(request.agent)
        self._insert(request)

    def put_back(self, request: Request) -> None:
        """Return a preempted request. It is its agent's next, and the bound does not refuse it."""
        self._insert(request)

    def remove(self, request: Request) -> bool:
        """Whether the request was waiting; it no longer is."""
        if self._waiting.pop(request.id, None) is None:
            return False
        lanes = self._lanes[request.rank]
        lane = lanes[request.agent]
        del lane[bisect.bisect_left(lane, _place(request), key=lambda pair: pair[0])]
        if not lane:
            del lanes[request.agent]
        return True

    def take(self, request: Request) -> None:
        """Remove a request that now holds a slot; its agent's account sets the level."""
        self.remove(request)
        accounts = self._accounts[request.rank]
        accounts.serve(request.agent)
        if len(accounts) > ACCOUNTS_MAX:
            accounts.forget(self._lanes[request.rank])

    def charge(self, request: Request, tokens: int) -> None:
        """The request's agent has had so many tokens of this class."""
        weight = max(request.share.weight, WEIGHT_MIN)
        self._accounts[request.rank].charge(request.agent, tokens / weight)

    def account(self, request: Request) -> float:
        return self._accounts[request.rank].of(request.agent)

    @property
    def rank(self) -> int | None:
        """The most urgent class that waits."""
        return next((rank for rank, lanes in enumerate(self._lanes) if lanes), None)

    def waits(self, rank: int) -> bool:
        """Whether a request of the class waits."""
        return bool(self._lanes[rank])

    def offers(self, rank: int, skipped: Container[str]) -> Iterator[Request]:
        """The requests of a class in the order in which they may have slots.

        Each may be taken before the next one is asked for, which then follows from the accounts as
        they are. One that is not taken lets the next of its agent have its turn, unless the agent
        is among those `skipped`.
        """
        accounts, lanes = self._accounts[rank], self._lanes[rank]
        heap = [
            (accounts.of(agent), first.arrived_us, first.id, agent, place)
            for agent, ((place, first), *_) in lanes.items()
        ]
        heapq.heapify(heap)
        while heap:
            *_, agent, place = heapq.heappop(heap)
            if agent in skipped:
                continue
            # The lane may have changed since, so that the place is looked for anew.
            if (offered := _at_or_behind(lanes, agent, place)) is None:
                continue
            place, request = offered
            yield request
            if (later := _at_or_behind(lanes, agent, (*place[:3], place[3] + 1))) is not None:
                turn = (accounts.of(agent), later[1].arrived_us, later[1].id, agent, later[0])
                heapq.heappush(heap, turn)

    def renew(self, request: Request, now_us: int) -> None:
        """A waiting request begins its wait anew, behind all others."""
        request.idle_since_us = now_us
        self._waiting[request.id] = self._waiting.pop(request.id)

    def oldest(self) -> Iterator[Request]:
        """The waiting requests, the one first that has got nothing for the longest time."""
        yield from self._waiting.values()

    def idle_since(self, limit_us: int) -> list[Request]:
        """Those that have got nothing since then or before."""
        return list(itertools.takewhile(lambda one: one.idle_since_us <= limit_us, self.oldest()))

    def in_order(self) -> Iterator[Request]:
        """The waiting requests as they would be taken if nothing else came.

        Each is expected to cost its prompt and all the tokens that it may produce.
        """
        for accounts, lanes in zip(self._accounts, self._lanes, strict=True):
            keyed: list[tuple[float, int, int, Request]] = []
            for agent, lane in lanes.items():
                start = accounts.of(agent)
                for _, request in lane:
                    keyed.append((start, request.arrived_us, request.id, request))
                    cost = request.prompt_tokens + request.tokens_max
                    start += cost / max(request.share.weight, WEIGHT_MIN)
            yield from (request for *_, request in sorted(keyed, key=lambda one: one[:3]))

    def _insert(self, request: Request) -> None:
        self._waiting[request.id] = request
        lane = self._lanes[request.rank].setdefault(request.agent, [])
        bisect.insort(lane, (_place(request), request), key=lambda pair: pair[0])


def _at_or_behind(lanes: dict[str, Lane], agent: str, place: Place) -> tuple[Place, Request] | None:
    lane = lanes.get(agent, [])
    index = bisect.bisect_left(lane, place, key=lambda pair: pair[0])
    return lane[index] if index < len(lane) else None


def _place(request: Request) -> Place:
    """Where a request stands among those of its agent and class. It never moves while it waits."""
    deadline = NEVER_US if request.deadline_us is None else request.deadline_us
    return (not request.preemptions, deadline, request.arrived_us, request.id)
