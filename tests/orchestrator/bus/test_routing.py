"""Routing decisions, each error and each way through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc_protocol.errors import Failure
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from orchestrator.bus.limits import HOPS_MAX
from orchestrator.bus.routing import (
    Directory,
    Draft,
    Member,
    Plan,
    delivery_rank,
    message_rank,
    route,
)

NOW_US = 1000


def member(name: str, role: str = "agent", **more: object) -> Member:
    given = {"rank": 2, "publishes": (), "delegates": frozenset(), "inbox_max": 2, **more}
    return Member(name=name, role=role, **given)  # type: ignore[arg-type]


DIRECTORY = Directory(
    [
        member("ops", publishes=("ops.>", "user.reply"), delegates=frozenset({"dev"})),
        member("dev"),
        member("lead", role="conductor"),
    ],
    [("ops", "user.*"), ("dev", "user.request"), ("ops", "ops.>"), ("dev", "ops.>")],
)


def decide(
    topic: str,
    sender: str = "operator",
    *,
    size: int = 1,
    hops: int = 0,
    expires_us: int = NOW_US + 1,
    depths: dict[str, int] | None = None,
) -> Plan | Failure:
    draft = Draft(topic=topic, sender=sender, payload_bytes=size, hops=hops, expires_us=expires_us)
    return route(draft, DIRECTORY, lambda to: to.inbox_max - (depths or {}).get(to.name, 0), NOW_US)


def refused(code: str, decision: Plan | Failure) -> Failure:
    assert isinstance(decision, Failure)
    assert decision.code == code
    assert decision.problem.cure
    return decision


def test_a_message_goes_to_every_subscriber() -> None:
    assert decide("user.request") == Plan(receivers=("dev", "ops"))


def test_an_agent_does_not_hear_itself() -> None:
    assert decide("ops.disk", "ops") == Plan(receivers=("dev",))


def test_a_reply_goes_to_the_conversation() -> None:
    assert decide("user.reply", "ops") == Plan(sink=True)


def test_the_operator_does_not_reply_to_itself() -> None:
    refused("bus.not-permitted", decide("user.reply"))


def test_an_agent_delegates_to_those_it_may() -> None:
    assert decide("agent.dev", "ops") == Plan(receivers=("dev",), direct=True)
    assert "delegate" in refused("bus.not-permitted", decide("agent.lead", "ops")).problem.cure


def test_the_operator_may_address_any_agent() -> None:
    assert decide("agent.lead") == Plan(receivers=("lead",), direct=True)


def test_an_agent_publishes_what_it_declared_only() -> None:
    refused("bus.not-permitted", decide("user.request", "ops"))


def test_a_stranger_publishes_nothing() -> None:
    refused("bus.not-permitted", decide("user.request", "stranger"))


def test_a_topic_without_subscribers_is_an_error_that_names_a_near_one() -> None:
    assert "'user.request'" in refused("bus.no-subscriber", decide("user.requests.x")).problem.cure
    assert "consumes" in refused("bus.no-subscriber", decide("zzz")).problem.cure
    refused("bus.no-subscriber", decide("agent.nobody"))


def test_a_wrong_topic_is_an_error() -> None:
    refused("bus.invalid-topic", decide("User Request"))


def test_a_payload_may_be_as_large_as_the_limit() -> None:
    assert isinstance(decide("user.request", size=PAYLOAD_BYTES_MAX), Plan)
    problem = refused("bus.payload-too-large", decide("user.request", size=PAYLOAD_BYTES_MAX + 1))
    assert problem.problem.details == {"bytes": PAYLOAD_BYTES_MAX + 1}


def test_a_chain_ends_after_its_last_hop() -> None:
    assert isinstance(decide("user.request", hops=HOPS_MAX), Plan)
    refused("bus.expired", decide("user.request", hops=HOPS_MAX + 1))


def test_a_message_past_its_time_is_expired() -> None:
    refused("bus.expired", decide("user.request", expires_us=NOW_US))


@pytest.mark.parametrize(
    ("depths", "full"), [({"ops": 2}, ["ops"]), ({"ops": 3, "dev": 2}, ["dev", "ops"])]
)
def test_one_full_inbox_stops_the_message_for_all(depths: dict[str, int], full: list[str]) -> None:
    problem = refused("bus.backpressure", decide("user.request", depths=depths))
    assert problem.problem.details == {"agents": full}
    assert " and ".join(full) in str(problem)


def test_the_conductor_is_found_by_its_role() -> None:
    assert DIRECTORY.conductor == "lead"
    assert Directory([member("dev")], []).conductor is None


RANKS = st.integers(0, 4)


@given(RANKS, RANKS, RANKS | st.none())
def test_a_message_is_as_urgent_as_its_conversation_and_never_more_than_its_cause(
    conversation: int, inherited: int, asked: int | None
) -> None:
    rank = message_rank(conversation, inherited, asked)
    assert min(conversation, inherited) <= rank <= conversation
    if asked is None:
        assert rank == min(conversation, inherited)


@given(RANKS, RANKS)
def test_a_message_without_a_cause_is_its_conversations(conversation: int, asked: int) -> None:
    assert message_rank(conversation, None, asked) == conversation


def test_a_delivery_is_as_urgent_as_its_message_or_its_agent() -> None:
    assert delivery_rank(3, member("a", rank=1)) == 1
    assert delivery_rank(0, member("a", rank=1)) == 0
