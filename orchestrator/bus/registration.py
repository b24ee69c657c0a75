"""Agents and their durable subscriptions, and the directory that routing works with.

An agent comes and goes with the configuration, at a start, or by itself while the daemon runs. One
that the operator retires receives nothing more and finishes what it has; it stays retired, whatever
the configuration says at the next start, until it is added again.
"""

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.values import Priority, rank
from orchestrator.bus import topics
from orchestrator.bus.routing import OPERATOR, RESERVED_NAMES, Directory, Member
from orchestrator.store.audit import Audit, record_audit
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction

_CACHE_KEY = "bus.directory"


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """An agent of the configuration.

    `screened` is False where there is nothing to compare a message with and it takes what comes.
    `state_max` are the bytes that its state may hold.
    """

    name: str
    role: str = "agent"
    consumes: list[str] = []
    publishes: list[str] = []
    delegates: list[str] = []
    inbox: int = 64
    priority: Priority = "normal"
    screened: bool = True
    state_max: int = 0


class RegisterAgents(msgspec.Struct, frozen=True, kw_only=True):
    """All agents that there are from now on. `added` are those whom the operator has added while a
    daemon ran: that is in the audit trail, even if the daemon died while it added one."""

    agents: list[Registration]
    added: list[str] = []


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """Who is `active`, and who was until now and is `retired`. The `withheld` are configured, but
    the operator has retired them; some may still have deliveries to finish."""

    active: list[str]
    retired: list[str]
    withheld: list[str] = []


class AddAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One more agent, or one that was retired. `by` is who says so, for the audit trail."""

    agent: Registration
    by: str


class RetireAgent(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    by: str


def register_agents(tx: Transaction, arguments: RegisterAgents) -> Registered:
    """Make the subscriptions durable; retire agents that are gone. What waits for them stays."""
    for registration in arguments.agents:
        _validate(registration)
    tx.forget(_CACHE_KEY)
    before = [row[0] for row in tx.rows("SELECT name FROM agent WHERE state = 'active'")]
    left = {row[0] for row in tx.rows("SELECT name FROM agent WHERE retired_by IS NOT NULL")}
    tx.execute("UPDATE agent SET state = 'retired' WHERE state = 'active'")
    tx.execute("DELETE FROM topic_subscription")
    names = [each.name for each in arguments.agents if each.name not in left]
    for registration in arguments.agents:
        if registration.name not in left:
            _write(tx, registration)
    for name in arguments.added:
        if name in names and name not in before:
            _audit(tx, OPERATOR, "agent.add", name)
    withheld = [each.name for each in arguments.agents if each.name in left]
    retired = sorted(set(before) - set(names))
    tx.emit("agent.registered", agents=names, retired=retired, withheld=withheld)
    return Registered(active=names, retired=retired, withheld=withheld)


def add_agent(tx: Transaction, arguments: AddAgent) -> None:
    """Let one more agent take part from now on. Runs as the bus.

    Raises `request.invalid` if it does already, or would be a second conductor.
    """
    agent = arguments.agent
    _validate(agent)
    members = directory_of(tx).members
    if agent.name in members:
        raise Failure(
            "request.invalid",
            f"There is an agent {agent.name} already.",
            "Retire it first, or give the new one another name.",
            agent=agent.name,
        )
    conductor = directory_of(tx).conductor
    if agent.role == "conductor" and conductor is not None:
        raise Failure(
            "request.invalid",
            f"The conductor is {conductor}, and there is one only.",
            "Retire it first, or give the new agent the role agent.",
            agent=conductor,
        )
    tx.forget(_CACHE_KEY)
    _write(tx, agent)
    _audit(tx, arguments.by, "agent.add", agent.name)
    tx.emit("agent.added", agent=agent.name, by=arguments.by)


def retire_agent(tx: Transaction, arguments: RetireAgent) -> int:
    """Let an agent receive nothing more, for good. Runs as the bus. Returns how many deliveries it
    still has, which it finishes; to retire it again says how many are left.

    Raises `agent.unknown`.
    """
    name = arguments.name
    found = tx.row("SELECT retired_by FROM agent WHERE name = ?", (name,))
    if found is None:
        raise unknown_agent(name)
    if found[0] is None:
        tx.forget(_CACHE_KEY)
        tx.execute(
            "UPDATE agent SET state = 'retired', retired_by = ?, changed_us = ? WHERE name = ?",
            (arguments.by, tx.now_us, name),
        )
        tx.execute("DELETE FROM topic_subscription WHERE agent = ?", (name,))
        _audit(tx, arguments.by, "agent.retire", name)
        tx.emit("agent.retired", agent=name, by=arguments.by)
    return undone(tx, name)


def undone(query: Query, agent: str) -> int:
    """Deliveries of `agent` that are neither done nor dead, composing ones too."""
    found = query.row(
        "SELECT count(*) FROM delivery WHERE agent = ? AND state IN ('queued', 'leased', 'parked')",
        (agent,),
    )
    assert found is not None
    count = found[0]
    assert isinstance(count, int)
    return count


def unknown_agent(name: str) -> Failure:
    return Failure(
        "agent.unknown",
        f"There is no agent {name!r}.",
        "`agentd ctl agents` lists them.",
        agent=name,
    )


def _audit(tx: Transaction, by: str, action: str, agent: str) -> None:
    with tx.acting_as(by):
        record_audit(tx, Audit(action=action, subject=agent))


def _validate(registration: Registration) -> None:
    fault = topics.fault_of_name(registration.name)
    if registration.name in RESERVED_NAMES:
        fault = "is the name of a part of the daemon"
    if fault:
        raise Failure(
            "bus.invalid-topic",
            f"The agent name {registration.name!r} {fault}.",
            "Give the agent another name.",
        )
    for pattern in [*registration.consumes, *registration.publishes]:
        fault = topics.fault_of_pattern(pattern)
        if fault:
            raise Failure(
                "bus.invalid-topic",
                f"The topic {pattern!r} of agent {registration.name} {fault}.",
                "Topics are words and dots; `*` is one word, `>` the rest.",
                topic=pattern,
            )


def _write(tx: Transaction, registration: Registration) -> None:
    tx.execute(
        "INSERT INTO agent (name, role, state, class, inbox_max, publishes, delegates, screened,"
        " state_max, registered_us, changed_us) VALUES (?, ?, 'active', ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET role = excluded.role, state = excluded.state,"
        " class = excluded.class, inbox_max = excluded.inbox_max,"
        " publishes = excluded.publishes, delegates = excluded.delegates,"
        " screened = excluded.screened, state_max = excluded.state_max, retired_by = NULL,"
        " changed_us = excluded.changed_us",
        (
            registration.name,
            registration.role,
            rank(registration.priority),
            registration.inbox,
            msgspec.json.encode(registration.publishes).decode(),
            msgspec.json.encode(registration.delegates).decode(),
            registration.screened,
            registration.state_max,
            tx.now_us,
            tx.now_us,
        ),
    )
    for pattern in dict.fromkeys(registration.consumes):
        tx.execute(
            "INSERT INTO topic_subscription (agent, pattern) VALUES (?, ?)",
            (registration.name, pattern),
        )


def directory_of(tx: Transaction) -> Directory:
    """The directory as the tables have it now; read once, until agents are registered again."""
    return tx.cached(_CACHE_KEY, lambda: load_directory(tx))


def load_directory(query: Query) -> Directory:
    pairs = query.rows("SELECT agent, pattern FROM topic_subscription")
    return Directory(
        _members(query, "state = 'active'"),
        [(agent, pattern) for agent, pattern in pairs],
        _members(query, "retired_by IS NOT NULL"),
    )


def _members(query: Query, where: str) -> list[Member]:
    rows = query.rows(
        "SELECT name, role, class, publishes, delegates, inbox_max, screened, state_max FROM agent"
        f" WHERE {where} ORDER BY id"
    )
    return [
        Member(
            name=name,
            role=role,
            rank=urgency,
            publishes=tuple(msgspec.json.decode(publishes)),
            delegates=frozenset(msgspec.json.decode(delegates)),
            inbox_max=inbox_max,
            screened=bool(screened),
            state_max=state_max,
        )
        for name, role, urgency, publishes, delegates, inbox_max, screened, state_max in rows
    ]
