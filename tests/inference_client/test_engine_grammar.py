"""An answer with a schema parses and validates, whatever the model prefers: with the vocabulary of
the real one, and a model that draws its tokens."""

import json
import random
import time
from typing import Literal

import jsonschema
import llama_cpp.llama_cpp as llama
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from agent_runtime.loop import decisions
from inference_client.engine import grammar as grammars
from inference_client.engine.grammar import Grammars, check
from inference_client.engine.llama import Model
from inference_client.engine.narrowing import serialised
from ipc_protocol.errors import Failure
from ipc_protocol.inference import schema_of
from ipc_protocol.work import ToolDescription

TOKENS_MAX = 3000
HURRY_TOKENS = 120
"""From here on a drawn answer ends as soon as it may."""

CLOSERS = ('"', '"}', '"]', "}", "]", "}}", "]}", "}]", "]]", '"}}')


class Vocabulary:
    """The real model's tokens, without its weights."""

    def __init__(self, path):
        params = llama.llama_model_default_params()
        params.vocab_only = True
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        self.pointer = llama.llama_model_get_vocab(self.model)
        self.size = llama.llama_vocab_n_tokens(self.pointer)
        self.vocab = self.pointer
        self.ends = [t for t in range(self.size) if llama.llama_vocab_is_eog(self.pointer, t)]
        self.grammars = Grammars(self.pointer, self.size, self.ends)
        self.pieces = [self._piece(token) for token in range(self.size)]
        closers = {text.encode() for text in CLOSERS}
        self.closes = np.array([piece in closers for piece in self.pieces])
        self.goes_on = np.ones(self.size, bool)
        self.goes_on[self.ends] = False

    def _piece(self, token):
        return Model.piece(self, token)

    _pieces: dict[int, bytes] = {}

    def compile(self, schema):
        return self.grammars.compile(serialised(schema))

    def tokens(self, text):
        return Model.tokenise(self, text)

    def text(self, tokens):
        return b"".join(self.pieces[token] for token in tokens).decode()


@pytest.fixture(scope="session")
def vocabulary(model_path):
    vocabulary = Vocabulary(model_path)
    yield vocabulary
    llama.llama_model_free(vocabulary.model)


def drawn(vocabulary, grammar, rng, *, forcing):
    """The tokens of one answer, and how many of them were forced."""
    matcher = grammar.start()
    tokens, forced = [], 0
    while not matcher.complete:
        assert len(tokens) < TOKENS_MAX, "the answer does not end"
        if forcing and (run := matcher.forced()):
            for token in run:
                assert matcher.allows(token)
                matcher.accept([token])
            tokens += run
            forced += len(run)
            continue
        hurried = len(tokens) > HURRY_TOKENS
        if matcher.may_end and (hurried or rng.random() < 0.5):
            break
        allowed = matcher.allowed()
        allowed = allowed[vocabulary.goes_on[allowed]]
        closers = allowed[vocabulary.closes[allowed]]
        likely = len(closers) > 0 and (hurried or rng.random() < 0.4)
        token = int(rng.choice(closers if likely else allowed))
        assert matcher.allows(token)
        matcher.accept([token])
        tokens.append(token)
    assert matcher.may_end
    return tokens, forced


def assert_kept(vocabulary, schema, seed):
    grammar = vocabulary.compile(schema)
    for forcing in (True, False):
        tokens, _ = drawn(vocabulary, grammar, random.Random(seed), forcing=forcing)
        text = vocabulary.text(tokens)
        check(text)
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        replayed = grammar.start()
        replayed.accept(vocabulary.tokens(text))
        assert replayed.may_end, f"seed {seed}: {text!r} as the model would write it"


# ---- Whatever is allowed validates ---------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "name", "ab", 'quote"d', "naïve", "with space", "a/b~c"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.sampled_from([1.5, -0.25, 1e-7, 123456.789, 1e5]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8),
    st.sampled_from(["a\nb", "tab\t", '"', "\\"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2)
)


@st.composite
def ordered(draw, low, high, values):
    """Up to two keywords, the first of which is not above the second."""
    one, other = sorted((draw(values), draw(values)))
    kept = {low: one, high: other}
    return {key: kept[key] for key in draw(st.sets(st.sampled_from([low, high])))}


