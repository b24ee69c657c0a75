"""Which request is next: five strict classes, and within a class fair shares by tokens per agent.

Every agent has an account of tokens spent. Within a class the agent with the lowest account goes
first, and each agent's own requests keep their order of arrival. An agent that comes back after a
while starts at the level of those being served, so absence earns no credit. This is start-time fair
queueing (Goyal, Vin and Cheng, 1996) with tokens for packet lengths.

Pure: no clock, no socket, no model. The planner is its only writer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ipc_protocol.errors import Failure
from ipc_protocol.values import Priority, rank

ACCOUNTS_MAX: Final = 1024
"""Accounts kept before the lower half is forgotten: five times the agents of a full host."""


@dataclass(eq=False)
class Request:
    """One request on its way through the pool. Only the planner writes to it.

    `tokens` is the prompt, followed by what was produced; after a preemption the whole of it is the
    prompt to resume from. `tail` is a continuation to be scored instead of generated.
    """

    id: int
    agent: str
    priority: Priority
    tokens: list[int]
    tokens_max: int
    arrived_us: int
    tail: tuple[int, ...] = ()
    prompt_tokens: int = field(init=False)
    cached_tokens: int = 0
    started_us: int | None = None
    slot: int | None = None
    served_tokens: int = 0
    """Tokens decoded for it since it was last given a slot: its quantum."""
    preemptions: int = 0
    skipped_steps: int = 0
    scored: bool = False
    """The tail has been decoded, and the request is done."""

    def __post_init__(self) -> None:
        assert self.tokens, "a prompt has at least one token"
        assert not (self.tail and self.tokens_max), "a request generates or scores, not both"
        self.prompt_tokens = len(self.tokens)

    @property
    def produced(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def target(self) -> list[int]:
        """What must lie in the KV cache before its last logits can be used."""
        return self.tokens + list(self.tail[:-1])

    @property
    def order(self) -> tuple[int, int, int]:
        """Among running requests: the more urgent class first, then the older one."""
        return (rank(self.priority), self.arrived_us, self.id)


class RequestQueue:
    """The waiting requests, at most `waiting_max` of them."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._waiting: dict[int, Request] = {}
        self._accounts: dict[str, int] = {}
        self._level = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: Request) -> None:
        """Let a new request wait. Raises `inference.busy` when the queue is full."""
        if len(self._waiting) >= self._waiting_max:
            raise Failure(
                "inference.busy",
                f"{self._waiting_max} requests are waiting for the model already.",
                "Ask again later, or give the engine more slots.",
                waiting=len(self._waiting),
            )
        self._waiting[request.id] = request
        self._accounts[request.agent] = max(self._account(request.agent), self._level)

    def put_back(self, request: Request) -> None:
        """Return a preempted request. It keeps its place, and the bound does not refuse it."""
        self._waiting[request.id] = request

    def remove(self, request_id: int) -> Request | None:
        return self._waiting.pop(request_id, None)

    def head(self) -> Request | None:
        """The request that is to be given the next slot."""
        return min(self._waiting.values(), key=self._key, default=None)

    def take(self, request: Request) -> None:
        """Remove the head, which now holds a slot; its agent's account sets the level."""
        del self._waiting[request.id]
        self._level = max(self._level, self._account(request.agent))
        if len(self._accounts) > ACCOUNTS_MAX:
            self._forget()

    def charge(self, agent: str, tokens: int) -> None:
        self._accounts[agent] = self._account(agent) + tokens

    def in_order(self) -> Iterator[Request]:
        """The waiting requests as they would be taken if nothing else came.

        Each is expected to cost its prompt and all the tokens that it may produce.
        """
        ahead: dict[tuple[int, str], int] = {}
        keyed: list[tuple[tuple[int, int, int, int], Request]] = []
        for request in sorted(self._waiting.values(), key=lambda one: one.order):
            lane = (rank(request.priority), request.agent)
            start = self._account(request.agent) + ahead.get(lane, 0)
            ahead[lane] = ahead.get(lane, 0) + len(request.tokens) + request.tokens_max
            keyed.append(((lane[0], start, request.arrived_us, request.id), request))
        yield from (request for _, request in sorted(keyed, key=lambda pair: pair[0]))

    def _forget(self) -> None:
        """Raise the level over the lower half of the accounts, and drop those.

        An agent without an account starts at the level, so whoever has spent less than that loses
        a little credit; with so many agents that is the price of a bound.
        """
        spent = sorted(self._accounts.values())
        self._level = max(self._level, spent[len(spent) // 2])
        needed = {request.agent for request in self._waiting.values()}
        self._accounts = {
            agent: tokens
            for agent, tokens in self._accounts.items()
            if tokens > self._level or agent in needed
        }

    def _key(self, request: Request) -> tuple[int, int, int, int]:
        account = self._account(request.agent)
        return (rank(request.priority), account, request.arrived_us, request.id)

    def _account(self, agent: str) -> int:
        return self._accounts.get(agent, self._level)
