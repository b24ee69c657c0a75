"""The components that an agent ran, runs or is about to run, each a version with a number.

A *candidate* is installed, and within the same transaction becomes *active*, or is *refused*: no
crash leaves one behind. An active version is *retired* by the next one, or *rolled-back* for what
it did. Each version has one life: who goes back to an earlier component installs it again, as a
rollback. So the numbers are a history.

All of these run as the bus. `by` is who said so, for the audit trail.
"""

from typing import Final, Literal

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.bus.lifecycle import Lifecycle
from orchestrator.bus.registration import unknown_agent
from orchestrator.bus.routing import SUPERVISOR
from orchestrator.store.audit import Audit, record_audit
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction

VersionState = Literal["candidate", "active", "retired", "rolled-back", "refused"]
VersionEvent = Literal["activate", "retire", "roll back", "refuse"]
VersionEnd = Literal["retired", "rolled-back", "refused"]
Source = Literal["configuration", "upgrade", "rollback"]

VERSION: Final = Lifecycle[VersionState, VersionEvent](
    "version of a component",
    {
        ("candidate", "activate"): "active",
        ("candidate", "refuse"): "refused",
        ("active", "retire"): "retired",
        ("active", "roll back"): "rolled-back",
    },
)

_EVENTS: Final[dict[VersionEnd, VersionEvent]] = {
    "retired": "retire",
    "rolled-back": "roll back",
    "refused": "refuse",
}


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """`settled_us` is None while it is on probation, `reason` says why it ended."""

    agent: str
    number: int
    sha256: str
    size_bytes: int
    world: str
    source: Source
    state: VersionState
    installed_by: str
    installed_us: int
    activated_us: int | None
    settled_us: int | None
    ended_us: int | None
    reason: str | None

    @property
    def on_probation(self) -> bool:
        return self.state == "active" and self.settled_us is None


class InstallVersion(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    sha256: str
    size_bytes: int
    world: str
    source: Source
    by: str


class ActivateVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Give the messages to a candidate. The version that had them ends as `ends`, for `reason`."""

    agent: str
    number: int
    by: str
    probation: bool = False
    ends: Literal["retired", "rolled-back"] = "retired"
    reason: str = ""


class SettleVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Its probation is over, which is for the daemon itself to find."""

    agent: str
    number: int
    by: str = SUPERVISOR


class EndVersion(msgspec.Struct, frozen=True, kw_only=True):
    """End a version without a successor: a candidate that was refused, an agent that retires."""

    agent: str
    number: int
    state: VersionEnd
    reason: str
    by: str


def install_version(tx: Transaction, arguments: InstallVersion) -> int:
    """Write down a candidate. Returns its number. Raises `agent.unknown`."""
    agent = arguments.agent
    if tx.row("SELECT 1 FROM agent WHERE name = ?", (agent,)) is None:
        raise unknown_agent(agent)
    found = tx.row(
        "SELECT coalesce(max(number), 0) + 1 FROM agent_version WHERE agent = ?", (agent,)
    )
    assert found is not None
    number = found[0]
    assert isinstance(number, int)
    tx.execute(
        "INSERT INTO agent_version (agent, number, sha256, size_bytes, world, source, state,"
        " installed_by, installed_us) VALUES (?, ?, ?, ?, ?, ?, 'candidate', ?, ?)",
        (
            agent,
            number,
            arguments.sha256,
            arguments.size_bytes,
            arguments.world,
            arguments.source,
            arguments.by,
            tx.now_us,
        ),
    )
    _tell(tx, "install", arguments.by, _version(tx, agent, number))
    return number


def activate_version(tx: Transaction, arguments: ActivateVersion) -> None:
    """Make a candidate the active version, in the place of the one before it.

    Raises `component.unknown`.
    """
    version = _version(tx, arguments.agent, arguments.number)
    state = VERSION.after(version.state, "activate")
    before = active_version(tx, arguments.agent)
    if before is not None:
        reason = arguments.reason or f"version {version.number} took its place"
        _end(tx, before, arguments.ends, reason, arguments.by)
    tx.execute(
        "UPDATE agent_version SET state = ?, activated_us = ?, settled_us = ?"
        " WHERE agent = ? AND number = ?",
        (
            state,
            tx.now_us,
            None if arguments.probation else tx.now_us,
            version.agent,
            version.number,
        ),
    )
    _tell(tx, "activate", arguments.by, _version(tx, version.agent, version.number))


def settle_version(tx: Transaction, arguments: SettleVersion) -> bool:
    """End the probation of the active version. False if it is not on probation any more.

    Raises `component.unknown`.
    """
    version = _version(tx, arguments.agent, arguments.number)
    if not version.on_probation:
        return False
    tx.execute(
        "UPDATE agent_version SET settled_us = ? WHERE agent = ? AND number = ?",
        (tx.now_us, version.agent, version.number),
    )
    _tell(tx, "settle", arguments.by, _version(tx, version.agent, version.number))
    return True


def end_version(tx: Transaction, arguments: EndVersion) -> None:
    """Raises `component.unknown`."""
    version = _version(tx, arguments.agent, arguments.number)
    _end(tx, version, arguments.state, arguments.reason, arguments.by)


def _end(tx: Transaction, version: Version, end: VersionEnd, reason: str, by: str) -> None:
    state = VERSION.after(version.state, _EVENTS[end])
    tx.execute(
        "UPDATE agent_version SET state = ?, ended_us = ?, reason = ?"
        " WHERE agent = ? AND number = ?",
        (state, tx.now_us, reason, version.agent, version.number),
    )
    _tell(tx, "end", by, _version(tx, version.agent, version.number))


def _tell(tx: Transaction, action: str, by: str, version: Version) -> None:
    """The audit trail, and those who follow changes."""
    data = {
        "version": version.number,
        "sha256": version.sha256,
        "source": version.source,
        "state": version.state,
        "on_probation": version.on_probation,
        "reason": version.reason,
    }
    with tx.acting_as(by):
        record_audit(tx, Audit(action=f"version.{action}", subject=version.agent, data=data))
    tx.emit("version.changed", agent=version.agent, action=action, by=by, **data)


# ---- Reading ------------------------------------------------------------------------------------


def versions_of(query: Query, agent: str | None = None) -> list[Version]:
    """The history of `agent` (None: of everybody), oldest first."""
    return _versions(query, "WHERE ?1 IS NULL OR agent = ?1", agent)


def active_version(query: Query, agent: str) -> Version | None:
    """The version that is given the messages."""
    return _first(query, "WHERE agent = ? AND state = 'active'", agent)


def _version(query: Query, agent: str, number: int) -> Version:
    found = _first(query, "WHERE agent = ? AND number = ?", agent, number)
    if found is None:
        raise Failure(
            "component.unknown",
            f"Agent {agent!r} has no version {number}.",
            f"`agentd ctl agents history {agent}` lists those that it has.",
            agent=agent,
            version=number,
        )
    return found


def _first(query: Query, where: str, *bindings: str | int) -> Version | None:
    found = _versions(query, where, *bindings)
    return found[0] if found else None


def _versions(query: Query, where: str, *bindings: str | int | None) -> list[Version]:
    fields = Version.__struct_fields__
    rows = query.rows(
        f"SELECT {', '.join(fields)} FROM agent_version {where} ORDER BY agent, number", bindings
    )
    return [Version(**dict(zip(fields, row, strict=True))) for row in rows]
