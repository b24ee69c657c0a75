"""One component on its host: what it gets, what it may cost, and what becomes of it."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import wat_components as wat
from component_hosts import Hosted, build_everything, native, native_wat, offered
from deliveries import evidence
from deliveries import handle as delivery

from agent_runtime.component import library, limits, types
from agent_runtime.component.native import Native
from agent_runtime.loop.consulting import ACTS, TAKES_OVER, Advice, Consult, Judgement
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import (
    Effect,
    EffectResult,
    EmitHealth,
    Infer,
    Inferred,
    ListTasks,
    Memory,
    MemoryEntry,
    Noted,
    Offer,
    Offered,
    Outgoing,
    ReadState,
    Recall,
    Recalled,
    StateChange,
    StateValue,
    Task,
    TaskChange,
    TaskList,
    ToolResult,
    UseTool,
)

ALL = ["inference", "memory", "tools", "tasks", "attention", "state", "health", "logging"]
MINUTE_US = 60_000_000
SEALED_SECONDS_MAX = 120


def hosted(text: str, **changes: Any) -> Hosted:
    return Hosted(native_wat(text), **changes).started()


def failure_of(component: Hosted, text: str = "97") -> Problem:
    with pytest.raises(Failure) as caught:
        component.act(text)
    return caught.value.problem


# ---- Messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", wat.VERSIONS)
def test_a_component_of_each_version_handles_messages(version: str) -> None:
    component = hosted(wat.agent(version), config=b"replies")
    for text in ("one", "two"):
        consulted = component.act(text)
        assert consulted.taken
        assert consulted.outputs == (Outgoing(topic="replies", payload=text.encode()),)
    assert component.host.shape.world == f"agent@{version}"
    assert component.host.consultable == ACTS
    assert component.asked == []


def test_a_payload_of_the_largest_size_comes_and_goes() -> None:
    text = "x" * PAYLOAD_BYTES_MAX
    assert hosted(wat.agent()).said(text) == text


def test_what_is_published_goes_out_before_what_is_returned() -> None:
    component = hosted(wat.agent(handle=wat.PUBLISH))
    assert [output.payload for output in component.act("97").outputs] == [b"97", b"97"]
    assert component.asked == [Offer(topic="echo", payload_bytes=2, correlation="c-1")]


@pytest.mark.parametrize("version", wat.VERSIONS)
def test_an_offer_that_is_declined_is_the_components_to_deal_with(version: str) -> None:
    full = Problem(code="bus.backpressure", message="Full.", details={"agents": ["devclaw"]})
    component = hosted(
        wat.agent(version, handle=wat.PUBLISH), answer=lambda _: Offered(problem=full)
    )
    (output,) = component.act("97").outputs
    assert output == Outgoing(topic="failed", payload=b"\x02")


def test_a_refusal_has_the_components_reason_and_leaves_it_alive() -> None:
    component = hosted(wat.agent(handle=wat.refuse("not \\1btoday")))
    problem = failure_of(component)
    assert problem.code == "component.refused"
    assert "not \\x1btoday" in problem.message
    assert not component.host.dead
    assert failure_of(component).code == "component.refused"


def test_a_message_for_another_conversation_is_refused() -> None:
    component = hosted(wat.agent(handle='(call $answer "topic" "payload" "c-2")'))
    assert failure_of(component).code == "component.output"
    assert not component.host.dead


def test_what_was_staged_by_a_phase_that_failed_has_not_happened() -> None:
    publish_and_refuse = wat.PUBLISH.replace(wat.ECHO, wat.refuse("no"))
    refused = (
        f"(if (i32.eq (global.get $count) (i32.const 1)) (then (return {publish_and_refuse})))"
    )
    component = hosted(wat.agent(handle=f"{refused} {wat.ECHO}"))
    handle = delivery()
    with pytest.raises(Failure) as caught:
        component.consult(Consult("act"), handle)
    assert caught.value.code == "component.refused"
    assert len(component.asked) == 1
    assert len(component.consult(Consult("act"), handle).outputs) == 1


def test_ten_thousand_messages_are_bounded_and_counted() -> None:
    component = hosted(wat.agent(handle=wat.answers(10_000)))
    assert len(component.act().outputs) == limits.OUTPUTS_KEPT_MAX
    assert "10000 messages" in component.log.getvalue()
    assert str(10_000 - limits.OUTPUTS_KEPT_MAX) in component.log.getvalue()


def test_a_payload_that_no_bus_takes_is_passed_on_to_be_buried() -> None:
    component = hosted(wat.agent(handle=wat.payload_of(PAYLOAD_BYTES_MAX + 1)))
    (output,) = component.act().outputs
    assert len(output.payload) == PAYLOAD_BYTES_MAX + 1


def test_more_than_a_completion_holds_is_an_error() -> None:
    component = hosted(wat.agent())
    handle = delivery("x" * PAYLOAD_BYTES_MAX)
    sent = limits.STAGED_BYTES_MAX // PAYLOAD_BYTES_MAX - 1
    for _ in range(sent):
        component.consult(Consult("act"), handle)
    with pytest.raises(Failure, match=str(limits.STAGED_BYTES_MAX)) as caught:
        component.consult(Consult("act"), handle)
    assert caught.value.code == "component.output"
    assert not component.host.dead


def test_more_than_a_call_may_copy_is_an_error() -> None:
    component = hosted(wat.agent(handle=wat.payload_of(16 * 1024 * 1024)))
    problem = failure_of(component)
    assert problem.code == "component.trapped"
    assert "more than a call may copy" in problem.message
    assert component.host.dead


# ---- Limits and traps ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handle", "code", "start"),
    [
        (wat.TRAP, "component.trapped", {}),
        (wat.LOOP, "component.fuel", {"fuel": 1_000_000}),
        (wat.LOOP, "component.deadline", {"fuel": 2**62, "call_us": 50_000}),
        (wat.RECURSE, "component.memory", {}),
        (wat.GROW_MEMORY, "component.memory", {"memory_bytes": 32 * 1024 * 1024}),
        (wat.GROW_TABLE, "component.trapped", {"table_elements": 5000}),
    ],
)
def test_what_ends_a_call_has_its_code_and_where_it_was(
    handle: str, code: str, start: dict[str, Any]
) -> None:
    component = hosted(wat.agent(handle=handle), **start)
    problem = failure_of(component)
    assert problem.code == code
    assert problem.message.startswith("`handle` of the component ")
    assert "main!" in problem.details["backtrace"]
    assert 0 < problem.details["fuel"] <= start.get("fuel", 2_000_000_000)
    assert problem.cure
    assert "main!" in component.log.getvalue()
    assert component.host.dead
    with pytest.raises(Failure, match="has failed"):
        component.act()


def test_a_component_that_gets_no_more_memory_may_go_on() -> None:
    politely = wat.agent(handle=wat.GROW_MEMORY_POLITELY)
    component = hosted(politely, memory_bytes=4 * 1024 * 1024)
    assert component.said("97") == "97"


def test_a_component_that_needs_more_memory_than_it_may_have_is_not_started() -> None:
    with pytest.raises(Failure) as caught:
        hosted(wat.agent(pages=100), memory_bytes=1024 * 1024)
    assert caught.value.code == "component.memory"
    assert "linear_memory" in caught.value.problem.cure


def test_a_string_that_is_none_is_a_trap() -> None:
    component = hosted(wat.agent(handle=wat.INVALID_UTF8))
    problem = failure_of(component)
    assert problem.code == "component.trapped"
    assert "utf-8" in problem.message


def test_fuel_and_time_are_given_anew_for_each_call() -> None:
    component = hosted(wat.agent(), fuel=20_000)
    for _ in range(100):
        component.act()
    assert component.host.last_call is not None
    assert 0 < component.host.last_call.fuel < 20_000


def test_waiting_for_an_effect_does_not_count() -> None:
    waits = Waits(0.3)
    component = hosted(wat.agent(handle=wat.PUBLISH), answer=waits, call_us=200_000)
    assert len(component.act().outputs) == 2
    assert component.host.last_call is not None
    assert component.host.last_call.call_us < 200_000


class Waits:
    """A world that takes longer for an answer than a call may take."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, effect: Effect) -> EffectResult:
        threading.Event().wait(self._seconds)
        return offered(effect)


