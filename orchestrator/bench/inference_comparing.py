"""One scenario of `agentd bench inference`: who is measured in it, in which order, how often.

All who are compared are up at the same time, and idle while another is measured: repeats alternate
between them, so that what else the machine does falls on all alike.
"""

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.bench import inference_measures as measures
from orchestrator.bench import inference_rows as table
from orchestrator.bench import inference_scenarios as scenarios
from orchestrator.bench.bus_processes import running
from orchestrator.bench.inference_actors import play
from orchestrator.bench.inference_engine import engine_alone
from orchestrator.bench.inference_load import Answer, Plan
from orchestrator.bench.inference_measures import Figures
from orchestrator.bench.inference_peers import (
    Peers,
    Setting,
    ceiling,
    ceiling_settings,
    llama_server,
    settings,
)
from orchestrator.bench.inference_scenarios import Scenario
from orchestrator.bench.inference_servers import (
    PATIENCE_SECONDS,
    Device,
    engine_start,
    load,
    pool,
    require_answered,
)
from orchestrator.bench.inference_sizes import Sizes
from orchestrator.cli.measure import Measure

Tell = Callable[[str], None]
Figuring = Callable[[Sequence[Answer]], Figures]
Play = Callable[[Plan], Awaitable[list[Answer]]]

NEIGHBOUR: Final = (sys.executable, "-c", "while True: pass")
"""Another program that takes all of a core."""

TRIAL_SEED: Final = 1000
"""None of a repeat."""
TRIAL_RATIO_MAX: Final = 3.0
TRIAL_SECONDS: Final = 10.0
"""Beyond that, for a run that takes a second."""
QUICK_SETTINGS: Final = 2
"""That are tried where figures may be rough."""


class Bench(NamedTuple):
    """What all scenarios on one device have in common."""

    device: Device
    peers: Peers
    sizes: Sizes
    folder: Path
    quick: bool
    tell: Tell
    notes: list[str]

    def note(self, text: str) -> None:
        self.notes.append(f"{self.title}: {text}")

    @property
    def title(self) -> str:
        return self.device.kind.upper()

    def place(self, name: str) -> Path:
        """An empty folder for those of one run."""
        number = sum(1 for _ in self.folder.iterdir())
        path = self.folder / f"{number}-{name}"
        path.mkdir()
        return path


class Comparison(NamedTuple):
    """One scenario: how it is judged."""

    scenario: Scenario
    figures: Figuring
    deciding: str
    """The figure by which the best settings of a peer are found."""
    promises: Sequence[table.Promise]
    repeats: int
    batches: bool = False
    """Settings of the size of a step matter."""
    alone: bool = False
    """The engine alone and the ceiling stand beside it."""
    neighbour: bool = False
    """Another program is at work meanwhile."""

    def rows(self, bench: Bench, measured: table.Measured) -> list[Measure]:
        beside = " beside a busy neighbour" if self.neighbour else ""
        return table.rows(f"{bench.title}, {self.scenario.name}{beside}", measured, self.promises)


async def compared(bench: Bench, comparison: Comparison) -> list[Measure]:
    """Measure a scenario whose run is one plan. Raises `Failure`."""
    async with _neighbour(bench, comparison):
        measured = await _measured(bench, comparison)
    return comparison.rows(bench, measured)


async def _measured(bench: Bench, comparison: Comparison) -> dict[str, Figures]:
    setting = await best_setting(bench, comparison)
    bare = await _best_ceiling(bench) if comparison.alone else None
    repeats: dict[str, list[Figures]] = {}
    async with contextlib.AsyncExitStack() as stack:
        players = await up(stack, bench, comparison, setting)
        for repeat in range(comparison.repeats):
            plan = comparison.scenario.plan(repeat)
            for label, plays in players.items():
                bench.tell(f"{_told(bench, comparison)}: {label}, {repeat + 1}")
                figures = comparison.figures(await plays(plan))
                repeats.setdefault(label, []).append(figures)
            if bare is not None:
                figures = await _ceiling(bench, bare)
                repeats.setdefault(table.CEILING, []).append(figures)
    for label, seen in repeats.items():
        note_spread(bench, comparison, label, seen)
    return {label: measures.median(seen) for label, seen in repeats.items()}


def note_spread(
    bench: Bench, comparison: Comparison, label: str, repeats: Sequence[Figures]
) -> None:
    """Say it where the repeats of the figure that decides lie far apart."""
    spread = measures.spread(repeats, comparison.deciding)
    if spread > measures.TELLING_SPREAD:
        bench.note(
            f"{comparison.scenario.name}: the repeats of {label} lie {spread * 100:.0f} % apart."
        )


# ---- Those who are measured ---------------------------------------------------------------------


async def up(
    stack: contextlib.AsyncExitStack,
    bench: Bench,
    comparison: Comparison,
    setting: Setting | None,
) -> dict[str, Play]:
    """Everybody in a comparison, with the model loaded, until the stack is left."""
    players = {table.POOL: await _pool(stack, bench, comparison.scenario)}
    if setting is not None:
        players[table.SERVER] = await _server(stack, bench, comparison.scenario, setting)
    if comparison.alone:
        players[table.ENGINE] = await _engine(stack, bench, comparison.scenario)
    return players


