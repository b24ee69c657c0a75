"""New versions of a component take over between two messages, and nothing is lost or done twice."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import wasmtime
import wat_components as wat
from changing_agents import AGENT, SECONDS_MAX, Bench

from ipc_protocol import control
from ipc_protocol.errors import Failure
from orchestrator.bus.versions import Version
from orchestrator.components.versions import COMPONENTS_KEPT_MAX, in_use
from orchestrator.supervision.restart import Quarantine

ECHO = wat.agent()
OTHER = wat.agent("0.2.0")
DEGRADED = wat.agent(
    "0.2.0",
    imports=(wat.HEALTH,),
    handle=f'(call $health-emit (i32.const 1) "no sensor") {wat.ECHO}',
)
REFUSES_CONFIG = wat.agent(init=wat.refuse("no such sensor"))
READS_FOR_EVER = wat.agent(
    "0.2.0",
    imports=(wat.STATE,),
    handle="(local.set $a (call $allocate (i32.const 32)))"
    " (if (i32.eq (global.get $count) (i32.const 2)) (then"
    ' (loop $forever (call $state-get "k" (local.get $a)) (br $forever))))' + wat.ECHO,
)
HANGS_AT_THE_END = wat.agent(shutdown="(loop $forever (br $forever))")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.stop()


async def start(bench: Bench, text: str = ECHO) -> None:
    await bench.start(bench.agent(text))


async def test_the_configured_component_is_the_first_version(bench: Bench) -> None:
    await start(bench)
    await bench.publish(3)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    assert await bench.history() == [(1, "active", "configuration")]
    status = await bench.until_state("idle")
    assert status.component is not None
    assert (status.component.world, status.component.number) == ("agent@0.1.0", 1)


async def test_an_upgrade_under_load_loses_and_duplicates_nothing(bench: Bench) -> None:
    await start(bench)
    publishing = asyncio.create_task(bench.publish(60))
    upgraded = await bench.upgrade(OTHER)
    await publishing
    await bench.publish(10)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    assert (upgraded.version.number, upgraded.version.world) == (2, "agent@0.2.0")
    assert upgraded.before is not None and upgraded.before.state == "retired"
    assert await bench.history() == [(1, "retired", "configuration"), (2, "active", "upgrade")]


async def test_a_version_that_traps_on_its_tenth_message_is_rolled_back_without_loss(
    bench: Bench,
) -> None:
    await start(bench)
    await bench.upgrade(wat.agent(handle=wat.trap_on(10)), messages=20, us=60_000_000)
    await bench.publish(40)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    assert await bench.history() == [
        (1, "retired", "configuration"),
        (2, "rolled-back", "upgrade"),
        (3, "active", "rollback"),
    ]
    versions = (await bench.upgrading.history(AGENT)).versions
    assert versions[0].sha256 == versions[2].sha256
    assert "unreachable" in versions[1].reason
    assert (await bench.until_state("idle")).detail == ""
    ((detail,),) = await bench.rows("SELECT detail FROM health WHERE kind = 'rollback'")
    assert "Version 2 of sensor was rolled back to that of version 1, after 9 messages" in detail
    assert await bench.rows("SELECT count(*) FROM dead_letter") == [(0,)]
    # The fault was the version's, and is not held against the message.
    assert await bench.rows("SELECT sum(deaths) FROM delivery") == [(0,)]
    audited = await bench.rows("SELECT owner, action FROM audit WHERE action LIKE 'version.%'")
    assert ("operator", "version.activate") in audited and ("bus", "version.end") in audited


async def test_the_trap_stands_in_the_trace(bench: Bench) -> None:
    await start(bench, wat.agent(handle=wat.trap_on(1)))
    await bench.publish()
    await bench.until_finished()
    (delivery,) = [each for each in (await bench.views.trace("c1")).deliveries if each.traps]
    assert delivery.attempts == 5 and delivery.state == "dead"
    assert [trap.code for trap in delivery.traps] == ["component.trapped"] * 5
    trap = delivery.traps[0]
    assert "handle" in trap.backtrace and trap.component == await bench.upload(
        wat.agent(handle=wat.trap_on(1))
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [(REFUSES_CONFIG, "no such sensor"), (wat.agent(init=wat.TRAP), "unreachable")],
    ids=["refuses", "traps"],
)
async def test_one_that_does_not_start_leaves_everything_as_it_was(
    bench: Bench, text: str, reason: str
) -> None:
    await start(bench)
    await bench.until_state("idle")
    with pytest.raises(Failure, match=reason) as failure:
        await bench.upgrade(text)
    assert failure.value.code == "component.init"
    await bench.publish(3)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    assert await bench.history() == [(1, "active", "configuration"), (2, "refused", "upgrade")]


async def test_a_component_without_its_grant_is_refused_before_anything_is_started(
    bench: Bench,
) -> None:
    await start(bench)
    await bench.until_state("idle")
    with pytest.raises(Failure) as failure:
        await bench.upgrade(DEGRADED)
    assert failure.value.code == "component.grant"
    assert await bench.history() == [(1, "active", "configuration")]


@pytest.mark.parametrize(
    ("condition", "word"), [(1, "degraded"), (2, "overloaded")], ids=["degraded", "overloaded"]
)
async def test_one_that_says_it_is_not_well_is_rolled_back(
    bench: Bench, condition: int, word: str
) -> None:
    await bench.start(bench.agent(ECHO, imports=["health"]))
    told = f'(call $health-emit (i32.const {condition}) "no sensor") {wat.ECHO}'
    unwell = wat.agent("0.2.0", imports=(wat.HEALTH,), handle=told)
    await bench.upgrade(unwell, messages=20, us=60_000_000)
    await bench.publish(3)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    versions = (await bench.upgrading.history(AGENT)).versions
    assert [each.state for each in versions] == ["active", "rolled-back", "retired"]
    assert versions[1].reason == f"It reported to be {word}: no sensor"


async def test_one_that_says_it_is_well_is_kept(bench: Bench) -> None:
    await bench.start(bench.agent(ECHO, imports=["health"]))
    told = f'(call $health-emit (i32.const 0) "fine") {wat.ECHO}'
    await bench.upgrade(wat.agent("0.2.0", imports=(wat.HEALTH,), handle=told), messages=2)
    await bench.publish(2)
    await bench.until(lambda: settled(bench))
    assert await bench.echoed() == bench.expected


async def settled(bench: Bench) -> bool:
    return (await bench.upgrading.history(AGENT)).versions[0].settled_us is not None


async def test_what_it_has_to_show_is_counted_and_then_it_is_kept(bench: Bench) -> None:
    await start(bench)
    upgraded = await bench.upgrade(OTHER, messages=3)
    assert upgraded.probation is not None
    await bench.publish(2)
    await bench.until_finished()

    async def counted() -> bool:
        return (await bench.upgrading.history(AGENT)).probation == handled_two

    handled_two = control.OnProbation(
        since_us=upgraded.probation.since_us, handled=2, messages=3, us=0
    )
    await bench.until(counted)
    assert not await settled(bench)
    await bench.publish()
    await bench.until(lambda: settled(bench))
    assert (await bench.upgrading.history(AGENT)).probation is None


async def test_time_ends_a_probation_without_a_message(bench: Bench) -> None:
    await start(bench)
    await bench.upgrade(OTHER, messages=0, us=1000)
    await bench.until(lambda: settled(bench))


async def test_after_a_restart_the_upgrade_stands_and_its_probation_begins_anew(
    bench: Bench,
) -> None:
    await start(bench)
    trapping = wat.agent(handle=wat.trap_on(2))
    await bench.upgrade(trapping, messages=20)
    await bench.publish()
    await bench.until_finished()
    await bench.stop()
    await start(bench)
    status = await bench.until_state("idle")
    assert status.component is not None and status.component.number == 2
    assert status.component.probation is not None and status.component.probation.handled == 0
    await bench.publish(3)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    assert [state for _, state, _ in await bench.history()] == ["retired", "rolled-back", "active"]


async def test_another_file_in_the_configuration_is_another_version(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    await bench.upgrade(wat.agent(handle=wat.answers(2)))
    await bench.stop()
    await start(bench, OTHER)
    await bench.until_state("idle")
    assert await bench.history() == [
        (1, "retired", "configuration"),
        (2, "retired", "upgrade"),
        (3, "active", "configuration"),
    ]


async def test_a_shutdown_that_never_returns_holds_nobody_up(bench: Bench) -> None:
    await start(bench, HANGS_AT_THE_END)
    await bench.until_state("idle")
    await bench.upgrade(OTHER)
    await bench.publish(3)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected


async def test_an_upgrade_supersedes_one_on_probation_and_the_last_good_one_stays_at_hand(
    bench: Bench,
) -> None:
    await start(bench)
    await bench.until_state("idle")
    await bench.upgrade(OTHER, messages=20)
    await bench.upgrade(wat.agent(handle=wat.trap_on(1)), messages=20)
    await bench.publish(2)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    versions = list(reversed((await bench.upgrading.history(AGENT)).versions))
    assert [each.state for each in versions] == ["retired", "retired", "rolled-back", "active"]
    assert versions[3].sha256 == versions[0].sha256


async def test_one_that_uses_up_a_budget_is_rolled_back_without_loss(bench: Bench) -> None:
    await bench.start(bench.agent(ECHO, imports=["state"]))
    await bench.upgrade(READS_FOR_EVER, messages=20)
    await bench.publish(4)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    versions = (await bench.upgrading.history(AGENT)).versions
    assert [each.state for each in versions] == ["active", "rolled-back", "retired"]
    assert "has used its" in versions[1].reason
    assert await bench.rows("SELECT count(*) FROM dead_letter") == [(0,)]


async def test_one_that_refuses_what_it_gets_is_rolled_back(bench: Bench) -> None:
    await start(bench)
    await bench.upgrade(wat.agent(handle=wat.refuse("not today")), messages=3)
    await bench.publish(5)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected[3:]
    versions = (await bench.upgrading.history(AGENT)).versions
    assert [each.state for each in versions] == ["active", "rolled-back", "retired"]
    assert versions[1].reason == "It has refused 3 of 3 messages."


async def test_one_change_of_an_agent_at_a_time(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    first = asyncio.create_task(bench.upgrade(OTHER))
    await bench.until_told("check")
    with pytest.raises(Failure) as failure:
        await bench.rollback()
    assert failure.value.code == "component.busy"
    await first


async def test_a_caller_who_hangs_up_before_the_handover_changes_nothing(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    upgrading = asyncio.create_task(bench.upgrade(OTHER))
    await bench.until_told("start")
    upgrading.cancel()
    await asyncio.gather(upgrading, return_exceptions=True)
    await bench.publish()
    await bench.until_finished()
    assert await bench.history() == [(1, "active", "configuration")]
    await bench.upgrade(OTHER)


async def test_what_runs_already_is_no_upgrade(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    with pytest.raises(Failure, match="runs that component already, as version 1"):
        await bench.upgrade(ECHO)


# ---- Going back ----------------------------------------------------------------------------------


async def test_a_rollback_goes_to_the_version_before_and_back(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    with pytest.raises(Failure, match="has no version before this one"):
        await bench.rollback()
    await bench.upgrade(OTHER)
    back = await bench.rollback()
    assert (back.version.number, back.version.source) == (3, "rollback")
    assert back.before is not None and back.before.state == "rolled-back"
    assert back.before.reason == "It was rolled back by the operator."
    again = await bench.rollback()
    assert again.version.sha256 == back.before.sha256


async def test_a_rollback_during_probation_goes_to_the_last_good_version(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    await bench.upgrade(OTHER, messages=20)
    back = await bench.rollback()
    versions = (await bench.upgrading.history(AGENT)).versions
    assert back.version.sha256 == versions[-1].sha256 and back.probation is None


async def test_a_rollback_to_a_number(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    third = wat.agent(handle=wat.answers(2))
    await bench.upgrade(OTHER)
    await bench.upgrade(third)
    back = await bench.rollback(to=1)
    assert back.version.sha256 == await bench.upload(ECHO)
    with pytest.raises(Failure) as failure:
        await bench.rollback(to=9)
    assert failure.value.code == "component.unknown"


# ---- What cannot be run --------------------------------------------------------------------------


async def test_an_agent_whose_component_cannot_be_had_is_quarantined_and_an_upgrade_heals_it(
    bench: Bench,
) -> None:
    await start(bench, DEGRADED)
    status = await bench.until_state("quarantined")
    assert status.problem is not None and status.problem.code == "component.grant"
    await bench.publish(2)

    assert await bench.rows("SELECT agent, data FROM health WHERE kind = 'component'") == [
        (AGENT, '{"code":"component.grant"}')
    ]
    await bench.upgrade(ECHO)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    status = await bench.until_state("idle")
    assert (status.problem, status.detail) == (None, "")


async def test_one_that_cannot_start_is_quarantined_with_what_it_said(bench: Bench) -> None:
    await start(bench, REFUSES_CONFIG)
    status = await bench.until_state("quarantined")
    assert "no such sensor" in status.detail

    async def asked() -> bool:
        return await bench.views.open_quarantine(AGENT) is not None

    await bench.until(asked)
    upgraded = await bench.upgrade(ECHO, messages=20)
    assert upgraded.before is not None and upgraded.before.number == 1
    await bench.publish(2)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    assert not await asked()


async def test_an_upgrade_that_comes_while_a_quarantine_is_written_down_takes_over(
    bench: Bench,
) -> None:
    await start(bench, REFUSES_CONFIG)
    supervisor = bench.roster[AGENT]._supervisor
    write_down = supervisor._on_quarantine
    assert write_down is not None
    begun: asyncio.Future[asyncio.Task[control.AgentUpgraded]] = asyncio.Future()

    async def after_the_upgrade_is_up(quarantine: Quarantine) -> None:
        begun.set_result(asyncio.create_task(bench.upgrade(ECHO)))
        await bench.until_told("hand-over")
        await write_down(quarantine)

    supervisor._on_quarantine = after_the_upgrade_is_up
    async with asyncio.timeout(SECONDS_MAX):
        upgraded = await (await begun)
    assert upgraded.version.state == "active"
    assert await bench.views.open_quarantine(AGENT) is None
    await bench.publish()
    await bench.until_finished()
    assert await bench.echoed() == bench.expected


async def test_one_that_was_held_in_quarantine_is_let_out_by_an_upgrade(bench: Bench) -> None:
    await start(bench, REFUSES_CONFIG)
    await bench.until_state("quarantined")
    await bench.stop()
    await bench.start(bench.agent(REFUSES_CONFIG), hold=[AGENT])
    await bench.until_state("quarantined")
    upgraded = await bench.upgrade(wat.agent(handle=wat.trap_on(1)), messages=20)
    assert upgraded.probation is not None
    assert (await bench.until_state("idle")).component is not None


async def test_the_death_of_the_zygote_is_not_held_against_a_version(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    await bench.upgrade(OTHER, messages=20)
    assert bench.zygote.pid is not None
    os.kill(bench.zygote.pid, signal.SIGKILL)
    await bench.publish(2)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    assert await bench.history() == [(1, "retired", "configuration"), (2, "active", "upgrade")]


async def test_the_death_of_an_idle_worker_is(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    await bench.upgrade(OTHER, messages=20)
    pid = bench.roster[AGENT].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await bench.until(lambda: has_state(bench, "rolled-back"))
    versions = (await bench.upgrading.history(AGENT)).versions
    assert versions[1].reason == "Its worker ended (killed by SIGKILL)."
    await bench.publish()
    await bench.until_finished()
    assert await bench.echoed() == bench.expected


async def has_state(bench: Bench, state: str) -> bool:
    return state in [each for _, each, _ in await bench.history()]


async def test_there_is_no_history_of_nobody(bench: Bench) -> None:
    await start(bench)
    with pytest.raises(Failure) as failure:
        await bench.upgrading.history("nobody")
    assert failure.value.code == "agent.unknown"


async def test_an_agent_whose_component_has_never_run_has_no_history(bench: Bench) -> None:
    await start(bench, DEGRADED)
    await bench.until_state("quarantined")
    assert await bench.history() == []


# ---- Starting again ------------------------------------------------------------------------------


async def test_what_was_never_run_takes_no_place_from_what_was(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    await bench.upgrade(OTHER)
    for number in range(COMPONENTS_KEPT_MAX + 1):
        with pytest.raises(Failure, match=f"no sensor {number}"):
            await bench.upgrade(wat.agent(init=wat.refuse(f"no sensor {number}")))
    await bench.stop()
    await start(bench)
    status = await bench.until_state("idle")
    assert status.component is not None and status.component.number == 2
    back = await bench.rollback()
    assert back.version.sha256 == await bench.upload(ECHO)


def version(number: int, *, settled: bool, state: str = "retired") -> Version:
    return Version(
        agent=AGENT,
        number=number,
        sha256=f"{number:064x}",
        size_bytes=1,
        world="agent@0.1.0",
        source="upgrade",
        state=state,  # type: ignore[arg-type]
        installed_by="operator",
        installed_us=number,
        activated_us=number,
        settled_us=number if settled else None,
        ended_us=None if state == "active" else number,
        reason=None if state == "active" else "x",
    )


def test_the_last_good_version_is_kept_however_old_it_is() -> None:
    trials = [version(number, settled=False) for number in range(3, 20)]
    history = [version(1, settled=True), version(2, settled=True), *trials]
    kept = {int(sha256, 16) for sha256 in in_use(history)}
    assert kept == {2, *range(10, 20)}


def test_a_component_counts_once_however_often_it_was_run() -> None:
    again = [
        msgspec.structs.replace(version(number, settled=True), sha256="f" * 64)
        for number in range(3, 30)
    ]
    assert len(in_use([version(1, settled=True), version(2, settled=True), *again])) == 3


@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_configured_file_that_is_gone_takes_nothing_away(
    bench: Bench, upgraded: bool
) -> None:
    agent = bench.agent(ECHO)
    await bench.start(agent)
    await bench.until_state("idle")
    if upgraded:
        await bench.upgrade(OTHER)
    before = await bench.history()
    await bench.stop()
    assert agent.component is not None
    agent.component.unlink()
    await bench.start(agent)
    await bench.until_state("idle")
    assert await bench.history() == before
    ((detail,),) = await bench.rows("SELECT detail FROM health WHERE kind = 'component'")
    assert f"{AGENT} goes on with version {1 + upgraded}" in detail
    assert "cannot be opened" in detail


async def test_a_component_that_was_never_there_stops_its_own_agent_alone(bench: Bench) -> None:
    gone = bench.agent(ECHO, name="gone", consumes=["gone.>"])
    assert gone.component is not None
    gone.component.unlink()
    await bench.start(gone, bench.agent(ECHO))
    status = await bench.until_state("quarantined", "gone")
    assert status.problem is not None and status.problem.code == "component.unknown"
    await bench.publish(2)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected


async def restart_with_file(bench: Bench, content: bytes) -> None:
    """As somebody does who has written something else into the configured file."""
    await bench.stop()
    agent = bench.agent(ECHO)
    assert agent.component is not None
    agent.component.write_bytes(content)
    await bench.start(agent)
    await bench.until_state("idle")


async def test_a_configured_file_that_cannot_be_run_is_refused_once(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    refused = [(1, "active", "configuration"), (2, "refused", "configuration")]
    for starts in (1, 2):
        await restart_with_file(bench, b"garbage")
        assert await bench.history() == refused
        health = await bench.rows("SELECT count(*) FROM health WHERE kind = 'component'")
        assert health == [(starts,)]
    await bench.publish(2)
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
    with pytest.raises(Failure, match="runs that component already, as version 1"):
        await bench.rollback(to=1)
    await bench.upgrade(OTHER)
    for content in (b"garbage", wasmtime.wat2wasm(ECHO)):
        await restart_with_file(bench, content)
        assert (await bench.history())[2:] == [(3, "active", "upgrade")]
    await restart_with_file(bench, wasmtime.wat2wasm(wat.agent(handle=wat.answers(2))))
    assert (await bench.history())[3:] == [(4, "active", "configuration")]


async def test_a_refused_file_is_taken_when_it_gets_what_it_lacked(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    await restart_with_file(bench, wasmtime.wat2wasm(DEGRADED))
    assert (await bench.history())[1:] == [(2, "refused", "configuration")]
    await bench.stop()
    await bench.start(bench.agent(DEGRADED, imports=["health"]))
    await bench.until_state("idle")
    assert (await bench.history())[2:] == [(3, "active", "configuration")]


async def test_a_damaged_upload_of_an_added_agent_is_no_other_version(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    await bench.upgrade(OTHER)
    await bench.stop()
    kept = bench.files.find(await bench.upload(ECHO))
    assert kept is not None
    kept.path.write_bytes(wasmtime.wat2wasm(wat.agent(handle=wat.answers(2))))
    await bench.start(bench.agent(ECHO, component=kept.path))
    await bench.until_state("idle")
    assert (await bench.history())[1:] == [(2, "active", "upgrade")]
    assert not kept.path.exists()


async def test_an_upload_of_an_added_agent_is_its_version(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    await bench.stop()
    kept = bench.files.find(await bench.upload(ECHO))
    assert kept is not None
    await bench.start(bench.agent(ECHO, component=kept.path))
    await bench.until_state("idle")
    assert await bench.history() == [(1, "active", "configuration")]


async def test_a_lost_component_is_healed_by_its_own_upload(bench: Bench) -> None:
    await start(bench)
    await bench.until_state("idle")
    upgraded = await bench.upgrade(OTHER)
    await bench.stop()
    lost = bench.files.find(upgraded.version.sha256)
    assert lost is not None
    lost.path.unlink()
    await start(bench)
    status = await bench.until_state("quarantined")
    assert status.problem is not None and status.problem.code == "component.unknown"
    healed = await bench.upgrade(OTHER)
    assert healed.version.number == 3
    await bench.publish()
    await bench.until_finished()
    assert await bench.echoed() == bench.expected
