"""Triage: act, delegate, defer or ignore. Screening first, the model where that leaves doubt."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from agent_runtime.loop import budget
from agent_runtime.loop.asking import infer, read_text
from agent_runtime.loop.decisions import DEFERRAL_US, Action, TriageDecision, parse, triage_schema
from agent_runtime.loop.prompts import shorten
from agent_runtime.loop.state import Event, State
from ipc_protocol.values import PRIORITIES, Priority, rank
from ipc_protocol.work import (
    Completion,
    Effect,
    EffectResult,
    Evidence,
    MemoryEntry,
    Note,
    Outgoing,
    Recall,
    Recalled,
    Verdict,
    Weigh,
    Weighed,
)

QUERY_CHARS_MAX: Final = 200
_TEXT_CHARS = 160

# ---- What holds ---------------------------------------------------------------------------------


def begin(state: State) -> Event:
    """Where the evidence leaves the message; without any, a component that acts just gets it."""
    screened = _screened(state)
    if screened is None and "act" in state.component:
        return Event.HANDED_OVER
    doubtful = screened is not None and screened.action == "uncertain"
    return Event.DOUBTFUL if doubtful else Event.SETTLED


def _screened(state: State) -> Verdict | None:
    """What follows from the evidence alone. None where there is nothing to weigh."""
    beginning = state.handle.beginning
    if beginning.must_take or beginning.deferred or beginning.evidence is None:
        return None
    return beginning.evidence.verdict


def verdict(state: State) -> Verdict | None:
    """What holds of the evidence, weighed if that was asked for. None as above."""
    screened, evidence = _screened(state), state.handle.beginning.evidence
    if screened is None or evidence is None:
        return None
    if state.weighed is not None:
        return state.weighed.verdict
    if screened.action != "uncertain":
        return screened
    # The weighing was not to be had. The fallback owner is the recipient that screening likes best.
    takes = evidence.fallback == state.profile.name
    return msgspec.structs.replace(screened, action="act" if takes else "ignore")


def decision(state: State) -> TriageDecision:
    """The decision that holds: the model's where it was asked and spoke, else the evidence's."""
    priority = state.handle.envelope.priority
    if state.advice is not None:
        advice = state.advice
        return TriageDecision(
            action=advice.action, to=advice.to, priority=priority, reason=advice.reason
        )
    if state.decision is not None:
        said = state.decision
        return msgspec.structs.replace(
            said, priority=said.priority or priority, reason=said.reason or _finding(state)
        )
    found = verdict(state)
    if found is None:
        return TriageDecision(action="act", priority=priority, reason=_unweighed(state))
    action, to = _allowed(state, found)
    return TriageDecision(action=action, to=to, priority=priority, reason=found.reason)


def _allowed(state: State, found: Verdict) -> tuple[Action, str | None]:
    if found.action == "delegate" and found.to in state.profile.delegates:
        return "delegate", found.to
    # Somebody must take what its owner cannot be given.
    return ("ignore" if found.action == "ignore" else "act"), None


def _finding(state: State) -> str:
    found = verdict(state)
    return found.reason if found else ""


def _unweighed(state: State) -> str:
    beginning = state.handle.beginning
    if beginning.deferred:
        return "it was deferred and is due"
    if beginning.must_take:
        return "nobody else takes it"
    return "there was no screening to weigh"


# ---- Asking -------------------------------------------------------------------------------------


def enter_recall(state: State) -> Effect | Event:
    return _recall(state, "triage")


def enter_weigh(state: State) -> Effect | Event:
    return Weigh(phase="triage")


def enter_decide(state: State) -> Effect | Event:
    found = verdict(state)
    assert found is not None
    action, to = _allowed(state, found)
    asked = infer(
        state,
        "triage",
        "triage",
        {"finding": found.reason, "action": action if to is None else f"{action} to {to}"},
        tokens=budget.share(state.profile.tokens_max, budget.TRIAGE_SHARE),
        kept=budget.reserve(state.profile.tokens_max),
        schema=triage_schema(
            action,
            to,
            priorities=_priorities(state),
            may_defer=_may_defer(state, action),
            with_reason=not state.guided,
        ),
    )
    return asked or Event.DECIDED


def enter_note(state: State) -> Effect | Event:
    settled = decision(state)
    return Note(phase="triage", summary=summary(state, settled), data=_particulars(state, settled))


def enter_act_recall(state: State) -> Effect | Event:
    return Event.RECALLED if state.memories is not None else _recall(state, "act")


def _recall(state: State, phase: Any) -> Recall:
    query = shorten(state.request, QUERY_CHARS_MAX)
    return Recall(phase=phase, query=query, limit=budget.MEMORIES)


def _priorities(state: State) -> Sequence[Priority]:
    """A model may find a message less urgent than it came, not more: classes are inherited."""
    return PRIORITIES[rank(state.handle.envelope.priority) :]


def _may_defer(state: State, action: Action) -> bool:
    return action == "act" and not state.guided


# ---- Reading ------------------------------------------------------------------------------------


def read_recall(state: State, result: EffectResult) -> tuple[State, Event]:
    memories = tuple(result.memories) if isinstance(result, Recalled) else ()
    return state.but(memories=memories[: budget.MEMORIES]), Event.RECALLED


def read_weigh(state: State, result: EffectResult) -> tuple[State, Event]:
    if isinstance(result, Weighed) and result.verdict.action != "uncertain":
        state = state.but(weighed=result)
    return state, Event.WEIGHED


def read_decide(state: State, result: EffectResult) -> tuple[State, Event]:
    state, text = read_text(state, result)
    said = None if text is None else parse(text, TriageDecision)
    held = decision(state)
    if said is None or not _is_allowed(state, said, held):
        return state, Event.DECIDED
    return state.but(decision=said), Event.DECIDED


def _is_allowed(state: State, said: TriageDecision, held: TriageDecision) -> bool:
    """The schema said so already; an engine that ignores it changes nothing."""
    if said.action == "defer":
        return said.until is not None and _may_defer(state, held.action)
    same = (said.action, said.to) == (held.action, held.to)
    return same and (said.priority is None or said.priority in _priorities(state))


def read_note(state: State, result: EffectResult) -> tuple[State, Event]:
    return state, Event.TAKEN if decision(state).action == "act" else Event.LET_GO


# ---- What is told, and what follows -------------------------------------------------------------


def summary(state: State, settled: TriageDecision) -> str:
    """One line for people: `act (high): screening 0.71 for 'disk full', next devclaw 0.42`."""
    target = settled.to or settled.until
    head = f"{settled.action}{f' to {target}' if target else ''} ({settled.priority})"
    evidence = state.handle.beginning.evidence
    if verdict(state) is None or evidence is None:
        return f"{head}: {settled.reason}"
    rivals = {name: score for name, score in evidence.scores.items() if name != evidence.agent}
    line = f"{head}: screening {evidence.score:.2f} for {evidence.nearest!r}"
    if rivals:
        nearest = min(rivals, key=lambda name: (-rivals[name], name))
        line += f", next {nearest} {rivals[nearest]:.2f}"
    return line + (f"; {settled.reason}" if settled.action == "defer" else "")


def _particulars(state: State, settled: TriageDecision) -> dict[str, Any]:
    data: dict[str, Any] = {
        "action": settled.action,
        "priority": settled.priority,
        "reason": settled.reason,
        "asked": state.decision is not None,
    }
    if settled.to is not None:
        data["to"] = settled.to
    if settled.until is not None:
        data["until"] = settled.until
    found = verdict(state)
    if found is not None:
        data["probability"] = round(found.probability, 3)
        data["finding"] = found.reason
    if state.weighed is not None:
        preferences = state.weighed.preferences
        data["preference"] = {name: round(nats, 3) for name, nats in preferences.items()}
    return data


def why(state: State) -> str:
    """The reason that is kept: what was measured, or the model's own for what it chose itself."""
    settled, found = decision(state), verdict(state)
    own = found is None or state.advice is not None or settled.action == "defer"
    return settled.reason if own or found is None else found.reason


