"""How fast the slot pool is, beside llama-server and llama-batched-bench from the same source.

A daemon with its endpoint on and llama-server are driven over HTTP by the same load generator, with
the same model file, slots, context and cache; the engine alone is asked over its own protocol, and
llama-batched-bench is the ceiling. llama-server runs with the best of its settings, which is looked
for in each scenario. Whatever is started is ended by its own pid.
"""

import asyncio
import contextlib
import importlib
import importlib.resources
import importlib.util
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from inference_client import gguf
from inference_client.models import Registry, default_cache
from ipc_protocol.errors import Failure
from orchestrator.bench import inference_measures as measures
from orchestrator.bench import inference_peers as peers
from orchestrator.bench import inference_rows as table
from orchestrator.bench import inference_scenarios as scenarios
from orchestrator.bench import inference_sizes as sizes
from orchestrator.bench.bus import cancelled_by_sigterm
from orchestrator.bench.bus_processes import running, tail
from orchestrator.bench.inference_comparing import (
    Bench,
    Comparison,
    Tell,
    best_setting,
    compared,
    up,
)
from orchestrator.bench.inference_load import Answer
from orchestrator.bench.inference_measures import Figures
from orchestrator.bench.inference_servers import Device
from orchestrator.bench.inference_simulated import simulated
from orchestrator.cli.measure import Measure
from orchestrator.doctor import probing
from orchestrator.doctor.judging import Llama

SIMULATION: Final = "simulation"
SCENARIOS: Final = (
    "burst",
    "preamble",
    "identities",
    "typed",
    "urgent",
    "long-prompt",
    "neighbour",
    SIMULATION,
)
DEVICES: Final = ("cpu", "gpu")

DEFAULT_MODEL: Final = "smollm2"
SCHEMAS: Final = "inference_schemas.json"
REPEATS: Final = 3
FEWER_REPEATS: Final = 2
"""Of those that take minutes."""
LOAD_MAX: Final = 0.5
"""Of a core: beyond that somebody else is at work."""
SIMULATION_SECONDS_MAX: Final = 600.0
MINUTES: Final = 60
QUICK_MINUTES: Final = 5
"""Of arrivals."""


class Settings(NamedTuple):
    """What to measure, and on what."""

    quick: bool = False
    only: tuple[str, ...] = SCENARIOS
    devices: tuple[str, ...] = ()
    """None: the processor, and a GPU where there is one."""
    model: Path | None = None
    """None: SmolLM2."""
    gpu_model: Path | None = None
    """None: the same."""


class Report(NamedTuple):
    """The rows, and what they do not say."""

    measures: list[Measure]
    notes: list[str]


def run(settings: Settings, tell: Tell) -> Report:
    """Raises `Failure`, and `OSError` where nothing can be written."""
    with tempfile.TemporaryDirectory(prefix="agentd-bench-") as folder:
        return asyncio.run(_report(settings, Path(folder), tell))


async def _report(settings: Settings, folder: Path, tell: Tell) -> Report:
    rows: list[Measure] = []
    notes = _notes_on_machine()
    runs = [name for name in SCENARIOS if name in settings.only and name in RUNS]
    with cancelled_by_sigterm():
        for bench in _benches(settings, folder, tell, notes) if runs else ():
            for name in runs:
                rows += await run_scenario(bench, name)
        if SIMULATION in settings.only:
            minutes = QUICK_MINUTES if settings.quick else MINUTES
            tell(f"simulating {minutes} minutes of arrivals")
            rows += await _simulation(folder, minutes)
    return Report(rows, notes)


async def run_scenario(bench: Bench, name: str) -> list[Measure]:
    """One scenario. What goes wrong in it costs no figure of the others."""
    try:
        return await RUNS[name](bench)
    except Failure as failure:
        bench.note(f"{name}: {failure}")
        ended = f"{bench.title}, {name}: ended"
        return [Measure(measure=ended, value=0.0, unit="runs", expected=1.0, met=False)]


