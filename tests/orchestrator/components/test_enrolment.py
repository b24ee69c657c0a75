"""Agents that are added and retired while others work."""

import asyncio
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import wat_components as wat
from changing_agents import AGENT, Bench, clock_us

from ipc_protocol import control
from ipc_protocol.errors import Failure
from orchestrator.bus.leasing import Park, Wake, park, wake
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RetireAgent, retire_agent
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.bus.versions import versions_of
from orchestrator.store.store import Store
from tests.leasing import lease_one

ECHO = wat.agent()
ADDED = """[agent.gate]
identity_file = "gate.md"
component = "gate.wasm"
config = "out.echo"
consumes = ["gate.>"]
publishes = ["out.>"]
"""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.start(made.agent(ECHO))
    yield made
    await made.stop()


async def add(bench: Bench, text: str = ADDED, file: str = "/home/me/gate.toml") -> str:
    sha256 = await bench.upload(wat.agent("0.2.0"))
    asked = control.AddAgent(
        file=file,
        text=text,
        contents={"gate.md": b"You guard."},
        components={"gate.wasm": sha256},
    )
    return (await bench.enrolment.add(asked, bench.report)).file


async def retire(bench: Bench, name: str = AGENT) -> control.AgentRetired:
    return await bench.enrolment.retire(name, bench.report)


async def gone(bench: Bench, name: str) -> None:
    async def is_gone() -> bool:
        return name not in bench.roster

    await bench.until(is_gone)


async def works(bench: Bench, topic: str) -> None:
    before = len(await bench.echoed())
    await bench.publish(topic=topic)

    async def answered() -> bool:
        return len(await bench.echoed()) == before + 1

    await bench.until(answered)


def kept_in(file: Path) -> dict[str, Any]:
    agent: dict[str, Any] = tomllib.loads(file.read_text())["agent"]["gate"]
    return agent


def is_there(file: Path) -> bool:
    return file.is_absolute() and file.is_file()


# ---- Coming --------------------------------------------------------------------------------------


async def test_an_added_agent_works_at_once_and_keeps_a_file_that_stands_for_itself(
    bench: Bench,
) -> None:
    file = Path(await add(bench))
    await works(bench, "gate.x")
    assert file == bench.state / "agents.d" / "gate.toml"
    kept = kept_in(file)
    assert kept["identity"] == "You guard." and "identity_file" not in kept
    assert is_there(Path(kept["component"]))
    assert bench.roster["gate"].config.identity == "You guard."


async def test_mistakes_in_the_file_have_their_lines(bench: Bench) -> None:
    with pytest.raises(Failure) as failure:
        await add(bench, ADDED + 'duty = ["x"]\nconsumers = 1\n')
    problems = failure.value.problem.details["problems"]
    assert [(each["file"], each["line"]) for each in problems] == [
        ("/home/me/gate.toml", 7),
        ("/home/me/gate.toml", 8),
    ]
    assert "Did you mean 'duties'?" in str(failure.value)
    assert not (bench.state / "agents.d").exists()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (ADDED.replace("agent.gate", "agent.sensor"), "request.invalid", "There is an agent"),
        (ADDED.replace("gate.wasm", "other.wasm"), "request.invalid", "did not come along"),
        (ADDED + "strict_imports = 3\n", "request.invalid", "strict_imports"),
    ],
    ids=["twice", "incomplete", "wrong"],
)
async def test_what_cannot_be_added_leaves_nothing_behind(
    bench: Bench, text: str, code: str, said: str
) -> None:
    with pytest.raises(Failure, match=said) as failure:
        await add(bench, text)
    assert failure.value.code == code
    assert set(bench.roster) == {AGENT}
    assert not list(bench.state.glob("agents.d/*"))


async def test_a_component_without_its_grant_adds_nobody(bench: Bench) -> None:
    sha256 = await bench.upload(wat.agent("0.2.0", imports=(wat.STATE,)))
    asked = control.AddAgent(
        file="/x.toml", text=ADDED, contents={"gate.md": b"x"}, components={"gate.wasm": sha256}
    )
    with pytest.raises(Failure) as failure:
        await bench.enrolment.add(asked, bench.report)
    assert failure.value.code == "component.grant"
    assert set(bench.roster) == {AGENT} and not list(bench.state.glob("agents.d/*"))


async def test_a_component_that_was_not_uploaded_is_named(bench: Bench) -> None:
    asked = control.AddAgent(
        file="/x.toml", text=ADDED, contents={}, components={"gate.wasm": "0" * 64}
    )
    with pytest.raises(Failure, match=r"gate\.wasm was not uploaded"):
        await bench.enrolment.add(asked, bench.report)


# ---- Going ---------------------------------------------------------------------------------------


async def test_a_retired_agent_finishes_what_it_has_and_gets_nothing_more(bench: Bench) -> None:
    await bench.until_state("idle")
    await bench.publish(20)
    retired = await retire(bench)
    assert retired == control.AgentRetired(agent=AGENT, parked=0)
    assert await bench.echoed() == bench.expected
    await gone(bench, AGENT)
    with pytest.raises(Failure) as failure:
        await bench.publish()
    assert failure.value.code == "bus.no-subscriber"
    ((version),) = await bench.store.reader("v").view(versions_of, AGENT)
    assert (version.state, version.reason) == ("retired", "The agent was retired.")


async def test_the_file_of_an_added_agent_goes_with_it(bench: Bench) -> None:
    file = Path(await add(bench))
    retired = await retire(bench, "gate")
    assert retired.removed_file == str(file)
    await gone(bench, "gate")
    assert not is_there(file)
    await add(bench)
    await works(bench, "gate.x")


