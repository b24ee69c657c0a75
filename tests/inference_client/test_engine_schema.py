"""Grammars keep the promise of their schema: what they allow parses and validates."""

import json
import re

import jsonschema
import pytest
from gbnf import regex_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_client.engine import schema as schemas
from inference_client.engine.schema import grammar_of
from ipc_protocol.errors import Failure

DECISION = {
    "title": "Decision",
    "type": "object",
    "properties": {
        "action": {"enum": ["act", "delegate", "ignore"]},
        "reason": {"type": "string", "maxLength": 20},
        "to": {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 5}, {"type": "null"}]},
    },
    "required": ["action", "reason"],
}

VALID = {
    "a decision": DECISION,
    "optional first": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"const": 1}, "c": {"type": "boolean"}},
        "required": ["b"],
    },
    "all optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}},
    },
    "an array": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    "a long array": {"type": "array", "items": {"type": "null"}, "minItems": 2},
    "an unbounded array": {"type": "array", "items": {"type": "boolean"}},
    "an empty array": {"type": "array", "items": {"type": "boolean"}, "maxItems": 0},
    "an array of anything": {"type": "array", "maxItems": 2},
    "a tuple": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "boolean"}],
        "minItems": 2,
        "maxItems": 2,
        "items": False,
    },
    "several types": {"type": ["integer", "string", "null"], "maxLength": 3, "minimum": 4},
    "a string at least": {"type": "string", "minLength": 3},
    "a number": {"type": "number"},
    "a bounded number": {"type": "number", "minimum": 0, "maximum": 1},
    "a wide number": {"type": "number", "minimum": -12.5, "exclusiveMaximum": 3},
    "a negative number": {"type": "number", "maximum": -7},
    "a number with one negative value": {"type": "number", "minimum": -5, "maximum": -5},
    "a number with one value": {"type": "number", "minimum": 5, "maximum": 5},
    "one of two types": {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    "awkward constants": {
        "enum": ['a\\b"c', "new\nline\ttab\rreturn", "é你", 1.5, None, {"a": [1]}]
    },
    "one constant of a type": {"const": "x", "type": "string"},
    "references": {
        "type": "object",
        "properties": {
            "a": {"$ref": "#/$defs/small~1one"},
            "b": {"$ref": "#/$defs/small~1one"},
        },
        "required": ["a", "b"],
        "$defs": {"small/one": {"type": "integer", "minimum": 0, "maximum": 9}},
    },
    "recursion": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    },
    "a free object": {"type": "object"},
    "a closed object": {"type": "object", "additionalProperties": False},
    "a map": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "anything": {},
}

REFUSED = {
    "no schema": 5,
    "an unknown type": {"type": "date"},
    "no type": {"minLength": 4},
    "a pattern": {"type": "string", "pattern": "a+"},
    "a keyword of another type": {"type": "string", "minimum": 1},
    "a keyword of no type": {"type": ["string", "null"], "minimum": 1},
    "a format": {"type": "string", "format": "date"},
    "a bound below zero": {"type": "string", "minLength": -1},
    "a bound that is too large": {"type": "string", "maxLength": 10_000},
    "contradictory lengths": {"type": "string", "minLength": 4, "maxLength": 3},
    "contradictory bounds": {"type": "integer", "minimum": 4, "maximum": 3},
    "no integer between": {"type": "number", "minimum": 0.2, "maximum": 0.8},
    "a bound that is no number": {"type": "integer", "minimum": "4"},
    "an empty enum": {"enum": []},
    "an enum of another type": {"type": "string", "enum": ["a", 1]},
    "a constant that is not JSON": {"const": float("nan")},
    "an enum beside bounds": {"enum": ["a"], "maxLength": 3},
    "an empty anyOf": {"anyOf": []},
    "an overlap in oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "a reference to nothing": {"$ref": "#/$defs/none"},
    "a reference elsewhere": {"$ref": "https://example.org/schema"},
    "a reference to a reference": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}}},
    "an undeclared required property": {"type": "object", "required": ["a"]},
    "properties that are no object": {"type": "object", "properties": []},
    "too many properties": {
        "type": "object",
        "properties": {str(number): {"type": "null"} for number in range(200)},
    },
    "an open tuple": {"type": "array", "prefixItems": [{"type": "null"}]},
    "a tuple of another length": {
        "type": "array",
        "prefixItems": [{"type": "null"}],
        "items": False,
        "minItems": 2,
    },
}


@pytest.mark.parametrize("schema", VALID.values(), ids=VALID)
def test_whatever_the_grammar_allows_parses_and_validates(schema):
    @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(regex_of(grammar_of(schema)), fullmatch=True))
    def check(text):
        jsonschema.validate(json.loads(text), schema)

    check()


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["action", "reason", "to"]), st.text(max_size=30)),
)
def test_a_valid_decision_as_json_writes_it_is_allowed(values):
    decision = {"action": "act", "reason": values.get("reason", "")[:20]}
    if "to" in values:
        decision["to"] = None
    text = json.dumps(decision, ensure_ascii=False)
    if "\\u" not in text and "\x7f" not in text:
        assert re.fullmatch(regex_of(grammar_of(DECISION)), text)


@settings(deadline=None)
@given(st.integers(-2000, 2000), st.integers(-2000, 2000), st.integers(-2100, 2100))
def test_the_integers_between_two_bounds_are_allowed_and_no_others(one, other, number):
    low, high = min(one, other), max(one, other)
    grammar = grammar_of({"type": "integer", "minimum": low, "maximum": high})
    allowed = re.fullmatch(regex_of(grammar), str(number)) is not None
    assert allowed == (low <= number <= high)


def test_exclusive_bounds_exclude():
    grammar = regex_of(
        grammar_of({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4, "maximum": 8})
    )
    assert [n for n in range(10) if re.fullmatch(grammar, str(n))] == [2, 3]


def test_the_order_is_the_schemas_and_the_spacing_that_of_json():
    grammar = grammar_of(DECISION)
    assert re.fullmatch(regex_of(grammar), '{"action": "act", "reason": "x", "to": null}')
    assert not re.fullmatch(regex_of(grammar), '{"reason": "x", "action": "act"}')


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED)
def test_what_a_grammar_cannot_promise_is_refused_with_its_place(schema):
    with pytest.raises(Failure) as failure:
        grammar_of(schema)
    assert failure.value.code == "inference.schema"
    assert "at #" in str(failure.value) or "at https" in str(failure.value)


def test_a_schema_nested_too_deeply_is_refused():
    schema = {"type": "null"}
    for _ in range(40):
        schema = {"type": "array", "items": schema}
    with pytest.raises(Failure, match="nested deeper"):
        grammar_of(schema)


def test_a_schema_of_too_many_rules_is_refused(monkeypatch):
    monkeypatch.setattr(schemas, "RULES_MAX", 3)
    with pytest.raises(Failure, match="more than 3 rules"):
        grammar_of({})
