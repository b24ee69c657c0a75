"""The states of a conversation. Pure.

*open* has deliveries under way, *composing* has none and its reply is being composed, *answered*
has its reply. A contribution is a message that makes new work or is an answer itself; one that
comes late opens the conversation again.
"""

from typing import Final, Literal

from orchestrator.bus.lifecycle import Lifecycle

ConversationState = Literal["open", "composing", "answered"]
ConversationEvent = Literal["contribute", "compose", "answer"]

STATES: Final[tuple[ConversationState, ...]] = ("open", "composing", "answered")
EVENTS: Final[tuple[ConversationEvent, ...]] = ("contribute", "compose", "answer")

CONVERSATION: Final = Lifecycle[ConversationState, ConversationEvent](
    "conversation",
    {
        ("open", "contribute"): "open",
        ("open", "compose"): "composing",
        ("open", "answer"): "answered",
        ("composing", "contribute"): "open",
        ("composing", "answer"): "answered",
        ("answered", "contribute"): "open",
    },
)


def round_after(state: ConversationState, event: ConversationEvent, number: int) -> int:
    """The round after `event`. A new one begins when an answered conversation opens again."""
    return number + 1 if (state, event) == ("answered", "contribute") else number


def joined(answers: list[tuple[str, str]]) -> str:
    """The reply where nobody composes one: each (agent, text) under its author's name."""
    return "\n\n".join(f"{agent}: {text}" for agent, text in answers)
