"""The end of a delivery: the conductor's reply, the reflection, and the completion they go into."""

from typing import Final

import msgspec

from agent_runtime.loop import act, budget, triage
from agent_runtime.loop.asking import infer, read_prose, read_text
from agent_runtime.loop.decisions import (
    LESSON_CHARS_MAX,
    Reflection,
    Success,
    parse,
    quote_schema,
    reflection_schema,
)
from agent_runtime.loop.facts import described, facts_of, is_hearsay, parted, quotable, with_facts
from agent_runtime.loop.prompts import shorten, whole_sentences, without_repeats
from agent_runtime.loop.state import REPLY_TOPIC, Event, Observation, State
from ipc_protocol.work import (
    Completion,
    Effect,
    EffectResult,
    MemoryEntry,
    Outgoing,
    TaskChange,
)

_REQUEST_CHARS = 100
_SEEN_CHARS = 120
_SAID_CHARS = 80
_CALL_CHARS = 60
_ANSWER_CHARS = 120
IMPORTANCE_MAX: Final = 5
PLAIN_IMPORTANCE: Final = 0.4
"""Of a memory that the model did not judge: the second of its five levels."""

# ---- Compose ------------------------------------------------------------------------------------


def enter_compose(state: State) -> Effect | Event:
    if not state.handle.answers:
        return Event.ANSWERED
    tokens_max = state.profile.tokens_max
    quotes = _quotes(state)
    asked = infer(
        state,
        "compose",
        "compose",
        {},
        schema=quote_schema(list(quotes)) if quotes else None,
        tokens=budget.share(tokens_max, budget.COMPOSE_SHARE),
        kept=budget.share(tokens_max, budget.REFLECT_SHARE),
    )
    return asked or Event.ANSWERED


def read_compose(state: State, result: EffectResult) -> tuple[State, Event]:
    return read_prose(state, result, _quotes(state)), Event.ANSWERED


def _quotes(state: State) -> dict[str, str]:
    """A guided conductor passes on what it cannot retell: facts, and what only one has said."""
    answers = [parted(answer.text) for answer in state.handle.answers]
    if not state.guided or (len(answers) > 1 and not any(facts for _, facts in answers)):
        return {}
    return quotable(spoken for spoken, facts in answers if facts or len(answers) == 1)


def composed_reply(state: State) -> str:
    """What the caller gets: the reply, and beneath it all facts that the answers brought."""
    return with_facts(composed(state), _facts(state))


def composed(state: State) -> str:
    spoken = [(answer.agent, parted(answer.text)[0]) for answer in state.handle.answers]
    if state.answer:
        return state.answer
    if not spoken:
        return "Nobody had an answer to this."
    if len(spoken) == 1:
        return spoken[0][1]
    return "\n".join(f"{agent}: {text}" for agent, text in spoken)


def _facts(state: State) -> list[str]:
    if state.composing:
        return [fact for answer in state.handle.answers for fact in parted(answer.text)[1]]
    return facts_of(state.observations)


# ---- Reflect ------------------------------------------------------------------------------------


