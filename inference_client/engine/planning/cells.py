"""The cells of a unified KV cache, counted by reference as llama.cpp does.

A sequence is a list of *runs*: consecutive cells that all lie in the same sequences. A prefix that
is shared by reference splits at most one run, so that counting costs the number of runs and not of
tokens.

Pure: no clock, no socket, no model.
"""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Run:
    """`tokens` cells, in every sequence of `holders`."""

    tokens: int
    holders: set[int] = field(default_factory=set)


class Cells:
    """Who holds which cells. `used` counts each of them once."""

    def __init__(self, sequences: int) -> None:
        self._runs: list[list[Run]] = [[] for _ in range(sequences)]
        self.used = 0

    def extend(self, sequence: int, tokens: int) -> None:
        runs = self._runs[sequence]
        if runs and len(runs[-1].holders) == 1:
            runs[-1].tokens += tokens
        else:
            runs.append(Run(tokens, {sequence}))
        self.used += tokens

    def share(self, source: int, target: int, tokens: int) -> None:
        """Put the first `tokens` cells of the source into the target, which is empty."""
        assert not self._runs[target], "a sequence is emptied before it shares another's cells"
        runs = self._runs[source][: self._split(source, tokens)]
        for run in runs:
            run.holders.add(target)
        self._runs[target] = runs

    def cut(self, sequence: int, tokens: int) -> None:
        """Let go of everything behind the first `tokens` cells."""
        kept = self._split(sequence, tokens)
        runs = self._runs[sequence]
        for run in runs[kept:]:
            run.holders.discard(sequence)
            if not run.holders:
                self.used -= run.tokens
        del runs[kept:]

    def own(self, sequence: int) -> int:
        """Cells that would be free without this sequence."""
        return sum(run.tokens for run in self._runs[sequence] if len(run.holders) == 1)

    def shared(self, sequence: int) -> int:
        """Cells that lie in other sequences as well."""
        return sum(run.tokens for run in self._runs[sequence] if len(run.holders) > 1)

    def _split(self, sequence: int, tokens: int) -> int:
        """How many runs make up the first `tokens` cells, once there is a border behind them."""
        for index, run in enumerate(self._runs[sequence]):
            if tokens <= 0:
                return index
            if tokens < run.tokens:
                self._divide(run, tokens)
                return index + 1
            tokens -= run.tokens
        return len(self._runs[sequence])

    def _divide(self, run: Run, tokens: int) -> None:
        rest = Run(run.tokens - tokens, set(run.holders))
        run.tokens = tokens
        for holder in run.holders:
            runs = self._runs[holder]
            runs.insert(runs.index(run) + 1, rest)
