"""One request on its way through the pool: what it asks for, and how far it is.

Pure: no clock, no socket, no model. The planner and what belongs to it are its only writers.
"""

from dataclasses import dataclass, field
from typing import Final

from ipc_protocol.inference import Share
from ipc_protocol.values import Priority, rank

NEVER_US: Final = 2**63 - 1
"""The deadline of a request that has none, for comparisons."""

NO_LIMITS: Final = Share()
"""What an agent has that nobody limits: the weight of one, and as much as it wants."""


@dataclass(eq=False)
class Request:
    """`tokens` is the prompt, followed by what was produced; it only grows, and is not copied.

    After a preemption the whole of it is the prompt to resume from. A request that was begun by an
    engine that died comes with `prompt_tokens`: what lies behind them was produced there, and
    counts as generated. `tail` is a continuation to be scored instead of generated. Times are
    absolute microseconds of the shell's clock.
    """

    id: int
    agent: str
    priority: Priority
    tokens: list[int]
    tokens_max: int
    arrived_us: int
    tail: tuple[int, ...] = ()
    share: Share = NO_LIMITS
    deadline_us: int | None = None
    prompt_tokens: int = 0

    rank: int = field(init=False)
    target: list[int] = field(init=False)
    """What must lie in the KV cache before its last logits can be used: `tokens` itself, or with a
    tail a list of its own."""
    hashes: list[int] = field(default_factory=list)
    """Of the whole blocks of `target`, as far as somebody asked for them: see `prefixes`."""

    slot: int | None = None
    ready: bool = False
    """Since it was last given a slot, all of its target was in the cache: it decodes."""
    left_out: bool = False
    promoted: bool = False
    """The starvation tier has paid for the rest of it."""
    paid_tokens: int = 0
    """What is left of that."""
    scored: bool = False
    """The tail has been decoded, and the request is done."""

    started_us: int | None = None
    prefilled_us: int | None = None
    first_us: int | None = None
    idle_since_us: int = field(init=False)
    """Since when it waits without getting anything, in the queue or left out."""

    cached_tokens: int = 0
    forced_tokens: int = 0
    computed_tokens: int = 0
    """The most of its target that ever lay in the cache: what is below is computed again."""
    served_tokens: int = 0
    """Tokens decoded for it since it was last given a slot: its quantum."""
    stalled_steps: int = 0
    """Steps in a row in which it had a slot and no row."""
    preemptions: int = 0
    squeezes: int = 0
    """Preemptions for want of cells: each doubles what it is expected to need."""

    def __post_init__(self) -> None:
        assert self.tokens, "a prompt has at least one token"
        assert not (self.tail and self.tokens_max), "a request generates or scores, not both"
        assert self.prompt_tokens <= len(self.tokens)
        self.prompt_tokens = self.prompt_tokens or len(self.tokens)
        self.rank = rank(self.priority)
        self.idle_since_us = self.arrived_us
        self.target = self.tokens + list(self.tail[:-1]) if self.tail else self.tokens

    @property
    def produced(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def produced_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def reusable_max(self) -> int:
        """Tokens that may come out of a cache: the last one is always decoded anew, because its
        logits are what the request is waiting for."""
        return len(self.tokens) - 1

    @property
    def order(self) -> tuple[int, int, int]:
        """The more urgent class first, then the older one. Unlike shares it never changes, so the
        first in this order can be sure of getting on."""
        return (self.rank, self.arrived_us, self.id)
