"""The history of an agent's components: what it runs, what it ran, and why it does not any more."""

from typing import Any

import msgspec
import pytest

from ipc_protocol.errors import Failure
from orchestrator.bus.lifecycle import IllegalTransitionError
from orchestrator.bus.routing import BUS, OPERATOR, SUPERVISOR
from orchestrator.bus.versions import (
    ActivateVersion,
    EndVersion,
    InstallVersion,
    SettleVersion,
    Version,
    activate_version,
    active_version,
    end_version,
    install_version,
    settle_version,
    versions_of,
)
from orchestrator.store.audit import first_broken

Bus = Any
"""The fixture `bus`."""

ONE, TWO = "1" * 64, "2" * 64


async def install(bus: Bus, sha256: str, source: Any = "upgrade", agent: str = "opsclaw") -> int:
    wanted = InstallVersion(
        agent=agent, sha256=sha256, size_bytes=7, world="agent@0.2.0", source=source, by=OPERATOR
    )
    number = await bus.store.apply(install_version, BUS, wanted)
    assert isinstance(number, int)
    return number


async def activate(bus: Bus, number: int, **more: Any) -> None:
    wanted = ActivateVersion(agent="opsclaw", number=number, **{"by": OPERATOR, **more})
    await bus.store.apply(activate_version, BUS, wanted)


async def history(bus: Bus, agent: str = "opsclaw") -> list[Version]:
    found: list[Version] = await bus.reader.view(versions_of, agent)
    return found


async def states(bus: Bus) -> list[tuple[int, str]]:
    return [(version.number, version.state) for version in await history(bus)]


async def failure_of(awaitable: Any) -> Failure:
    with pytest.raises(Failure) as failure:
        await awaitable
    return failure.value


async def test_a_candidate_becomes_active_and_retires_the_one_before(bus: Bus) -> None:
    await activate(bus, await install(bus, ONE, "configuration"))
    bus.now_us += 5
    await activate(bus, await install(bus, TWO))
    first, second = await history(bus)
    assert (first.number, first.sha256, first.state) == (1, ONE, "retired")
    assert (first.ended_us, first.reason) == (bus.now_us, "version 2 took its place")
    assert second == Version(
        agent="opsclaw",
        number=2,
        sha256=TWO,
        size_bytes=7,
        world="agent@0.2.0",
        source="upgrade",
        state="active",
        installed_by=OPERATOR,
        installed_us=bus.now_us,
        activated_us=bus.now_us,
        settled_us=bus.now_us,
        ended_us=None,
        reason=None,
    )
    assert await bus.reader.view(active_version, "opsclaw") == second


async def test_a_version_that_fails_is_rolled_back_with_its_reason(bus: Bus) -> None:
    await activate(bus, await install(bus, ONE))
    await activate(bus, await install(bus, TWO), probation=True)
    assert (await bus.reader.view(active_version, "opsclaw")).on_probation
    back = await install(bus, ONE, "rollback")
    await activate(bus, back, by=SUPERVISOR, ends="rolled-back", reason="it trapped")
    assert await states(bus) == [(1, "retired"), (2, "rolled-back"), (3, "active")]
    found = await history(bus)
    assert (found[1].reason, found[2].sha256, found[2].source) == ("it trapped", ONE, "rollback")


async def test_a_probation_ends_once(bus: Bus) -> None:
    await activate(bus, await install(bus, ONE), probation=True)
    bus.now_us += 9
    settle = SettleVersion(agent="opsclaw", number=1)
    assert await bus.store.apply(settle_version, BUS, settle)
    assert not await bus.store.apply(settle_version, BUS, settle)
    (version,) = await history(bus)
    assert (version.settled_us, version.on_probation) == (bus.now_us, False)


async def test_a_candidate_that_is_refused_leaves_the_active_one_alone(bus: Bus) -> None:
    await activate(bus, await install(bus, ONE))
    number = await install(bus, TWO)
    refused = EndVersion(
        agent="opsclaw", number=number, state="refused", reason="its init failed", by=OPERATOR
    )
    await bus.store.apply(end_version, BUS, refused)
    assert await states(bus) == [(1, "active"), (2, "refused")]
    assert await install(bus, TWO) == 3


async def test_each_agent_counts_for_itself(bus: Bus) -> None:
    assert [await install(bus, ONE), await install(bus, ONE, agent="devclaw")] == [1, 1]
    everybody = await bus.reader.view(versions_of)
    assert [version.agent for version in everybody] == ["devclaw", "opsclaw"]
    assert await bus.reader.view(active_version, "devclaw") is None


async def test_what_is_not_there_is_named(bus: Bus) -> None:
    assert (await failure_of(install(bus, ONE, agent="nobody"))).code == "agent.unknown"
    assert (await failure_of(activate(bus, 9))).code == "component.unknown"


@pytest.mark.parametrize("state", ["retired", "rolled-back"])
async def test_a_candidate_has_nothing_to_be_taken_back(bus: Bus, state: Any) -> None:
    number = await install(bus, ONE)
    wrong = EndVersion(agent="opsclaw", number=number, state=state, reason="x", by=OPERATOR)
    with pytest.raises(IllegalTransitionError):
        await bus.store.apply(end_version, BUS, wrong)
    assert await states(bus) == [(1, "candidate")]


async def test_a_version_has_one_life(bus: Bus) -> None:
    await activate(bus, await install(bus, ONE))
    await activate(bus, await install(bus, TWO))
    with pytest.raises(IllegalTransitionError):
        await activate(bus, 1)


async def test_every_change_is_audited_and_told(bus: Bus) -> None:
    with bus.store.changes.subscribe({"version.changed"}, 16) as changes:
        await activate(bus, await install(bus, ONE))
        await activate(bus, await install(bus, TWO), by=SUPERVISOR, probation=True)
        settle = SettleVersion(agent="opsclaw", number=2)
        await bus.store.apply(settle_version, BUS, settle)
        told = [await anext(changes) for _ in range(6)]
    assert [(each.data["action"], each.data["version"], each.data["state"]) for each in told] == [
        ("install", 1, "candidate"),
        ("activate", 1, "active"),
        ("install", 2, "candidate"),
        ("end", 1, "retired"),
        ("activate", 2, "active"),
        ("settle", 2, "active"),
    ]
    assert [each.data["on_probation"] for each in told] == [False] * 4 + [True, False]
    rows = await bus.reader.fetch("SELECT owner, action, subject, data FROM audit ORDER BY id")
    assert [row[:3] for row in rows] == [
        (OPERATOR, "version.install", "opsclaw"),
        (OPERATOR, "version.activate", "opsclaw"),
        (OPERATOR, "version.install", "opsclaw"),
        (SUPERVISOR, "version.end", "opsclaw"),
        (SUPERVISOR, "version.activate", "opsclaw"),
        (SUPERVISOR, "version.settle", "opsclaw"),
    ]
    assert msgspec.json.decode(rows[3][3])["reason"] == "version 2 took its place"
    assert await bus.reader.view(first_broken) is None


async def test_no_agent_changes_its_versions(bus: Bus) -> None:
    wanted = InstallVersion(
        agent="opsclaw", sha256=ONE, size_bytes=7, world="", source="upgrade", by="opsclaw"
    )
    refused = await failure_of(bus.store.apply(install_version, "opsclaw", wanted))
    assert refused.code == "store.ownership"
