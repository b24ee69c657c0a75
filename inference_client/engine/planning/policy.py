"""The numbers of the pool's policy, each with its reason, and what it counts.

Pure: no clock, no socket, no model.
"""

from dataclasses import dataclass, field
from typing import Final

URGENT: Final = 0
"""The rank of the class that nothing may delay."""

SCORED_OUTPUTS_MAX: Final = 32
"""Rows of logits for continuations in one step, over all of them. Each is as wide as the
vocabulary, half a megabyte or more, and the backend has room for these beside one of every slot."""


@dataclass(frozen=True)
class Policy:
    """Times are microseconds. Tokens are per step unless the name says otherwise."""

    width: int
    """Sequences that one step decodes at about the speed of one, until that was measured: the
    threads on a processor, as many as there are slots on a GPU."""
    context: int
    """The most tokens of one sequence: what the model was made for, and no more than the cells."""
    prefill_tokens: int = 512
    """The most prefill of a step. More makes nothing faster, and every request waits for it."""
    prefill_tokens_min: int = 8
    """The least prefill beside decodes of a more urgent class, so that it always gets on."""
    step_us: int = 1_200_000
    """Of a step that only prefills, when nothing more urgent has come lately: the whole of
    `prefill_tokens` on a GPU or on two processor cores."""
    step_alert_us: int = 100_000
    """Of a step that prefills, when something more urgent came within `alert_us`: it may come again
    in the middle of the step, and then waits for the rest of it."""
    alert_us: int = 60_000_000
    gap_factor: float = 3.0
    """Beside decodes of its own class, prefill makes a step at most this many times longer than
    one that only decodes, or `gap_us` long if that is more."""
    gap_us: int = 400_000
    """Between two tokens of a decode beside prefill of its own class, for each request that is
    prefilled, up to `step_us`: one long prompt does not hold others up, and a burst of requests is
    prefilled as fast as it goes."""
    gap_tokens: int = 128
    """But this much prefill, however slow the machine is just now: smaller chunks cost up to twice
    as much for each token, so that in the end all are slower."""
    alert_tokens: int = 24
    """The same where something more urgent came lately, which would have to wait for the step."""
    beneath_factor: float = 1.5
    """Beside decodes of a more urgent class, which prefill may delay by half, ..."""
    beneath_us: int = 50_000
    """... or to this, if that is more: what a reader does not notice."""
    quantum_tokens: int = 16
    """Tokens that a request is given before it has to make way; twice as many after each time that
    it did, so that it gets on however often somebody more urgent comes, ..."""
    quantum_doublings_max: int = 5
    """... up to 512 tokens, for which an urgent request then waits at most."""
    preemptions_max: int = 8
    """After so many preemptions a request stays where it is until it ends. By then it has had two
    thousand tokens in all, more than nearly every answer."""
    starved_us: int = 30_000_000
    """After so long without anything a request enters the starvation tier: longer than a burst of
    urgent work takes, and as long as somebody waits for an answer before asking what is wrong."""
    starved_share: float = 0.1
    """The tier's part of all tokens, while there is somebody in it."""
    preamble_tokens_min: int = 64
    """A beginning that somebody else is computing just now is waited for if it saves as many
    tokens: a quarter of a second on a processor core."""
    preamble_stalled_max: int = 4
    """It is not waited for any longer when it did not get on for so many steps."""
    deadline_margin: float = 0.5
    """Of the time that a request is expected to need: if not even that is left before its deadline,
    it cannot be met. Answers may be shorter than expected, and steps faster than measured."""

    def batch_tokens(self, slots: int) -> int:
        """The most tokens that one step can hold."""
        return slots + self.prefill_tokens


@dataclass
class Counters:
    """What the pool has counted since it started.

    Strengths of a preemption: *left-out* of a step with its cache where it was, *swapped* to host
    memory, and *dropped* to be computed again.
    """

    preemptions: dict[str, int] = field(
        default_factory=lambda: {"left-out": 0, "swapped": 0, "dropped": 0}
    )
    swapped_out_bytes: int = 0
    swapped_in_bytes: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    recomputed_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
