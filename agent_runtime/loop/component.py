"""The loop's three questions to the agent's component. Where there is none, it is the model's turn.

A component of world `agent` acts, and that is all: what it wants to remember it notes itself. One
of world `mind` is asked in every phase, and may leave each to the model.
"""

from typing import Final

from agent_runtime.loop import triage
from agent_runtime.loop.consulting import Consult, Consulted
from agent_runtime.loop.prompts import shorten
from agent_runtime.loop.state import Event, State, payload_text
from ipc_protocol.work import Outgoing

_SENT_CHARS: Final = 400
"""What a model is shown of what the component sent, when it is left to reflect on it."""


def enter_triage(state: State) -> Consult | Event:
    """What has to be taken, or was put off once, is not asked about: neither is a model."""
    beginning = state.handle.beginning
    if "triage" in state.component and not (beginning.must_take or beginning.deferred):
        return Consult("triage")
    return triage.begin(state)


def read_triage(state: State, consulted: Consulted) -> tuple[State, Event]:
    state = _staged(state, consulted)
    if consulted.advice is None:
        return state, triage.begin(state)
    return state.but(advice=consulted.advice), Event.ADVISED


def enter_act(state: State) -> Consult | Event:
    return Consult("act") if "act" in state.component else Event.LEFT


def read_act(state: State, consulted: Consulted) -> tuple[State, Event]:
    state = _staged(state, consulted)
    if not consulted.taken:
        return state, Event.LEFT
    said = " ".join(payload_text(output.payload) for output in consulted.outputs)
    return state.but(handled=True, answer=shorten(said, _SENT_CHARS)), Event.HANDLED


def enter_reflect(state: State) -> Consult | Event:
    if "reflect" in state.component:
        sent = tuple(change for change in state.staged if isinstance(change, Outgoing))
        return Consult("reflect", sent=sent)
    return Event.REFLECTED if state.handled else Event.LEFT


def read_reflect(state: State, consulted: Consulted) -> tuple[State, Event]:
    state = _staged(state, consulted)
    if consulted.judgement is None:
        return state, Event.LEFT
    return state.but(judgement=consulted.judgement), Event.REFLECTED


def _staged(state: State, consulted: Consulted) -> State:
    return state.but(
        staged=(*state.staged, *consulted.outputs, *consulted.tasks),
        noted=(*state.noted, *consulted.memories),
        kept=(*state.kept, *consulted.state),
        left_out=state.left_out + consulted.left_out,
    )
