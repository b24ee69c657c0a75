"""What was seen, as it travels: beneath an answer, verbatim, from an agent to the conductor.

A model retells what its tools returned, and a small one gets it wrong. So the loop writes the facts
themselves under each answer, and the conductor's loop takes them out again and puts them under the
reply. No model writes or reads this form: `with_facts` and `parted` are the only two who know it.
"""

from collections.abc import Iterable
from typing import Final

from agent_runtime.loop.prompts import shorten
from agent_runtime.loop.state import Observation

FACT_CHARS_MAX: Final = 200
"""A reading of the host is one or two lines; the beginning of a longer output tells which."""

FACTS_MAX: Final = 8
"""As many as an agent has steps by default. A reader wants the answer, not a log."""

_ARGUMENT_CHARS = 40
_QUOTED_CHARS = 60

_HEADING: Final = "Seen:"
_BREAK: Final = f"\n\n{_HEADING}\n- "

_HEARSAY: Final = frozenset({"memory.search"})
"""Tools that look into the agent and not at the world: what they find is old."""


def facts_of(observations: Iterable[Observation]) -> list[str]:
    """One line for each thing that was seen. A call that failed has shown nothing; one that may
    have happened is for the reader to look at."""
    return [
        shorten(f"{described(seen)}: {seen.output}", FACT_CHARS_MAX)
        for seen in _telling(observations)
    ]


def _telling(observations: Iterable[Observation]) -> list[Observation]:
    return [seen for seen in observations if (seen.ok or seen.unknown) and not is_hearsay(seen)]


def is_hearsay(seen: Observation) -> bool:
    return seen.call.tool in _HEARSAY


def outputs_of(observations: Iterable[Observation]) -> list[str]:
    """The facts in the tools' own words."""
    return [shorten(seen.output, FACT_CHARS_MAX) for seen in _telling(observations)]


def quotable(texts: Iterable[str]) -> dict[str, str]:
    """Texts that a model may answer with, each by its beginning, which is enough to point at it."""
    return {shorten(text, _QUOTED_CHARS): text for text in texts if text}


def described(observation: Observation) -> str:
    """The call in a few words: the tool and its short arguments."""
    arguments = (str(value) for value in observation.call.arguments.values())
    lines = [shorten(value, _ARGUMENT_CHARS) for value in arguments if "\n" not in value]
    return " ".join([observation.call.tool, *lines])


def with_facts(text: str, facts: Iterable[str]) -> str:
    """The text, and beneath it the facts, each once. What looks like facts in the text is none."""
    spoken = text.replace(_BREAK, "\n\n- ").strip()
    once = list(dict.fromkeys(facts))[:FACTS_MAX]
    return f"{spoken}{_BREAK}" + "\n- ".join(once) if once else spoken


def parted(text: str) -> tuple[str, list[str]]:
    """An answer as `with_facts` wrote it, taken apart again."""
    spoken, found, block = text.partition(_BREAK)
    return spoken, [line.removeprefix("- ") for line in block.splitlines()] if found else []
