"""SIGKILL in the middle of the demo, at several points: it still ends as it does without.

Each of the two runs of the demo meets several kills: of workers and the conductor in one, of the
programs that everybody needs in the other. The runs are made once, and each test looks at one
thing about them.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from daemons import (
    Follower,
    Installation,
    RunningDaemon,
    Samples,
    load_module,
    parent_of,
    short_folder,
)

from ipc_protocol import methods
from ipc_protocol.control import Happening
from ipc_protocol.inference import Nothing

pytestmark = pytest.mark.model

DEMO: Final = Path(__file__).parent.parent.parent / "deploy" / "demo" / "demo.py"
POINT_SECONDS_MAX: Final = 60.0
LOOK_SECONDS: Final = 0.02

Victim = Callable[[Follower], Awaitable[int]]


@dataclass(frozen=True)
class Point:
    """When somebody dies: the first happening that fits, and who it is then."""

    what: str
    agent: str
    fits: Callable[[Happening], bool]
    victim: Victim


@dataclass
class Run:
    """One run of the demo, and what was seen of it."""

    points: tuple[Point, ...]
    killed: dict[str, int] = field(default_factory=dict)
    failure: str = ""
    traces: list[dict[str, Any]] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=lambda: Samples([]))

    @property
    def deliveries(self) -> list[dict[str, Any]]:
        return [delivery for trace in self.traces for delivery in trace["deliveries"]]

    @property
    def agents(self) -> dict[str, dict[str, Any]]:
        return {agent["name"]: agent for agent in self.status["agents"]}

    @property
    def engines(self) -> dict[str, dict[str, Any]]:
        return {engine["name"]: engine for engine in self.status["engines"]}


# ---- Whom to kill, and when ----------------------------------------------------------------------


async def look(follower: Follower, find: Callable[[Follower], Awaitable[int | None]]) -> int:
    """Ask until it finds a pid."""
    deadline = time.monotonic() + POINT_SECONDS_MAX
    while (pid := await find(follower)) is None:
        assert time.monotonic() < deadline, "the moment never came"
        await asyncio.sleep(LOOK_SECONDS)
    return pid


def worker(agent: str, phase: str | None = None) -> Victim:
    """The worker of `agent`, at once or when it is in `phase`."""

    async def find(follower: Follower) -> int | None:
        agents = await follower.call(methods.AGENTS, Nothing())
        (one,) = (one for one in agents.agents if one.name == agent)
        return one.pid if phase in (None, one.phase) else None

    return lambda follower: look(follower, find)


def language_engine(agent: str) -> Victim:
    """The engine `default`, while it generates for `agent`."""

    async def find(follower: Follower) -> int | None:
        engines = await follower.call(methods.SLOTS, Nothing())
        (engine,) = (one for one in engines.engines if one.name == "default")
        slots = engine.status.slots if engine.status is not None else []
        at_work = any(slot.agent == agent and slot.state == "decode" for slot in slots)
        return engine.pid if at_work else None

    return lambda follower: look(follower, find)


async def embedding_engine(follower: Follower) -> int:
    engines = await follower.call(methods.SLOTS, Nothing())
    (pid,) = (engine.pid for engine in engines.engines if engine.name == "embed")
    assert pid is not None
    return pid


def zygote_of(agent: str) -> Victim:
    """The zygote; workers are its children."""

    async def find(follower: Follower) -> int:
        pid = parent_of(await worker(agent)(follower))
        assert pid is not None
        return pid

    return find


def has_triaged(agent: str) -> Callable[[Happening], bool]:
    return lambda told: (
        told.kind == "journal.appended" and told.agent == agent and told.data["kind"] == "note"
    )


def has_used_a_tool(agent: str) -> Callable[[Happening], bool]:
    return lambda told: (
        told.kind == "journal.appended" and told.agent == agent and told.data["kind"] == "tool"
    )


def composes(told: Happening) -> bool:
    return told.kind == "conversation.composing"


def is_published(told: Happening) -> bool:
    return told.kind == "message.published"


WORKERS: Final = (
    Point("opsclaw after its triage", "opsclaw", has_triaged("opsclaw"), worker("opsclaw")),
    Point("devclaw after a tool", "devclaw", has_used_a_tool("devclaw"), worker("devclaw")),
    Point(
        "secclaw in its reflection",
        "secclaw",
        has_used_a_tool("secclaw"),
        worker("secclaw", "reflect"),
    ),
    Point("conductor in its composing", "conductor", composes, worker("conductor", "compose")),
)

PROGRAMS: Final = (
    Point("embedding engine", "", is_published, embedding_engine),
    Point("language engine", "", has_used_a_tool("devclaw"), language_engine("devclaw")),
    Point("zygote", "", has_used_a_tool("secclaw"), zygote_of("secclaw")),
)


# ---- The runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[WORKERS, PROGRAMS], ids=["workers", "programs"])
def run(request: pytest.FixtureRequest, model_path: Path) -> Iterator[Run]:
    """The demo, with SIGKILL at every point of the parameter."""
    with short_folder() as folder:
        demo = load_module(DEMO)
        demo.prepare(folder)
        yield play(demo, request.param, folder)


def play(demo: Any, points: tuple[Point, ...], folder: Path) -> Run:
    played = Run(points)

    async def kill_at_points(follower: Follower, told: Happening) -> None:
        for point in played.points:
            if point.what not in played.killed and point.fits(told):
                pid = await point.victim(follower)
                os.kill(pid, signal.SIGKILL)
                played.killed[point.what] = pid

    with demo.running(folder) as started:
        daemon = RunningDaemon(Installation(folder), started.process)
        with Follower(daemon, kill_at_points) as follower:
            try:
                played.traces = demo.converse(started)
            except demo.DemoFailure as failure:
                played.failure = f"{failure}\n{daemon.tail()}"
            daemon.wait_healthy()
        played.happenings = follower.happenings
        played.status = daemon.status()
        played.samples = daemon.metrics()
    return played


def killed_agents(run: Run) -> list[str]:
    return [point.agent for point in run.points if point.agent]


def test_somebody_died_at_every_point(run: Run) -> None:
    assert run.killed.keys() == {point.what for point in run.points}
    now = {agent["pid"] for agent in run.agents.values()}
    now |= {engine["pid"] for engine in run.engines.values()}
    assert now.isdisjoint(run.killed.values())


def test_the_demo_ends_as_it_does_without(run: Run) -> None:
    assert run.failure == ""


def test_nothing_becomes_a_dead_letter(run: Run) -> None:
    assert run.status["dead_letters"] == 0
    assert [told for told in run.happenings if told.kind == "deadletter"] == []


def test_each_step_is_in_the_journal_once(run: Run) -> None:
    written = Counter(
        (told.data["delivery"], told.data["step"])
        for told in run.happenings
        if told.kind == "journal.appended"
    )
    assert written and set(written.values()) == {1}


def test_no_tool_ran_twice(run: Run) -> None:
    journaled = sum(
        step["kind"] == "tool" for delivery in run.deliveries for step in delivery["steps"]
    )
    assert run.samples.total("agentd_tool_calls_total") == journaled


def test_each_delivery_is_completed_once(run: Run) -> None:
    done = Counter(told.data["delivery"] for told in run.happenings if told.kind == "delivery.done")
    assert done == {delivery["delivery"]: 1 for delivery in run.deliveries}
    for delivery in run.deliveries:
        assert len(delivery["memories"]) == (delivery["outcome"] != "ignored")


def test_each_agent_that_acted_answers_once(run: Run) -> None:
    for trace in run.traces:
        replies = Counter(
            message["sender"] for message in trace["messages"] if message["topic"] == "user.reply"
        )
        speakers = Counter(
            delivery["agent"]
            for delivery in trace["deliveries"]
            if delivery["outcome"] in ("acted", "composed")
        )
        assert replies == speakers


def test_only_the_death_of_its_own_worker_counts_against_a_delivery(run: Run) -> None:
    deaths = Counter(
        {
            agent: sum(
                delivery["attempts"] - 1
                for delivery in run.deliveries
                if delivery["agent"] == agent
            )
            for agent in run.agents
        }
    )
    assert +deaths == Counter(killed_agents(run))


def test_restarts_are_counted_where_they_happened(run: Run) -> None:
    restarted = {name: agent["restarts"] for name, agent in run.agents.items()}
    engines = {name: engine["restarts"] for name, engine in run.engines.items()}
    if "zygote" in run.killed:
        assert set(restarted.values()) == {1}, "all workers go down with their zygote"
        assert engines == {"default": 1, "embed": 1}
        restarts = "agentd_program_restarts_total"
        assert run.samples.total(restarts, program="zygote") == 1
        assert run.samples.total(restarts, program="engine/default") == 1
        assert run.samples.total(restarts, program="engine/embed") == 1
    else:
        assert restarted == {name: int(name in killed_agents(run)) for name in run.agents}
        assert engines == {"default": 0, "embed": 0}
        assert run.samples.total("agentd_worker_deaths_total") == len(run.killed)