def _benches(settings: Settings, folder: Path, tell: Tell, notes: list[str]) -> Iterator[Bench]:
    """One for each device. Raises `Failure` for a model that is none."""
    model = settings.model or _default_model(folder, tell)
    for kind in settings.devices or _devices():
        chosen = (settings.gpu_model if kind == "gpu" else None) or model
        gguf.read(chosen)
        yield _bench(settings, kind, chosen.resolve(), folder, tell, notes)


def _bench(
    settings: Settings, kind: str, model: Path, folder: Path, tell: Tell, notes: list[str]
) -> Bench:
    chosen = sizes.GPU if kind == "gpu" else sizes.CPU
    found = peers.built(kind)
    notes += found.missing
    place = folder / kind
    place.mkdir()
    return Bench(
        device=Device(kind=kind, cores=len(os.sched_getaffinity(0)), model=model),
        peers=found,
        sizes=sizes.quick(chosen) if settings.quick else chosen,
        folder=place,
        quick=settings.quick,
        tell=tell,
        notes=notes,
    )


# ---- Each scenario ------------------------------------------------------------------------------


async def _burst(bench: Bench) -> list[Measure]:
    return await compared(
        bench,
        Comparison(
            scenarios.burst(bench.sizes),
            measures.throughput,
            measures.TOTAL,
            table.BURST[bench.device.kind],
            repeats=1 if bench.quick else REPEATS,
            alone=True,
        ),
    )


async def _neighbour(bench: Bench) -> list[Measure]:
    return await compared(
        bench,
        Comparison(
            scenarios.burst(bench.sizes),
            measures.throughput,
            measures.TOTAL,
            table.NEIGHBOUR,
            repeats=1 if bench.quick else REPEATS,
            neighbour=True,
        ),
    )


async def _preamble(bench: Bench) -> list[Measure]:
    return await compared(
        bench,
        Comparison(
            scenarios.preamble(bench.sizes),
            measures.wall,
            measures.WALL,
            table.PREAMBLE,
            repeats=1 if bench.quick else FEWER_REPEATS,
        ),
    )


async def _identities(bench: Bench) -> list[Measure]:
    """Ten rounds are repeats enough."""
    return await compared(
        bench,
        Comparison(
            scenarios.identities(bench.sizes),
            lambda answers: measures.returning(answers, bench.sizes.identity),
            measures.WALL,
            table.IDENTITIES,
            repeats=1,
        ),
    )


async def _typed(bench: Bench) -> list[Measure]:
    rows = []
    for how, schemas in typed_schemas().items():
        is_valid = _validator(schemas, bench.notes)

        def figures(
            answers: Sequence[Answer], is_valid: Callable[[Answer], bool] = is_valid
        ) -> Figures:
            return measures.decided(answers, is_valid)

        rows += await compared(
            bench,
            Comparison(
                scenarios.typed(bench.sizes, how, schemas),
                figures,
                measures.REQUESTS,
                table.TYPED,
                repeats=1 if bench.quick else REPEATS,
            ),
        )
    return rows


async def _long_prompt(bench: Bench) -> list[Measure]:
    return await compared(
        bench,
        Comparison(
            scenarios.long_prompt(bench.sizes),
            measures.beside_prefill,
            measures.GAP,
            table.LONG_PROMPT,
            repeats=1 if bench.quick else FEWER_REPEATS,
            batches=True,
        ),
    )


