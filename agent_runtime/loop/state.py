"""What the loop remembers between two effects: one frozen value, changed only by replacement."""

import enum
from typing import Any, Final

import msgspec

from agent_runtime.loop.consulting import Advice, Consult, Consultable, Judgement
from agent_runtime.loop.decisions import Reflection, ToolCall, TriageDecision
from ipc_protocol.work import (
    AgentProfile,
    Completion,
    Effect,
    Handle,
    Memory,
    MemoryEntry,
    Outgoing,
    StateChange,
    TaskChange,
    Weighed,
)


class Step(enum.Enum):
    """Where the loop stands, named after what it waits for."""

    BEGIN = "begin"
    CONSULT_TRIAGE = "consult-triage"
    TRIAGE_RECALL = "triage-recall"
    TRIAGE_WEIGH = "triage-weigh"
    TRIAGE_DECIDE = "triage-decide"
    TRIAGE_NOTE = "triage-note"
    CONSULT_ACT = "consult-act"
    ACT_RECALL = "act-recall"
    ACT_CHOOSE = "act-choose"
    ACT_WRITE = "act-write"
    ACT_USE = "act-use"
    ACT_ANSWER = "act-answer"
    COMPOSE = "compose"
    CONSULT_REFLECT = "consult-reflect"
    REFLECT = "reflect"
    DONE = "done"


class Event(enum.Enum):
    """What an effect's result, or the lack of need for it, means."""

    ANSWERS_CAME = "answers came"
    MESSAGE_CAME = "message came"
    HANDED_OVER = "handed over"
    ADVISED = "advised"
    LEFT = "left to the model"
    HANDLED = "handled"
    SETTLED = "settled"
    DOUBTFUL = "doubtful"
    RECALLED = "recalled"
    WEIGHED = "weighed"
    DECIDED = "decided"
    TAKEN = "taken"
    LET_GO = "let go"
    STUMBLED = "stumbled"
    CALL_CHOSEN = "call chosen"
    TEXT_WANTED = "text wanted"
    WRITTEN = "written"
    OBSERVED = "observed"
    ENOUGH = "enough"
    ANSWERED = "answered"
    REFLECTED = "reflected"


class Observation(msgspec.Struct, frozen=True):
    """What a tool returned, already cut to what the transcript shows."""

    call: ToolCall
    ok: bool
    output: str
    unknown: bool = False
    """Nobody knows whether the call happened: something died meanwhile."""

    @property
    def verb(self) -> str:
        """What came of the call, between its words and its output."""
        if self.unknown:
            return "may have happened or not"
        return "returned" if self.ok else "failed"


class State(msgspec.Struct, frozen=True):
    profile: AgentProfile
    handle: Handle
    component: frozenset[Consultable] = frozenset()
    """The phases in which the agent's component is consulted."""
    step: Step = Step.BEGIN
    outstanding: Effect | Consult | None = None
    spent_tokens: int = 0
    memories: tuple[Memory, ...] | None = None
    weighed: Weighed | None = None
    decision: TriageDecision | None = None
    """What the model said in triage, if it was asked; `triage.decision` is what holds."""
    advice: Advice | None = None
    """What the component said in triage, if it did."""
    handled: bool = False
    """The component acted; what it sent is in `staged`."""
    call: ToolCall = ToolCall(tool="")
    """The call that was chosen last."""
    stumbled: bool = False
    """The first question for a call led to none; it was asked again, for the first tool only."""
    observations: tuple[Observation, ...] = ()
    staged: tuple[Outgoing | TaskChange, ...] = ()
    noted: tuple[MemoryEntry, ...] = ()
    """Memories of the component's own making."""
    kept: tuple[StateChange, ...] = ()
    """Changes of the component's state."""
    left_out: int = 0
    """Outputs of the component that were too many to be kept."""
    answer: str = ""
    trouble: str = ""
    """Why the model did not answer, when it did not."""
    reflection: Reflection | None = None
    judgement: Judgement | None = None
    """The component's reflection, instead of the model's."""

    def but(self, **changes: Any) -> "State":
        return msgspec.structs.replace(self, **changes)

    @property
    def composing(self) -> bool:
        """The delivery is a settled conversation, and its receiver the one who sums it up."""
        conversation = self.handle.answers or self.handle.question
        own_topic = f"agent.{self.profile.name}"
        return (
            self.profile.role == "conductor"
            and self.handle.envelope.topic == own_topic
            and bool(conversation)
        )

    @property
    def request(self) -> str:
        """What the delivery is about."""
        return self.handle.question or payload_text(self.handle.envelope.payload)

    @property
    def guided(self) -> bool:
        """The model counts for little in triage, so it is led where it would choose at random."""
        return self.profile.preference_weight < JUDGEMENT_WEIGHT_MIN

    @property
    def tokens_left(self) -> int:
        return self.profile.tokens_max - self.spent_tokens


JUDGEMENT_WEIGHT_MIN: Final = 0.5
"""A model whose preference counts less than this in triage is not left alone with other choices
either: it puts no work off, and `guidance` narrows its tools."""

Outcome = tuple[State, Effect | Consult | Completion]

REPLY_TOPIC: Final = "user.reply"
"""Where answers go. Who does not publish on it works in silence."""


def payload_text(payload: bytes) -> str:
    return payload.decode("utf-8", errors="replace").strip()
