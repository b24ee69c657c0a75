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

EFFECTS_OF_COMPONENT_MAX: Final = 1_024
"""A component asks for one thing at a time: to read 256 keys of its state and to offer 64 messages,
as many as one completion takes, are 320 effects. Three times that leaves room for memories, tasks
and health, and ends a loop within a second."""


class Allowance(msgspec.Struct, frozen=True):
    """The limits of one agent for one delivery. Time is in microseconds."""

    steps: int
    tokens: int
    time_us: int
    component: bool = False
    """Its loop consults a component, which asks for effects of its own."""

    @property
    def effects(self) -> int:
        loop = self.steps * EFFECTS_PER_STEP_MAX + EFFECTS_APART_FROM_STEPS_MAX
        return loop + EFFECTS_OF_COMPONENT_MAX if self.component else loop


class Spent(msgspec.Struct, frozen=True):
    """What the journal of a delivery adds up to. `journal_bytes` are requests and results."""

    effects: int = 0
    steps: int = 0
    tokens: int = 0
    time_us: int = 0
    journal_bytes: int = 0

    def plus(
        self, *, tool: bool = False, tokens: int = 0, time_us: int = 0, journal_bytes: int = 0
    ) -> "Spent":
        return Spent(
            effects=self.effects + 1,
            steps=self.steps + tool,
            tokens=self.tokens + tokens,
            time_us=self.time_us + time_us,
            journal_bytes=self.journal_bytes + journal_bytes,
        )


def over(spent: Spent, allowance: Allowance, *, tool: bool, infer: bool) -> str | None:
    """Why the next effect may not begin, or None. Notes, recalls and such cost an effect only."""
    if tool and spent.steps >= allowance.steps:
        return f"It has used its {allowance.steps} tool calls."
    if infer and spent.tokens >= allowance.tokens:
        return f"It has used its {allowance.tokens} tokens."
    if (tool or infer) and spent.time_us >= allowance.time_us:
        return f"It has worked for its {allowance.time_us / 1e6:g} s."
    return None