async def _urgent(bench: Bench) -> list[Measure]:
    """Three kinds of runs, whose differences are the measure."""
    low_s = bench.sizes.low_s
    urgency = scenarios.urgency(bench.sizes)

    def mixed(answers: Sequence[Answer]) -> Figures:
        return measures.urgent_and_low(answers, scenarios.LOW_FILL_S, low_s)

    def idle(answers: Sequence[Answer]) -> Figures:
        return measures.waited(answers, scenarios.URGENT)

    comparison = Comparison(
        urgency.mixed,
        mixed,
        measures.first_token(scenarios.URGENT, 50),
        table.URGENCY,
        repeats=1 if bench.quick else FEWER_REPEATS,
    )
    setting = await best_setting(bench, comparison)
    repeats: dict[str, list[Figures]] = {}
    async with contextlib.AsyncExitStack() as stack:
        players = await up(stack, bench, comparison, setting)
        alone = players[table.POOL]
        runs = [
            (table.IDLE, alone, urgency.idle, idle),
            (table.LOW_ALONE, alone, urgency.low_alone, mixed),
            *((who, plays, urgency.mixed.plan, mixed) for who, plays in players.items()),
        ]
        for repeat in range(comparison.repeats):
            for number, (who, plays, plan, figures) in enumerate(runs):
                bench.tell(f"{bench.title}, {urgency.mixed.name}: {who}, {repeat + 1}")
                # Both servers have the same seed; what the pool has read before, it has not.
                seed = len(runs) * repeat + min(number, 2)
                repeats.setdefault(who, []).append(figures(await plays(plan(seed))))
    return comparison.rows(bench, {who: measures.median(seen) for who, seen in repeats.items()})


RUNS: Final[dict[str, Callable[[Bench], Awaitable[list[Measure]]]]] = {
    "burst": _burst,
    "preamble": _preamble,
    "identities": _identities,
    "typed": _typed,
    "urgent": _urgent,
    "long-prompt": _long_prompt,
    "neighbour": _neighbour,
}


async def _simulation(folder: Path, minutes: int) -> list[Measure]:
    """The policy alone, in simulated time: no model and no device."""
    program = (
        "-m",
        "inference_client.engine.planning.simulation",
        "--json",
        "--minutes",
        str(minutes),
    )
    said = b""
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(SIMULATION_SECONDS_MAX),
            running((sys.executable, *program), folder) as process,
        ):
            assert process.stdout is not None
            said = await process.stdout.read()
    try:
        return simulated(said)
    except msgspec.DecodeError as error:
        raise Failure(
            "request.internal",
            f"The simulation did not end with figures: {tail(folder)}",
            "This is a defect, please report it.",
        ) from error


# ---- What is needed -----------------------------------------------------------------------------


def typed_schemas() -> dict[str, scenarios.Schemas]:
    """Those of Triage, Act and Reflect, as an agent asks a large model and as it guides a small
    one. They are those of the agents' own package, which a test makes sure of."""
    text = importlib.resources.files("orchestrator.bench").joinpath(SCHEMAS).read_bytes()
    schemas: dict[str, scenarios.Schemas] = msgspec.json.decode(text)
    return schemas


def _validator(schemas: scenarios.Schemas, notes: list[str]) -> Callable[[Answer], bool]:
    """Whether an answer is JSON, and valid by the schema of its request."""
    validators: list[Any] = []
    if importlib.util.find_spec("jsonschema") is not None:
        kind = importlib.import_module("jsonschema").Draft202012Validator
        validators = [kind(schema) for schema in schemas.values()]
    else:
        notes.append("Answers are only parsed: `pip install jsonschema` to validate them too.")

    def is_valid(answer: Answer) -> bool:
        try:
            value = msgspec.json.decode(answer.said.text)
        except msgspec.DecodeError:
            return False
        return not validators or validators[answer.number % len(validators)].is_valid(value)

    return is_valid


def _default_model(folder: Path, tell: Tell) -> Path:
    tell(f"fetching {DEFAULT_MODEL}")
    return Registry(folder / "models").pull(DEFAULT_MODEL, cache=default_cache()).path


def _devices() -> tuple[str, ...]:
    """The processor, and the GPU that llama.cpp was built for and finds."""
    llama = probing.ask_llama(probing.DEVICES, probing.DEVICES_SECONDS_MAX)
    return DEVICES if isinstance(llama, Llama) and llama.has_gpu else DEVICES[:1]


def _notes_on_machine() -> list[str]:
    """What makes the figures worth less."""
    load = os.getloadavg()[0]
    if load <= LOAD_MAX:
        return []
    return [f"Others are at work on this machine: its load is {load:.1f}."]
