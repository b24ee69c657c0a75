"""Kills a daemon and its processes over and over under a load, and counts the effects afterwards.

What is drawn comes from a seed, so a run can be made again with the same kills; when they meet what
is left to the machine. A delivery lives within one round, and an agent's worker is killed at most
`DEATHS_MAX` times in a round: so no delivery meets more deaths of its own workers.
"""

import asyncio
import contextlib
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from daemons import Installation, Process, RunningDaemon, descendants, is_alive
from effects_checker import DEATHS_MAX, Report, Sent, check
from kill_agents import install, topology_of
from kill_load import PUBLISHERS, PUBLISHERS_OF_MODELS, Publisher, Tally, publishing
from kill_plan import WOUNDS, WOUNDS_OF_MODELS, Life, Wound, plan
from mortals import (
    DEATH_SECONDS_MAX,
    LOOK_SECONDS,
    Dead,
    ended,
    line_to,
    program,
    require_killed,
    sigkill,
)

from ipc_protocol.aio import Connection
from ipc_protocol.control import Status
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import SLOTS, STATUS
from orchestrator.failpoints import VARIABLE

AT_RANDOM: Final = "at random"

FAIL_POINT_SECONDS_MAX: Final = 4.0
"""Until a fail point is reached; then the daemon is killed where it is."""

VICTIM_SECONDS_MAX: Final = 1.0
"""How long somebody is looked for who is to be killed: a worker is back sooner, mostly."""

REST_SECONDS_MAX: Final = 90.0
"""Until everything is handled, over the backoffs of workers, the zygote and the engine."""

ROUNDS_OF_AN_INSTALLATION: Final = 5
"""Then comes a fresh one: a database is counted whole after each round, so it has to stay small."""

KEPT: Final = Path(__file__).parent.parent.parent / "build" / "kill-loop"
"""Where the database and the log of a round are kept that did not come out as it should."""


