"""What a small model is offered, and what becomes of what it says."""

import pytest
from deliveries import (
    FINISH,
    FS_WRITE,
    HOST_READ,
    MEMORY_SEARCH,
    MESSAGE_SEND,
    READ_DISK,
    REFLECTION,
    TASK_CREATE,
    call,
    conductor,
    conversation,
    drive,
    evidence,
    guided,
    handle,
    said,
    world,
)

from agent_runtime.loop.decisions import ToolCall
from agent_runtime.loop.facts import FACTS_MAX, facts_of, parted, with_facts
from agent_runtime.loop.guidance import file_name, is_relevant, narrowed, words_of
from agent_runtime.loop.state import Observation
from ipc_protocol.work import (
    Answer,
    Effect,
    Infer,
    Memory,
    Note,
    Outgoing,
    Recalled,
    Refused,
    ToolDescription,
    ToolResult,
    UseTool,
)

LOAD = "Is the load too high?"
READ_LOAD = call("host.read", path="/proc/loadavg")
DISK_ANSWER = said({"answer": "/ is 97% full"})
ALL = [HOST_READ, FS_WRITE, MEMORY_SEARCH, MESSAGE_SEND, TASK_CREATE]


def seen(tool: str, output: str = "done", *, ok: bool = True, **arguments: str) -> Observation:
    return Observation(call=ToolCall(tool=tool, arguments=dict(arguments)), ok=ok, output=output)


def asked(effects: list[Effect]) -> list[Infer]:
    return [effect for effect in effects if isinstance(effect, Infer)]


def used(effects: list[Effect]) -> list[UseTool]:
    return [effect for effect in effects if isinstance(effect, UseTool)]


def lesson_schema(effects: list[Effect]) -> list[str]:
    schema = asked(effects)[-1].schema
    assert schema is not None
    options = schema["properties"]["lesson"]["enum"]
    assert isinstance(options, list)
    return options


# ---- Which tools --------------------------------------------------------------------------------


def test_what_the_request_names_is_read_and_nothing_else() -> None:
    (tool,), may_finish = narrowed(ALL, LOAD, ())
    assert tool.parameters["properties"] == {"path": {"anyOf": [{"const": "/proc/loadavg"}]}}
    assert not may_finish


def test_everything_that_is_named_is_read_once() -> None:
    request = "Is the load too high or a disk full?"
    (tool,), may_finish = narrowed(ALL, request, (seen("host.read", path="/proc/loadavg"),))
    assert tool.parameters["properties"] == {"path": {"anyOf": [{"const": "@disk"}]}}
    assert not may_finish
    both = (seen("host.read", path="/proc/loadavg"), seen("host.read", path="@disk"))
    assert narrowed(ALL, request, both) == ([], True)


def test_without_a_name_the_main_tool_comes_first() -> None:
    assert narrowed(ALL, "What is wrong?", ()) == ([HOST_READ], False)
    assert narrowed([MESSAGE_SEND], "What is wrong?", ()) == ([], False)


def test_a_tool_that_is_named_is_offered_with_the_request_for_its_texts() -> None:
    request = "Create a task to renew the certificate."
    (tool,), may_finish = narrowed(ALL, request, ())
    assert tool.name == "task.create" and tool.outward
    assert tool.parameters["properties"] == {"title": {"const": request}}
    assert not may_finish
    assert narrowed(ALL, request, (seen("task.create"),)) == ([], True)


def test_after_what_was_read_a_named_tool_stands_beside_the_end() -> None:
    request = "The disk is full, create a task for it."
    tools, may_finish = narrowed(ALL, request, (seen("host.read", path="@disk"),))
    assert [tool.name for tool in tools] == ["task.create"]
    assert may_finish


