"""Host memory for sequences that had to make way, within a bound.

An entry is the state of a whole sequence. It belongs to a waiting request, which resumes from it,
or is a resident: what an agent left behind, kept until that agent returns.

The rule of privacy: entries are found by the agent that left them and by nobody else, however well
another's prompt would fit. Cells in the KV cache may be shared by identical tokens, which tells
nobody anything; host memory is kept apart, so that what an agent wrote leaves it only to return.

Pure: it counts bytes, and the shell moves them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from inference_client.engine.planning.prefixes import common_prefix
from inference_client.engine.planning.request import Request

AGENT_RESIDENTS_MAX: Final = 4
"""Residents of one agent: what it works on lately. More would be older turns of the same talk."""


@dataclass(eq=False)
class Swapped:
    """A sequence in host memory. `size` bytes are an estimate until the shell has reported."""

    handle: int
    agent: str
    rank: int
    tokens: list[int]
    size: int
    used_us: int
    request: Request | None
    settled: bool = False
    """The shell has made it: it can be read back, or be given up."""


class SwapArea:
    """At most `bytes_max` bytes of sequences, each `fixed_bytes` and `token_bytes` for a token."""

    def __init__(self, bytes_max: int, token_bytes: int, fixed_bytes: int = 0) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self._token_bytes = token_bytes
        self._fixed_bytes = fixed_bytes
        self._entries: dict[int, Swapped] = {}
        self._by_agent: dict[str, dict[int, Swapped]] = {}
        self._handles = 0
        self._held: int | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def size_of(self, tokens: int) -> int:
        """Bytes that a sequence is expected to need, at most."""
        return self._fixed_bytes + tokens * self._token_bytes

    def get(self, handle: int) -> Swapped | None:
        return self._entries.get(handle)

    def hold(self, entry: Swapped | None) -> None:
        """Nobody may push this entry out: it is about to be read back. None: there is none."""
        self._held = None if entry is None else entry.handle

    def put(
        self, agent: str, rank: int, tokens: list[int], request: Request | None, now_us: int
    ) -> Swapped:
        """Count a sequence in, for which `make_room` has seen to the room."""
        size = self.size_of(len(tokens))
        assert self.bytes_used + size <= self.bytes_max, "the swap area has a bound"
        self._handles += 1
        entry = Swapped(self._handles, agent, rank, list(tokens), size, now_us, request)
        self._entries[entry.handle] = entry
        self._by_agent.setdefault(agent, {})[entry.handle] = entry
        self.bytes_used += size
        return entry

    def remove(self, handle: int) -> None:
        entry = self._entries.pop(handle)
        self.bytes_used -= entry.size
        own = self._by_agent[entry.agent]
        del own[handle]
        if not own:
            del self._by_agent[entry.agent]

    def settle(self, handle: int, size: int) -> None:
        """What the shell says of a sequence that it has kept, or could not keep: size 0."""
        entry = self._entries.get(handle)
        if entry is None:
            return
        if not size:
            self.remove(handle)
            return
        assert size <= entry.size, "the shell keeps no more than it was allowed"
        self.bytes_used += size - entry.size
        entry.size = size
        entry.settled = True

    def disown(self, request: Request) -> None:
        """The request needs its sequence no more; it stays as a resident of its agent."""
        for entry in self._by_agent.get(request.agent, {}).values():
            if entry.request is request:
                entry.request = None

    def of(self, request: Request) -> Swapped | None:
        """The sequence that waits for the request to resume."""
        own = self._by_agent.get(request.agent, {})
        return next((entry for entry in own.values() if entry.request is request), None)

    def longest(self, request: Request, *, partial: bool) -> tuple[int, Swapped | None]:
        """The most tokens that the request finds among what its own agent left here.

        Without `partial` an entry is of use only if the request begins with all of it. What
        another request of the agent waits for is left to that one.
        """
        best: tuple[int, Swapped | None] = (0, None)
        for entry in self._by_agent.get(request.agent, {}).values():
            if not entry.settled or entry.request not in (None, request):
                continue
            length = min(common_prefix(entry.tokens, request.target), request.reusable_max)
            if not partial and length < len(entry.tokens):
                continue
            if length > best[0]:
                best = (length, entry)
        return best

    def outdated(self, agent: str, tokens: list[int]) -> list[Swapped]:
        """Residents that are not needed once `tokens` of the agent are kept.

        Those that are a beginning of it, and the oldest of too many.
        """
        idle = [
            entry
            for entry in self._by_agent.get(agent, {}).values()
            if entry.request is None and self._may_leave(entry)
        ]
        within = [one for one in idle if one.tokens == tokens[: len(one.tokens)]]
        others = sorted(
            (one for one in idle if one not in within), key=lambda one: (one.used_us, one.handle)
        )
        return within + others[: max(0, len(others) - AGENT_RESIDENTS_MAX + 1)]

    def make_room(
        self, size: int, worth: Callable[[Swapped], float], limit: float
    ) -> list[Swapped] | None:
        """The entries of the least worth whose leaving makes room. None: it cannot be made.

        None of them may be worth as much as `limit`.
        """
        if size > self.bytes_max:
            return None
        free = self.bytes_max - self.bytes_used
        leaving: list[Swapped] = []
        if free >= size:
            return leaving
        pairs = [(worth(one), one) for one in self._entries.values() if self._may_leave(one)]
        for value, entry in sorted(pairs, key=lambda pair: (pair[0], pair[1].handle)):
            if value >= limit:
                return None
            leaving.append(entry)
            free += entry.size
            if free >= size:
                return leaving
        return None

    def _may_leave(self, entry: Swapped) -> bool:
        return entry.settled and entry.handle != self._held
