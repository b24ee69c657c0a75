"""Profiles, deliveries and a scripted world for the tests of the loop."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from agent_runtime.loop import State, advance, start
from agent_runtime.loop.consulting import Consult, Consultable, Consulted
from ipc_protocol.values import Envelope, rank
from ipc_protocol.work import (
    AgentProfile,
    Answer,
    Beginning,
    Completion,
    Delivery,
    Effect,
    EffectResult,
    Evidence,
    Handle,
    Infer,
    Inferred,
    Noted,
    Recall,
    Recalled,
    ToolDescription,
    ToolResult,
    UseTool,
    Verdict,
    VerdictAction,
    Weigh,
    Weighed,
)


def arguments(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


HOST_READ = ToolDescription(
    name="host.read",
    purpose="Read a fact about this host.",
    parameters=arguments(
        path={
            "anyOf": [
                {"const": "/proc/loadavg", "description": "load, CPU, slow"},
                {"const": "@disk", "description": "disk, storage"},
            ]
        }
    ),
)
FS_WRITE = ToolDescription(
    name="fs.write",
    purpose="Write a text file in your work folder.",
    parameters=arguments(
        path={"type": "string", "maxLength": 200},
        content={"type": "string", "maxLength": 1600, "contentMediaType": "text/plain"},
    ),
)
MESSAGE_SEND = ToolDescription(
    name="message.send",
    purpose="Send a message.",
    parameters={
        "anyOf": [
            arguments(
                to={"type": "string", "enum": ["devclaw", "uxclaw"]},
                text={"type": "string", "maxLength": 600},
            ),
            arguments(
                topic={"type": "string", "enum": ["ops.report"]},
                text={"type": "string", "maxLength": 600},
            ),
        ]
    },
    outward=True,
)
TASK_CREATE = ToolDescription(
    name="task.create",
    purpose="Note a task for later.",
    parameters=arguments(title={"type": "string", "maxLength": 80}),
    outward=True,
)
MEMORY_SEARCH = ToolDescription(
    name="memory.search",
    purpose="Search what you remember.",
    parameters=arguments(query={"type": "string", "maxLength": 120}),
)
TOOLS = [HOST_READ, FS_WRITE, MESSAGE_SEND]


def profile(**changes: Any) -> AgentProfile:
    fields: dict[str, Any] = {
        "name": "opsclaw",
        "role": "agent",
        "identity": "You are OpsClaw. You keep this host healthy.",
        "duties": ["disk full on a server"],
        "delegates": {"devclaw": "writes code"},
        "tools": TOOLS,
        "publishes": ["user.reply", "ops.report"],
        "steps_max": 4,
        "tokens_max": 2048,
        "preference_weight": 1.0,
    }
    return AgentProfile(**{**fields, **changes})


def guided(**changes: Any) -> AgentProfile:
    """An agent whose model is too small to be left alone with its choices."""
    return profile(**{"preference_weight": 0.1, **changes})


def verdict(action: VerdictAction = "uncertain", to: str | None = None) -> Verdict:
    reason = "it is rather devclaw's" if to else "it is like my duty"
    certain = action != "uncertain"
    return Verdict(action=action, to=to, reason=reason, certain=certain, probability=0.75)


def evidence(**changes: Any) -> Evidence:
    """Doubtful, slightly in favour of opsclaw, unless told otherwise."""
    fields: dict[str, Any] = {
        "agent": "opsclaw",
        "score": 0.30,
        "margin": 0.05,
        "scores": {"opsclaw": 0.30, "devclaw": 0.25},
        "nobody": 0.1,
        "nearest": "disk full on a server",
        "fallback": "opsclaw",
        "recipients": ("opsclaw", "devclaw"),
        "takers": ("opsclaw",),
        "verdict": verdict(),
    }
    return Evidence(**{**fields, **changes})


def certain(**changes: Any) -> Evidence:
    """Plainly opsclaw's."""
    scores = {"opsclaw": 0.7, "devclaw": 0.2}
    return evidence(**{"score": 0.7, "scores": scores, "verdict": verdict("act"), **changes})


