"""`attention.request`: a question that only a person can answer.

It has no result of its own: the driver parks the delivery, and the person's answer becomes the
result that is journaled for this step.
"""

from typing import Annotated, Final

from msgspec import Meta

from ipc_protocol.errors import Failure
from orchestrator.tools import limits
from orchestrator.tools.tool import NeedsPerson, Tool, ToolArguments, ToolContext, record, text


class AttentionArguments(ToolArguments, frozen=True):
    question: Annotated[str, Meta(max_length=limits.TEXT_CHARACTERS_MAX)]


async def request(arguments: AttentionArguments, _: ToolContext) -> NeedsPerson:
    question = arguments.question.strip()
    if not question:
        raise Failure("tool.failed", "There is no question.", "Ask what the person shall decide.")
    return NeedsPerson(question)


ATTENTION_REQUEST: Final = Tool(
    "attention.request",
    "Ask a person, and wait for the answer.",
    AttentionArguments,
    lambda _: record({"question": text(limits.TEXT_CHARACTERS_MAX)}),
    request,
    outward=True,
)
