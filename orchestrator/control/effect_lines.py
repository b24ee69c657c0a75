"""A journal entry as one line for people: what was asked, and what came of it."""

from typing import Any, Final

import msgspec

from ipc_protocol.work import (
    Effect,
    EffectResult,
    EmitHealth,
    Infer,
    Inferred,
    ListTasks,
    Note,
    Noted,
    Offer,
    Offered,
    ReadState,
    Recall,
    Recalled,
    Refused,
    StateValue,
    TaskList,
    ToolResult,
    UseTool,
    Weigh,
    Weighed,
)

SUMMARY_CHARACTERS_MAX: Final = 160
"""One line of a wide terminal."""


def summary(request: str, result: str) -> str:
    """One line about a journal entry, for people."""
    asked: Any = msgspec.json.decode(request, type=Effect)
    got: Any = msgspec.json.decode(result, type=EffectResult)
    return summarise(asked, got)


def summarise(asked: Effect, got: EffectResult) -> str:
    """The same for decoded values: what was asked, what came of it."""
    return _cut(_question(asked) + _outcome(got))


def _question(asked: Effect) -> str:
    match asked:
        case Infer() | Weigh() | ListTasks():
            return ""
        case Recall(query=query):
            return repr(query)
        case UseTool(name=name, arguments=arguments):
            return f"{name}({_arguments(arguments)})"
        case Note(summary=told):
            return told
        case Offer(topic=topic, payload_bytes=size):
            return f"{topic}, {size} bytes"
        case ReadState(key=key):
            return repr(key)
        case EmitHealth(condition=condition, detail=detail):
            return f"{condition}: {detail}"


def _outcome(got: EffectResult) -> str:
    match got:
        case Inferred(text=text):
            return text
        case Weighed(verdict=verdict, preferences=preferences):
            nats = ", ".join(f"{option} {value:.1f}" for option, value in preferences.items())
            return f"{verdict.action}: {verdict.reason}" + (f" ({nats})" if nats else "")
        case Recalled(memories=memories):
            return f" → {len(memories)} memories"
        case ToolResult(ok=ok, output=output, unknown=unknown):
            return f" {'?' if unknown else '→' if ok else '✗'} {output}"
        case Noted():
            return ""
        case Offered(problem=problem):
            return " → yes" if problem is None else f" ✗ {problem.code}: {problem.message}"
        case StateValue(value=value):
            return " → nothing" if value is None else f" → {len(value)} bytes"
        case TaskList(tasks=tasks):
            return f" → {len(tasks)} tasks"
        case Refused(code=code, message=message):
            return f" ✗ {code}: {message}"


def _arguments(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_cut(str(value), 40)}" for name, value in arguments.items())


def _cut(text: str, limit: int = SUMMARY_CHARACTERS_MAX) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
