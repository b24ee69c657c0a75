"""The host's side of `agent-net:core`: effects asked for, and changes staged."""

import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from deliveries import handle, profile

from agent_runtime.component import limits, shipped
from agent_runtime.component.grants import Grants
from agent_runtime.component.invocation import Invocation, NoRoom
from agent_runtime.component.log import Log
from agent_runtime.component.types import Case, err, ok
from ipc_protocol.errors import Problem
from ipc_protocol.inference import ChatMessage
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
    Refused,
    StateChange,
    StateValue,
    Task,
    TaskChange,
    TaskList,
    ToolResult,
    UseTool,
)

Answer = EffectResult | Callable[[Effect], EffectResult]


class Setting:
    """The grants of one component, and a world that answers each effect alike."""

    def __init__(self, answer: Answer | None = None, **changes: Any) -> None:
        self.said = io.StringIO()
        self.asked: list[Effect] = []
        self.answer = answer
        self.grants = Grants(profile(**changes), Log(self.said))
        self.invocation = Invocation(handle())
        self.invocation.ask = self._ask
        self.grants.invocation = self.invocation

    def _ask(self, effect: Effect) -> EffectResult:
        self.asked.append(effect)
        assert self.answer is not None, f"{effect} was asked for"
        return self.answer(effect) if callable(self.answer) else self.answer

    def call(self, interface: str, function: str, *arguments: Any) -> Any:
        version = "" if "@" in interface else "@0.2.0"
        functions = self.grants.functions(f"agent-net:core/{interface}{version}")
        return functions[function](*arguments)


def envelope(topic: str = "ops.report", payload: bytes = b"x", **changes: str) -> dict[str, Any]:
    return {"topic": topic, "sender": "", "payload": payload, "correlation-id": "", **changes}


def refused(answer: Any) -> str:
    assert isinstance(answer, Case)
    assert answer.name == "err"
    assert answer.payload.name == "refused"
    reason: str = answer.payload.payload
    return reason


def problem(code: str, **details: Any) -> Offered:
    return Offered(problem=Problem(code=code, message="no", details=details))


# ---- The bus -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
@pytest.mark.parametrize("correlation", ["", "c-1"])
def test_what_could_be_sent_is_staged(version: str, correlation: str) -> None:
    setting = Setting(Offered())
    sent = envelope(payload=b"full", sender="somebody", **{"correlation-id": correlation})
    assert setting.call(f"bus@{version}", "publish", sent) == ok()
    assert setting.asked == [Offer(topic="ops.report", payload_bytes=4, correlation=correlation)]
    assert setting.invocation.take().outputs == (Outgoing(topic="ops.report", payload=b"full"),)


@pytest.mark.parametrize(
    ("code", "first", "second"),
    [
        ("no-subscriber", Case("no-subscriber", "t"), Case("no-subscriber", "t")),
        ("invalid-topic", Case("no-subscriber", "t"), Case("no-subscriber", "t")),
        ("payload-too-large", Case("payload-too-large", 1), Case("payload-too-large", 1)),
        ("backpressure", Case("backpressure"), Case("backpressure", ["devclaw"])),
        ("not-permitted", Case("no-subscriber", "t"), Case("not-permitted", "t")),
        ("expired", Case("no-subscriber", "t"), Case("expired")),
    ],
)
def test_what_could_not_be_sent_is_told_in_the_words_of_the_version(
    code: str, first: Case, second: Case
) -> None:
    setting = Setting(problem(f"bus.{code}", agents=["devclaw"]))
    assert setting.call("bus@0.1.0", "publish", envelope("t")) == err(first)
    assert setting.call("bus@0.2.0", "publish", envelope("t")) == err(second)
    assert setting.invocation.take().outputs == ()


def test_what_can_never_be_sent_is_not_asked_for() -> None:
    setting = Setting()
    large = envelope("t", b"x" * (PAYLOAD_BYTES_MAX + 1))
    long = envelope("t" * 1000)
    foreign = envelope("t", **{"correlation-id": "c-2"})
    size = PAYLOAD_BYTES_MAX + 1
    for version in ("0.1.0", "0.2.0"):
        answer = setting.call(f"bus@{version}", "publish", large)
        assert answer == err(Case("payload-too-large", size))
        assert setting.call(f"bus@{version}", "publish", long).payload.name == "no-subscriber"
    assert setting.call("bus@0.1.0", "publish", foreign) == err(Case("no-subscriber", "t"))
    assert setting.call("bus@0.2.0", "publish", foreign) == err(Case("not-permitted", "t"))
    assert setting.asked == []


