"""A committed change as a line for people. Pure."""

from collections.abc import Callable
from typing import Any, Final

from ipc_protocol.control import Happening
from orchestrator.store.changes import LAGGED, Change

Data = dict[str, Any]

_SUMMARIES: Final[dict[str, Callable[[Data], str]]] = {
    "agent.added": lambda data: f"by {data['by']}",
    "agent.retired": lambda data: f"by {data['by']}",
    "attention.raised": lambda data: f"asks: {data['question']}",
    "conversation.answered": lambda data: data["reply"],
    "conversation.composing": lambda data: "every delivery has settled; the reply is composed",
    "deadletter": lambda data: f"{data['topic']}: {data['reason']}",
    "deadletter.purged": lambda data: f"{len(data['dead_letters'])} removed",
    "deadletter.replayed": lambda data: f"{data['dead_letter']} is message {data['message']} now",
    "delivery.done": lambda data: f"{data['outcome']}: {data['reason']}",
    "delivery.failed": lambda data: data["error"],
    "delivery.leased": lambda data: f"delivery {data['delivery']}, attempt {data['attempt']}",
    "delivery.parked": lambda data: f"{data['reason']} {data['on'] or ''}".rstrip(),
    "delivery.ready": lambda data: data["why"],
    "health.reported": lambda data: data["detail"],
    "journal.appended": lambda data: _step(data),
    "memory.written": lambda data: f"{data['outcome']}: {data['lesson']}",
    "message.published": lambda data: f"{data['topic']} from {data['sender']}: {data['summary']}",
    "message.screened": lambda data: _scores(data["agents"]),
    "task.changed": lambda data: f"{data['title']}: {data['state']}",
    "version.changed": lambda data: _version(data),
    "version.settled": lambda data: f"version {data['version']} is kept",
}


def happening(change: Change) -> Happening:
    """The change as `ctl watch` shows it. Kinds without a line of their own have none."""
    if change.kind == LAGGED:
        return Happening(at_us=change.at_us, kind=LAGGED, lost=change.data["lost"])
    summarise = _SUMMARIES.get(change.kind)
    return Happening(
        at_us=change.at_us,
        kind=change.kind,
        agent=change.data.get("agent") or "",
        correlation=change.data.get("correlation") or "",
        summary="" if summarise is None else summarise(change.data),
        data=change.data,
    )


def _step(data: Data) -> str:
    head = f"{data['phase'] or 'act'} · {data['tool'] or data['kind']}"
    return f"{head} · {data['summary']}" if data["summary"] else head


def _version(data: Data) -> str:
    head = f"version {data['version']} is {data['state']}"
    return f"{head}: {data['reason']}" if data["reason"] else head


def _scores(agents: dict[str, float | None]) -> str:
    known = {name: score for name, score in agents.items() if score is not None}
    ranked = sorted(known, key=lambda name: -known[name])
    return ", ".join(f"{name} {known[name]:.2f}" for name in ranked)
