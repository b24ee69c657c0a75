"""What a component costs: a message across the boundary, and an agent from its fork.

The echo that is measured is a component of componentize-py, built here unless one is given. The
boundary is measured by a program of the agent runtime, beside the library's own conversion in the
same process. A fleet is real: workers that a zygote forks and seals, each of which has handled one
message, all alive at once. Its times are of one agent after the other, so that the last ones show
what the first ones cost.
"""

import asyncio
import contextlib
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.methods import WORK_EFFECT, WORKER_START
from ipc_protocol.values import Envelope
from ipc_protocol.work import (
    AgentProfile,
    Beginning,
    ComponentStart,
    EffectRequest,
    EffectResult,
    Fork,
    Handle,
    WorkerStart,
)
from orchestrator.cli.measure import Measure
from orchestrator.components import building, projects
from orchestrator.components.compiling import Progress, Ready
from orchestrator.components.workbench import UID, Workbench, default_folder, workbench
from orchestrator.workers import handle_alone

ECHO: Final = '''"""Returns every message to where its topic says."""

from wit_world import exports
from wit_world.imports.bus import Envelope


class Lifecycle(exports.Lifecycle):
    def init(self, agent_id: str, config: bytes) -> None:
        pass

    def handle(self, msg: Envelope) -> list[Envelope]:
        return [msg]

    def shutdown(self) -> None:
        pass
'''

FLEETS: Final = (1, 50, 500)
EXPECTED_US: Final = {256: 60.0, 262_144: 25_000.0}
"""On two cores, by the size of the payload."""
EXPECTED_MS: Final = {500: 20.0}
EXPECTED_MIB: Final = {500: 8.0}
"""For one agent, by the size of the fleet it is in."""

STAGES: Final = (
    "fork, map the native code, and seal",
    "link, instantiate, and init",
    "handle the first message",
)

PEER: Final = "wasmtime-py's own conversion"
MEASURE_SECONDS_MAX: Final = 300.0
DESCRIPTORS_PER_WORKER: Final = 4
"""Its socket, its log, and two that are under way while it is forked."""
DESCRIPTORS_APART: Final = 200


class Fleet(NamedTuple):
    """How its agents came up, and what each has for itself."""

    agents: int
    first_message_ms: float
    """From the fork to the completion of the first message: the median."""
    stages_ms: dict[str, float]
    """The medians of its parts."""
    memory_mib: float
    """Proportional memory of one agent: the mean."""


def run(
    component: Path | None, fleets: Sequence[int], on_progress: Callable[[str], None]
) -> list[Measure]:
    """Raises `Failure`, and `building.ProjectError` where the echo cannot be built."""
    with tempfile.TemporaryDirectory(prefix="agentd-bench-") as folder:
        if component is None:
            on_progress("building an echo")
            component = _built(Path(folder))
        return asyncio.run(_measures(component, Path(folder), fleets, on_progress))


def _built(folder: Path) -> Path:
    project = folder / "echo"
    projects.create(project, projects.Template(name="echo", language="python", version="0.1.0"))
    (project / projects.PYTHON_SOURCE).write_text(ECHO)
    built = folder / "echo.wasm"
    building.build(projects.read(project), built)
    return built


async def _measures(
    component: Path, folder: Path, fleets: Sequence[int], on_progress: Callable[[str], None]
) -> list[Measure]:
    measures: list[Measure] = []
    async with workbench(default_folder(), "strict") as bench:

        def compiling(progress: Progress) -> None:
            on_progress(f"compiling, {progress.elapsed_s:.0f} of about {progress.expected_s:.0f} s")

        ready = await bench.compiled(component, compiling)
        try:
            on_progress("messages across the boundary")
            native = folder / "echo.cwasm"
            await asyncio.to_thread(_copy, ready.native_fd, native)
            measures += await asyncio.to_thread(_boundary, native)
            with _descriptors_for(max(fleets, default=0)):
                for agents in fleets:
                    on_progress(f"a fleet of {agents}")
                    measures += _of_fleet(await _fleet(bench, ready, agents))
        finally:
            ready.close()
    return measures


# ---- Across the boundary ------------------------------------------------------------------------


def _copy(descriptor: int, path: Path) -> None:
    path.write_bytes(Path(f"/proc/self/fd/{descriptor}").read_bytes())


def _boundary(native: Path) -> list[Measure]:
    command = [sys.executable, "-m", "agent_runtime.component.measure", str(native), "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=MEASURE_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(
            "request.internal",
            f"The boundary was not measured within {MEASURE_SECONDS_MAX:g} s.",
            "Try again on a machine that is less busy.",
        ) from error
    if done.returncode != 0:
        raise Failure("request.internal", f"The boundary cannot be measured: {done.stderr.strip()}")
    return [
        _measure(
            f"handle of {row['bytes']} B",
            row["ours_us"],
            "µs",
            EXPECTED_US.get(row["bytes"]),
            peer_value=row["stock_us"],
        )
        for row in json.loads(done.stdout)
    ]


