"""The end of a delivery: the conductor's reply, the reflection, and the completion they go into."""

from typing import Final

from agent_runtime.loop import act, budget, triage
from agent_runtime.loop.asking import described, infer, read_text, was_cut
from agent_runtime.loop.decisions import (
    LESSON_CHARS_MAX,
    Reflection,
    Success,
    parse,
    reflection_schema,
)
from agent_runtime.loop.prompts import shorten, whole_sentences
from agent_runtime.loop.state import REPLY_TOPIC, Event, State
from ipc_protocol.work import (
    Completion,
    Effect,
    EffectResult,
    MemoryEntry,
    Outgoing,
    TaskChange,
)

_REQUEST_CHARS = 120
_ANSWER_CHARS = 120
IMPORTANCE_MAX: Final = 5
PLAIN_IMPORTANCE: Final = 0.4
"""Of a memory that the model did not judge: the second of its five levels."""

# ---- Compose ------------------------------------------------------------------------------------


def enter_compose(state: State) -> Effect | Event:
    if not state.handle.answers:
        return Event.ANSWERED
    tokens_max = state.profile.tokens_max
    asked = infer(
        state,
        "compose",
        "compose",
        {},
        tokens=budget.share(tokens_max, budget.COMPOSE_SHARE),
        kept=budget.share(tokens_max, budget.REFLECT_SHARE),
    )
    return asked or Event.ANSWERED


def read_compose(state: State, result: EffectResult) -> tuple[State, Event]:
    cut = was_cut(state, result)
    state, text = read_text(state, result)
    if text is not None:
        state = state.but(answer=whole_sentences(text) if cut else text)
    return state, Event.ANSWERED


def composed_reply(state: State) -> str:
    answers = state.handle.answers
    if state.answer:
        return state.answer
    if not answers:
        return "Nobody had an answer to this."
    if len(answers) == 1:
        return answers[0].text
    return "\n".join(f"{answer.agent}: {answer.text}" for answer in answers)


# ---- Reflect ------------------------------------------------------------------------------------


def enter_reflect(state: State) -> Effect | Event:
    asked = infer(
        state,
        "reflect",
        "reflect",
        {"reply": shorten(_spoken(state), _ANSWER_CHARS)},
        tokens=budget.share(state.profile.tokens_max, budget.REFLECT_SHARE),
        schema=reflection_schema(_outcomes(state)),
    )
    return asked or Event.REFLECTED


def read_reflect(state: State, result: EffectResult) -> tuple[State, Event]:
    troubled = state.trouble
    state, text = read_text(state, result)
    reflection = None if text is None else parse(text, Reflection)
    if reflection is not None and reflection.outcome not in _outcomes(state):
        reflection = None
    # Why there was no answer counts for more than why there was no reflection.
    return state.but(reflection=reflection, trouble=troubled), Event.REFLECTED


def memory_of(state: State) -> MemoryEntry:
    """What is kept of this delivery, in one line, with the model's judgement or a plain one."""
    calls = "; ".join(described(seen) for seen in state.observations) or "no tool"
    asked = shorten(state.request, _REQUEST_CHARS)
    text = f"{asked} → {calls} → {shorten(_spoken(state), _ANSWER_CHARS)}"
    if state.reflection is None:
        return _plain_memory(state, text)
    return MemoryEntry(
        text=text,
        outcome=state.reflection.outcome,
        lesson=state.reflection.lesson,
        importance=state.reflection.importance / IMPORTANCE_MAX,
    )


def _plain_memory(state: State, text: str) -> MemoryEntry:
    failed = [seen for seen in state.observations if not seen.ok]
    lesson = state.trouble
    if failed:
        lesson = f"{described(failed[-1])} failed: {failed[-1].output}"
    return MemoryEntry(
        text=text,
        outcome=_outcomes(state)[0],
        lesson=shorten(lesson, LESSON_CHARS_MAX),
        importance=PLAIN_IMPORTANCE,
    )


def _outcomes(state: State) -> list[Success]:
    """What the facts leave open, the likeliest first: a model judges no tool's failure away."""
    if state.composing:
        return ["success", "partial"] if state.answer else ["partial"]
    if _is_failed(state):
        return ["failure"]
    if not state.answer or not all(seen.ok for seen in state.observations):
        return ["partial", "failure"]
    return ["success", "partial"]


def _is_failed(state: State) -> bool:
    """Nothing was seen, and nothing could be said."""
    return not state.answer and not any(seen.ok for seen in state.observations)


def _spoken(state: State) -> str:
    return composed_reply(state) if state.composing else act.spoken(state)


# ---- The completion -----------------------------------------------------------------------------


def complete(state: State) -> Completion:
    if state.composing:
        return Completion(
            outcome="composed",
            reason=f"{len(state.handle.answers)} answers",
            outputs=_reply(state, composed_reply(state)),
            memories=[memory_of(state)],
        )
    if triage.decision(state).action != "act":
        return triage.let_go(state)
    staged = [change for change in state.staged if isinstance(change, Outgoing)]
    return Completion(
        outcome="failed" if _is_failed(state) else "acted",
        reason=state.trouble or triage.why(state),
        outputs=[*staged, *_reply(state, act.reply(state))],
        tasks=[change for change in state.staged if isinstance(change, TaskChange)],
        memories=[memory_of(state)],
    )


def _reply(state: State, text: str) -> list[Outgoing]:
    if REPLY_TOPIC not in state.profile.publishes:
        return []
    return [Outgoing(topic=REPLY_TOPIC, payload=text.encode())]