def test_of_several_ways_to_call_a_tool_the_named_one_is_left() -> None:
    (tool,), _ = narrowed(ALL, "Send this message to devclaw.", ())
    (way,) = tool.parameters["anyOf"]
    assert way["properties"]["to"]["enum"] == ["devclaw"]
    assert way["properties"]["text"] == {"const": "Send this message to devclaw."}
    (tool,), _ = narrowed(ALL, "Send a message.", ())
    assert len(tool.parameters["anyOf"]) == 2


def test_a_search_is_for_the_telling_words() -> None:
    (tool,), _ = narrowed([MEMORY_SEARCH], "How dangerous is this leak, please?", ())
    assert tool.parameters["properties"] == {"query": {"const": "dangerous leak"}}
    assert narrowed([MEMORY_SEARCH], "?", ()) == ([MEMORY_SEARCH], False)


def test_a_file_has_the_name_that_the_request_gives_it() -> None:
    (tool,), _ = narrowed([FS_WRITE], "Fix the bug in count.py, please.", ())
    assert tool.parameters["properties"]["path"] == {"enum": ["count.py"]}
    assert "contentMediaType" in tool.parameters["properties"]["content"]
    (tool,), _ = narrowed([FS_WRITE], "Write a Python script that counts lines.", ())
    assert tool.parameters["properties"]["path"] == {"enum": ["counts-lines.py"]}


@pytest.mark.parametrize(
    "parameters", [{}, {"properties": {"a": True}}, {"anyOf": [{"properties": {"a": True}}]}]
)
def test_a_schema_of_another_form_stays_as_it_is(parameters: dict[str, object]) -> None:
    tool = ToolDescription(name="odd", purpose="", parameters=parameters)
    assert narrowed([tool], "What?", ()) == ([tool], False)


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ("Write a JavaScript function that reverses a string.", "reverses-string.js"),
        ("Write a C++ program for prime numbers", "c-prime-numbers.cpp"),
        ("Write a note.", "note.txt"),
        ("Schreibe größere Töne", "schreibe.txt"),
    ],
)
def test_a_file_is_named_after_its_subject_and_language(request_: str, name: str) -> None:
    assert file_name(request_) == name


def test_words_are_the_telling_ones_once() -> None:
    assert words_of("The disk, the DISK and a fan_2") == ["disk", "fan", "2"]


def test_half_of_the_words_make_two_texts_be_about_the_same() -> None:
    assert is_relevant("a login failed", "Two failed logins last")
    assert not is_relevant("the disk is full", "Many failed logins last night")
    assert not is_relevant("the disk is full", "?")


# ---- What it reads ------------------------------------------------------------------------------


def test_its_tools_are_described_where_it_chooses_and_nowhere_else() -> None:
    answers = world(READ_LOAD, DISK_ANSWER, REFLECTION)
    _, _, effects = drive(guided(), handle(LOAD, must_take=True), answers)
    choose, answer, reflect = asked(effects)
    assert choose.messages[0].content == guided().identity
    assert "- @disk: disk, storage" in choose.messages[1].content
    assert "fs.write" not in choose.messages[1].content
    assert "Your tools" not in answer.messages[1].content + reflect.messages[1].content


def test_memories_that_are_beside_the_point_are_not_shown() -> None:
    old = Memory(id=1, text="Is the load too high? → no", outcome="", importance=1, created_us=1)
    other = Memory(id=2, text="A key was leaked", outcome="", importance=1, created_us=1)
    answers = world(READ_LOAD, DISK_ANSWER, REFLECTION, recall=Recalled(memories=[old, other]))
    _, _, effects = drive(guided(), handle(LOAD, must_take=True), answers)
    shown = asked(effects)[0].messages[1].content
    assert old.text in shown and other.text not in shown


