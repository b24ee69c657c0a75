"""`message.send`: to an agent one may delegate to, or on a topic one has declared.

The message is staged: it leaves with the completion, in the transaction that acknowledges the
input. The bus has the last word then; checking here lets the agent choose another way while it can.
"""

from typing import Annotated, Final

from msgspec import Meta

from ipc_protocol.errors import Failure
from ipc_protocol.work import Outgoing, ToolResult
from orchestrator.tools import limits
from orchestrator.tools.tool import (
    Grants,
    Schema,
    Tool,
    ToolArguments,
    ToolContext,
    choice,
    record,
    text,
)

AGENT_TOPIC: Final = "agent."


class SendArguments(ToolArguments, frozen=True, kw_only=True):
    """Exactly one of `to` and `topic`."""

    to: Annotated[str, Meta(max_length=limits.TOPIC_CHARACTERS_MAX)] | None = None
    topic: Annotated[str, Meta(max_length=limits.TOPIC_CHARACTERS_MAX)] | None = None
    text: Annotated[str, Meta(max_length=limits.WRITE_CHARACTERS_MAX)]


async def send(arguments: SendArguments, context: ToolContext) -> ToolResult:
    if not arguments.text.strip():
        raise Failure("tool.failed", "The message is empty.", "Say what is to be done.")
    topic = _topic(arguments, context)
    return ToolResult(
        ok=True,
        output=f"The message goes to {arguments.to or topic} when you are done.",
        staged=Outgoing(topic=topic, payload=arguments.text.encode(errors="replace")),
    )


def _topic(arguments: SendArguments, context: ToolContext) -> str:
    to, topic = arguments.to, arguments.topic
    if to is not None and topic is None:
        return _agent_topic(to, context)
    if topic is not None and to is None:
        if topic.startswith(AGENT_TOPIC):
            return _agent_topic(topic.removeprefix(AGENT_TOPIC), context)
        if context.may_publish(topic):
            return topic
        declared = ", ".join(context.grants.publishes) or "none"
        raise Failure(
            "tool.not-permitted",
            f"You have not declared the topic {topic!r}.",
            f"Your topics are: {declared}.",
        )
    raise Failure(
        "tool.failed", "A message needs exactly one receiver.", "Give either `to` or `topic`."
    )


def _agent_topic(agent: str, context: ToolContext) -> str:
    delegates = context.grants.delegates
    if agent not in delegates:
        raise Failure(
            "tool.not-permitted",
            f"You may not send to the agent {agent!r}.",
            f"You may send to: {', '.join(delegates) or 'none'}.",
        )
    return AGENT_TOPIC + agent


def parameters(grants: Grants) -> Schema | None:
    """A choice of receivers. Topics with wildcards are no choice: then any topic may be named."""
    message = text(limits.TEXT_CHARACTERS_MAX)
    ways: list[Schema] = []
    if grants.delegates:
        ways.append(record({"to": choice(grants.delegates), "text": message}))
    if grants.publishes:
        open_ended = any({"*", ">"} & set(topic.split(".")) for topic in grants.publishes)
        topics = text(limits.TOPIC_CHARACTERS_MAX) if open_ended else choice(grants.publishes)
        ways.append(record({"topic": topics, "text": message}))
    if not ways:
        return None
    return ways[0] if len(ways) == 1 else {"anyOf": ways}


MESSAGE_SEND: Final = Tool(
    "message.send",
    "Send a message to an agent or on a topic.",
    SendArguments,
    parameters,
    send,
    outward=True,
)