async def test_what_waits_for_a_person_does_not_hold_up_whoever_retires(bench: Bench) -> None:
    parked = await restart_with_one_parked(bench)
    retired = await retire(bench)
    assert retired.parked == 1
    assert bench.roster.is_leaving(AGENT)
    assert "retired" in bench.roster[AGENT].status(0, 1, 0, 0).detail
    await answer(bench, parked)
    await gone(bench, AGENT)
    assert await bench.echoed() == ["1"]


async def restart_with_one_parked(bench: Bench) -> int:
    """With a delivery that waits for a person, as if the agent had asked one."""
    await bench.until_state("idle")
    await bench.stop()
    store = await Store.open(bench.state / "agentd.db", clock_us=clock_us)
    question = Publish(topic="in.x", payloads=[b"1"], correlation="c1")
    await store.apply(publish, OPERATOR, question)
    leased = await lease_one(store, AGENT)
    assert leased is not None
    delivery = leased.handle.delivery
    parking = Park(delivery=delivery, incarnation="w", reason="attention")
    await store.apply(park, BUS, parking)
    await store.close()
    await bench.start(bench.agent(ECHO))
    return delivery


async def answer(bench: Bench, delivery: int) -> None:
    await bench.store.apply(wake, BUS, Wake(delivery=delivery))


async def test_retired_is_retired_after_a_restart_until_it_is_added_again(bench: Bench) -> None:
    await bench.until_state("idle")
    await retire(bench)
    await gone(bench, AGENT)
    await bench.stop()
    agent = bench.agent(ECHO)
    await bench.start(agent)
    assert AGENT not in bench.roster


async def test_one_that_had_not_finished_goes_on_with_it_after_a_restart(bench: Bench) -> None:
    parked = await restart_with_one_parked(bench)
    await retire(bench)
    await bench.stop()
    await bench.start(bench.agent(ECHO))
    assert bench.roster.is_leaving(AGENT)
    await answer(bench, parked)
    await gone(bench, AGENT)
    assert await bench.echoed() == ["1"]


async def test_one_that_cannot_work_is_named_and_finishes_when_it_is_repaired(
    bench: Bench,
) -> None:
    await bench.until_state("idle")
    await bench.stop()
    await bench.start(bench.agent(ECHO), hold=[AGENT])
    await bench.publish(2)
    with pytest.raises(Failure, match="cannot finish what it has") as failure:
        await retire(bench)
    assert failure.value.code == "agent.unfinished"
    assert failure.value.problem.details["pending"] == 2
    assert f"agentd ctl agents upgrade {AGENT} FILE" in failure.value.problem.cure
    await bench.upgrade(wat.agent(extra="(core module $second-version)"))
    await gone(bench, AGENT)
    assert await bench.echoed() == bench.expected


async def test_one_that_leaves_is_called_back_by_adding_it_again(bench: Bench) -> None:
    file = Path(await add(bench))
    await bench.until_state("idle", "gate")
    await bench.publish(topic="gate.x")
    await bench.until_finished("gate")
    await bench.stop()
    own = msgspec.structs.replace(bench.agent(ECHO, name="gate"), consumes=["gate.>"])
    await bench.start(bench.agent(ECHO), own, hold=["gate"])
    await bench.publish(topic="gate.x")
    with pytest.raises(Failure, match=r"agents add FILE.* calls it back"):
        await retire(bench, "gate")
    waiting = asyncio.create_task(retire(bench, "gate"))
    assert Path(await add(bench)) == file and is_there(file)
    with pytest.raises(Failure, match=r"was added again|cannot finish"):
        await waiting
    await bench.until_finished("gate")
    assert not bench.roster.is_leaving("gate")
    assert await bench.echoed() == bench.expected


async def test_what_is_left_of_one_that_has_finished_is_put_away_at_the_start(
    bench: Bench,
) -> None:
    file = Path(await add(bench))
    await works(bench, "gate.x")
    # As a kill right after the retirement leaves it.
    await bench.store.apply(retire_agent, BUS, RetireAgent(name="gate", by=OPERATOR))
    await bench.stop()
    await bench.start(bench.agent(ECHO), bench.agent(ECHO, name="gate"))
    assert "gate" not in bench.roster and not is_there(file)
    assert bench.enrolment.withheld == set()
    ((version,),) = await bench.rows("SELECT state FROM agent_version WHERE agent = 'gate'")
    assert version == "retired"


async def test_a_configured_agent_that_is_retired_is_withheld_until_it_is_added(
    bench: Bench,
) -> None:
    await bench.until_state("idle")
    await retire(bench)
    assert bench.enrolment.withheld == {AGENT}
    await bench.stop()
    await bench.start(bench.agent(ECHO))
    assert bench.enrolment.withheld == {AGENT} and AGENT not in bench.roster


async def test_an_agent_of_a_persons_file_comes_back_with_that_file_alone(bench: Bench) -> None:
    folder = bench.folder / "agents.d"
    folder.mkdir()
    mine = folder / "gate.toml"
    mine.write_text(ADDED)
    with pytest.raises(Failure, match="would stand in two files"):
        await add(bench)
    assert await add(bench, file=str(mine)) == str(mine)
    assert not (bench.state / "agents.d").exists()
    await works(bench, "gate.x")


async def test_nobody_cannot_be_retired(bench: Bench) -> None:
    with pytest.raises(Failure) as failure:
        await retire(bench, "nobody")
    assert failure.value.code == "agent.unknown"
