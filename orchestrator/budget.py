"""What one delivery may still spend. Pure; the figures come from its journal.

Time counts while the delivery has what it needs: waiting for a slot, a person or a restart does
not. A delivery over its budget is refused further effects with `work.budget`; its loop then ends
with what it has.
"""

from typing import Final

import msgspec

EFFECTS_PER_STEP_MAX: Final = 4
"""A tool call costs a question, its tool, a retry of the question and a note at most."""

EFFECTS_APART_FROM_STEPS_MAX: Final = 24
"""Triage (recall, weigh, decide, retry, note), twice where a delivery was deferred, the recall and
last answer of act with its retry, reflection with its retry, and some for other brains."""


class Allowance(msgspec.Struct, frozen=True):
    """The limits of one agent for one delivery. Time is in microseconds."""

    steps: int
    tokens: int
    time_us: int

    @property
    def effects(self) -> int:
        return self.steps * EFFECTS_PER_STEP_MAX + EFFECTS_APART_FROM_STEPS_MAX


class Spent(msgspec.Struct, frozen=True):
    """What the journal of a delivery adds up to."""

    effects: int = 0
    steps: int = 0
    tokens: int = 0
    time_us: int = 0

    def plus(self, *, tool: bool, tokens: int, time_us: int) -> "Spent":
        return Spent(
            effects=self.effects + 1,
            steps=self.steps + tool,
            tokens=self.tokens + tokens,
            time_us=self.time_us + time_us,
        )


def over(spent: Spent, allowance: Allowance, *, tool: bool, infer: bool) -> str | None:
    """Why the next effect may not begin, or None. Notes and recalls cost an effect only."""
    if tool and spent.steps >= allowance.steps:
        return f"It has used its {allowance.steps} tool calls."
    if infer and spent.tokens >= allowance.tokens:
        return f"It has used its {allowance.tokens} tokens."
    if (tool or infer) and spent.time_us >= allowance.time_us:
        return f"It has worked for its {allowance.time_us / 1e6:g} s."
    return None