def test_a_delivery_that_is_withdrawn_ends_the_call() -> None:
    withdrawn = RuntimeError("withdrawn")

    def withdraw(_: Effect) -> EffectResult:
        raise withdrawn

    component = hosted(wat.agent(handle=wat.PUBLISH), answer=withdraw)
    with pytest.raises(RuntimeError) as caught:
        component.act()
    assert caught.value is withdrawn
    assert component.host.dead
    component.host.shutdown()


def test_usage_is_that_of_one_delivery() -> None:
    component = hosted(wat.agent())
    component.act()
    first = component.host.usage()
    assert first is not None
    assert first.fuel > 0
    assert component.host.usage() is None
    component.act()
    component.act()
    second = component.host.usage()
    assert second is not None
    assert second.fuel <= first.fuel


# ---- The beginning and the end -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "cause"), [(wat.TRAP, "component.trapped"), (wat.LOOP, "component.fuel")]
)
def test_an_init_that_traps_says_so(init: str, cause: str) -> None:
    with pytest.raises(Failure) as caught:
        hosted(wat.agent(init=init), fuel=1_000_000)
    problem = caught.value.problem
    assert problem.code == "component.init"
    assert problem.details["cause"] == cause
    assert "main!" in problem.details["backtrace"]


def test_an_init_that_refuses_gives_its_reason() -> None:
    component = Hosted(native_wat(wat.agent(init=wat.refuse("no sensors"))))
    with pytest.raises(Failure, match="no sensors") as caught:
        component.started()
    assert caught.value.code == "component.init"
    assert component.host.dead