def others_on_it(evidence: Evidence | None, name: str) -> list[str]:
    return [] if evidence is None else [taker for taker in evidence.takers if taker != name]


def let_go(state: State) -> Completion:
    """The completion of what is not acted on."""
    settled = decision(state)
    if settled.action == "delegate":
        return _delegated(state, settled)
    if settled.action == "defer":
        return Completion(outcome="deferred", reason=why(state), until_us=_due_us(state, settled))
    return Completion(outcome="ignored", reason=why(state))


def _due_us(state: State, settled: TriageDecision) -> int:
    now_us = state.handle.beginning.now_us
    if state.advice is not None and state.advice.defer_us is not None:
        return now_us + state.advice.defer_us
    assert settled.until is not None
    return now_us + DEFERRAL_US[settled.until]


def _delegated(state: State, settled: TriageDecision) -> Completion:
    """The request goes on as it came; who passed it on, and why, is the sender and the reason."""
    memory = MemoryEntry(
        text=f"Passed to {settled.to}: {shorten(state.request, _TEXT_CHARS)}",
        outcome="success",
        lesson=f"{settled.to} takes such requests.",
        importance=0.2,
    )
    return Completion(
        outcome="delegated",
        reason=why(state),
        outputs=[Outgoing(topic=f"agent.{settled.to}", payload=state.request.encode())],
        memories=[memory],
    )
