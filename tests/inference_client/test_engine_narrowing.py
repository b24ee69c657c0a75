"""What of a schema is promised: refused with its place, or narrowed until every answer keeps it."""

import json

import jsonschema
import pytest

from inference_client.engine import narrowing, refusing
from inference_client.engine.narrowing import narrowed, patterns, serialised
from ipc_protocol.errors import Failure


def narrow(schema):
    return narrowed(serialised(schema))


def own(schema):
    """The narrowed schema without our definitions."""
    return {key: value for key, value in narrow(schema).items() if key != "$defs"}


FREE = {"$ref": f"#/$defs/free-{narrowing.FREE_DEPTH}"}
CLOSED = {"type": "object", "additionalProperties": False}
NULL = {"type": "null"}


def deep(levels):
    schema = NULL
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED = {
    "negation": ({"not": {}}, "#", "`not`"),
    "a condition": ({"if": {}, "then": {}}, "#", "`if`"),
    "different items": ({"properties": {"a": {"uniqueItems": True}}}, "#/properties/a", "unique"),
    "contained items": ({"items": {"contains": {}}}, "#/items", "`contains`"),
    "names by a schema": ({"anyOf": [{"propertyNames": {}}]}, "#/anyOf/0", "`propertyNames`"),
    "dependent names": ({"dependentRequired": {}}, "#", "`dependentRequired`"),
    "unevaluated ones": ({"unevaluatedProperties": False}, "#", "`unevaluatedProperties`"),
    "a dynamic reference": ({"$dynamicRef": "#a"}, "#", "`$dynamicRef`"),
    "bytes": ({"const": b"a"}, "#", "not JSON"),
    "half a character": ({"const": "\ud800"}, "#", "not JSON"),
    "no number": ({"const": float("nan")}, "#", "not JSON"),
    "a large one": ({"enum": ["a" * 100_000]}, "#", "bytes"),
    "a deep one": (deep(40), "#/items/items", "deeper than 32"),
    "a schema that is a number": ({"items": 5}, "#/items", "object, true or false"),
    "a list of items": ({"items": [{}]}, "#/items", "object, true or false"),
    "properties in a list": ({"properties": []}, "#/properties", "object of schemas"),
    "options in an object": ({"anyOf": {}}, "#/anyOf", "list of schemas"),
    "an unknown type": ({"type": "date"}, "#", "`type` is one"),
    "no type at all": ({"type": []}, "#", "`type` is one"),
    "an enum of nothing": ({"enum": []}, "#", "not empty"),
    "an enum that is no list": ({"enum": "a"}, "#", "not empty"),
    "no options": ({"anyOf": []}, "#", "not empty"),
    "a required name that is a number": ({"required": [1]}, "#", "list of names"),
    "a required name of draft 3": ({"required": True}, "#", "list of names"),
    "many properties": ({"properties": {str(n): {} for n in range(300)}}, "#", "256 properties"),
    "a bound that is a text": ({"minimum": "4"}, "#", "`minimum` is a number"),
    "a bound of draft 4": ({"exclusiveMinimum": True}, "#", "`exclusiveMinimum` is a number"),
    "a multiple of a fraction": ({"multipleOf": 0.1}, "#", "integer from 1"),
    "a multiple of nothing": ({"multipleOf": 0}, "#", "integer from 1"),
    "a multiple of a text": ({"multipleOf": "2"}, "#", "integer from 1"),
    "a multiple of much": ({"multipleOf": 65_537}, "#", "integer from 1"),
    "a number of many digits": ({"enum": [{"a": [10**15]}]}, "#", "15 digits"),
    "a control character": ({"const": "a\x00"}, "#", "control character"),
    "a negative length": ({"maxLength": -1}, "#", "at least 0"),
    "a length that is true": ({"minLength": True}, "#", "at least 0"),
    "a length that is no integer": ({"minLength": 1.5}, "#", "at least 0"),
    "a string that is too long": ({"minLength": 10**6}, "#", "16384 characters"),
    "an array that is too long": ({"minItems": 10**6}, "#", "16384 characters"),
    "arrays that are too long": (
        {"items": {"items": {"const": "a" * 99}, "minItems": 99}, "minItems": 99},
        "#",
        "16384 characters",
    ),
    "an option that is too long": (
        {
            "properties": {
                "a": {"anyOf": [{"type": "null"}, {"prefixItems": [{}], "minItems": 10**5}]}
            }
        },
        "#/properties/a",
        "16384 characters",
    ),
    "properties that double": (
        {
            "$defs": {
                **{
                    f"{n}": {
                        "type": "object",
                        "properties": {"a": {"$ref": f"#/$defs/{n - 1}"}},
                        "required": ["a", "b"],
                        "additionalProperties": {"$ref": f"#/$defs/{n - 1}"},
                    }
                    for n in range(1, 20)
                },
                "0": {"const": "end"},
            },
            "$ref": "#/$defs/19",
        },
        "#",
        "16384 characters",
    ),
    "names that may be the same": ({"minProperties": 2}, "#", "`minProperties`"),
    "a pattern that is none": ({"pattern": 5}, "#", "`pattern` is a string"),
    "a long pattern": ({"pattern": "a" * 1000}, "#", "512 characters"),
    "repetitions of repetitions": ({"pattern": "^((a{20}){20}){20}$"}, "#", "4096 characters"),
    "a name with repetitions": ({"patternProperties": {"(a{99}){99}": {}}}, "#", "4096"),
    "an unknown format": ({"type": "string", "format": "iri"}, "#", "`format` 'iri'"),
    "a reference to nothing": ({"$ref": "#/$defs/a"}, "#", "names no schema"),
    "a reference to a value": ({"$ref": "#/const", "const": {}}, "#", "names no schema"),
    "a reference elsewhere": ({"$ref": "https://example.org/a"}, "#", "names no schema"),
    "a reference that is a number": ({"$ref": 5}, "#", "names no schema"),
    "another base": ({"$defs": {"a": {"$id": "b"}}}, "#/$defs/a", "`$id`"),
    "many references": (
        {
            "$defs": {str(n): NULL for n in range(200)},
            "prefixItems": [{"$ref": f"#/$defs/{n}"} for n in range(200)],
        },
        "#",
        "128 schemas",
    ),
    "multiples of an intersection": (
        {"allOf": [{"type": "integer"}, {"multipleOf": 7}]},
        "#/allOf/1",
        "intersects",
    ),
}

