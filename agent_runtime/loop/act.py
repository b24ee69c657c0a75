"""Act: one typed tool call at a time, then an answer in plain words.

The first step offers no end: evidence comes before an answer. A call that repeats the one before
is the end, unless nobody knows whether that one happened, and so is whatever the budget or the
model refuses; then the answer is made from what was observed, by the model if it still may speak
and without it if not.
"""

from agent_runtime.loop import budget
from agent_runtime.loop.asking import infer, read_prose, read_text
from agent_runtime.loop.decisions import (
    FINISH,
    ToolCall,
    call_schema,
    parse,
    quote_schema,
    text_parameter,
)
from agent_runtime.loop.facts import facts_of, outputs_of, quotable, with_facts
from agent_runtime.loop.guidance import narrowed
from agent_runtime.loop.prompts import (
    excerpt,
    list_of,
    shorten,
    unfenced,
)
from agent_runtime.loop.state import Event, Observation, State
from agent_runtime.loop.triage import others_on_it
from ipc_protocol.work import (
    Effect,
    EffectResult,
    Refused,
    ToolDescription,
    ToolResult,
    UseTool,
)

_TARGET_CHARS = 160

# ---- Choosing a tool ----------------------------------------------------------------------------


def enter_choose(state: State) -> Effect | Event:
    profile = state.profile
    if not profile.tools or len(state.observations) >= profile.steps_max:
        return Event.ENOUGH
    tools, may_finish = offered(state)
    if not tools:
        return Event.ENOUGH
    tokens = budget.share(profile.tokens_max, budget.CALL_SHARE)
    asked = infer(
        state,
        "act",
        "next" if state.observations else "act",
        {
            "main": tools[0].name,
            "others": _others(state),
            "tools": list_of(_described_now(state)),
        },
        tokens=tokens,
        kept=budget.reserve(profile.tokens_max),
        schema=call_schema(
            tools,
            may_finish=may_finish,
            argument_chars_max=int(tokens * budget.ARGUMENT_CHARS_PER_TOKEN),
        ),
    )
    return asked or Event.ENOUGH


def _described_now(state: State) -> list[ToolDescription]:
    """The others have read of their tools in the system message. A narrowed schema says no more
    what its values mean, so these are described in full."""
    names = {tool.name for tool in offered(state)[0]} if state.guided else set()
    return [tool for tool in state.profile.tools if tool.name in names]


def offered(state: State) -> tuple[list[ToolDescription], bool]:
    """The tools of this step, and whether the end is offered beside them."""
    inward = [tool for tool in state.profile.tools if not tool.outward]
    if state.guided:
        # What a colleague has sent asks nobody else: two small models would pass it to and fro.
        is_colleague = state.handle.envelope.sender in state.profile.delegates
        tools = inward if is_colleague else state.profile.tools
        return narrowed(tools, state.request, state.observations)
    if state.observations or not inward:
        return state.profile.tools, True
    return inward[:1] if state.stumbled else inward, False


def read_choose(state: State, result: EffectResult) -> tuple[State, Event]:
    state, text = read_text(state, result)
    call = None if text is None else parse(text, ToolCall)
    if call is not None and call.tool == FINISH and offered(state)[1]:
        return state, Event.ENOUGH
    tool = None if call is None else _find(state, call.tool)
    if call is None or tool is None:
        return _stumble(state)
    state = state.but(call=call)
    if text_parameter(tool) is not None:
        return state, Event.TEXT_WANTED
    return state, Event.ENOUGH if _is_repeated(state) else Event.CALL_CHOSEN


def _stumble(state: State) -> tuple[State, Event]:
    """No call came out. Before anything was seen, the smallest question is worth a second try."""
    if state.observations or state.stumbled:
        return state, Event.ENOUGH
    return state.but(stumbled=True), Event.STUMBLED


def _find(state: State, name: str) -> ToolDescription | None:
    """The tool of that name among those offered."""
    tools, _ = offered(state)
    return next((tool for tool in tools if tool.name == name), None)


def _is_repeated(state: State) -> bool:
    if not state.observations:
        return False
    before = state.observations[-1]
    return before.call == state.call and not before.unknown


def _others(state: State) -> str:
    names = others_on_it(state.handle.beginning.evidence, state.profile.name)
    return f"{' and '.join(names)} may work on it too. " if names else ""


# ---- Writing a text -----------------------------------------------------------------------------


def enter_write(state: State) -> Effect | Event:
    values = ((name, str(value)) for name, value in state.call.arguments.items())
    target = shorten(" ".join(value for _, value in values), _TARGET_CHARS)
    tokens_max = state.profile.tokens_max
    asked = infer(
        state,
        "act",
        "write",
        {"tool": state.call.tool, "target": target or state.call.tool},
        tokens=budget.share(tokens_max, budget.WRITE_SHARE),
        kept=budget.reserve(tokens_max),
    )
    return asked or Event.ENOUGH


def read_write(state: State, result: EffectResult) -> tuple[State, Event]:
    state, text = read_text(state, result)
    tool = _find(state, state.call.tool)
    parameter = None if tool is None else text_parameter(tool)
    if text is None or parameter is None:
        return state, Event.ENOUGH
    arguments = {**state.call.arguments, parameter: unfenced(text)}
    state = state.but(call=ToolCall(tool=state.call.tool, arguments=arguments))
    return state, Event.ENOUGH if _is_repeated(state) else Event.WRITTEN


# ---- Using it -----------------------------------------------------------------------------------


def enter_use(state: State) -> Effect | Event:
    return UseTool(name=state.call.tool, arguments=state.call.arguments)


def read_use(state: State, result: EffectResult) -> tuple[State, Event]:
    limit = budget.chars(state.profile.tokens_max, budget.OBSERVATION_SHARE)
    staged, unknown = state.staged, False
    if isinstance(result, ToolResult):
        ok, output, unknown = result.ok, result.output, result.unknown
        if ok and result.staged is not None:
            staged = (*staged, result.staged)
    elif isinstance(result, Refused):
        ok, output = False, result.message
    else:
        ok, output = False, f"The journal answered with a {type(result).__name__}."
    seen = Observation(call=state.call, ok=ok, output=excerpt(output, limit), unknown=unknown)
    return state.but(observations=(*state.observations, seen), staged=staged), Event.OBSERVED


# ---- Answering ----------------------------------------------------------------------------------


def enter_answer(state: State) -> Effect | Event:
    tokens_max = state.profile.tokens_max
    quotes = _quotes(state)
    asked = infer(
        state,
        "act",
        "answer" if facts_of(state.observations) else "advise",
        {"others": _others(state)},
        tokens=budget.share(tokens_max, budget.ANSWER_SHARE),
        schema=quote_schema(list(quotes)) if quotes else None,
        kept=budget.share(tokens_max, budget.REFLECT_SHARE),
    )
    return asked or Event.ANSWERED


def read_answer(state: State, result: EffectResult) -> tuple[State, Event]:
    return read_prose(state, result, _quotes(state)), Event.ANSWERED


def _quotes(state: State) -> dict[str, str]:
    """What a guided model answers with: it tells right from wrong facts, but cannot retell one."""
    return quotable(outputs_of(state.observations)) if state.guided else {}


def reply(state: State) -> str:
    """What is sent: the answer, and beneath it what was seen, so that a reader can judge it."""
    return with_facts(spoken(state), facts_of(state.observations))


def spoken(state: State) -> str:
    return state.answer or f"There is no answer: {state.trouble or 'the budget is used up'}."