@dataclass
class Outcome:
    """What a run has come to."""

    seed: str
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By victim and place."""
    rounds: int = 0
    lives: int = 0
    seconds: float = 0.0
    accepted: int = 0
    messages: int = 0
    deliveries: int = 0
    deaths: int = 0
    """The most that one delivery has met."""
    problems: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def table(self) -> str:
        outages = self.tally.outages_seconds or [0.0]
        rows = sorted(self.kills.items())
        return "\n".join(
            (
                f"{'victim':<13}{'place':<22}{'kills':>6}",
                *(f"{victim:<13}{place:<22}{count:>6}" for (victim, place), count in rows),
                f"{'all':<35}{self.kills.total():>6}",
                f"{self.rounds} rounds, {self.lives} lives of the daemon, {self.seconds:.0f} s. "
                f"All of them came back; {len(outages)} requests were cut off, and had their "
                f"receipt after {statistics.median(outages):.1f} s (median), {max(outages):.1f} s "
                "(longest).",
                f"{self.accepted} messages accepted in {self.tally.requests} requests; "
                f"{self.tally.repeated} were repeated, and {self.tally.accepted_before} of their "
                "messages were there already.",
                f"Counted: {self.messages} messages, {self.deliveries} deliveries; at most "
                f"{self.deaths} deaths of one; {len(self.problems)} problems.",
                f"AGENTD_KILL_SEED={self.seed}",
            )
        )


class KillLoop:
    """A run. `run` makes rounds until enough have been killed, or something is wrong.

    With a `model` there are agents that ask it, and its engine is killed as well: once in a life of
    the daemon, since what ends an engine twice is taken for the cause.
    """

    def __init__(self, folder: Path, seed: str, lives: int, model: Path | None = None) -> None:
        self.outcome = Outcome(seed)
        self._folder = folder
        self._lives = lives
        self._model = model
        self._topology = topology_of(model)
        self._installation: Installation
        self._daemon: RunningDaemon | None = None
        self._publishers: list[Publisher] = []
        self._counted = Report()
        """Of this installation, by the round before."""
        self._counted_load = 0
        self._seen: set[Process] = set()
        """Everybody who was found below a daemon."""
        self._worker_deaths: Counter[str] = Counter()
        """In this round, by agent."""
        self._model_killed = False
        """In this life of the daemon."""

    @property
    def database(self) -> Path:
        return self._installation.state / "agentd.db"

    @property
    def load(self) -> list[Sent]:
        """What has been accepted in this installation."""
        return [sent for publisher in self._publishers for sent in publisher.sent]

    async def run(self, kills: int) -> Outcome:
        began, outcome = time.monotonic(), self.outcome
        while not self._enough(kills) and not outcome.problems:
            if outcome.rounds % ROUNDS_OF_AN_INSTALLATION == 0:
                await self._move()
            try:
                await self._round()
            except BaseException:
                self._keep()
                raise
            finally:
                outcome.seconds = time.monotonic() - began
        if outcome.problems:
            self._keep()
        return outcome

    def _enough(self, kills: int) -> bool:
        """So many, and the engine of the model among them where there is one."""
        victims = {victim for victim, _ in self.outcome.kills}
        return self.outcome.kills.total() >= kills and (self._model is None or "model" in victims)

    async def _move(self) -> None:
        """Into a fresh installation."""
        folder = self._folder / str(self.outcome.rounds)
        folder.mkdir()
        self._installation = await asyncio.to_thread(install, folder, self._model)
        socket, tally, seed = self._installation.socket, self.outcome.tally, self._seed("load")
        names = PUBLISHERS if self._model is None else PUBLISHERS_OF_MODELS
        self._publishers = [Publisher(name, socket, seed, tally) for name in names]
        self._counted, self._counted_load = Report(), 0

    def _seed(self, what: str) -> str:
        return f"{self.outcome.seed}/{self.outcome.rounds}/{what}"

    def _keep(self) -> None:
        """For whoever looks into it; the daemon is not left running."""
        if self._daemon is not None and self._daemon.process.poll() is None:
            self._daemon.kill()
        kept = KEPT / f"{self.outcome.seed}-{self.outcome.rounds}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for path in (self._installation.log, *self.database.parent.glob("agentd.db*")):
            shutil.copy(path, kept)

    # -- a round

    async def _round(self) -> None:
        randomly = random.Random(self._seed("kills"))
        self._worker_deaths.clear()
        whom = WOUNDS if self._model is None else WOUNDS_OF_MODELS
        lives, last = plan(randomly, self._lives, whom)
        async with publishing(self._publishers):
            for life in lives:
                daemon = self._start(life)
                with contextlib.suppress(Dead):
                    await self._wound(daemon, life, randomly)
                await self._end(daemon, life, randomly)
            daemon = self._start(last)
            await self._wound(daemon, last, randomly)
        await self._come_to_rest(daemon)
        await asyncio.to_thread(daemon.stop)
        await self._all_gone()
        self._count(await asyncio.to_thread(check, self.database, self._topology, self.load))

    def _count(self, report: Report) -> None:
        outcome, before = self.outcome, self._counted
        outcome.rounds += 1
        outcome.messages += report.messages - before.messages
        outcome.deliveries += report.deliveries - before.deliveries
        outcome.accepted += len(self.load) - self._counted_load
        outcome.deaths = max(outcome.deaths, report.deaths)
        outcome.problems += report.problems
        self._counted, self._counted_load = report, len(self.load)
        print(
            f"round {outcome.rounds}: {outcome.kills.total()} kills, "
            f"{report.messages} messages, {len(report.problems)} problems",
            flush=True,
        )

    async def _come_to_rest(self, daemon: RunningDaemon) -> None:
        """Until whoever was killed is back, and everything is handled."""

        def rests(status: Status) -> bool:
            return status.healthy and status.deliveries.keys() <= {"done", "dead"}

        async with line_to(daemon) as line:
            await self._wait(daemon, line, rests, REST_SECONDS_MAX, "to come to rest")

    # -- a life

    def _start(self, life: Life) -> RunningDaemon:
        self.outcome.lives += 1
        self._model_killed = False
        # A daemon that crashes of itself says where.
        armed = ("env", "PYTHONFAULTHANDLER=1", f"{VARIABLE}={life.fail_point}")
        self._daemon = self._installation.start(armed)
        return self._daemon

    async def _wound(self, daemon: RunningDaemon, life: Life, randomly: random.Random) -> None:
        """Raises `Dead` if the daemon reaches its fail point meanwhile."""
        async with line_to(daemon) as line:
            if life.when_up:
                await self._wait(
                    daemon, line, lambda now: now.healthy, REST_SECONDS_MAX, "to be up"
                )
            for seconds, whom in life.wounds:
                await asyncio.sleep(seconds)
                self._seen.update(descendants(daemon.process.pid))
                await self._kill_one(daemon, line, whom, randomly)

    async def _kill_one(
        self, daemon: RunningDaemon, line: Connection, whom: Wound, randomly: random.Random
    ) -> None:
        """Nobody is killed where there is nobody for long, as while the zygote is away."""
        deadline = time.monotonic() + VICTIM_SECONDS_MAX
        while (pid := await self._victim(daemon, line, whom, randomly)) is None:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(LOOK_SECONDS)
        if sigkill(pid):
            self.outcome.kills[whom, AT_RANDOM] += 1

    async def _victim(
        self, daemon: RunningDaemon, line: Connection, whom: Wound, randomly: random.Random
    ) -> int | None:
        if whom == "worker":
            return await self._worker(line, randomly)
        if whom == "model":
            return await self._generating(line)
        return program(daemon, whom)

    async def _generating(self, line: Connection) -> int | None:
        """The model's engine in the middle of an answer, unless it has been killed before."""
        if self._model_killed:
            return None
        for engine in (await line.call(SLOTS, Nothing())).engines:
            slots = [] if engine.status is None else engine.status.slots
            if any(slot.state == "decode" for slot in slots):
                self._model_killed = engine.pid is not None
                return engine.pid
        return None

    async def _worker(self, line: Connection, randomly: random.Random) -> int | None:
        """Of an agent that has work, if there is one, and whose deliveries may meet its death."""
        status = await line.call(STATUS, Nothing())
        mortal = [
            agent
            for agent in status.agents
            if agent.pid is not None and self._worker_deaths[agent.name] < DEATHS_MAX
        ]
        at_work = [agent for agent in mortal if agent.pending]
        if not mortal:
            return None
        agent = randomly.choice(at_work or mortal)
        self._worker_deaths[agent.name] += 1
        return agent.pid

    async def _end(self, daemon: RunningDaemon, life: Life, randomly: random.Random) -> None:
        """The daemon's death: of its fail point, or else at random."""
        self._seen.update(descendants(daemon.process.pid))
        seconds = FAIL_POINT_SECONDS_MAX if life.fail_point else life.rest
        if await ended(daemon, seconds):
            require_killed(daemon)
            self.outcome.kills["daemon", life.place] += 1
        elif life.everybody and self._all_may_die():
            self.outcome.kills["all at once", AT_RANDOM] += 1
            self._kill_everybody(daemon, randomly)
        else:
            self.outcome.kills["daemon", AT_RANDOM] += 1
            daemon.process.kill()
        assert await ended(daemon, DEATH_SECONDS_MAX), "SIGKILL did not end it"

    def _all_may_die(self) -> bool:
        return max(self._worker_deaths.values(), default=0) < DEATHS_MAX

    def _kill_everybody(self, daemon: RunningDaemon, randomly: random.Random) -> None:
        """In any order, so that the daemon may see some of them die before it does."""
        self._worker_deaths.update(station.name for station in self._topology)
        pids = [daemon.process.pid, *(one.pid for one in descendants(daemon.process.pid))]
        randomly.shuffle(pids)
        for pid in pids:
            sigkill(pid)

    async def _all_gone(self) -> None:
        """Nobody whom a daemon has started outlives it."""
        deadline = time.monotonic() + DEATH_SECONDS_MAX
        while any(map(is_alive, self._seen)):
            assert time.monotonic() < deadline, "somebody was left behind"
            await asyncio.sleep(LOOK_SECONDS)
        self._seen.clear()

    # -- talking to a daemon

    async def _wait(
        self,
        daemon: RunningDaemon,
        line: Connection,
        condition: Callable[[Status], bool],
        seconds: float,
        what: str,
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition(status := await line.call(STATUS, Nothing())):
            late = time.monotonic() > deadline
            assert not late, (
                f"waited {seconds:g} s for it {what}: {_unfinished(status)}\n{daemon.tail()}"
            )
            await asyncio.sleep(LOOK_SECONDS)


def _unfinished(status: Status) -> str:
    agents = [
        f"{agent.name} ({agent.state}, {agent.pending} pending, {agent.parked} parked)"
        for agent in status.agents
        if agent.pending or agent.state not in ("idle", "busy")
    ]
    engines = [f"{engine.name} ({engine.state})" for engine in status.engines]
    return f"{status.deliveries}; {', '.join([*agents, *engines])}"
