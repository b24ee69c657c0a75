"""Chat messages as prompt fragments: what the template says, and what the messages say.

A message may contain the text of a control token, such as the end of a turn. Were the rendered
prompt tokenised as a whole, that text would become the control token, and a message could put words
into another's mouth. So the template is rendered with a placeholder for each content, and only the
template's own text may become control tokens. Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ipc_protocol.inference import ChatMessage

OPEN, CLOSE = "\ue000", "\ue001"
"""Private-use characters around a placeholder: no template has them."""


@dataclass(frozen=True)
class Fragment:
    """A piece of the prompt. Only in a `template` piece does text become control tokens."""

    text: str
    template: bool


def fragments_of(
    messages: Sequence[ChatMessage], render: Callable[[Sequence[tuple[str, str]]], str]
) -> list[Fragment]:
    """The prompt in pieces. `render` applies the chat template to (role, content) pairs."""
    placeholders = [f"{OPEN}{index}{CLOSE}" for index in range(len(messages))]
    pairs = [(message.role, mark) for message, mark in zip(messages, placeholders, strict=True)]
    rest = render(pairs)
    fragments = []
    for message, mark in zip(messages, placeholders, strict=True):
        before, found, rest = rest.partition(mark)
        assert found, f"the chat template leaves out the message of role {message.role}"
        fragments.append(Fragment(before, template=True))
        fragments.append(Fragment(message.content, template=False))
    fragments.append(Fragment(rest, template=True))
    return [fragment for fragment in fragments if fragment.text]
