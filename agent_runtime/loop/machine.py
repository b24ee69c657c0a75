"""The loop as one table. Results in, effects out; no socket, no clock, no model.

Theory of operation. `start` and `advance` return the next effect, or the completion at the end.
One effect is outstanding at a time, and is the entry `State.effects` of the delivery's journal.
Each step has an `enter`, which is the effect it wants or, where it needs none, the event that this
means; and a `read`, which turns the result of its effect into an event. `TRANSITIONS` is all there
is between them, and a pair that is not in it cannot happen. Since nothing but results comes in, the
same results always give the same effects, which is what makes a replay of the journal possible.

What a result says never raises: a refusal, a wrong type, nonsense from a model are all read as "not
to be had", and the delivery goes on without it to an honest end.
"""

from collections.abc import Callable
from typing import Final

from agent_runtime.loop import act, closing, triage
from agent_runtime.loop.state import Event, Outcome, State, Step
from ipc_protocol.work import AgentProfile, Effect, EffectResult, Handle

LOOP_VERSION: Final = 1
"""Raised with every change after which old results would give other effects."""

TRANSITIONS: Final[dict[tuple[Step, Event], Step]] = {
    (Step.BEGIN, Event.ANSWERS_CAME): Step.COMPOSE,
    (Step.BEGIN, Event.SETTLED): Step.TRIAGE_NOTE,
    (Step.BEGIN, Event.DOUBTFUL): Step.TRIAGE_RECALL,
    (Step.TRIAGE_RECALL, Event.RECALLED): Step.TRIAGE_WEIGH,
    (Step.TRIAGE_WEIGH, Event.WEIGHED): Step.TRIAGE_DECIDE,
    (Step.TRIAGE_DECIDE, Event.DECIDED): Step.TRIAGE_NOTE,
    (Step.TRIAGE_NOTE, Event.LET_GO): Step.DONE,
    (Step.TRIAGE_NOTE, Event.TAKEN): Step.ACT_RECALL,
    (Step.ACT_RECALL, Event.RECALLED): Step.ACT_CHOOSE,
    (Step.ACT_CHOOSE, Event.STUMBLED): Step.ACT_CHOOSE,
    (Step.ACT_CHOOSE, Event.CALL_CHOSEN): Step.ACT_USE,
    (Step.ACT_CHOOSE, Event.TEXT_WANTED): Step.ACT_WRITE,
    (Step.ACT_CHOOSE, Event.ENOUGH): Step.ACT_ANSWER,
    (Step.ACT_WRITE, Event.WRITTEN): Step.ACT_USE,
    (Step.ACT_WRITE, Event.ENOUGH): Step.ACT_ANSWER,
    (Step.ACT_USE, Event.OBSERVED): Step.ACT_CHOOSE,
    (Step.ACT_ANSWER, Event.ANSWERED): Step.REFLECT,
    (Step.COMPOSE, Event.ANSWERED): Step.REFLECT,
    (Step.REFLECT, Event.REFLECTED): Step.DONE,
}

ENTER: Final[dict[Step, Callable[[State], Effect | Event]]] = {
    Step.TRIAGE_RECALL: triage.enter_recall,
    Step.TRIAGE_WEIGH: triage.enter_weigh,
    Step.TRIAGE_DECIDE: triage.enter_decide,
    Step.TRIAGE_NOTE: triage.enter_note,
    Step.ACT_RECALL: triage.enter_act_recall,
    Step.ACT_CHOOSE: act.enter_choose,
    Step.ACT_WRITE: act.enter_write,
    Step.ACT_USE: act.enter_use,
    Step.ACT_ANSWER: act.enter_answer,
    Step.COMPOSE: closing.enter_compose,
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


def start(profile: AgentProfile, handle: Handle) -> Outcome:
    """The first effect of a delivery, or its completion."""
    state = State(profile=profile, handle=handle)
    return _follow(state, triage.begin(state))


def advance(state: State, result: EffectResult) -> Outcome:
    """What follows from the result of the outstanding effect. Not to be called after the end."""
    return _follow(*READ[state.step](state, result))


def effects_max(profile: AgentProfile) -> int:
    """No delivery of this agent asks for more effects.

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
            return state.but(outstanding=wanted, effects=state.effects + 1), wanted
        event = wanted
