"""What an engine counts of its steps and tokens, for its status. Pure."""

from bisect import bisect_left
from typing import Final

from ipc_protocol.inference import Distribution
from ipc_protocol.values import PRIORITIES, Priority

STEP_SECONDS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""From one token of a small model on a GPU to a batch of prefill on a processor."""

STEP_TOKENS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

INTER_TOKEN_SECONDS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0)
"""To what a request waits between two of its tokens when it has been swapped out in between."""


class Histogram:
    """Counts by bucket; a value that equals an upper end lies below it."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """So often the same value."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._total += value * count

    def snapshot(self) -> Distribution:
        return Distribution(bounds=list(self._bounds), counts=list(self._counts), total=self._total)


class Telemetry:
    """The distributions of one engine."""

    def __init__(self) -> None:
        self.step_seconds = Histogram(STEP_SECONDS)
        self.step_tokens = Histogram(STEP_TOKENS)
        self.inter_token_seconds: dict[Priority, Histogram] = {
            priority: Histogram(INTER_TOKEN_SECONDS) for priority in PRIORITIES
        }
        self.forced_tokens = 0

    def stepped(self, elapsed_us: int, tokens: int) -> None:
        """One batch was decoded."""
        self.step_seconds.observe(elapsed_us / 1e6)
        self.step_tokens.observe(tokens)

    def produced(self, priority: Priority, tokens: int, elapsed_us: int) -> None:
        """So many tokens came at once, so long after the ones before."""
        self.inter_token_seconds[priority].observe(elapsed_us / tokens / 1e6, tokens)
