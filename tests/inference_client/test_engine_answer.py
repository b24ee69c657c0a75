"""One answer in the making: the vocabulary of the real model, and logits that say what to pick."""

import json

import numpy as np
import pytest

from inference_client.engine.answer import Answer
from inference_client.engine.grammar import Grammars
from inference_client.engine.llama import Model
from inference_client.engine.narrowing import serialised
from ipc_protocol.inference import Generate, Sampling

pytestmark = pytest.mark.model

DECISION = {
    "type": "object",
    "properties": {
        "action": {"enum": ["act", "delegate", "ignore"]},
        "reason": {"type": "string", "maxLength": 40},
    },
    "required": ["action", "reason"],
}


@pytest.fixture(scope="module")
def model(model_path):
    loaded = Model(model_path)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def grammars(model):
    return Grammars(model.vocab, model.vocabulary, model.end_tokens)


class Telling:
    """Makes answers, and logits that prefer what they are to say."""

    def __init__(self, model, grammars):
        self.model = model
        self.grammars = grammars

    def answer(self, schema=None, prompt=(), **params):
        grammar = None if schema is None else self.grammars.compile(serialised(schema))
        asked = Generate(agent="a", priority="normal", prompt="x", tokens_max=64, **params)
        return Answer(self.model, asked, grammar, list(prompt))

    def logits(self, *tokens):
        found = np.zeros(self.model.vocabulary, np.float32)
        for place, token in enumerate(tokens):
            found[token] = 10.0 - place
        return found

    def tokens(self, text):
        return self.model.tokenise(text)

    def run(self, answer, text):
        """Let the model prefer the tokens of `text`, and have what is forced appended."""
        decoded = 0
        answer.force(64)
        while not answer.ended:
            rest = text[len(answer.text) :]
            wanted = self.tokens(rest)[:1] or self.model.end_tokens[:1]
            answer.choose(self.logits(*wanted))
            decoded += 1
            answer.force(64)
            assert decoded < 100, "it never ends"
        answer.finish()
        return decoded


@pytest.fixture
def telling(model, grammars):
    return Telling(model, grammars)


def test_an_answer_is_the_text_of_its_tokens(telling):
    answer = telling.answer()
    telling.run(answer, "The disk is full.")
    assert answer.text == "The disk is full."
    assert answer.tokens == telling.tokens("The disk is full.")
    assert answer.generated == len(answer.tokens) + 1, "the token that ends it was generated too"


def test_a_stop_string_ends_it_and_is_no_part_of_it(telling):
    answer = telling.answer(sampling=Sampling(stop=[" is"]))
    telling.run(answer, "The disk is full.")
    assert answer.text == "The disk"
    assert answer.ended


def test_a_typed_answer_keeps_to_its_schema_whatever_the_model_wants(telling):
    answer = telling.answer(DECISION)
    telling.run(answer, "I would rather write a poem.")
    found = json.loads(answer.text)
    assert found["action"] in DECISION["properties"]["action"]["enum"]
    assert set(found) == {"action", "reason"}


def test_what_the_schema_leaves_no_choice_about_is_not_decoded(telling):
    text = '{"action": "ignore", "reason": "none"}'
    answer = telling.answer(DECISION)
    decoded = telling.run(answer, text)
    assert answer.text == text
    assert answer.forced > 0
    assert decoded + answer.forced == len(answer.tokens)


def test_an_answer_that_nothing_is_open_in_needs_no_model(telling):
    answer = telling.answer({"const": {"ok": True}})
    answer.force(64)
    if not answer.ended:
        telling.run(answer, '{"ok": true}')
    assert json.loads(answer.text) == {"ok": True}


def test_an_answer_that_was_begun_before_goes_on_behind_it(telling):
    text = '{"action": "ignore", "reason": "none"}'
    whole = telling.answer(DECISION)
    telling.run(whole, text)
    for begun in range(len(whole.tokens)):
        answer = telling.answer(DECISION, produced=whole.tokens[:begun])
        answer.replay()
        assert text.startswith(answer.text)
        telling.run(answer, text)
        assert answer.text == text


def test_a_begun_answer_may_be_whole_already(telling):
    answer = telling.answer(sampling=Sampling(stop=["disk"]), produced=telling.tokens("The disk"))
    assert not answer.tokens, "the event loop leaves it to the decode thread"
    answer.replay()
    assert answer.ended


def test_the_likelihood_of_each_token_comes_with_it(telling):
    first, second = telling.tokens("disk")[0], telling.tokens("host")[0]
    answer = telling.answer(logprobs=2)
    answer.choose(telling.logits(first, second))
    (found,) = answer.logprobs
    assert found.piece == telling.model.piece(first)
    assert [piece for piece, _ in found.others] == [
        telling.model.piece(first),
        telling.model.piece(second),
    ]
    assert 0 > found.logprob > found.others[1][1]
    assert answer.logprobs_from(0) == [found]
    assert answer.logprobs_from(1) == []


def test_what_is_forced_is_certain(telling):
    answer = telling.answer(DECISION, logprobs=0)
    forced = answer.force(64)
    assert forced
    assert [one.logprob for one in answer.logprobs] == [0.0] * len(forced)


def test_likelihoods_of_what_was_produced_before_are_not_known(telling):
    begun = telling.tokens("The disk is")
    answer = telling.answer(logprobs=0, produced=begun)
    answer.replay()
    answer.choose(telling.logits(telling.tokens(" full")[0]))
    assert len(answer.logprobs) == 1
    assert answer.logprobs_from(0) == answer.logprobs
    assert answer.logprobs_from(len(begun)) == answer.logprobs


def test_what_the_prompt_said_counts_as_said(telling):
    first, second = telling.tokens("disk")[0], telling.tokens("host")[0]
    sampling = Sampling(presence_penalty=2.0)
    answer = telling.answer(prompt=[first], sampling=sampling)
    assert answer.choose(telling.logits(first, second)) == second
    assert answer.choose(telling.logits(second, first)) not in (first,)


def test_what_was_produced_takes_of_the_room_whoever_replays_it(telling):
    text = '{"action": "ignore", "reason": "none"}'
    whole = telling.answer(DECISION)
    telling.run(whole, text)
    for begun in range(1, len(whole.tokens)):
        for room in range(begun, begun + 8):
            answer = telling.answer(DECISION, produced=whole.tokens[:begun])
            answer.force(room)
            assert answer.tokens == whole.tokens[: len(answer.tokens)]
            assert begun <= len(answer.tokens) <= room
            assert answer.replayed_tokens == begun
    answer = telling.answer(DECISION, produced=whole.tokens[:5])
    assert answer.force(2) == [], "more than there is room for was produced"


def test_a_waiting_answer_has_no_matcher(telling):
    answer = telling.answer(DECISION)
    forced = answer.force(64)
    assert forced and answer._matcher is None
    answer.choose(telling.logits(*telling.tokens("act")))
    assert answer._matcher is not None
    fixed = telling.answer({"const": {"ok": True}})
    fixed.force(64)
    assert fixed.ended and fixed._matcher is None
    short = telling.answer({"const": {"ok": True}})
    assert len(short.force(2)) == 2
    assert not short.ended


def test_the_token_that_ends_an_answer_has_no_likelihood_in_it(telling):
    answer = telling.answer(logprobs=0)
    telling.run(answer, "The disk")
    assert len(answer.logprobs) == len(answer.tokens)
