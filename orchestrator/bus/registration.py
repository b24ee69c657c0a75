"""Agents and their durable subscriptions, and the directory that routing works with."""

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.values import Priority, rank
from orchestrator.bus import topics
from orchestrator.bus.routing import RESERVED_NAMES, Directory, Member
from orchestrator.store.database import Query
from orchestrator.store.transaction import Transaction

_CACHE_KEY = "bus.directory"


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """An agent of the configuration."""

    name: str
    role: str = "agent"
    consumes: list[str] = []
    publishes: list[str] = []
    delegates: list[str] = []
    inbox: int = 64
    priority: Priority = "normal"


class RegisterAgents(msgspec.Struct, frozen=True, kw_only=True):
    """All agents that there are from now on."""

    agents: list[Registration]


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    active: list[str]
    retired: list[str]


def register_agents(tx: Transaction, arguments: RegisterAgents) -> Registered:
    """Make the subscriptions durable; retire agents that are gone. What waits for them stays."""
    for registration in arguments.agents:
        _validate(registration)
    tx.forget(_CACHE_KEY)
    names = [registration.name for registration in arguments.agents]
    before = [row[0] for row in tx.rows("SELECT name FROM agent WHERE state = 'active'")]
    tx.execute("UPDATE agent SET state = 'retired' WHERE state = 'active'")
    tx.execute("DELETE FROM topic_subscription")
    for registration in arguments.agents:
        _write(tx, registration)
    retired = sorted(set(before) - set(names))
    tx.emit("agent.registered", agents=names, retired=retired)
    return Registered(active=names, retired=retired)


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
        "INSERT INTO agent (name, role, state, class, inbox_max, publishes, delegates,"
        " registered_us, changed_us) VALUES (?, ?, 'active', ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET role = excluded.role, state = excluded.state,"
        " class = excluded.class, inbox_max = excluded.inbox_max,"
        " publishes = excluded.publishes, delegates = excluded.delegates,"
        " changed_us = excluded.changed_us",
        (
            registration.name,
            registration.role,
            rank(registration.priority),
            registration.inbox,
            msgspec.json.encode(registration.publishes).decode(),
            msgspec.json.encode(registration.delegates).decode(),
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
    rows = query.rows(
        "SELECT name, role, class, publishes, delegates, inbox_max FROM agent"
        " WHERE state = 'active' ORDER BY id"
    )
    members = [
        Member(
            name=name,
            role=role,
            rank=urgency,
            publishes=tuple(msgspec.json.decode(publishes)),
            delegates=frozenset(msgspec.json.decode(delegates)),
            inbox_max=inbox_max,
        )
        for name, role, urgency, publishes, delegates, inbox_max in rows
    ]
    pairs = query.rows("SELECT agent, pattern FROM topic_subscription")
    return Directory(members, [(agent, pattern) for agent, pattern in pairs])