ENDLESS = {
    "itself": {"$ref": "#"},
    "another and back": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "a required property": {
        "type": "object",
        "properties": {"a": {"$ref": "#"}},
        "required": ["a"],
    },
    "any required property": {
        "type": "object",
        "required": ["a"],
        "additionalProperties": {"$ref": "#"},
    },
    "at least one property": {
        "type": "object",
        "minProperties": 1,
        "patternProperties": {"^a": {"$ref": "#"}},
        "additionalProperties": False,
    },
    "an item": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "a first item": {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
    "every option": {"anyOf": [{"$ref": "#"}, {"type": "array", "items": False, "minItems": 1}]},
    "a part of all": {"allOf": [{"type": "array"}, {"$ref": "#"}]},
}

ENDING = {
    "an optional property": {"type": "object", "properties": {"a": {"$ref": "#"}}},
    "an option": {"anyOf": [{"$ref": "#"}, NULL]},
    "no item": {"type": "array", "items": {"$ref": "#"}},
    "a scalar": {"type": ["null", "array"], "items": {"$ref": "#"}, "minItems": 1},
    "a value": {"enum": [[1]], "items": {"$ref": "#"}},
    "one of the properties": {
        "type": "object",
        "properties": {"a": {"$ref": "#"}, "b": NULL},
        "minProperties": 1,
    },
    "a chain": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": NULL},
        "$ref": "#/$defs/a",
    },
}


@pytest.mark.parametrize(("schema", "path", "what"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_promised_is_refused_with_its_place(schema, path, what):
    with pytest.raises(Failure) as failure:
        narrow(schema)
    assert failure.value.code == "inference.schema"
    assert failure.value.problem.details["path"].startswith(path)
    assert what in str(failure.value)


def test_a_schema_that_contains_itself_is_refused():
    schema: dict[str, object] = {}
    schema["items"] = schema
    with pytest.raises(Failure, match="not JSON"):
        serialised(schema)


@pytest.mark.parametrize("schema", ENDLESS.values(), ids=ENDLESS)
def test_a_schema_whose_values_never_end_is_refused(schema):
    with pytest.raises(Failure, match="endlessly"):
        narrow(schema)


@pytest.mark.parametrize("schema", ENDING.values(), ids=ENDING)
def test_a_schema_that_refers_to_itself_may_end(schema):
    assert narrow(schema)


def test_the_callers_schema_stays_as_it_is():
    schema = {"type": "object", "properties": {"a": True}, "title": "A"}
    before = json.dumps(schema)
    narrow(schema)
    assert json.dumps(schema) == before


def test_declared_properties_are_the_only_ones_at_every_depth():
    schema = {
        "properties": {"a": {"items": {"type": "object", "properties": {"b": NULL}}}},
        "$defs": {"c": {"type": "object", "properties": {}}},
        "type": "object",
    }
    found = narrow(schema)
    assert found["additionalProperties"] is False
    assert found["properties"]["a"]["items"]["additionalProperties"] is False
    assert found["$defs"]["c"]["additionalProperties"] is False


def test_what_is_required_is_declared():
    found = own({"type": "object", "properties": {"a": NULL}, "required": ["a", "b"]})
    assert found["properties"] == {"a": NULL, "b": FREE}
    assert own({"type": "object", "required": ["b"]})["properties"] == {"b": FREE}


def test_an_object_that_declares_nothing_is_free():
    assert own({"type": "object"}) == {"type": "object", "additionalProperties": FREE}
    kept = {"type": "object", "properties": {"a": NULL}, "additionalProperties": NULL}
    assert own(kept) == kept


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "object", "properties": {"a": NULL}}, {"type": "object"}]},
        {"oneOf": [{"type": "object", "properties": {"a": NULL}}, NULL]},
        {"type": "object", "anyOf": [{"properties": {"a": NULL}}, {"required": ["b"]}]},
    ],
)
def test_nothing_is_closed_where_schemas_are_intersected_or_excluded(schema):
    text = json.dumps(own(schema))
    assert '"additionalProperties": false' not in text