@pytest.mark.parametrize("shutdown", ["", wat.TRAP, wat.LOOP])
def test_a_shutdown_ends_whatever_it_does(shutdown: str) -> None:
    component = hosted(wat.agent(shutdown=shutdown), fuel=1_000_000)
    component.host.shutdown()
    assert not component.host.dead
    assert failure_of(component).code == "component.trapped"
    assert ("`shutdown`" in component.log.getvalue()) is bool(shutdown)


def test_types_that_were_kept_and_cannot_be_read_are_the_compilers_to_make_again() -> None:
    component = native_wat(wat.agent(imports=(wat.CLOCK,)))
    encoded = types.encode(library.describe(component.component))
    now = msgspec.msgpack.encode(types.Function((), types.Primitive("u64")))
    assert encoded.count(now) == 1
    assert Hosted(component, types=encoded).started().said("97") == "97"
    with pytest.raises(Failure, match="type of now") as caught:
        Hosted(component, types=encoded.replace(now, b"\xc0" * len(now)))
    assert caught.value.code == "component.compile"


# ---- Grants --------------------------------------------------------------------------------------

PUT = """(local.set $a (call $allocate (i32.const 20)))
    (call $state-put "key" (local.get $payload) (local.get $payload-length) (local.get $a))
    (call $state-get "key" (local.get $a))
    (call $answer "state" (i32.load offset=8 (local.get $a)) (i32.load offset=12 (local.get $a))
      "" )"""


def test_an_import_that_is_not_granted_is_refused_with_the_line_that_grants_it() -> None:
    text = wat.agent("0.2.0", imports=(wat.STATE,))
    with pytest.raises(Failure, match=r"agent-net:core/state@0\.2\.0") as caught:
        hosted(text)
    assert caught.value.code == "component.grant"
    assert 'imports = ["state"]' in caught.value.problem.cure
    hosted(text, grants=["state"])