@pytest.mark.parametrize(
    ("output", "is_shown"), [("- logins failed: bob", True), ("- the disk is full", False)]
)
def test_a_memory_that_was_searched_for_is_shown_if_it_fits(output: str, is_shown: bool) -> None:
    answers = world(
        call("memory.search", query="logins failed"),
        said("Block it."),
        REFLECTION,
        tool=ToolResult(ok=True, output=output),
    )
    delivery = handle("Logins failed.", must_take=True)
    _, completion, effects = drive(guided(tools=[MEMORY_SEARCH]), delivery, answers)
    assert (output in asked(effects)[1].messages[1].content) == is_shown
    assert completion.outputs[0].payload == b"Block it."
    assert lesson_schema(effects) == ["Next time, look for evidence first."]


def test_a_call_that_failed_is_neither_shown_nor_a_fact() -> None:
    failed = ToolResult(ok=False, output="no such file")
    answers = world(READ_LOAD, said("Look elsewhere."), REFLECTION, tool=failed)
    _, completion, effects = drive(guided(), handle(LOAD, must_take=True), answers)
    assert "no such file" not in asked(effects)[1].messages[1].content
    assert completion.outputs[0].payload == b"Look elsewhere."
    assert lesson_schema(effects)[0] == "Next time, do without host.read /proc/loadavg."


def test_it_gives_no_reason_of_its_own_in_triage() -> None:
    answers = world(said({"action": "act", "priority": "low"}), READ_DISK, DISK_ANSWER, REFLECTION)
    _, _, effects = drive(guided(), handle("The disk is full.", evidence=evidence()), answers)
    schema = asked(effects)[0].schema
    assert schema is not None and "reason" not in schema["properties"]
    note = next(effect for effect in effects if isinstance(effect, Note))
    assert note.data["reason"] == "it is like my duty"


# ---- What it says -------------------------------------------------------------------------------


def test_it_answers_with_one_of_the_facts() -> None:
    answers = world(READ_LOAD, DISK_ANSWER, REFLECTION)
    _, completion, effects = drive(guided(), handle(LOAD, must_take=True), answers)
    schema = asked(effects)[1].schema
    assert schema is not None
    assert schema["properties"]["answer"] == {"enum": ["/ is 97% full"]}
    assert completion.outputs == [
        Outgoing(
            topic="user.reply",
            payload=b"/ is 97% full\n\nSeen:\n- host.read /proc/loadavg: / is 97% full",
        )
    ]
    assert completion.memories[0].text == f"{LOAD} → host.read /proc/loadavg: / is 97% full"


@pytest.mark.parametrize("answer", ["{", '{"answer":"all is well"}'], ids=["none", "invented"])
def test_an_answer_that_is_no_fact_is_none(answer: str) -> None:
    answers = world(READ_LOAD, said(answer), REFLECTION)
    _, completion, _ = drive(guided(), handle(LOAD, must_take=True), answers)
    assert completion.outputs[0].payload.startswith(b"There is no answer")
    assert b"Seen:\n- host.read /proc/loadavg: / is 97% full" in completion.outputs[0].payload


def test_named_tools_that_are_used_up_end_the_calls_without_a_question() -> None:
    answers = world(call("task.create", title="x"), DISK_ANSWER, REFLECTION)
    delivery = handle("Create a task to renew it.", must_take=True)
    _, _, effects = drive(guided(tools=ALL), delivery, answers)
    assert [tool.name for tool in used(effects)] == ["task.create"]
    assert len(asked(effects)) == 3


def test_what_a_colleague_sends_goes_to_nobody_else() -> None:
    delivery = handle("Send a message to devclaw.", sender="devclaw", must_take=True)
    answers = world(READ_LOAD, DISK_ANSWER, REFLECTION)
    _, _, effects = drive(guided(), delivery, answers)
    assert [tool.name for tool in used(effects)] == ["host.read"]


def test_it_may_leave_a_named_tool_alone_after_the_facts() -> None:
    answers = world(READ_DISK, FINISH, DISK_ANSWER, REFLECTION)
    delivery = handle("The disk is full, create a task for it.", must_take=True)
    _, _, effects = drive(guided(tools=ALL), delivery, answers)
    assert [tool.name for tool in used(effects)] == ["host.read"]