def test_a_delivery_sends_no_more_than_the_bus_takes() -> None:
    setting = Setting(Offered())
    for _ in range(limits.OUTPUTS_SENT_MAX):
        assert setting.call("bus", "publish", envelope()) == ok()
    assert setting.call("bus", "publish", envelope()) == err(Case("backpressure", []))
    assert len(setting.invocation.take().outputs) == limits.OUTPUTS_SENT_MAX
    assert len(setting.asked) == limits.OUTPUTS_SENT_MAX


def test_a_full_completion_is_backpressure() -> None:
    setting = Setting(Offered())
    payload = b"x" * PAYLOAD_BYTES_MAX
    answers = [setting.call("bus@0.1.0", "publish", envelope("t", payload)) for _ in range(13)]
    assert answers[0] == ok()
    assert answers[-1] == err(Case("backpressure"))
    staged = sum(len(output.payload) for output in setting.invocation.take().outputs)
    assert staged <= limits.STAGED_BYTES_MAX


def test_a_refused_offer_is_backpressure() -> None:
    setting = Setting(Refused(code="work.budget", message="The delivery has used its effects."))
    assert setting.call("bus@0.1.0", "publish", envelope()) == err(Case("backpressure"))


# ---- The model -----------------------------------------------------------------------------------


def request(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Is 97 % much?"}]
    return {"messages": messages, "max-tokens": 20, "schema": None, **changes}


def test_the_model_is_asked_in_the_phase_of_the_loop() -> None:
    setting = Setting(Inferred(text="Yes.", generated_tokens=2))
    setting.invocation.phase = "triage"
    schema = json.dumps({"type": "string"})
    answer = setting.call("inference", "ask", request(schema=schema))
    assert answer == ok({"text": "Yes.", "tokens": 2})
    messages = [ChatMessage(role="user", content="Is 97 % much?")]
    wanted = Infer(phase="triage", messages=messages, tokens_max=20, schema={"type": "string"})
    assert setting.asked == [wanted]


def test_no_more_tokens_are_asked_for_than_the_agent_has() -> None:
    setting = Setting(Inferred(text="", generated_tokens=0), tokens_max=100)
    setting.call("inference", "ask", request(**{"max-tokens": 2**32 - 1}))
    (asked,) = setting.asked
    assert isinstance(asked, Infer)
    assert asked.tokens_max == 100


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": []}, "from 1 to 64 messages"),
        ({"messages": request()["messages"] * 65}, "from 1 to 64 messages"),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, "bytes"),
        ({"max-tokens": 0}, "no answer"),
        ({"schema": "[1]"}, "JSON object"),
        ({"schema": "{"}, "JSON object"),
        ({"schema": '{"a": 1e999}'}, "JSON object|number"),
        ({"schema": '{"a": 123456789012345678901234567890}'}, "JSON object|number"),
        ({"schema": '{"a": 18446744073709551615}'}, "number beyond 64 bits"),
        ({"schema": '{"a":' * 30 + "1" + "}" * 30}, "levels deep"),
        ({"schema": '{"a":' * 15_000 + "1" + "}" * 15_000}, "JSON object|levels"),
        ({"schema": '"' + "x" * limits.JSON_BYTES_MAX + '"'}, "bytes at most"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_at_once(
    changes: dict[str, Any], reason: str
) -> None:
    assert re.search(reason, refused(Setting().call("inference", "ask", request(**changes))))


def test_a_model_that_is_away_is_unavailable_and_a_spent_budget_is_not() -> None:
    away = Setting(Refused(code="inference.unavailable", message="It starts."))
    assert away.call("inference", "ask", request()) == err(Case("unavailable", "It starts."))
    spent = Setting(Refused(code="work.budget", message="Spent."))
    assert refused(spent.call("inference", "ask", request())) == "Spent."


def test_a_result_of_another_kind_is_an_error_and_no_trap() -> None:
    assert "Noted" in refused(Setting(Noted()).call("inference", "ask", request()))


# ---- Memory --------------------------------------------------------------------------------------


def test_memories_are_found() -> None:
    memories = [
        Memory(id=n, text="disk", outcome="success", importance=0.5, created_us=7) for n in (1, 2)
    ]
    setting = Setting(Recalled(memories=memories))
    found = setting.call("memory", "search", "disk", 1)
    entry = {"id": 1, "text": "disk", "outcome": "success", "importance": 0.5, "created": 7}
    assert found == ok([entry])
    assert setting.asked == [Recall(phase="act", query="disk", limit=1)]
    setting.call("memory", "search", "disk", 1000)
    assert setting.asked[-1] == Recall(phase="act", query="disk", limit=limits.RECALLED_MAX)


def test_a_memory_is_staged() -> None:
    setting = Setting()
    assert setting.call("memory", "note", "It was full.", "Look.", "partial", 0.25) == ok()
    noted = MemoryEntry(text="It was full.", lesson="Look.", outcome="partial", importance=0.25)
    assert setting.invocation.take().memories == (noted,)


@pytest.mark.parametrize(
    "note",
    [
        (" ", "", "success", 0.5),
        ("text", "", "success", 1.5),
        ("text", "", "success", float("nan")),
        ("t" * 4000, "l" * 97, "success", 0.5),
    ],
)
def test_a_memory_that_the_store_would_refuse_is_refused_at_once(note: Any) -> None:
    setting = Setting()
    assert refused(setting.call("memory", "note", *note))
    assert setting.invocation.take().memories == ()


def test_a_delivery_notes_as_many_memories_as_leave_room_for_reflection() -> None:
    setting = Setting()
    answers = [setting.call("memory", "note", "m", "", "success", 0.5) for _ in range(8)]
    assert [answer.name for answer in answers] == ["ok"] * 7 + ["err"]
    assert "at most 7 memories" in refused(answers[-1])


# ---- Tools and people ----------------------------------------------------------------------------


def test_tools_are_listed_with_their_schemas() -> None:
    listed = Setting().call("tools", "available")
    assert [tool["name"] for tool in listed] == ["host.read", "fs.write", "message.send"]
    assert json.loads(listed[1]["parameters"])["required"] == ["path", "content"]


def test_a_tool_is_called_and_what_it_stages_is_staged() -> None:
    staged = Outgoing(topic="agent.devclaw", payload=b"look")
    setting = Setting(ToolResult(ok=True, output="It goes out.", staged=staged))
    answer = setting.call("tools", "call", "message.send", '{"to": "devclaw", "text": "look"}')
    assert answer == ok("It goes out.")
    assert setting.asked == [
        UseTool(name="message.send", arguments={"to": "devclaw", "text": "look"})
    ]
    assert setting.invocation.take().outputs == (staged,)


def test_a_task_of_a_tool_is_staged() -> None:
    change = TaskChange(id=None, title="Clean up", state="open")
    setting = Setting(ToolResult(ok=True, output="Opened.", staged=change))
    setting.call("tools", "call", "host.read", "{}")
    assert setting.invocation.take().tasks == (change,)


def test_a_tool_that_fails_is_refused_with_what_it_said() -> None:
    setting = Setting(ToolResult(ok=False, output="There is no such file."))
    answer = setting.call("tools", "call", "host.read", "{}")
    assert refused(answer) == "There is no such file."


def test_a_tool_that_the_agent_does_not_have_is_not_asked_for() -> None:
    setting = Setting()
    assert "host.read, fs.write" in refused(setting.call("tools", "call", "rm", "{}"))
    assert "none" in refused(Setting(tools=[]).call("tools", "call", "rm", "{}"))
    assert refused(setting.call("tools", "call", "host.read", "not JSON"))


def test_attention_is_a_tool() -> None:
    setting = Setting(ToolResult(ok=True, output="Yes, do."))
    assert setting.call("attention", "request", "May I?") == ok("Yes, do.")
    assert setting.asked == [UseTool(name="attention.request", arguments={"question": "May I?"})]
    assert "600 characters" in refused(setting.call("attention", "request", "?" * 601))


# ---- Tasks ---------------------------------------------------------------------------------------

TASK = Task(id=4, title="Clean up", state="doing", note="half")


def test_unfinished_tasks_are_asked_for_once() -> None:
    setting = Setting(TaskList(tasks=[TASK]))
    listed = ok([{"id": 4, "title": "Clean up", "status": "doing", "note": "half"}])
    assert setting.call("tasks", "unfinished") == listed
    assert setting.call("tasks", "unfinished") == listed
    assert setting.asked == [ListTasks()]


def test_tasks_are_created_and_updated_with_the_completion() -> None:
    setting = Setting(TaskList(tasks=[TASK]))
    assert setting.call("tasks", "create", "Order a disk", "soon") == ok()
    assert setting.call("tasks", "update", 4, "done", "") == ok()
    assert setting.invocation.take().tasks == (
        TaskChange(id=None, title="Order a disk", state="open", note="soon"),
        TaskChange(id=4, state="done", note=""),
    )


def test_a_change_that_would_be_refused_later_is_refused_at_once() -> None:
    setting = Setting(TaskList(tasks=[TASK]))
    assert "no unfinished task 5" in refused(setting.call("tasks", "update", 5, "done", ""))
    assert "no title" in refused(setting.call("tasks", "create", " ", ""))
    assert "4096" in refused(setting.call("tasks", "create", "t", "n" * 4096))
    assert "4096" in refused(setting.call("tasks", "update", 4, "done", "n" * 4097))
    for _ in range(limits.TASK_CHANGES_MAX):
        assert setting.call("tasks", "create", "t", "") == ok()
    assert "at most 64 changes" in refused(setting.call("tasks", "create", "t", ""))


# ---- State ---------------------------------------------------------------------------------------


def test_state_is_read_through_what_was_put() -> None:
    setting = Setting(StateValue(value=b"old"))
    assert setting.call("state", "get", "k") == ok(b"old")
    assert setting.call("state", "put", "k", b"new") == ok()
    assert setting.call("state", "get", "k") == ok(b"new")
    assert setting.call("state", "delete", "k") == ok()
    assert setting.call("state", "get", "k") == ok(None)
    assert setting.asked == [ReadState(key="k")]


def test_only_the_last_change_of_a_key_is_kept() -> None:
    setting = Setting()
    for n in range(1000):
        assert setting.call("state", "put", "k", b"%d" % n) == ok()
    assert setting.call("state", "put", "l", b"") == ok()
    changes = (StateChange(key="k", value=b"999"), StateChange(key="l", value=b""))
    assert setting.invocation.take().state == changes


def test_what_was_put_in_one_phase_is_read_in_the_next() -> None:
    setting = Setting()
    setting.call("state", "put", "k", b"1")
    setting.invocation.take()
    assert setting.call("state", "get", "k") == ok(b"1")
    assert setting.invocation.take().state == ()


def test_state_has_bounds() -> None:
    setting = Setting()
    long = "k" * (limits.STATE_KEY_BYTES_MAX + 1)
    for function, arguments in (("get", ()), ("put", (b"",)), ("delete", ())):
        assert "256 bytes" in refused(setting.call("state", function, long, *arguments))
        assert "256 bytes" in refused(setting.call("state", function, "", *arguments))
    assert "262144" in refused(setting.call("state", "put", "k", b"x" * 262_145))
    for n in range(limits.STATE_CHANGES_MAX):
        assert setting.call("state", "put", f"k{n}", b"") == ok()
    assert "256 keys" in refused(setting.call("state", "put", "one more", b""))
    assert setting.call("state", "put", "k1", b"again") == ok()


def test_a_value_without_room_leaves_the_one_before() -> None:
    setting = Setting()
    value = b"x" * limits.STATE_VALUE_BYTES_MAX
    assert setting.call("state", "put", "small", b"kept") == ok()
    fitted = 0
    while setting.call("state", "put", f"k{fitted}", value) == ok():
        fitted += 1
    assert 0 < fitted < 16
    assert "are left" in refused(setting.call("state", "put", "small", value))
    assert setting.call("state", "get", "small") == ok(b"kept")
    assert setting.call("state", "put", "k0", value) == ok()  # in the place of the one before
    assert len(setting.invocation.take().state) == fitted + 1


# ---- Health and the log --------------------------------------------------------------------------


def test_health_is_told_and_logged() -> None:
    setting = Setting(Noted())
    assert setting.call("health", "emit", "degraded", "no sensor") is None
    assert setting.asked == [EmitHealth(condition="degraded", detail="no sensor")]
    assert setting.said.getvalue() == "health: degraded: no sensor\n"


def test_a_message_is_a_line_of_the_log() -> None:
    setting = Setting()
    setting.call("logging", "log", "warning", "one\x1b[2Jtwo")
    assert setting.said.getvalue() == "warning: one\\x1b[2Jtwo\n"


# ---- Outside of a delivery -----------------------------------------------------------------------


def test_outside_of_a_delivery_nothing_is_to_be_had() -> None:
    setting = Setting()
    setting.grants.invocation = None
    for interface, function, *arguments in (
        ("inference", "ask", request()),
        ("memory", "search", "q", 1),
        ("memory", "note", "t", "", "success", 0.5),
        ("tools", "call", "host.read", "{}"),
        ("attention", "request", "May I?"),
        ("tasks", "unfinished"),
        ("tasks", "create", "t", ""),
        ("tasks", "update", 4, "done", ""),
        ("state", "get", "k"),
        ("state", "put", "k", b""),
        ("state", "delete", "k"),
    ):
        answer = setting.call(interface, function, *arguments)  # type: ignore[arg-type]
        assert answer.payload.name == "unavailable", function
    assert setting.call("bus@0.1.0", "publish", envelope()) == err(Case("backpressure"))
    assert setting.call("bus", "publish", envelope()) == err(Case("backpressure", []))
    assert setting.call("health", "emit", "degraded", "no sensor") is None
    assert "told to nobody" in setting.said.getvalue()


def test_what_ends_an_effect_ends_the_call() -> None:
    withdrawn = RuntimeError("withdrawn")

    def withdraw(_: Effect) -> EffectResult:
        raise withdrawn

    setting = Setting(withdraw)
    with pytest.raises(RuntimeError) as caught:
        setting.call("state", "get", "k")
    assert caught.value is withdrawn
    assert setting.grants.interruption is withdrawn


def test_everything_that_the_contract_lets_import_is_there() -> None:
    grants = Setting().grants
    offered = [
        package.full_name(interface)
        for package in shipped.load().packages
        for interface in {name for world in package.worlds.values() for name in world.imports}
    ]
    assert len(offered) == 10
    for name in offered:
        declared = shipped.load().interface(name).functions
        assert grants.functions(name).keys() == declared.keys(), name


def test_an_interface_of_types_has_no_functions() -> None:
    assert Setting().grants.functions("agent-net:core/types@0.2.0") == {}


# ---- What is returned ----------------------------------------------------------------------------


def outputs(count: int, size: int = 1) -> list[Outgoing]:
    return [Outgoing(topic="t", payload=b"x" * size) for _ in range(count)]


def test_what_is_beyond_the_limit_is_passed_on_to_be_buried() -> None:
    invocation = Invocation(handle())
    assert invocation.send_returned(outputs(100)) == 0
    assert len(invocation.take().outputs) == 100


def test_of_ten_thousand_messages_the_first_thousand_are_passed_on() -> None:
    invocation = Invocation(handle())
    assert invocation.send_returned(outputs(10_000)) == 10_000 - limits.OUTPUTS_KEPT_MAX
    assert len(invocation.take().outputs) == limits.OUTPUTS_KEPT_MAX


def test_of_large_messages_those_beyond_the_limit_are_left_out() -> None:
    invocation = Invocation(handle())
    left_out = invocation.send_returned(outputs(100, 40_000))
    assert 0 < left_out <= 100 - limits.OUTPUTS_SENT_MAX


def test_what_would_be_sent_has_to_have_room() -> None:
    with pytest.raises(NoRoom, match="bytes"):
        Invocation(handle()).send_returned(outputs(limits.OUTPUTS_SENT_MAX, PAYLOAD_BYTES_MAX))
