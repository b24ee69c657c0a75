"""The loop as one table. Results in, effects out; no socket, no clock, no model.

Theory of operation. `start` and `advance` return the next effect, or the completion at the end.
One effect is outstanding at a time, or one consultation of the agent's component. Each step has an
`enter`, which is what it wants to know or, where it needs nothing, the event that this means; and a
`read`, which turns the answer into an event. `TRANSITIONS` is all there is between them, and a pair
that is not in it cannot happen. Since nothing but answers comes in, the same answers always give
the same effects, which is what makes a replay of the journal possible.

What a result says never raises: a refusal, a wrong type, nonsense from a model are all read as "not
to be had", and the delivery goes on without it to an honest end.
"""

from collections.abc import Callable
from typing import Final

from agent_runtime.loop import act, closing, component, triage
from agent_runtime.loop.consulting import Consult, Consultable, Consulted
from agent_runtime.loop.state import Event, Outcome, State, Step
from ipc_protocol.work import AgentProfile, Effect, EffectResult, Handle

LOOP_VERSION: Final = 1
"""Raised with every change after which old results would give other effects."""

TRANSITIONS: Final[dict[tuple[Step, Event], Step]] = {
    (Step.BEGIN, Event.ANSWERS_CAME): Step.COMPOSE,
    (Step.BEGIN, Event.MESSAGE_CAME): Step.CONSULT_TRIAGE,
    (Step.CONSULT_TRIAGE, Event.HANDED_OVER): Step.CONSULT_ACT,
    (Step.CONSULT_TRIAGE, Event.ADVISED): Step.TRIAGE_NOTE,
    (Step.CONSULT_TRIAGE, Event.SETTLED): Step.TRIAGE_NOTE,
    (Step.CONSULT_TRIAGE, Event.DOUBTFUL): Step.TRIAGE_RECALL,
    (Step.TRIAGE_RECALL, Event.RECALLED): Step.TRIAGE_WEIGH,
    (Step.TRIAGE_WEIGH, Event.WEIGHED): Step.TRIAGE_DECIDE,
    (Step.TRIAGE_DECIDE, Event.DECIDED): Step.TRIAGE_NOTE,
    (Step.TRIAGE_NOTE, Event.LET_GO): Step.DONE,
    (Step.TRIAGE_NOTE, Event.TAKEN): Step.CONSULT_ACT,
    (Step.CONSULT_ACT, Event.LEFT): Step.ACT_RECALL,
    (Step.CONSULT_ACT, Event.HANDLED): Step.CONSULT_REFLECT,
    (Step.ACT_RECALL, Event.RECALLED): Step.ACT_CHOOSE,
    (Step.ACT_CHOOSE, Event.STUMBLED): Step.ACT_CHOOSE,
    (Step.ACT_CHOOSE, Event.CALL_CHOSEN): Step.ACT_USE,
    (Step.ACT_CHOOSE, Event.TEXT_WANTED): Step.ACT_WRITE,
    (Step.ACT_CHOOSE, Event.ENOUGH): Step.ACT_ANSWER,
    (Step.ACT_WRITE, Event.WRITTEN): Step.ACT_USE,
    (Step.ACT_WRITE, Event.ENOUGH): Step.ACT_ANSWER,
    (Step.ACT_USE, Event.OBSERVED): Step.ACT_CHOOSE,
    (Step.ACT_ANSWER, Event.ANSWERED): Step.CONSULT_REFLECT,
    (Step.COMPOSE, Event.ANSWERED): Step.REFLECT,
    (Step.CONSULT_REFLECT, Event.LEFT): Step.REFLECT,
    (Step.CONSULT_REFLECT, Event.REFLECTED): Step.DONE,
    (Step.REFLECT, Event.REFLECTED): Step.DONE,
}

ENTER: Final[dict[Step, Callable[[State], Effect | Consult | Event]]] = {
    Step.CONSULT_TRIAGE: component.enter_triage,
    Step.TRIAGE_RECALL: triage.enter_recall,
    Step.TRIAGE_WEIGH: triage.enter_weigh,
    Step.TRIAGE_DECIDE: triage.enter_decide,
    Step.TRIAGE_NOTE: triage.enter_note,
    Step.CONSULT_ACT: component.enter_act,
    Step.ACT_RECALL: triage.enter_act_recall,
    Step.ACT_CHOOSE: act.enter_choose,
    Step.ACT_WRITE: act.enter_write,
    Step.ACT_USE: act.enter_use,
    Step.ACT_ANSWER: act.enter_answer,
    Step.COMPOSE: closing.enter_compose,
    Step.CONSULT_REFLECT: component.enter_reflect,
    Step.REFLECT: closing.enter_reflect,
}

READ: Final[dict[Step, Callable[[State, EffectResult], tuple[State, Event]]]] = {
    Step.TRIAGE_RECALL: triage.read_recall,
    Step.TRIAGE_WEIGH: triage.read_weigh,
    Step.TRIAGE_DECIDE: triage.read_decide,
    Step.TRIAGE_NOTE: triage.read_note,
    Step.ACT_RECALL: triage.read_recall,
    Step.ACT_CHOOSE: act.read_choose,
    Step.ACT_WRITE: act.read_write,
    Step.ACT_USE: act.read_use,
    Step.ACT_ANSWER: act.read_answer,
    Step.COMPOSE: closing.read_compose,
    Step.REFLECT: closing.read_reflect,
}

READ_CONSULTED: Final[dict[Step, Callable[[State, Consulted], tuple[State, Event]]]] = {
    Step.CONSULT_TRIAGE: component.read_triage,
    Step.CONSULT_ACT: component.read_act,
    Step.CONSULT_REFLECT: component.read_reflect,
}


def start(
    profile: AgentProfile, handle: Handle, consultable: frozenset[Consultable] = frozenset()
) -> Outcome:
    """The first effect or consultation of a delivery, or its completion."""
    state = State(profile=profile, handle=handle, component=consultable)
    return _follow(state, Event.ANSWERS_CAME if state.composing else Event.MESSAGE_CAME)


def advance(state: State, result: EffectResult | Consulted) -> Outcome:
    """What follows from the answer to what is outstanding. Not to be called after the end."""
    if isinstance(result, Consulted):
        return _follow(*READ_CONSULTED[state.step](state, result))
    return _follow(*READ[state.step](state, result))


def effects_max(profile: AgentProfile) -> int:
    """The loop itself asks for no more effects; those of a component come on top.

    Four in triage, a recall and a second try to begin with, three for each step, three to end.
    """
    return 4 + 2 + 3 * profile.steps_max + 3


def _follow(state: State, event: Event) -> Outcome:
    while True:
        state = state.but(step=TRANSITIONS[state.step, event])
        if state.step is Step.DONE:
            return state.but(outstanding=None), closing.complete(state)
        wanted = ENTER[state.step](state)
        if not isinstance(wanted, Event):
            return state.but(outstanding=wanted), wanted
        event = wanted
