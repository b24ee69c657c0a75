"""How the loop asks its model: the transcript so far, one instruction, and what it may cost."""

from collections.abc import Mapping

from agent_runtime.loop import budget
from agent_runtime.loop.decisions import Quote, Schema, parse
from agent_runtime.loop.facts import described, is_hearsay, parted
from agent_runtime.loop.guidance import is_relevant
from agent_runtime.loop.prompts import (
    chat,
    excerpt,
    fill,
    preamble,
    shorten,
    text_of,
    whole_sentences,
    without_repeats,
)
from agent_runtime.loop.state import Observation, State
from ipc_protocol.work import EffectResult, Infer, Inferred, Memory, Phase, Refused


def infer(
    state: State,
    phase: Phase,
    prompt: str,
    values: Mapping[str, str],
    *,
    tokens: int,
    kept: int = 0,
    schema: Schema | None = None,
) -> Infer | None:
    """Ask for at most `tokens`; None if the budget, less what is `kept`, holds no answer."""
    granted = min(tokens, state.tokens_left - kept)
    if granted < budget.TOKENS_MIN:
        return None
    prompts = state.handle.beginning.prompts
    instruction = fill(text_of(prompts, prompt), values).strip()
    messages = chat(system_text(state), transcript_of(state), instruction)
    return Infer(phase=phase, messages=messages, tokens_max=granted, schema=schema)


def read_text(state: State, result: EffectResult) -> tuple[State, str | None]:
    """The model's text, or None with the reason in `trouble`. What it cost is written down."""
    assert isinstance(state.outstanding, Infer)
    if isinstance(result, Inferred):
        spent = state.spent_tokens + max(0, result.generated_tokens)
        text = result.text.strip()
        return state.but(
            spent_tokens=spent, trouble="" if text else "it said nothing"
        ), text or None
    if isinstance(result, Refused):
        # The tokens that an answer ran out of were generated all the same.
        lost = state.outstanding.tokens_max if result.code == "inference.budget" else 0
        trouble = f"{result.message} ({result.code})"
        return state.but(spent_tokens=state.spent_tokens + lost, trouble=trouble), None
    return state.but(trouble=f"the journal answered with a {type(result).__name__}"), None


def was_cut(state: State, result: EffectResult) -> bool:
    """The answer ended where its budget did."""
    return (
        isinstance(state.outstanding, Infer)
        and isinstance(result, Inferred)
        and result.generated_tokens >= state.outstanding.tokens_max
    )


def read_prose(state: State, result: EffectResult, quotable: Mapping[str, str]) -> State:
    """The answer in the model's own words, or the `quotable` one that it points at."""
    cut = was_cut(state, result)
    state, text = read_text(state, result)
    if text is not None and quotable:
        quote = parse(text, Quote)
        text = None if quote is None else quotable.get(quote.answer)
    if text is None:
        return state
    return state.but(answer=without_repeats(whole_sentences(text) if cut else text))


def system_text(state: State) -> str:
    """Who the agent is, and its tools: the same bytes in all its requests.

    A guided model reads of its tools when it is to choose one. Otherwise it would answer with them.
    """
    profile = state.profile
    return preamble(profile, state.handle.beginning.prompts, () if state.guided else profile.tools)


# ---- The transcript -----------------------------------------------------------------------------


def transcript_of(state: State) -> str:
    """All that is known so far, oldest first, so that each version continues the one before."""
    tokens_max = state.profile.tokens_max
    parts = [f"Request: {excerpt(state.request, budget.chars(tokens_max, budget.REQUEST_SHARE))}"]
    remembered = _remembered(state)
    if remembered:
        lines = [f"- {shorten(memory.text, budget.MEMORY_CHARS)}" for memory in remembered]
        parts.append("\n".join(["You remember:", *lines]))
    for answer in state.handle.answers:
        limit = budget.chars(tokens_max, budget.OBSERVATION_SHARE)
        spoken, facts = parted(answer.text)
        parts += [f"{answer.agent} saw {excerpt(fact, limit)}" for fact in facts]
        parts.append(f"{answer.agent}: {excerpt(spoken, limit)}")
    parts += [_observed(seen) for seen in state.observations if not _is_beside(state, seen)]
    return "\n\n".join(parts)


def _remembered(state: State) -> list[Memory]:
    memories = state.memories or ()
    return [
        memory for memory in memories if not state.guided or is_relevant(memory.text, state.request)
    ]


def _is_beside(state: State, seen: Observation) -> bool:
    """What would lead a guided model astray, which repeats whatever it reads: a call that failed,
    or a memory that was found but has little to do with the request."""
    if not state.guided or seen.unknown:
        return False
    return not seen.ok or (is_hearsay(seen) and not is_relevant(seen.output, state.request))


def _observed(observation: Observation) -> str:
    return f"{described(observation)} {observation.verb}:\n{observation.output}"
