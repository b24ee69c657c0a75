"""How the loop asks its model: the transcript so far, one instruction, and what it may cost."""

from collections.abc import Mapping

from agent_runtime.loop import budget
from agent_runtime.loop.decisions import Schema
from agent_runtime.loop.prompts import chat, excerpt, fill, shorten, text_of
from agent_runtime.loop.state import Observation, State
from ipc_protocol.work import EffectResult, Infer, Inferred, Phase, Refused

_ARGUMENT_CHARS = 40


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
    instruction = fill(text_of(prompts, prompt), values)
    messages = chat(state.profile, prompts, transcript_of(state), instruction)
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


# ---- The transcript -----------------------------------------------------------------------------


def transcript_of(state: State) -> str:
    """All that is known so far, oldest first, so that each version continues the one before."""
    tokens_max = state.profile.tokens_max
    parts = [f"Request: {excerpt(state.request, budget.chars(tokens_max, budget.REQUEST_SHARE))}"]
    if state.memories:
        lines = [f"- {shorten(memory.text, budget.MEMORY_CHARS)}" for memory in state.memories]
        parts.append("\n".join(["You remember:", *lines]))
    for answer in state.handle.answers:
        limit = budget.chars(tokens_max, budget.OBSERVATION_SHARE)
        parts.append(f"{answer.agent}: {excerpt(answer.text, limit)}")
    parts += [_observed(observation) for observation in state.observations]
    return "\n\n".join(parts)


def _observed(observation: Observation) -> str:
    verb = "returned" if observation.ok else "failed"
    return f"{described(observation)} {verb}:\n{observation.output}"


def described(observation: Observation) -> str:
    """The call in a few words: the tool and its short arguments."""
    arguments = (str(value) for value in observation.call.arguments.values())
    lines = [shorten(value, _ARGUMENT_CHARS) for value in arguments if "\n" not in value]
    return " ".join([observation.call.tool, *lines])
