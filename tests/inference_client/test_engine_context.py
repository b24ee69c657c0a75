"""The cache as the real library keeps it: copies, cuts and swaps change no answer, in either
layout, and a device samples as it is told."""

import pytest

from inference_client.engine.context import Context
from inference_client.engine.device_sampling import Chain
from inference_client.engine.llama import Model, devices
from inference_client.engine.planning.slots import Copy, Forget, Keep, SwapIn, SwapOut
from inference_client.engine.sampling import log_softmax
from ipc_protocol.inference import EngineStart, Sampling

pytestmark = pytest.mark.model

TEXT = "The disk of the build host is full again, and nobody has looked at the logs since Monday."


class Row:
    def __init__(self, slot, start, tokens):
        self.slot, self.start, self.tokens, self.outputs = slot, start, tokens, 1


@pytest.fixture(scope="module")
def model(model_path):
    loaded = Model(model_path)
    yield loaded
    loaded.close()


@pytest.fixture(params=["unified", "streams"])
def context(request, model):
    start = EngineStart(name="m", slots=3, context=768)
    context = Context(model, start, request.param, batch=256)
    yield context
    context.close()


def likeliest(context, slot, start, tokens):
    """The five likeliest tokens behind these, and their likelihoods to a hundredth."""
    (end,) = context.decode([Row(slot, start, tokens)])
    logprobs = log_softmax(context.logits(end))
    best = sorted(range(len(logprobs)), key=lambda token: -logprobs[token])[:5]
    return {token: pytest.approx(float(logprobs[token]), abs=0.05) for token in best}


def logprobs_of(context, slot, start, tokens, of):
    (end,) = context.decode([Row(slot, start, tokens)])
    logprobs = log_softmax(context.logits(end))
    return {token: float(logprobs[token]) for token in of}


def test_a_new_cache_is_empty_and_knows_what_it_can_do(context):
    assert context.partial_removal
    assert context.token_bytes > 1000
    assert context.apply(SwapOut(0, 1, 10**9)) < context.fixed_bytes + context.token_bytes
    assert context.cells >= 768


def test_a_copied_prefix_goes_on_as_the_original(context, model):
    tokens = model.tokenise(TEXT)
    alone = likeliest(context, 0, 0, tokens)
    context.apply(Copy(0, 1, len(tokens) - 3))
    assert logprobs_of(context, 1, len(tokens) - 3, tokens[-3:], alone) == alone
    assert context.apply(Keep(1, 2)) == 0


def test_a_copy_is_no_longer_touched_by_its_source(context, model):
    tokens = model.tokenise(TEXT)
    alone = likeliest(context, 0, 0, tokens)
    context.apply(Copy(0, 1, len(tokens) - 1))
    context.decode([Row(1, len(tokens) - 1, tokens[-1:])])
    context.apply(Keep(1, len(tokens) - 1))
    context.apply(Keep(0, 0))
    context.decode([Row(0, 0, model.tokenise("Something else altogether, in the same cells."))])
    assert logprobs_of(context, 1, len(tokens) - 1, tokens[-1:], alone) == alone


def test_what_is_swapped_out_and_in_again_goes_on_as_before(context, model):
    tokens = model.tokenise(TEXT)
    alone = likeliest(context, 0, 0, tokens)
    context.apply(Keep(0, len(tokens) - 1))
    size = context.apply(SwapOut(0, 7, 10**9))
    assert size <= context.fixed_bytes + len(tokens) * context.token_bytes
    context.apply(Keep(0, 0))
    context.decode([Row(0, 0, model.tokenise("Another agent has the slot meanwhile."))])
    assert context.apply(SwapIn(7, 2)) == size
    context.apply(Forget(7))
    assert logprobs_of(context, 2, len(tokens) - 1, tokens[-1:], alone) == alone


def test_what_does_not_fit_into_host_memory_is_not_kept(context, model):
    tokens = model.tokenise(TEXT)
    context.decode([Row(0, 0, tokens)])
    assert context.apply(SwapOut(0, 7, context.token_bytes)) == 0
    context.apply(Forget(7))


def test_what_does_not_fit_into_the_cache_leaves_an_empty_sequence(model):
    context = Context(model, EngineStart(name="m", slots=2, context=256), "unified", batch=256)
    tokens = (model.tokenise(TEXT) * 20)[:200]
    context.decode([Row(0, 0, tokens)])
    assert context.apply(SwapOut(0, 1, 10**9)) > 0
    assert context.apply(SwapIn(1, 1)) == 0
    assert context.decode([Row(1, 0, tokens[:20])]) is not None
    context.close()


def test_a_batch_without_room_is_no_error(model):
    context = Context(model, EngineStart(name="m", slots=2, context=256), "unified", batch=256)
    context.decode([Row(0, 0, [1] * 200)])
    assert context.decode([Row(1, 0, [1] * 100)]) is None
    assert context.decode([Row(1, 0, [1] * 20)]) is not None
    context.close()


def test_an_attached_chain_samples_on_the_device(context, model):
    tokens = model.tokenise(TEXT)
    (greedy, *_) = likeliest(context, 0, 0, tokens)
    context.apply(Keep(0, 0))
    chain = Chain(Sampling(), model.vocabulary)
    assert context.attach(0, chain)
    (end,) = context.decode([Row(0, 0, tokens)])
    assert context.sampled(end) == greedy
    chain.accept(greedy)
    context.attach(0, None)
    chain.close()
    (end,) = context.decode([Row(0, len(tokens), [greedy])])
    assert len(context.logits(end)) == model.vocabulary


@pytest.mark.parametrize("top_k", [0, 40, 10**6])
def test_a_chain_goes_with_its_request_to_another_slot(context, model, top_k):
    tokens = model.tokenise(TEXT)
    chain = Chain(Sampling(temperature=0.8, top_k=top_k, seed=3), model.vocabulary)
    for slot in (0, 1, 0):
        assert context.attach(slot, chain)
        (end,) = context.decode([Row(slot, 0, tokens)])
        sampled = context.sampled(end)
        assert 0 <= sampled < model.vocabulary
        chain.accept(sampled)
        assert context.attach(slot, None)
        context.apply(Keep(slot, 0))
    chain.close()


def test_whether_the_device_samples_is_tried(context):
    assert context.samples()
    assert context.apply(SwapOut(0, 1, 10**9)) <= context.fixed_bytes


def test_fewer_threads_give_the_same_answer(context, model):
    tokens = model.tokenise(TEXT)
    alone = likeliest(context, 0, 0, tokens)
    context.apply(Keep(0, 0))
    context.use_threads(2)
    assert logprobs_of(context, 0, 0, tokens, alone) == alone


def test_the_processor_is_a_device():
    assert "cpu" in {device.kind for device in devices()}
    assert all(device.memory_bytes >= device.memory_free_bytes for device in devices())