def test_state_that_was_put_is_read_and_staged() -> None:
    text = wat.agent("0.2.0", imports=(wat.STATE,), handle=PUT)
    consulted = hosted(text, grants=["state"]).act("97")
    assert consulted.outputs == (Outgoing(topic="state", payload=b"97"),)
    assert consulted.state == (StateChange(key="key", value=b"97"),)


def test_imports_of_nothing_are_listed_and_refused_where_imports_are_strict() -> None:
    text = wat.agent(imports=(wat.SOCKETS, wat.CLOCK))
    assert hosted(text).host.inert == ["wasi:sockets/instance-network@0.2.0"]
    with pytest.raises(Failure, match="wasi:sockets") as caught:
        hosted(text, strict_imports=True)
    assert caught.value.code == "component.strict-imports"
    hosted(wat.agent(imports=(wat.CLOCK,)), strict_imports=True)


def test_an_interface_within_an_interface_is_not_linked() -> None:
    nested = wat.Import(
        "nested",
        '(import "wasi:foo/bar@0.2.0" (instance $nested'
        ' (export "inner" (instance (export "run" (func))))))',
        {},
    )
    with pytest.raises(Failure, match=r"wasi:foo/bar@0\.2\.0 with `inner`") as caught:
        hosted(wat.agent(imports=(nested,)))
    assert caught.value.code == "component.import"


def test_resources_of_nothing_are_handed_out_until_there_are_too_many() -> None:
    leak = "(loop $more (drop (call $sockets-instance-network)) (br $more)) (unreachable)"
    component = hosted(wat.agent(imports=(wat.SOCKETS,), handle=leak))
    problem = failure_of(component)
    assert problem.code == "component.trapped"
    assert "drops none" in problem.message


def test_a_function_of_the_host_that_is_called_with_other_types_is_a_trap() -> None:
    chance = wat.Import(
        "chance",
        '(import "wasi:random/random@0.2.0" (instance $chance'
        ' (export "get-random-bytes" (func (param "len" string) (result u32)))))',
        {"get-random-bytes": "(param i32 i32) (result i32)"},
    )
    call = f'(drop (call $chance-get-random-bytes "many")) {wat.ECHO}'
    component = hosted(wat.agent(imports=(chance,), handle=call))
    assert failure_of(component).code == "component.trapped"
    assert "TypeError" in component.log.getvalue()


# ---- A component in Python, with everything ------------------------------------------------------


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return native(build_everything(tmp_path_factory.mktemp("everything")))


TASK = Task(id=4, title="Clean up", state="doing", note="half")


def world(effect: Effect) -> EffectResult:
    """An orchestrator that has one of each."""
    match effect:
        case Offer():
            return Offered()
        case Infer():
            return Inferred(text='"Yes."', generated_tokens=3)
        case Recall():
            memory = Memory(id=1, text="disk", outcome="success", importance=0.5, created_us=7)
            return Recalled(memories=[memory])
        case UseTool(name="attention.request"):
            return ToolResult(ok=True, output="Yes, do.")
        case UseTool():
            return ToolResult(ok=True, output="97%")
        case ListTasks():
            return TaskList(tasks=[TASK])
        case ReadState():
            return StateValue(value=b"41")
        case _:
            return Noted()


@pytest.fixture
def python(everything: Native) -> Iterator[Hosted]:
    component = Hosted(everything, world, config=b"{}", grants=ALL).started()
    yield component
    component.host.shutdown()


def configured(everything: Native, **config: Any) -> Hosted:
    encoded = json.dumps(config).encode()
    made = Hosted(
        everything, world, config=encoded, grants=ALL, delegates={"devclaw": "writes code"}
    )
    return made.started()


def test_python_has_the_time_of_the_delivery_and_sleeps_at_nobodys_expense(python: Hosted) -> None:
    assert python.said("times", now_us=1_700_000_000 * 10**6) == "1700000000.000000 3600"


def test_python_has_the_chance_of_the_delivery(python: Hosted) -> None:
    first = python.said("chance", seed=1)
    assert python.said("chance", seed=1) == first
    assert python.said("chance", seed=2) != first