def _measure(
    name: str, value: float, unit: str, expected: float | None, *, peer_value: float | None = None
) -> Measure:
    return Measure(
        measure=name,
        value=value,
        unit=unit,
        peer=None if peer_value is None else PEER,
        peer_value=peer_value,
        ratio=None if peer_value is None else value / peer_value,
        expected=expected,
        met=None if expected is None else value <= expected,
    )


# ---- Fleets -------------------------------------------------------------------------------------


def _of_fleet(fleet: Fleet) -> list[Measure]:
    among = f"of {fleet.agents}" if fleet.agents > 1 else "alone"
    return [
        _measure(
            f"fork to first message, one {among}",
            fleet.first_message_ms,
            "ms",
            EXPECTED_MS.get(fleet.agents),
        ),
        *(
            _measure(f"  {stage}", median_ms, "ms", None)
            for stage, median_ms in fleet.stages_ms.items()
        ),
        _measure(
            f"proportional memory, one {among}",
            fleet.memory_mib,
            "MiB",
            EXPECTED_MIB.get(fleet.agents),
        ),
    ]


async def _fleet(bench: Workbench, ready: Ready, agents: int) -> Fleet:
    """Start them one after the other, and measure their memory while all of them live."""
    stages_ms: dict[str, list[float]] = {stage: [] for stage in STAGES}
    async with contextlib.AsyncExitStack() as alive:
        for _ in range(agents):
            ends_ns = [time.perf_counter_ns()]
            worker = await alive.enter_async_context(
                bench.zygote.worker(_fork(bench), _HANDLERS, (ready.native_fd,))
            )
            ends_ns.append(time.perf_counter_ns())
            await worker.connection.call(WORKER_START, _start(ready))
            ends_ns.append(time.perf_counter_ns())
            answer = await handle_alone(worker.connection, _message())
            ends_ns.append(time.perf_counter_ns())
            for took_ms, (began, ended) in zip(
                stages_ms.values(), itertools.pairwise(ends_ns), strict=True
            ):
                took_ms.append((ended - began) / 1e6)
            assert len(answer.outputs) == 1
        memory_mib = _worker_memory_mib(bench)
    return Fleet(
        agents=agents,
        first_message_ms=statistics.median(map(sum, zip(*stages_ms.values(), strict=True))),
        stages_ms={stage: statistics.median(each) for stage, each in stages_ms.items()},
        memory_mib=memory_mib / agents,
    )


def _fork(bench: Workbench) -> Callable[[int], Fork]:
    return lambda token: Fork(
        token=token,
        agent="echo",
        sandbox=bench.sandbox,
        uid=UID,
        memory_bytes_max=256 * 1024 * 1024,
        scratch_bytes_max=16 * 1024 * 1024,
        native=True,
    )


def _start(ready: Ready) -> WorkerStart:
    return WorkerStart(
        profile=AgentProfile(
            name="echo",
            role="agent",
            identity="Returns what it is sent.",
            duties=[],
            delegates={},
            tools=[],
            publishes=[">"],
            steps_max=1,
            tokens_max=64,
        ),
        component=ComponentStart(
            sha256=ready.info.sha256,
            config=b"",
            grants=ready.info.shape.grants,
            types=ready.info.shape.types,
        ),
    )


def _message() -> Handle:
    now_us = time.time_ns() // 1000
    return Handle(
        delivery=1,
        attempt=1,
        envelope=Envelope(
            id=1,
            topic="echo",
            sender="bench",
            payload=bytes(256),
            correlation="bench",
            priority="normal",
            sent_us=now_us,
            expires_us=now_us + 3_600_000_000,
        ),
        beginning=Beginning(now_us=now_us, seed=1, loop=1, prompts={}),
    )


async def _no_effect(request: EffectRequest, _: Call) -> EffectResult:
    raise Failure("request.invalid", f"An echo asks for nothing: {request.effect}.")


_HANDLERS: Final = Handlers().add(WORK_EFFECT, _no_effect)


def _worker_memory_mib(bench: Workbench) -> float:
    """The proportional memory of all processes below the zygote."""
    assert bench.zygote.pid is not None
    children = Path(f"/proc/{bench.zygote.pid}/task/{bench.zygote.pid}/children").read_text()
    kib = 0
    for pid in children.split():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kib += int(line.split()[1])
    return kib / 1024


@contextlib.contextmanager
def _descriptors_for(agents: int) -> Iterator[None]:
    """Room for the sockets and logs of a fleet. Raises `Failure` where the host has none."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = agents * DESCRIPTORS_PER_WORKER + DESCRIPTORS_APART
    soft, hard = before
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Failure(
            "request.invalid",
            f"A fleet of {agents} takes {wanted} open files, and {hard} are allowed.",
            "Raise the limit (`ulimit -Hn`), or name smaller fleets with --agents.",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
