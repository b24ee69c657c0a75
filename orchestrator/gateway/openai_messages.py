"""OpenAI's messages as the three roles that every chat template knows.

A developer is a system, the calls of an assistant are its text, and the results of tools are told
by the user, those of one turn together: many templates refuse two messages of one role in a row.
Pure.
"""

from collections.abc import Sequence
from typing import Literal

from ipc_protocol.inference import ChatMessage
from orchestrator.gateway.openai_bodies import ChatTurn, Part
from orchestrator.gateway.openai_errors import ApiError, invalid
from orchestrator.gateway.openai_tools import called


def chat_messages(turns: Sequence[ChatTurn], instructions: str | None) -> list[ChatMessage]:
    """The messages, with `instructions` behind what the first system message says.

    Raises `ApiError` for a role or a kind of content that is not offered.
    """
    messages: list[ChatMessage] = []
    results: list[str] = []
    names: dict[str, str] = {}
    for place, turn in enumerate(turns):
        where = f"messages[{place}]"
        text = _text_of(turn, where)
        if turn.role == "tool":
            results.append(_result(names.get(turn.tool_call_id or ""), text))
            continue
        _tell_results(messages, results)
        if turn.role == "assistant":
            text = "\n".join(filter(None, [text, *_calls_of(turn, names, where)]))
        messages.append(ChatMessage(role=_role_of(turn, where), content=text))
    _tell_results(messages, results)
    return messages if instructions is None else _instructed(messages, instructions)


def _instructed(messages: list[ChatMessage], instructions: str) -> list[ChatMessage]:
    if messages[0].role != "system":
        return [ChatMessage(role="system", content=instructions), *messages]
    content = f"{messages[0].content}\n\n{instructions}"
    return [ChatMessage(role="system", content=content), *messages[1:]]


def _role_of(turn: ChatTurn, where: str) -> Literal["system", "user", "assistant"]:
    match turn.role:
        case "system" | "developer":
            return "system"
        case "user":
            return "user"
        case "assistant":
            return "assistant"
    raise invalid(
        f"Invalid value for '{where}.role': '{turn.role}'. Expected 'system', 'developer', 'user', "
        "'assistant' or 'tool'.",
        f"{where}.role",
        "invalid_value",
    )


def _text_of(turn: ChatTurn, where: str) -> str:
    if turn.content is None:
        if turn.role == "assistant":  # it may have called tools only
            return ""
        raise invalid(f"'{where}.content' is missing.", f"{where}.content")
    if isinstance(turn.content, str):
        return turn.content
    return "".join(
        _text_of_part(part, f"{where}.content[{place}]") for place, part in enumerate(turn.content)
    )


def _text_of_part(part: Part, where: str) -> str:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if text is None:
        raise _no_text(part, where)
    return text


def _no_text(part: Part, where: str) -> ApiError:
    if part.type in ("text", "refusal"):
        return invalid(f"'{where}.{part.type}' is missing.", f"{where}.{part.type}")
    return invalid(
        f"'{where}' is of type '{part.type}'; these models read text only.",
        f"{where}.type",
        "unsupported_content",
    )


def _calls_of(turn: ChatTurn, names: dict[str, str], where: str) -> list[str]:
    """The calls as the model has written them. Their ids are noted in `names`."""
    calls = []
    for place, call in enumerate(turn.tool_calls or ()):
        if call.function is None:
            raise invalid("A call is of a 'function'.", f"{where}.tool_calls[{place}]")
        names[call.id] = call.function.name
        calls.append(called(call.function.name, call.function.arguments))
    return calls


def _result(name: str | None, text: str) -> str:
    return f"Result of {name}:\n{text}" if name else f"Result:\n{text}"


def _tell_results(messages: list[ChatMessage], results: list[str]) -> None:
    if results:
        messages.append(ChatMessage(role="user", content="\n\n".join(results)))
        results.clear()