def test_what_python_prints_to_standard_error_is_logged(python: Hosted) -> None:
    assert python.said("stderr") == "printed"
    assert python.log.getvalue() == "stderr: from Python\n"


@pytest.mark.parametrize("what", ["connect", "resolve", "folder", "escape"])
def test_what_python_does_not_get_is_an_ordinary_exception(python: Hosted, what: str) -> None:
    assert "Error: " in python.said(what)
    assert python.said("count") == "1"


def test_python_has_no_environment(python: Hosted) -> None:
    assert python.said("environment") == "{} []"


def test_an_exit_of_python_is_a_trap(python: Hosted) -> None:
    problem = failure_of(python, "vanish")
    assert problem.code == "component.trapped"
    assert "exit" in problem.message


def test_python_has_files_where_the_scratch_space_is_granted(
    everything: Native, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text("secret")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    start: dict[str, Any] = {"config": b"{}", "grants": ALL, "preopen_scratch": True}
    component = Hosted(everything, world, scratch=scratch, **start).started()
    assert component.said("files") == "1000 6000 ['b', 'note.txt']"
    assert (scratch / "a" / "note.txt").read_text() == "hello\n" * 1000
    assert component.said("folder") == "a"
    assert "Error: " in component.said("escape")
    assert not any("filesystem" in name for name in component.host.inert)


def test_a_bug_in_python_is_a_trap_with_both_traces(python: Hosted) -> None:
    problem = failure_of(python, "crash")
    assert problem.code == "component.trapped"
    assert problem.details["backtrace"]
    assert "ValueError: a bug" in python.log.getvalue()


def test_all_that_is_granted_works_from_python(python: Hosted) -> None:
    assert python.said("ask") == '"Yes." 3'
    assert python.said("use") == "['host.read', 'fs.write', 'message.send'] 97%"
    assert "refused" in python.said("fail").lower()
    assert python.said("person") == "Yes, do."
    assert python.said("feel") == "emitted"
    assert "warning: two\nwarning: lines\n" in python.log.getvalue()
    assert EmitHealth(condition="degraded", detail="no sensor") in python.asked


def test_what_python_stages_is_staged(python: Hosted) -> None:
    remembered = python.act("remember")
    assert remembered.outputs[0].payload == b"1 disk SUCCESS 0.5 7"
    entry = MemoryEntry(text="It was full.", lesson="Look.", outcome="partial", importance=0.25)
    assert remembered.memories == (entry,)
    planned = python.act("plan")
    assert planned.outputs[0].payload == b"4 Clean up DOING half"
    assert planned.tasks == (
        TaskChange(id=None, title="Order a disk", state="open", note="soon"),
        TaskChange(id=4, state="done", note="cleaned up"),
    )
    kept = python.act("keep")
    assert kept.outputs[0].payload == b"b'41' b'42' None"
    assert kept.state == (
        StateChange(key="count", value=b"42"),
        StateChange(key="other", value=None),
    )
    published = python.act("publish").outputs
    assert [output.payload for output in published] == [b"published", b"published"]


def test_backpressure_names_the_agents_in_python(everything: Native) -> None:
    full = Problem(code="bus.backpressure", message="Full.", details={"agents": ["devclaw"]})
    answer = Offered(problem=full)
    component = Hosted(everything, lambda _: answer, config=b"{}", grants=ALL).started()
    assert component.said("pressed") == "['devclaw']"


def test_memory_lasts_from_message_to_message(python: Hosted) -> None:
    assert [python.said("count") for _ in range(3)] == ["1", "2", "3"]


def test_python_refuses_with_a_reason(python: Hosted) -> None:
    problem = failure_of(python, "refuse")
    assert problem.code == "component.refused"
    assert "`act` of the component refused: not today" in problem.message
    assert python.said("count") == "1"


def test_a_refusal_of_the_configuration_names_it(everything: Native) -> None:
    with pytest.raises(Failure, match="I am not configured") as caught:
        configured(everything, refuse=True)
    assert caught.value.code == "component.init"


def test_a_goodbye_is_logged(everything: Native) -> None:
    component = configured(everything)
    component.host.shutdown()
    assert component.log.getvalue() == "stderr: goodbye opsclaw\n"


# ---- Phases --------------------------------------------------------------------------------------


def test_each_phase_may_be_left_to_the_model(python: Hosted) -> None:
    assert python.host.consultable == TAKES_OVER
    handle = delivery("leave")
    for consult in (Consult("triage"), Consult("act"), Consult("reflect")):
        consulted = python.consult(consult, handle)
        assert not consulted.taken
        assert (consulted.advice, consulted.judgement, consulted.outputs) == (None, None, ())


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (["ACT", None, None], Advice("act", "None")),
        (["DELEGATE", "devclaw", None], Advice("delegate", "None", to="devclaw")),
        (["DEFER", None, 60], Advice("defer", "None", defer_us=MINUTE_US)),
        (["IGNORE", None, None], Advice("ignore", "None")),
    ],
)
def test_a_component_decides(everything: Native, decision: list[Any], expected: Advice) -> None:
    component = configured(everything, decision=decision)
    consulted = component.consult(Consult("triage"), delivery())
    assert consulted.taken
    assert consulted.advice == expected