def handle(
    text: str = "The disk is full.",
    *,
    topic: str = "user.request",
    sender: str = "caller",
    question: str = "",
    answers: Iterable[Answer] = (),
    **beginning: Any,
) -> Handle:
    return Handle(
        delivery=7,
        attempt=1,
        envelope=Envelope(
            id=1,
            topic=topic,
            sender=sender,
            payload=text.encode(),
            correlation="c-1",
            priority="high",
            sent_us=1,
            expires_us=2,
        ),
        beginning=Beginning(**{"now_us": 1000, "seed": 1, "loop": 1, "prompts": {}, **beginning}),
        question=question,
        answers=list(answers),
    )


def travelling(handle_: Handle, number: int | None = None) -> Delivery:
    """The delivery as it is handed to a worker, under another number if one is given."""
    envelope, beginning = handle_.envelope, handle_.beginning
    return Delivery(
        delivery=handle_.delivery if number is None else number,
        attempt=handle_.attempt,
        message=envelope.id,
        topic=envelope.topic,
        sender=envelope.sender,
        payload=envelope.payload,
        correlation=envelope.correlation,
        rank=rank(envelope.priority),
        sent_us=envelope.sent_us,
        expires_us=envelope.expires_us,
        cause=envelope.cause,
        hops=envelope.hops,
        begun_us=beginning.now_us,
        seed=beginning.seed,
        must_take=beginning.must_take,
        deferred=beginning.deferred,
        evidence=beginning.evidence,
        question=handle_.question,
        answers=handle_.answers,
    )


def conversation(*answers: Answer, question: str = "Is the disk full?") -> Handle:
    return handle("", topic="agent.conductor", question=question, answers=answers)


def conductor(**changes: Any) -> AgentProfile:
    return profile(name="conductor", role="conductor", delegates={}, **changes)


def call(tool: str, **arguments: Any) -> Inferred:
    return said({"tool": tool, "arguments": arguments})


def said(value: Any, tokens: int = 20) -> Inferred:
    text = value if isinstance(value, str) else json.dumps(value)
    return Inferred(text=text, generated_tokens=tokens)


ANSWER = said("Free some space on /var.")
FINISH = said({"tool": "finish"})
REFLECTION = said({"lesson": "Look at the disk first.", "outcome": "success", "importance": 3})
READ_DISK = call("host.read", path="@disk")

World = Callable[[Effect], EffectResult]


def world(*inferred: EffectResult, **others: EffectResult) -> World:
    """Answers the model's questions in order, everything else alike, by the effect's name."""
    answers = iter(inferred)

    def answer(effect: Effect) -> EffectResult:
        match effect:
            case Infer():
                return next(answers)
            case Recall():
                return others.get("recall", Recalled(memories=[]))
            case Weigh():
                return others.get("weigh", Weighed(verdict=verdict("act")))
            case UseTool():
                return others.get("tool", ToolResult(ok=True, output="/ is 97% full"))
            case _:
                return Noted()

    return answer


def drive(
    profile_: AgentProfile, handle_: Handle, answer: World
) -> tuple[State, Completion, list[Effect]]:
    """Run a delivery to its end. Also returns every effect that was asked for."""
    effects: list[Effect] = []
    state, outcome = start(profile_, handle_)
    while not isinstance(outcome, Completion):
        assert not isinstance(outcome, Consult)
        effects.append(outcome)
        state, outcome = advance(state, answer(outcome))
    return state, outcome, effects


def drive_component(
    profile_: AgentProfile,
    handle_: Handle,
    consultable: frozenset[Consultable],
    component: Callable[[Consult], Consulted],
    answer: World,
) -> tuple[Completion, list[Effect | Consult]]:
    """The same for an agent with a component, and everything that was asked of anybody."""
    asked: list[Effect | Consult] = []
    state, outcome = start(profile_, handle_, consultable)
    while not isinstance(outcome, Completion):
        asked.append(outcome)
        is_consult = isinstance(outcome, Consult)
        state, outcome = advance(state, component(outcome) if is_consult else answer(outcome))
    return outcome, asked