async def _pool(stack: contextlib.AsyncExitStack, bench: Bench, scenario: Scenario) -> Play:
    folder = bench.place("pool")
    clients = scenario.plan(0).actors
    target = await stack.enter_async_context(
        pool(bench.device, scenario.slots, scenario.context, clients, folder)
    )
    warm = scenarios.warm_up(scenario)
    await load(table.POOL, target, warm, folder, PATIENCE_SECONDS)
    return lambda plan: load(table.POOL, target, plan, folder)


async def _server(
    stack: contextlib.AsyncExitStack, bench: Bench, scenario: Scenario, setting: Setting
) -> Play:
    assert bench.peers.server is not None, "a setting is one of a server that is there"
    folder = bench.place("llama-server")
    program, slots, context = bench.peers.server, scenario.slots, scenario.context
    target = await stack.enter_async_context(
        llama_server(program, bench.device, slots, context, setting, folder)
    )
    warm = scenarios.warm_up(scenario)
    await load(table.SERVER, target, warm, folder, PATIENCE_SECONDS)
    return lambda plan: load(table.SERVER, target, plan, folder)


async def _engine(stack: contextlib.AsyncExitStack, bench: Bench, scenario: Scenario) -> Play:
    folder = bench.place("engine")
    start = engine_start(bench.device, scenario.slots, scenario.context)
    engine = await stack.enter_async_context(engine_alone(start, folder))

    async def plays(plan: Plan) -> list[Answer]:
        answers = await play(plan, engine.ask)
        require_answered(table.ENGINE, answers, folder)
        return answers

    await plays(scenarios.warm_up(scenario))
    return plays


@contextlib.asynccontextmanager
async def _neighbour(bench: Bench, comparison: Comparison) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        if comparison.neighbour:
            await stack.enter_async_context(running(NEIGHBOUR, bench.place("neighbour")))
        yield


# ---- Best settings ------------------------------------------------------------------------------


async def best_setting(bench: Bench, comparison: Comparison) -> Setting | None:
    """Of llama-server in this scenario, by one short run with each. None where it is not built."""
    if bench.peers.server is None:
        return None
    tried: dict[str, Figures] = {}
    candidates = _candidates(bench, settings(bench.device, batches=comparison.batches))
    plan = comparison.scenario.trial(TRIAL_SEED)
    for label, setting in candidates.items():
        bench.tell(f"{_told(bench, comparison)}: trying {table.SERVER} {label}")
        try:
            async with contextlib.AsyncExitStack() as stack:
                plays = await _server(stack, bench, comparison.scenario, setting)
                answers = await plays(plan)
        except Failure as failure:
            told = failure.problem.message.partition("\n")[0].rstrip(":")
            bench.note(f"{comparison.scenario.name}, with {label}: {told}.")
            continue
        tried[label] = comparison.figures(answers)
        # Whoever takes so much longer than another is not the best of them.
        limit_s = TRIAL_SECONDS + TRIAL_RATIO_MAX * measures.wall_s(answers)
        plan = msgspec.structs.replace(plan, limit_s=min(plan.limit_s, limit_s))
    if not tried:
        raise Failure(
            "request.internal",
            f"{table.SERVER} ended a run with none of its settings.",
            "Try again on a machine that is less busy; `--only` leaves a scenario out.",
        )
    return candidates[_best(bench, comparison, table.SERVER, tried)]


def _candidates(bench: Bench, possible: Sequence[Setting]) -> dict[str, Setting]:
    some = possible[:QUICK_SETTINGS] if bench.quick else possible
    return {one.label: one for one in some}


def _best(bench: Bench, comparison: Comparison, who: str, tried: Mapping[str, Figures]) -> str:
    best = measures.best(tried, comparison.deciding)
    beside = " beside a busy neighbour" if comparison.neighbour else ""
    bench.note(f"{comparison.scenario.name}{beside}: {who} is best with {best}.")
    return best


async def _best_ceiling(bench: Bench) -> Setting | None:
    if bench.peers.ceiling is None:
        return None
    candidates = _candidates(bench, ceiling_settings(bench.device))
    tried = {label: await _ceiling(bench, one) for label, one in candidates.items()}
    best = measures.best(tried, measures.TOTAL)
    bench.note(f"{table.CEILING} is best with {best}.")
    return candidates[best]


async def _ceiling(bench: Bench, setting: Setting) -> Figures:
    assert bench.peers.ceiling is not None, "a setting is one of a program that is there"
    bench.tell(f"{bench.title}: {table.CEILING} {setting.label}")
    folder = bench.place("ceiling")
    return await ceiling(bench.peers.ceiling, bench.device, bench.sizes, setting.flags, folder)


def _told(bench: Bench, comparison: Comparison) -> str:
    return f"{bench.title}, {comparison.scenario.name}"
