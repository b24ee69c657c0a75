"""Models that cannot lose the end of a sequence: recurrent ones, and those with a sliding window.

First the cache alone, as the library keeps it for them; then whole engines, in which requests share
slots, make way and come back. Nothing of that changes an answer.
"""

import asyncio
import contextlib
import random

import numpy as np
import pytest
import random_models
from engines import running_engine

from inference_client.engine.context import Context
from inference_client.engine.llama import Model
from inference_client.engine.planning.slots import Copy, Forget, Keep, SwapIn, SwapOut
from inference_client.engine.sampling import log_softmax
from ipc_protocol.inference import EngineStart, Generate

pytestmark = pytest.mark.model

EXACT = {"kv_type": "f32", "flash_attention": "off"}
USUAL = {"kv_type": "f16", "flash_attention": "auto"}
SAME = {"f32": 1e-3, "f16": 0.1}
"""By how much logarithms of likelihoods may differ that rounding alone tells apart."""

TEXT = "The disk of the build host is full again, and nobody has looked at the logs since Monday."
OTHER = "Something else altogether, which another agent says in the meantime, and at some length."


class Row:
    def __init__(self, slot, start, tokens):
        self.slot, self.start, self.tokens, self.outputs = slot, start, tokens, 1


@pytest.fixture(scope="module", params=random_models.ARCHITECTURES)
def random_path(request, model_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    random_models.ARCHITECTURES[request.param](path, model_path)
    return path


@pytest.fixture(scope="module")
def model(random_path):
    loaded = Model(random_path)
    yield loaded
    loaded.close()


@pytest.fixture(params=["unified", "streams"])
def layout(request):
    return request.param


@pytest.fixture(params=[EXACT, USUAL], ids=["exact", "usual"])
def start(request):
    return EngineStart(name="m", slots=4, context=2048, **request.param)


@pytest.fixture
def context(model, start, layout):
    context = Context(model, start, layout, batch=256)
    yield context
    context.close()


def decode(context, *rows):
    """The log-likelihoods behind each row."""
    return [log_softmax(context.logits(end)) for end in context.decode([Row(*row) for row in rows])]


@pytest.fixture
def alone(context):
    """What comes behind some tokens where there was nothing else."""

    def compute(tokens):
        (expected,) = decode(context, (0, 0, tokens))
        context.apply(Keep(0, 0))
        return expected

    return compute


@pytest.fixture
def same(start):
    """Whether two lists of likelihoods agree."""

    def compare(found, expected):
        pairs = zip(found, expected, strict=True)
        return max(np.abs(one - other).max() for one, other in pairs) < SAME[start.kv_type]

    return compare


def test_the_loader_finds_that_no_sequence_can_lose_its_end(context, model):
    assert not model.keeps_all
    assert not context.partial_removal
    assert context.fixed_bytes > 0


def test_what_was_said_first_still_matters_at_the_end(context, model):
    tokens = model.tokenise(TEXT)
    (one,) = decode(context, (0, 0, tokens))
    (two,) = decode(context, (1, 0, [tokens[1], *tokens[1:]]))
    assert np.abs(one - two).max() > 10 * SAME["f16"], "or the other tests would prove nothing"


def test_a_text_in_parts_goes_on_as_in_one(context, model, alone, same):
    tokens = model.tokenise(TEXT * 3)
    expected = alone(tokens)
    for start in range(0, len(tokens), 11):
        found = decode(context, (0, start, tokens[start : start + 11]))
    assert same(found, [expected])


def test_sequences_in_one_batch_do_not_touch_each_other(context, model, alone, same):
    texts = [model.tokenise(text) for text in (TEXT, OTHER, TEXT[:30], OTHER * 2)]
    expected = [alone(tokens) for tokens in texts]
    decode(context, *((slot, 0, tokens[: -slot - 1]) for slot, tokens in enumerate(texts)))
    found = decode(
        context,
        *((slot, len(tokens) - slot - 1, tokens[-slot - 1 :]) for slot, tokens in enumerate(texts)),
    )
    assert same(found, expected)


def test_a_whole_copy_and_its_source_go_on_apart(context, model, alone, same):
    begun, one, two = (model.tokenise(text) for text in (TEXT, OTHER, TEXT))
    expected = [alone(begun + one), alone(begun + two)]
    decode(context, (0, 0, begun))
    context.apply(Copy(0, 1, len(begun)))
    assert same(decode(context, (0, len(begun), one), (1, len(begun), two)), expected)


def test_a_copy_outlives_its_source(context, model, alone, same):
    begun, end = model.tokenise(TEXT), model.tokenise(OTHER)
    expected = alone(begun + end)
    decode(context, (0, 0, begun))
    context.apply(Copy(0, 2, len(begun)))
    decode(context, (0, len(begun), end[:3]))
    context.apply(Keep(0, 0))
    decode(context, (0, 0, model.tokenise(OTHER * 4)))
    assert same(decode(context, (2, len(begun), end)), [expected])


def test_what_is_swapped_out_and_in_again_goes_on_as_before(context, model, alone, same):
    begun, end = model.tokenise(TEXT), model.tokenise(OTHER)
    expected = alone(begun + end)
    decode(context, (0, 0, begun))
    size = context.apply(SwapOut(0, 7, 10**9))
    assert 0 < size <= context.fixed_bytes + len(begun) * context.token_bytes
    context.apply(Keep(0, 0))
    decode(context, (0, 0, model.tokenise(OTHER * 4)), (1, 0, model.tokenise(TEXT)))
    assert context.apply(SwapIn(7, 3)) == size
    context.apply(Forget(7))
    assert same(decode(context, (3, len(begun), end)), [expected])


def test_a_copy_of_a_copy_can_be_swapped(context, model, alone, same):
    begun, end = model.tokenise(TEXT), model.tokenise(OTHER)
    expected = alone(begun + end)
    decode(context, (0, 0, begun[:-4]))
    context.apply(Copy(0, 1, len(begun) - 4))
    decode(context, (1, len(begun) - 4, begun[-4:]))
    assert context.apply(SwapOut(1, 1, 10**9))
    context.apply(Keep(1, 0))
    context.apply(Keep(0, 0))
    decode(context, (0, 0, model.tokenise(OTHER)))
    assert context.apply(SwapIn(1, 2))
    assert same(decode(context, (2, len(begun), end)), [expected])


def test_an_emptied_slot_remembers_nothing(context, model, alone, same):
    tokens = model.tokenise(TEXT)
    expected = alone(tokens)
    decode(context, *((slot, 0, model.tokenise(OTHER * 3)) for slot in range(3)))
    for slot in range(3):
        context.apply(Keep(slot, 0))
    assert same(decode(context, (1, 0, tokens)), [expected])


# ---- Whole engines -------------------------------------------------------------------------------

CLASSES = ("background", "low", "background", "normal", "high", "low", "urgent")
"""Of the agents: there are more of them than slots, and most have to make way for somebody."""

PARTS = 3
PART_TOKENS = 24
SWAP_BYTES = 64 * 1024 * 1024


def prompt_of(agent):
    """As long as that of the others, and like no other."""
    words = random.Random(agent).choices((TEXT + OTHER).split(), k=120)
    return f"I am agent {agent}. {' '.join(words)}"


async def generated(client, agent, prompt, priority, tokens_max, produced=()):
    """The tokens that come behind those that were produced."""
    tokens = []

    async def take(item):
        tokens.extend(item.tokens)

    asked = Generate(
        agent=agent,
        priority=priority,
        prompt=prompt,
        tokens_max=tokens_max,
        produced=list(produced),
        stream=True,
    )
    await client.generate(asked, take)
    return tokens


async def answered(client, agent, parts):
    """The tokens of an answer that is asked for in so many parts, each behind those before it."""
    tokens, prompt, priority = [], prompt_of(agent), CLASSES[agent]
    for part in range(1, parts + 1):
        end = part * PARTS * PART_TOKENS // parts
        tokens += await generated(client, str(agent), prompt, priority, end, tokens)
    return tokens


@contextlib.asynccontextmanager
async def engine_of(path, slots, layout):
    async with running_engine() as engine:
        start = EngineStart(
            name="random",
            path=str(path),
            slots=slots,
            context=8192,
            kv_layout=layout,
            swap_bytes=SWAP_BYTES,
            **EXACT,
        )
        info = await engine.client.start(start)
        assert (info.partial_removal, info.kv_layout) == (False, layout)
        yield engine.client


@pytest.fixture
async def alone_in_engine(random_path):
    """What each agent is answered in one part, by an engine that has one slot."""
    async with engine_of(random_path, 1, "unified") as client:
        return [await answered(client, agent, 1) for agent in range(len(CLASSES))]


@pytest.mark.parametrize("slots", [2, 4])
async def test_whoever_makes_way_and_comes_back_is_answered_as_if_alone(
    random_path, layout, slots, alone_in_engine
):
    async with engine_of(random_path, slots, layout) as client:
        async with asyncio.TaskGroup() as tasks:
            conversations = [
                tasks.create_task(answered(client, agent, PARTS)) for agent in range(len(CLASSES))
            ]
        counters = (await client.status()).counters
    assert [one.result() for one in conversations] == alone_in_engine
    assert counters.prefix_hits > 0
    assert sum(counters.preemptions.values()) > 0


async def test_a_preamble_in_common_is_computed_once(random_path, layout):
    """Also where only whole sequences can be copied: the first to read it pauses at its end."""
    preamble = " ".join(prompt_of(agent) for agent in range(10))
    prompts = [f"{preamble} And this is for {number} alone." for number in range(4)]
    async with engine_of(random_path, 1, layout) as client:
        alone = [await generated(client, prompt, prompt, "normal", 16) for prompt in prompts]
    async with engine_of(random_path, 4, layout) as client:
        found = await asyncio.gather(
            *(generated(client, prompt, prompt, "normal", 16) for prompt in prompts)
        )
        counters = (await client.status()).counters
    assert found == alone
    # In a window cache, cells that are shared are not used again, so some may have to make way.
    computed = counters.prefill_tokens - counters.recomputed_tokens
    assert computed < 2 * counters.prefix_queries / len(prompts)


async def test_a_window_that_is_full_of_shared_tokens_holds_nobody_up(random_path, layout):
    """Cells of a sliding window that two sequences share are not used again by either."""
    preamble = " ".join(prompt_of(agent) for agent in range(5))
    prompts = [preamble + " One.", preamble + " Two.", " ".join(map(str, range(150)))]
    async with engine_of(random_path, 1, layout) as client:
        alone = [await generated(client, prompt, prompt, "normal", 60) for prompt in prompts]
    async with engine_of(random_path, 4, layout) as client, asyncio.timeout(60):
        found = await asyncio.gather(
            *(generated(client, prompt, prompt, "normal", 60) for prompt in prompts)
        )
    assert found == alone