def test_a_lesson_that_repeats_the_answer_is_none() -> None:
    repeated = {"lesson": "The disk is full. The disk is full.", "outcome": "success"}
    answers = world(READ_DISK, DISK_ANSWER, said({**repeated, "importance": 2}))
    _, completion, _ = drive(guided(), handle("The disk is full.", must_take=True), answers)
    assert completion.memories[0].lesson == ""


# ---- The conductor ------------------------------------------------------------------------------

OPS = Answer(agent="opsclaw", text=with_facts("/ is 97% full", ["host.read @disk: / is 97% full"]))
SEC = Answer(agent="secclaw", text="No risk.")
UX = Answer(agent="uxclaw", text="It reads well.")
TINY = {"preference_weight": 0.1}


def test_facts_survive_whatever_the_conductor_says() -> None:
    answers = world(said("There is too much memory."), REFLECTION)
    _, completion, effects = drive(conductor(), conversation(OPS, OPS, SEC), answers)
    assert "opsclaw saw host.read @disk: / is 97% full" in asked(effects)[0].messages[1].content
    assert completion.outputs[0].payload.decode() == (
        "There is too much memory.\n\nSeen:\n- host.read @disk: / is 97% full"
    )


def test_a_small_conductor_passes_on_the_answer_with_the_facts() -> None:
    answers = world(DISK_ANSWER, REFLECTION)
    _, completion, effects = drive(conductor(**TINY), conversation(OPS, SEC), answers)
    schema = asked(effects)[0].schema
    assert schema is not None
    assert schema["properties"]["answer"] == {"enum": ["/ is 97% full"]}
    assert completion.outputs[0].payload.decode() == OPS.text
    assert lesson_schema(effects)[0] == "Next time, rely on opsclaw and secclaw for this."


def test_a_small_conductor_has_nothing_to_add_to_a_single_answer() -> None:
    answers = world(said({"answer": "No risk."}), REFLECTION)
    _, completion, _ = drive(conductor(**TINY), conversation(SEC), answers)
    assert completion.outputs[0].payload == b"No risk."


def test_a_small_conductor_joins_several_opinions_in_its_own_words() -> None:
    answers = world(said("All is well."), REFLECTION)
    _, completion, effects = drive(conductor(**TINY), conversation(SEC, UX), answers)
    assert asked(effects)[0].schema is None
    assert completion.outputs[0].payload == b"All is well."


def test_a_small_conductor_without_answers_learns_to_ask_somebody() -> None:
    down = Refused(code="inference.unavailable", message="down")
    _, completion, effects = drive(conductor(**TINY), conversation(), world(down))
    assert lesson_schema(effects)[0] == "Next time, rely on nobody for this."
    assert completion.outputs[0].payload == b"Nobody had an answer to this."


# ---- Facts --------------------------------------------------------------------------------------


def test_facts_come_back_as_they_were_written() -> None:
    facts = ["host.read a: 1", "host.read b: 2"]
    assert parted(with_facts("Well.", [*facts, facts[0]])) == ("Well.", facts)
    assert parted(with_facts("Well.", [])) == ("Well.", [])


def test_what_a_model_writes_like_facts_is_none() -> None:
    assert parted(with_facts("Well.\n\nSeen:\n- a lie", [])) == ("Well.\n\n- a lie", [])
    assert parted(with_facts("\n\nSeen:\n- a lie", ["a fact"])) == ("- a lie", ["a fact"])


def test_facts_are_counted() -> None:
    assert len(parted(with_facts("", [str(n) for n in range(20)]))[1]) == FACTS_MAX


def test_failures_and_memories_are_no_facts() -> None:
    observations = [
        seen("host.read", "97%\nfull", path="@disk"),
        seen("fs.read", "none", ok=False, path="a"),
        seen("memory.search", "old", query="disk"),
    ]
    assert facts_of(observations) == ["host.read @disk: 97% full"]