def merged(kind, *parts):
    return st.tuples(*parts).map(
        lambda found: {"type": kind} | {k: v for p in found for k, v in p.items()}
    )


BOUNDS = ordered("minimum", "maximum", st.integers(-10_000, 10_000))
FLOATS = ordered("minimum", "maximum", st.sampled_from([-1e6, -12.5, -0.1, 0, 0.25, 1, 3.75, 1e9]))
LENGTHS = ordered("minLength", "maxLength", st.integers(0, 12))
FORMATS = ["date", "time", "date-time", "duration", "uuid", "ipv4", "hostname"]
PATTERNS = [
    "^[a-z]+$",
    "^a{2,5}$",
    "^[0-9]{3}$",
    "^(red|green)$",
    "^\\w{1,5}@\\w+$",
    '^[^"]{1,4}$',
    "^x?y{1,3}$",
]
LEAVES = st.one_of(
    merged("integer", BOUNDS),
    merged("number", FLOATS),
    merged("string", LENGTHS),
    st.builds(lambda n: {"type": "integer", "multipleOf": n}, st.integers(1, 50)),
    st.builds(lambda one: {"type": "string", "format": one}, st.sampled_from(FORMATS)),
    st.builds(lambda one: {"type": "string", "pattern": one}, st.sampled_from(PATTERNS)),
    st.builds(lambda value: {"const": value}, VALUES),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=4)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {}, True, {"type": "object"}]),
    st.sampled_from(
        [{"type": ["integer", "null"]}, {"type": ["string", "number"], "maxLength": 3}]
    ),
    st.just({"$ref": "#/$defs/node"}),
)


@st.composite
def objects(draw, inner):
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    names = [*properties, "more"]
    schema = {"type": "object", "properties": properties}
    schema["required"] = draw(st.lists(st.sampled_from(names), unique=True, max_size=4))
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(inner | st.just(False))
        if schema["additionalProperties"] is False:
            schema["required"] = [name for name in schema["required"] if name != "more"]
    return schema


@st.composite
def arrays(draw, inner):
    schema = {"type": "array"} | draw(ordered("minItems", "maxItems", st.integers(0, 3)))
    if draw(st.booleans()):
        schema["items"] = draw(inner)
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    return schema


def maps(inner):
    """Objects with names of their own."""
    by_pattern = st.builds(lambda one: {"patternProperties": {"^x[a-z]{1,3}$": one}}, inner)
    counts = st.sampled_from([{}, {"minProperties": 1}, {"maxProperties": 2}])
    rest = st.builds(lambda one: {"additionalProperties": one}, inner | st.just(False))
    return merged("object", by_pattern | st.just({}), rest, counts).filter(
        lambda one: one["additionalProperties"] is not False or "patternProperties" in one
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        maps(inner),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda options: {"oneOf": options}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda parts: {"allOf": parts}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=8,
)
NODE = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
    "required": ["next"],
}


@settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_whatever_is_allowed_parses_and_validates(vocabulary, schema, seed):
    document = {"$defs": {"node": NODE}, "allOf": [schema]} if schema is True else dict(schema)
    document["$defs"] = {"node": NODE}
    try:
        vocabulary.compile(document)
    except Failure as failure:
        assert failure.code == "inference.schema"
        event("refused")
        return
    assert_kept(vocabulary, document, seed)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name"],
}
COMPOSED = {
    "an intersection": {
        "allOf": [PERSON, {"type": "object", "properties": {"b": {"type": "null"}}}]
    },
    "a base and more": {
        "$defs": {"base": PERSON},
        "$ref": "#/$defs/base",
        "properties": {"b": {"type": "boolean"}},
        "required": ["b"],
    },
    "one or the other": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "exactly one": {"oneOf": [{"type": "integer"}, {"type": "boolean"}, {"type": "array"}]},
    "exactly one by its tag": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": tag}}, "required": ["k"]}
            for tag in ("a", "b")
        ]
    },
    "bounds of two": {"allOf": [{"type": "number", "minimum": 1}, {"maximum": 2}]},
    "two maps": {
        "allOf": [
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"type": "object", "additionalProperties": {"minimum": 3}},
        ]
    },
    "two open objects": {"allOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]},
}


