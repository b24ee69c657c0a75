"""The decisions' schemas and the prompts: small pure parts of the loop."""

import json

import jsonschema
import msgspec
import pytest
from deliveries import FS_WRITE, HOST_READ, MESSAGE_SEND, profile
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.loop import budget
from agent_runtime.loop.decisions import (
    Reflection,
    ToolCall,
    TriageDecision,
    call_schema,
    parse,
    reflection_schema,
    text_parameter,
    triage_schema,
)
from agent_runtime.loop.prompts import (
    DEFAULTS,
    excerpt,
    fill,
    options_of,
    preamble,
    shorten,
    text_of,
    unfenced,
    whole_sentences,
    without_repeats,
)
from ipc_protocol.work import ToolDescription


def accepts(schema: dict[str, object], value: object) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


# ---- Decisions ----------------------------------------------------------------------------------


def test_a_narrowed_triage_allows_one_action() -> None:
    schema = triage_schema("act", None, priorities=["low"], may_defer=False)
    assert accepts(schema, {"action": "act", "priority": "low", "reason": "mine"})
    assert not accepts(schema, {"action": "act", "priority": "urgent", "reason": "mine"})
    assert not accepts(schema, {"action": "ignore", "reason": "not mine"})
    assert not accepts(schema, {"action": "defer", "until": "1h", "reason": "later"})


def test_a_deferral_needs_a_time() -> None:
    schema = triage_schema("act", None, priorities=["low"], may_defer=True)
    assert accepts(schema, {"action": "defer", "until": "1h", "reason": "later"})
    assert not accepts(schema, {"action": "defer", "reason": "later"})
    assert accepts(schema, {"action": "act", "priority": "low", "reason": "mine"})


def test_a_delegation_names_its_target_and_an_ignored_message_has_no_priority() -> None:
    schema = triage_schema("delegate", "devclaw", priorities=["low"], may_defer=False)
    assert not accepts(
        schema, {"action": "delegate", "to": "uxclaw", "priority": "low", "reason": ""}
    )
    schema = triage_schema("ignore", None, priorities=["low"], may_defer=False)
    assert accepts(schema, {"action": "ignore", "reason": "not mine"})


@pytest.mark.parametrize("action", ["act", "delegate", "ignore"])
def test_what_a_triage_schema_accepts_is_a_decision(action: str) -> None:
    value = {"action": action, "to": "devclaw", "priority": "low", "reason": "so"}
    assert msgspec.convert(value, TriageDecision).action == action


def test_a_single_call_needs_no_choice() -> None:
    schema = call_schema([HOST_READ], may_finish=False, argument_chars_max=50)
    assert "anyOf" not in schema
    assert accepts(schema, {"tool": "host.read", "arguments": {"path": "@disk"}})
    assert not accepts(schema, {"tool": "host.read", "arguments": {"path": "/etc/shadow"}})


def test_free_strings_are_capped_and_known_ones_kept() -> None:
    schema = call_schema([FS_WRITE, MESSAGE_SEND], may_finish=True, argument_chars_max=50)
    assert accepts(schema, {"tool": "fs.write", "arguments": {"path": "a" * 50}})
    assert not accepts(schema, {"tool": "fs.write", "arguments": {"path": "a" * 51}})
    message = {"topic": "ops.report", "text": "x" * 51}
    assert not accepts(schema, {"tool": "message.send", "arguments": message})
    assert accepts(schema, {"tool": "finish"})


def test_a_text_is_a_string_with_a_media_type() -> None:
    assert text_parameter(FS_WRITE) == "content"
    assert text_parameter(HOST_READ) is None
    assert text_parameter(MESSAGE_SEND) is None
    odd = ToolDescription(name="odd", purpose="", parameters={"properties": {"a": True}})
    assert text_parameter(odd) is None


def test_a_reflection_is_held_to_the_outcomes_that_the_facts_leave() -> None:
    value = {"lesson": "Look at the disk first.", "outcome": "failure", "importance": 3}
    assert not accepts(reflection_schema(["success", "partial"]), value)
    assert accepts(reflection_schema(["failure"]), value)
    assert not accepts(reflection_schema(["failure"], ["Look twice."]), value)
    assert parse(json.dumps(value), Reflection) is not None


