"""What is wrong with a configuration: where, what was found, what was expected, and the cure."""

import difflib
from collections.abc import Iterable
from pathlib import Path

import msgspec


class ConfigProblem(msgspec.Struct, frozen=True, kw_only=True):
    """One mistake, or one warning. `line` counts from 1; None where a file as a whole is meant."""

    file: Path
    line: int | None
    key: str
    found: str
    expected: str
    cure: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else str(self.file)
        text = f"{where}: {self.key}: " if self.key else f"{where}: "
        text += f"found {self.found}, expected {self.expected}."
        return f"{text} {self.cure}".rstrip()


class ConfigErrors(Exception):
    """A configuration that starts nothing. All that is wrong with it, in the order of the files."""

    def __init__(self, problems: list[ConfigProblem], warnings: list[ConfigProblem]) -> None:
        assert problems
        self.problems = problems
        self.warnings = warnings
        super().__init__("\n".join(str(problem) for problem in problems))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    by_folded = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A cure for an unknown name; empty when nothing is near."""
    close = nearest(name, names)
    return f"Did you mean {close!r}?" if close else ""


def one_of(names: Iterable[str]) -> str:
    """For `expected`: the names to choose from."""
    listed = [repr(name) for name in names]
    if not listed:
        return "nothing, for there is none"
    return listed[0] if len(listed) == 1 else f"one of {', '.join(listed)}"