@pytest.mark.parametrize("schema", COMPOSED.values(), ids=COMPOSED)
def test_schemas_of_several_parts_are_kept(vocabulary, schema):
    for seed in range(6):
        assert_kept(vocabulary, schema, seed)


TOOLS = [
    ToolDescription(
        name="send",
        purpose="",
        parameters={
            "type": "object",
            "properties": {
                "to": {"type": "string"},
                "body": {"type": "string", "contentMediaType": "text/plain"},
                "copies": {"type": "integer", "minimum": 1},
            },
            "required": ["to", "body"],
        },
    ),
    ToolDescription(name="clock", purpose="", parameters={"type": "object", "properties": {}}),
]
DECISIONS = {
    "triage": decisions.triage_schema(
        "delegate", "reviewer", priorities=["urgent", "normal"], may_defer=True
    ),
    "triage without a choice": decisions.triage_schema(
        "act", None, priorities=["normal"], may_defer=False
    ),
    "a call": decisions.call_schema(TOOLS, may_finish=True, argument_chars_max=40),
    "a quote": decisions.quote_schema(["The first one.", "The first two.", 'He said "no".']),
    "a reflection": decisions.reflection_schema(["success", "partial"]),
    "a choice of lessons": decisions.reflection_schema(["success"], ["Ask first.", "Ask later."]),
    "the struct of triage": schema_of(decisions.TriageDecision),
    "the struct of a call": schema_of(decisions.ToolCall),
    "the struct of a reflection": schema_of(decisions.Reflection),
}


@pytest.mark.parametrize("schema", DECISIONS.values(), ids=DECISIONS)
def test_the_decisions_of_agents_are_kept(vocabulary, schema):
    for seed in range(4):
        assert_kept(vocabulary, schema, seed)


def test_an_answer_fits_the_struct_that_its_schema_is_of(vocabulary):
    class Sample(msgspec.Struct, frozen=True):
        pair: tuple[int, bool]
        rate: float
        tags: list[Literal[1, 2]]
        note: str | None = None

    schema = schema_of(Sample)
    grammar = vocabulary.compile(schema)
    for seed in range(5):
        tokens, _ = drawn(vocabulary, grammar, random.Random(seed), forcing=True)
        msgspec.json.decode(vocabulary.text(tokens), type=Sample)


# ---- Forced tokens -------------------------------------------------------------------------------


def test_braces_and_names_of_required_properties_are_forced(vocabulary):
    schema = {
        "type": "object",
        "properties": {"reason": {"type": "string"}, "kind": {"const": "act"}},
        "required": ["reason", "kind"],
    }
    matcher = vocabulary.compile(schema).start()
    assert vocabulary.text(matcher.forced()) == '{"reason":'
    matcher.accept(vocabulary.tokens('{"reason": "x"'))
    run = matcher.forced()
    assert vocabulary.text(run) == ', "kind": "act"}'
    matcher.accept(run)
    assert matcher.complete


def test_a_fixed_answer_is_forced_as_the_model_would_write_it(vocabulary):
    schema = {"const": {"answer": "Nothing to do, at all.", "n": [1, 2]}}
    matcher = vocabulary.compile(schema).start()
    text = '{"answer": "Nothing to do, at all.", "n": [1, 2]}'
    assert matcher.forced() == vocabulary.tokens(text)
    assert matcher.forced() == vocabulary.tokens(text), "they are not consumed"


def test_a_forced_text_ends_before_what_the_vocabulary_cannot_write(vocabulary):
    schema = {"type": "string", "pattern": "^(fixed: \\x{bc43d}x|other)$"}
    matcher = vocabulary.compile(schema).start()
    matcher.accept(vocabulary.tokens('"fix'))
    run = matcher.forced()
    assert vocabulary.text(run).startswith("ed:")
    matcher.accept(run)
    with pytest.raises(Failure, match="cannot be kept"):
        while not matcher.may_end:
            matcher.accept([int(matcher.allowed()[0])])


def test_part_of_a_decision_is_forced(vocabulary):
    for name, schema in DECISIONS.items():
        grammar = vocabulary.compile(schema)
        counts = [
            (len(tokens), forced)
            for tokens, forced in (
                drawn(vocabulary, grammar, random.Random(seed), forcing=True) for seed in range(4)
            )
        ]
        total, forced = (sum(column) for column in zip(*counts, strict=True))
        print(f"{name}: {forced} of {total} tokens forced")
        assert forced > 0