@pytest.mark.parametrize(
    "text", ["", "{", '{"tool": 1}', '{"tool":"a","arguments":[]}', "[" * 10_000, "\ud800"]
)
def test_what_is_no_decision_is_none(text: str) -> None:
    assert parse(text, ToolCall) is None


# ---- Prompts ------------------------------------------------------------------------------------


def test_the_shipped_prompts_are_all_there() -> None:
    assert sorted(DEFAULTS) == sorted(
        ["system", "triage", "act", "next", "write", "answer", "advise", "reflect", "compose"]
    )


def test_a_pinned_prompt_goes_before_the_shipped_one() -> None:
    assert text_of({"answer": " Briefly. \n"}, "answer") == "Briefly."
    assert text_of({}, "answer") == DEFAULTS["answer"]


def test_braces_in_values_and_unknown_names_stay() -> None:
    filled = fill("{a} {b} {unknown} {} {A1}", {"a": "{b}", "b": "x{"})
    assert filled == "{b} x{ {unknown} {} {A1}"


def test_the_system_text_names_identity_and_tools() -> None:
    text = preamble(profile(), {"system": "{identity}|{name}|{tools}"}, profile().tools)
    assert text == (
        "You are OpsClaw. You keep this host healthy.|opsclaw|Your tools:\n"
        "host.read(path): Read a fact about this host.\n"
        "- /proc/loadavg: load, CPU, slow\n"
        "- @disk: disk, storage\n"
        "fs.write(path, content): Write a text file in your work folder.\n"
        "message.send: Send a message."
    )


@given(st.text(max_size=80), st.integers(1, 40))
def test_a_shortened_text_is_one_line_that_fits(text: str, chars_max: int) -> None:
    short = shorten(text, chars_max)
    assert len(short) <= chars_max
    assert len(short.splitlines()) <= 1


def test_an_excerpt_squeezes_columns_but_keeps_indentation() -> None:
    assert excerpt("if x:\n    y =    1\n", 100) == "if x:\n    y = 1"
    assert excerpt("abcdef", 3) == "abc …"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("print(1)\n", "print(1)"),
        ("Sure:\n```python\nprint(1)\n```\nDone", "print(1)"),
        ("```\nprint(1)\n", "print(1)"),
        ("```", "```"),
    ],
)
def test_a_text_comes_without_its_fence(text: str, inside: str) -> None:
    assert unfenced(text) == inside


def test_a_cut_text_ends_with_its_last_whole_sentence() -> None:
    assert whole_sentences("One. Two! Thr") == "One. Two!"
    assert whole_sentences("One and") == "One and"
    assert whole_sentences("1. One.\n2. Two.\n3. Thr") == "1. One.\n2. Two."


def test_an_agent_without_tools_is_told_of_none() -> None:
    assert preamble(profile(), {}, []) == profile().identity


def test_the_options_of_a_parameter_are_its_values_and_what_they_mean() -> None:
    schema = {"anyOf": [{"const": "a", "description": "b"}, {"const": 1}, {"type": "null"}, True]}
    assert options_of(schema) == {"a": "b", "1": ""}
    assert options_of(True) == {}


def test_a_sentence_is_said_once() -> None:
    assert without_repeats("It is done. It is done.\n\nIt is Done.\n- Look! Now.") == (
        "It is done.\n\n- Look! Now."
    )


def test_code_may_say_a_line_twice() -> None:
    code = "```\nx.\nx.\n```"
    assert without_repeats(code) == code


# ---- Budget -------------------------------------------------------------------------------------


def test_shares_of_the_default_budget_hold_a_whole_delivery() -> None:
    tokens = 2048
    once = [budget.TRIAGE_SHARE, budget.CALL_SHARE, budget.WRITE_SHARE]
    assert sum(budget.share(tokens, part) for part in once) + budget.reserve(tokens) < tokens / 2
    assert budget.share(0, budget.CALL_SHARE) == budget.TOKENS_MIN
    assert budget.chars(0, budget.REQUEST_SHARE) == budget.CHARS_MIN