def test_a_single_part_is_no_intersection():
    found = own({"allOf": [{"type": "object", "properties": {"a": NULL}}], "title": "A"})
    assert found["allOf"][0]["additionalProperties"] is False


def test_annotations_and_what_means_nothing_are_dropped():
    found = own(
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$id": "https://example.org/a",
            "x-guidance": {"lenient": True},
            "title": "A",
            "nullable": True,
            "uniqueItems": False,
            "format": "int32",
            "type": "integer",
            "enum": [1, 2],
        }
    )
    assert found == {"type": "integer", "enum": [1, 2]}


def test_numbers_have_bounds_and_the_given_ones_are_kept():
    largest = refusing.LARGEST
    assert own({"type": "integer"}) == {
        "type": "integer",
        "minimum": -largest,
        "maximum": largest,
    }
    assert own({"type": "number", "minimum": 0, "exclusiveMaximum": 10**400}) == {
        "type": "number",
        "minimum": 0,
        "maximum": largest,
        "exclusiveMaximum": largest + 1,
        "multipleOf": narrowing.FRACTION,
    }
    assert own({"type": "number", "multipleOf": 5})["multipleOf"] == 5


def test_lengths_that_no_answer_reaches_are_cut():
    found = own({"maxLength": 10**9, "maxItems": 10**400, "maxProperties": 5, "type": "string"})
    assert found["maxLength"] == found["maxItems"] == narrowing.LENGTH_MAX
    assert found["maxProperties"] == 5


def test_what_required_asks_for_already_is_not_asked_for_again():
    found = own({"type": "object", "required": ["a", "b"], "minProperties": 2})
    assert "minProperties" not in found
    assert own({"type": "object", "minProperties": 1})["minProperties"] == 1


def test_free_values_end_at_their_depth_and_their_names_are_not_taken():
    found = narrow({"$defs": {"free-0": NULL}, "$ref": "#/$defs/free-0"})
    assert found["$defs"]["free-0"] == NULL
    assert own({}) == FREE
    validator = jsonschema.Draft202012Validator(narrow({}))
    value = 1.5
    for _ in range(narrowing.FREE_DEPTH):
        value = {"a": [value]} if isinstance(value, float) else [value]
    assert not validator.is_valid([[[[[1]]]]])
    assert validator.is_valid([[[[1]]]])
    assert validator.is_valid({"a": [None, True, "x", {"b": 1.5}]})
    assert not validator.is_valid(10**16)


def test_true_is_a_free_value_and_false_stays():
    assert own({"required": ["a"], "properties": {"a": False}})["properties"] == {"a": False}
    found = own({"type": "array", "prefixItems": [True], "items": False})
    assert found == {"type": "array", "prefixItems": [FREE], "items": False}


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        r"^([0-9]{1,3}\.){3}[0-9]{1,3}$",
        r"^[\]{}()]{64}\{1000000\)$",
        r"^a{3,}{2}$",
        r")",
    ],
)
def test_usual_patterns_are_let_through(pattern):
    assert own({"type": "string", "pattern": pattern})["pattern"] == pattern


def test_each_string_with_a_pattern_is_found():
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "pattern": "^a$", "maxLength": 3},
            "b": {"anyOf": [{"pattern": "^b$"}, NULL]},
            "pattern": {"type": "null"},
        },
    }
    found = sorted(patterns(narrow(schema)), key=str)
    assert found == [
        {"type": "string", "pattern": "^a$", "maxLength": 3},
        {"type": "string", "pattern": "^b$"},
    ]