# ---- The end -------------------------------------------------------------------------------------


def test_no_end_before_the_answer_is_whole(vocabulary):
    matcher = vocabulary.compile({"type": "integer", "minimum": 10, "maximum": 99}).start()
    matcher.accept(vocabulary.tokens("4"))
    assert not matcher.may_end
    assert not any(matcher.allows(end) for end in vocabulary.ends)
    assert not set(vocabulary.ends) & set(matcher.allowed().tolist())
    matcher.accept(vocabulary.tokens("2"))
    assert matcher.complete
    assert all(matcher.allows(end) for end in vocabulary.ends)
    assert set(matcher.allowed().tolist()) == set(vocabulary.ends)
    assert matcher.forced() == []


def test_an_answer_that_may_go_on_may_end(vocabulary):
    matcher = vocabulary.compile({"type": "integer"}).start()
    matcher.accept(vocabulary.tokens("4"))
    assert matcher.may_end
    assert not matcher.complete
    assert set(vocabulary.ends) < set(matcher.allowed().tolist())


def test_every_answer_of_a_grammar_is_its_own(vocabulary):
    grammar = vocabulary.compile({"enum": ["ab", "cd"]})
    one, other = grammar.start(), grammar.start()
    one.accept(vocabulary.tokens('"ab"'))
    assert one.complete
    assert not other.may_end


# ---- What is refused, and bounded ----------------------------------------------------------------

UNUSABLE = {
    "no value": {"type": "string", "enum": [1]},
    "crossed lengths": {"type": "string", "minLength": 4, "maxLength": 3},
    "crossed counts": {"type": "array", "minItems": 3, "maxItems": 2},
    "crossed bounds": {"type": "integer", "minimum": 4, "maximum": 3},
    "no integer between": {"type": "integer", "minimum": 0.2, "maximum": 0.8},
    "no multiple between": {"type": "integer", "minimum": 1, "maximum": 4, "multipleOf": 5},
    "bounds beyond all digits": {"type": "integer", "minimum": 10**16},
    "a pattern of another length": {"type": "string", "pattern": "^abc$", "minLength": 5},
    "a pattern that cannot be written": {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^\\x01$"}},
        "required": ["a"],
    },
    "a pattern that looks around": {"type": "string", "pattern": "^(?=a)b$"},
    "a pattern that is none": {"type": "string", "pattern": "("},
    "two types at once": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "a required property that is forbidden": {
        "type": "object",
        "required": ["a"],
        "additionalProperties": False,
    },
    "options that overlap": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "half a character": {"const": "\ud800"},
    "a character without tokens": {"const": "\U000bc43d"},
    "false": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "patterns that overlap": {
        "type": "object",
        "patternProperties": {"^a": {"type": "null"}, "b$": {"type": "boolean"}},
    },
}


@pytest.mark.parametrize("schema", UNUSABLE.values(), ids=UNUSABLE)
def test_a_schema_that_no_answer_can_keep_is_refused(vocabulary, schema):
    with pytest.raises(Failure) as failure:
        vocabulary.compile(schema)
    assert failure.value.code == "inference.schema"
    assert failure.value.problem.cure


def test_options_that_may_overlap_are_refused_with_a_cure_that_works(vocabulary):
    with pytest.raises(Failure, match="`anyOf` would do"):
        vocabulary.compile(UNUSABLE["options that overlap"])


def nested(count, levels):
    schema = {"type": "integer", "minimum": 0, "maximum": 9}
    for _ in range(levels):
        schema = {"type": "array", "minItems": count, "maxItems": count, "items": schema}
    return schema