def enter_reflect(state: State) -> Effect | Event:
    asked = infer(
        state,
        "reflect",
        "reflect",
        {"reply": shorten(_spoken(state), _ANSWER_CHARS)},
        tokens=budget.share(state.profile.tokens_max, budget.REFLECT_SHARE),
        schema=reflection_schema(_outcomes(state), lessons(state) if state.guided else ()),
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


def lessons(state: State) -> list[str]:
    """What a guided model may learn. It judges which holds; in its own words it would ramble."""
    if state.composing:
        agents = " and ".join(dict.fromkeys(answer.agent for answer in state.handle.answers))
        return [
            f"Next time, rely on {agents or 'nobody'} for this.",
            "Next time, hear somebody else about this as well.",
        ]
    learnt = [
        f"Next time, {'begin with' if seen.ok else 'do without'} {_short(seen)}."
        for seen in state.observations
        if not (is_hearsay(seen) or seen.unknown)
    ]
    doubt = (
        "Next time, look further than that." if learnt else "Next time, look for evidence first."
    )
    return list(dict.fromkeys([*learnt, doubt]))


def _short(seen: Observation) -> str:
    return shorten(described(seen), _CALL_CHARS)


def memory_of(state: State) -> MemoryEntry:
    """What is kept of this delivery, in one line, with the model's judgement or a plain one.

    It says what was asked and seen; what was said stands for it only where nothing was seen.
    """
    seen = "; ".join(_facts(state)) or shorten(_spoken(state), _SAID_CHARS)
    text = f"{shorten(state.request, _REQUEST_CHARS)} → {shorten(seen, _SEEN_CHARS)}"
    if state.judgement is not None:
        return MemoryEntry(
            text=text,
            outcome=state.judgement.outcome,
            lesson=state.judgement.lesson,
            importance=state.judgement.importance,
        )
    if state.reflection is None:
        return _plain_memory(state, text)
    return MemoryEntry(
        text=text,
        outcome=state.reflection.outcome,
        lesson=_lesson(state, state.reflection.lesson),
        importance=state.reflection.importance / IMPORTANCE_MAX,
    )


def _lesson(state: State, said: str) -> str:
    """What a model takes for a lesson, unless it only says the request or its answer again."""
    lesson = whole_sentences(without_repeats(said)).strip()
    old = f"{state.request} {_spoken(state)}".casefold()
    return "" if lesson.casefold().rstrip(".…") in old else lesson


def _plain_memory(state: State, text: str) -> MemoryEntry:
    failed = [seen for seen in state.observations if not seen.ok]
    lesson = state.trouble
    if failed:
        lesson = f"{described(failed[-1])} {failed[-1].verb}: {failed[-1].output}"
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
    if state.handled:
        return ["success", "partial", "failure"]
    if _is_failed(state):
        return ["failure"]
    if not state.answer or not all(seen.ok for seen in state.observations):
        return ["partial", "failure"]
    return ["success", "partial"]


def _is_failed(state: State) -> bool:
    """Nothing was seen, and nothing could be said."""
    return not state.answer and not any(seen.ok for seen in state.observations)


def _spoken(state: State) -> str:
    return composed(state) if state.composing else act.spoken(state)


# ---- The completion -----------------------------------------------------------------------------


def complete(state: State) -> Completion:
    """What the loop comes to, with what the component staged on the way."""
    completion = _completion(state)
    return msgspec.structs.replace(
        completion,
        memories=[*state.noted, *completion.memories],
        state=list(state.kept),
        left_out=state.left_out,
    )


def _completion(state: State) -> Completion:
    if state.composing:
        return Completion(
            outcome="composed",
            reason=f"{len(state.handle.answers)} answers",
            outputs=_reply(state, composed_reply(state)),
            memories=[memory_of(state)],
        )
    if triage.decision(state).action != "act":
        return _with_staged(triage.let_go(state), state)
    if state.handled:
        remembered = state.judgement is not None or state.reflection is not None
        acted = Completion(
            outcome="acted",
            reason=triage.why(state),
            memories=[memory_of(state)] if remembered else [],
        )
        return _with_staged(acted, state)
    answered = Completion(
        outcome="failed" if _is_failed(state) else "acted",
        reason=state.trouble or triage.why(state),
        outputs=_reply(state, act.reply(state)),
        memories=[memory_of(state)],
    )
    return _with_staged(answered, state)


def _with_staged(completion: Completion, state: State) -> Completion:
    """What was staged goes before what the end of the loop adds."""
    outputs = [change for change in state.staged if isinstance(change, Outgoing)]
    tasks = [change for change in state.staged if isinstance(change, TaskChange)]
    return msgspec.structs.replace(
        completion,
        outputs=[*outputs, *completion.outputs],
        tasks=[*tasks, *completion.tasks],
    )


def _reply(state: State, text: str) -> list[Outgoing]:
    if REPLY_TOPIC not in state.profile.publishes:
        return []
    return [Outgoing(topic=REPLY_TOPIC, payload=text.encode())]