def test_a_decision_sees_the_screening(everything: Native) -> None:
    component = configured(everything, decision=["ACT", None, None])
    handle = delivery(evidence=evidence(scores={"opsclaw": 0.5, "devclaw": 0.25}))
    advice = component.consult(Consult("triage"), handle).advice
    assert advice is not None
    assert advice.reason == "[('opsclaw', 0.5), ('devclaw', 0.25)]"


def test_a_decision_that_cannot_be_followed_is_refused(everything: Native) -> None:
    component = configured(everything, decision=["DELEGATE", "stranger", None])
    with pytest.raises(Failure, match="stranger") as caught:
        component.consult(Consult("triage"), delivery())
    assert caught.value.code == "component.output"


def test_a_component_reflects_on_what_was_sent(everything: Native) -> None:
    component = configured(everything, importance=0.75)
    sent = (Outgoing(topic="user.reply", payload=b"done"),)
    consulted = component.consult(Consult("reflect", sent=sent), delivery())
    assert consulted.judgement == Judgement("user.reply opsclaw done", "success", 0.75)


def test_state_goes_through_the_phases_of_a_delivery(python: Hosted) -> None:
    handle = delivery("keep")
    first = python.consult(Consult("act"), handle)
    again = python.consult(Consult("act"), handle)
    assert first.outputs[0].payload == b"b'41' b'42' None"
    assert again.outputs[0].payload == b"b'42' b'43' None"
    assert sum(isinstance(effect, ReadState) for effect in python.asked) == 1


# ---- In a sealed worker --------------------------------------------------------------------------


def test_all_of_it_works_in_a_sealed_worker(everything: Native, tmp_path: Path) -> None:
    code = tmp_path / "native"
    code.write_bytes(library.serialize(everything.component))
    code.chmod(0o644)
    messages = ["files", "folder", "times", "chance", "connect", "stderr", "crash", "spin", "count"]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "sealed_host.py"), str(code), *messages],
        capture_output=True,
        text=True,
        timeout=SEALED_SECONDS_MAX,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answers = dict(zip(messages, map(json.loads, run.stdout.splitlines()), strict=True))
    assert answers["files"] == {"said": "1000 6000 ['b', 'note.txt']"}
    assert answers["folder"] == {"said": "a"}
    assert answers["times"] == {"said": "0.001000 3600"}
    assert len(answers["chance"]["said"].split()) == 2
    assert answers["connect"]["said"].startswith("PermissionError")
    assert answers["stderr"] == {"said": "printed"}
    assert "stderr: from Python\n" in run.stderr
    assert answers["crash"]["code"] == "component.trapped"
    assert "stderr: ValueError: a bug\n" in run.stderr
    assert answers["spin"]["code"] == "component.deadline"
    assert answers["count"] == {"said": "1"}