HOSTILE = {
    "items of items": nested(20, 3),
    "a long constant": {"type": "array", "minItems": 16, "items": {"const": "a" * 999}},
    "many constants": {"type": "array", "minItems": 2000, "items": {"const": "a"}},
    "many values": {"enum": [f"{n} of many" for n in range(3500)]},
    "many properties": {
        "type": "object",
        "properties": {f"p{n}": {"type": "integer"} for n in range(256)},
    },
    "objects of properties": {
        "type": "object",
        "properties": {
            f"p{n}": {"type": "object", "properties": {f"q{m}": {} for m in range(40)}}
            for n in range(40)
        },
    },
    "a long repetition": {"type": "string", "pattern": "^a{4000}$"},
    "exponentially many states": {"type": "string", "pattern": "^.*a.{200}$"},
    "states that multiply": {"type": "string", "pattern": "^([ab]*a[ab]{12}c)+$"},
    "nested repetitions": {"type": "string", "pattern": "^((a*)*)*b$"},
    "large multiples": {"type": "array", "items": {"type": "number", "multipleOf": 997}},
    "products of options": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"{n}{m}": {}}} for m in range(9)]}
            for n in range(6)
        ]
    },
    "a long string": {"type": "string", "minLength": 16_000, "maxLength": 16_384},
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_no_schema_takes_long_to_compile_or_to_follow(vocabulary, schema):
    """It is refused, ends in a typed error, or goes on: there is nothing to wait for."""
    began = time.monotonic()
    longest = 0.0
    try:
        matcher = vocabulary.compile(schema).start()
        compiled = time.monotonic() - began
        print(f"compiled in {compiled * 1e3:.1f} ms")
        rng = random.Random(1)
        for _ in range(200):
            step = time.monotonic()
            if matcher.complete:
                break
            matcher.accept(matcher.forced() or [rng.choice(matcher.allowed().tolist())])
            if matcher.may_end:
                break
            longest = max(longest, time.monotonic() - step)
    except Failure as failure:
        assert failure.code == "inference.schema"
        print(failure)
    print(f"longest step {longest * 1e3:.1f} ms")


# ---- What a grammar keeps ------------------------------------------------------------------------


def test_a_grammar_is_worn_by_its_answers_until_it_is_renewed(vocabulary, monkeypatch):
    grammar = vocabulary.compile({"type": "string", "maxLength": 77})
    monkeypatch.setattr(grammars, "GRAMMAR_TOKENS", grammar._tokens + 4)
    begun = grammar.start()
    assert not grammar.worn
    begun.accept(vocabulary.tokens('"a b c'))
    assert grammar.worn
    vocabulary.grammars.renew(grammar)
    assert not grammar.worn
    for matcher in (begun, grammar.start()):
        matcher.accept(matcher.forced() or vocabulary.tokens('"'))


def test_what_every_answer_begins_with_is_known_without_a_matcher(vocabulary):
    for schema in (*DECISIONS.values(), {"const": {"ok": True}}, {"type": "integer"}):
        grammar = vocabulary.compile(schema)
        matcher = grammar.start()
        assert list(grammar.opening) == matcher.forced()
        matcher.accept(grammar.opening)
        assert grammar.fixed == matcher.complete
    assert vocabulary.compile({"const": {"ok": True}}).fixed


# ---- Failures in the middle, and the last check --------------------------------------------------


def test_a_token_that_is_not_allowed_fails_the_answer_with_a_type(vocabulary):
    grammar = vocabulary.compile({"type": "boolean"})
    matcher = grammar.start()
    assert not matcher.allows(vocabulary.tokens("x")[0])
    with pytest.raises(Failure) as failure:
        matcher.accept(vocabulary.tokens("x"))
    assert failure.value.code == "inference.schema"
    assert not matcher.may_end
    for ask in (matcher.forced, matcher.allowed):
        with pytest.raises(Failure):
            ask()
    assert grammar.worn, "whatever broke it is not met again"


def test_a_lexer_that_has_no_room_left_fails_the_answer_and_is_worn(vocabulary):
    schema = {"type": "string", "pattern": "^.*a.{200}$"}
    grammar = vocabulary.compile(schema)
    matcher = grammar.start()
    rng = random.Random(1)
    with pytest.raises(Failure, match="too"):
        for _ in range(2000):
            matcher.accept([rng.choice([t for t in matcher.allowed() if not matcher.may_end])])
    assert grammar.worn


@pytest.mark.parametrize("text", ["1e999", "NaN", "[1,]", '{"a": 1', "", "[" * 100_000, '"\ud800"'])
def test_a_finished_answer_that_no_strict_parser_takes_is_a_typed_failure(text):
    with pytest.raises(Failure) as failure:
        check(text)
    assert failure.value.code == "inference.schema"


def test_a_finished_answer_that_parses_passes():
    check('{"a": [1.5, "x", null]}')
