"""What a caller can do wrong: it is told so, and nobody else's tokens come later for it.

A real engine process with the real model. That nobody is delayed is shown by steps: a step that was
made for somebody else would be counted.
"""

import asyncio
import collections
import contextlib
import math
import os
import random
import shutil
import struct

import pytest
import random_models
from engines import running_engine

from ipc_protocol.errors import Failure
from ipc_protocol.inference import ChatMessage, EngineStart, Generate, Sampling, Score, Share

pytestmark = pytest.mark.model

PROMPT = "The disk of the build host is full again, so"
CONTEXT = 1024


def ask(agent="somebody", **changes):
    values = {"agent": agent, "priority": "normal", "prompt": PROMPT, "tokens_max": 8}
    return Generate(**{**values, **changes})


@pytest.fixture
def started(model_path):
    """`async with started(slots=2) as client`: an engine with the real model."""

    @contextlib.asynccontextmanager
    async def start(slots=2, context=CONTEXT):
        async with running_engine() as engine:
            await engine.client.start(
                EngineStart(name="m", path=os.fspath(model_path), slots=slots, context=context)
            )
            yield engine.client

    return start


@pytest.fixture(scope="module")
def sound(model_path, tmp_path_factory):
    """A small model file that is whole."""
    path = tmp_path_factory.mktemp("sound") / "model.gguf"
    random_models.write_sliding_window(path, model_path)
    return path


async def settled(client):
    """The status once nobody runs or waits any more."""
    return await seen(
        client,
        lambda status: not status.queue and all(slot.state == "free" for slot in status.slots),
    )


async def seen(client, condition):
    """The first status that fulfils the condition."""
    while True:
        status = await client.status()
        if condition(status):
            return status
        await asyncio.sleep(0.005)


async def failure_of(client, request):
    with pytest.raises(Failure) as failure:
        await (client.score(request) if isinstance(request, Score) else client.generate(request))
    return failure.value


# ---- Requests that cannot be served --------------------------------------------------------------

INVALID = {
    "neither a chat nor a prompt": ask(prompt=None),
    "an empty prompt": ask(prompt=""),
    "no token": ask(tokens_max=0),
    "less than no token": ask(tokens_max=-5),
    "a temperature below 0": ask(sampling=Sampling(temperature=-0.1)),
    "a temperature that melts": ask(sampling=Sampling(temperature=1e6)),
    "a temperature that is none": ask(sampling=Sampling(temperature=math.nan)),
    "an infinite temperature": ask(sampling=Sampling(temperature=math.inf)),
    "top_p of nothing": ask(sampling=Sampling(temperature=1, top_p=0)),
    "top_p of more than everything": ask(sampling=Sampling(temperature=1, top_p=1.1)),
    "min_p below 0": ask(sampling=Sampling(temperature=1, min_p=-0.1)),
    "top_k below 0": ask(sampling=Sampling(temperature=1, top_k=-1)),
    "top_k of more than 4 bytes": ask(sampling=Sampling(temperature=1, top_k=2**31)),
    "a penalty of 0": ask(sampling=Sampling(repeat_penalty=0)),
    "a penalty that is none": ask(sampling=Sampling(presence_penalty=math.nan)),
    "a share of nothing": ask(share=Share(weight=0)),
    "a share that is none": ask(share=Share(weight=math.nan)),
    "a share of less than no request": ask(share=Share(running_max=-1)),
    "a share of less than no token": ask(share=Share(tokens_per_minute=-1)),
    "stop strings without end": ask(sampling=Sampling(stop=list(map(str, range(10_000))))),
    "a stop string without end": ask(sampling=Sampling(stop=["x" * 1_000_000])),
    "a stop string of nothing": ask(sampling=Sampling(stop=[".", ""])),
    "logprobs of everything": ask(logprobs=100_000),
    "an unknown class": ask(priority="at once"),
    "a token that the model does not know": ask(produced=[49152]),
    "a token below 0": ask(produced=[-1]),
    "a token that is no number of 4 bytes": ask(produced=[1, 2**40]),
    "likelihoods that fit into no frame": ask(logprobs=32, tokens_max=2000),
    "a score with a share of nothing": Score(
        agent="a", priority="low", prompt=PROMPT, continuation="x", share=Share(weight=0)
    ),
    "nothing to score": Score(agent="a", priority="low", prompt=PROMPT, continuation=""),
}

SCHEMAS = {
    "an unknown type": {"type": "disk"},
    "a type that is no name": {"type": 7},
    "a pattern that is none": {"type": "string", "pattern": "("},
    "a contradiction of numbers": {"type": "integer", "minimum": 5, "maximum": 3},
    "a contradiction of lengths": {"type": "string", "minLength": 5, "maxLength": 3},
    "a contradiction of types": {"type": "integer", "enum": ["a"]},
    "no choice": {"enum": []},
    "nothing": {"not": {}},
    "a reference to nothing": {"$ref": "#/$defs/nobody"},
    "a reference to itself": {"$ref": "#"},
    "a tree that never ends": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"child": {"$ref": "#/$defs/tree"}},
                "required": ["child"],
            }
        },
        "$ref": "#/$defs/tree",
    },
    "a list that is too long for anybody": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 10**9,
    },
}

REFUSED = {
    **{what: ("request.invalid", request) for what, request in INVALID.items()},
    **{what: ("inference.schema", ask(schema=schema)) for what, schema in SCHEMAS.items()},
    "a prompt longer than the context": ("inference.context", ask(prompt="disk " * 2 * CONTEXT)),
    "produced longer than the context": (
        "inference.context",
        ask(produced=[100] * CONTEXT, tokens_max=2 * CONTEXT),
    ),
    "a deadline in the past": ("inference.deadline", ask(deadline_us=-1)),
    "a deadline now": ("inference.deadline", ask(deadline_us=0)),
}


async def test_what_cannot_be_served_is_named_and_costs_nobody_a_step(started):
    async with started() as client:
        alone = await client.generate(ask("victim", tokens_max=300))
        before = (await settled(client)).steps
        victim = asyncio.create_task(client.generate(ask("victim", tokens_max=300)))
        await seen(client, lambda status: any(slot.state != "free" for slot in status.slots))
        found = {
            what: (await failure_of(client, request)).code for what, (_, request) in REFUSED.items()
        }
        assert found == {what: code for what, (code, _) in REFUSED.items()}
        answer = await victim
        assert answer.text == alone.text
        after = await settled(client)
        # A step for each of its tokens, and the prefill; planning an empty step counts as one.
        assert after.steps - before <= answer.usage.generated_tokens + 10
        assert {usage.agent for usage in after.usage} == {"victim"}


LONG = 1_000_000

ODD = {
    "letters": "a" * LONG,
    "spaces": " " * LONG,
    "line ends": "\n" * LONG,
    "digits": "1" * LONG,
    "characters of several bytes": "😀" * (LONG // 4),
    "punctuation": "!?" * (LONG // 2),
    "control tokens": "<|im_start|>" * (LONG // 20),
    "every character": "".join(map(chr, (*range(0xD800), *range(0xE000, 0x20000)))),
}


async def test_no_text_is_too_odd_for_the_tokenizer(started):
    async with started() as client:
        for what, prompt in ODD.items():
            failure = await failure_of(client, ask(prompt=prompt))
            assert failure.code == "inference.context", what
        chat = [ChatMessage(role="user", content="x")] * 5_000
        failure = await failure_of(client, ask(prompt=None, messages=chat))
        assert failure.code == "inference.context"
        assert (await client.generate(ask(prompt="a\0b"))).usage.prompt_tokens > 1


EXTREME = {
    "the least temperature": ask(sampling=Sampling(temperature=5e-324)),
    "the least of likelihoods": ask(sampling=Sampling(temperature=1, top_p=5e-324, min_p=1)),
    "more than the vocabulary": ask(sampling=Sampling(temperature=1, top_k=2**31 - 1)),
    "a seed below 0": ask(sampling=Sampling(temperature=1, seed=-1)),
    "the largest seed": ask(sampling=Sampling(temperature=1, seed=2**64 - 1)),
    "the last deadline": ask(deadline_us=2**63 - 1),
    "more tokens than can be": ask(tokens_max=2**62, deadline_us=400_000),
    "an interval without end": ask(stream=True, interval_us=2**62),
    "an interval below 0": ask(stream=True, interval_us=-1),
    "a share of next to nothing": ask(share=Share(weight=5e-324)),
    "a share of a token in a minute": ask(share=Share(tokens_per_minute=1)),
    "an answer that was whole": ask(produced=[2]),
    "an answer that was too long": ask(produced=[100] * 20),
    "a chat of nothing": ask(prompt=None, messages=[ChatMessage(role="system", content="")]),
}


async def test_what_is_extreme_is_served_all_the_same(started):
    async with started() as client:
        for what, request in EXTREME.items():
            async with asyncio.timeout(60):
                try:
                    await client.generate(request)
                except Failure as failure:
                    assert failure.code == "inference.deadline", what
        await settled(client)


async def test_fields_that_nobody_knows_are_ignored(started):
    class Fashionable(Generate, frozen=True):
        colour: str = "mauve"

    async with started() as client:
        values = {"agent": "a", "priority": "low", "prompt": PROMPT, "tokens_max": 4}
        plain = await client.generate(Generate(**values))
        odd = await client.generate(Fashionable(**values, colour="green"))
        assert odd.text == plain.text


async def test_a_schema_whose_answers_need_not_end_ends_with_the_budget(started):
    endless = {
        "a list": {"type": "array", "items": {"type": "integer"}, "minItems": 200},
        "a string": {"type": "string", "minLength": 5000},
        "a tree": {
            "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "minItems": 0}},
            "$ref": "#/$defs/tree",
        },
    }
    async with started(slots=4) as client:
        asked = [
            client.generate(ask(what, schema=schema, tokens_max=60))
            for what, schema in endless.items()
        ]
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(outcome, Failure):
                assert outcome.code == "inference.budget"
                assert outcome.problem.details["generated_tokens"] == 60
            else:
                assert outcome.finish == "stop"
        await settled(client)


async def test_tokens_that_contradict_the_schema_are_refused(started):
    async with started() as client:
        schema = {"enum": ["yes", "no"]}
        request = ask(schema=schema, produced=[100, 200, 300], tokens_max=20)
        assert (await failure_of(client, request)).code in ("inference.schema", "request.invalid")
        answer = await client.generate(ask(schema=schema, tokens_max=20))
        assert answer.text in ('"yes"', '"no"')


async def test_a_deadline_that_cannot_be_met_frees_its_place_and_nobody_elses(started):
    async with started(slots=1) as client:
        alone = await client.generate(ask("first", tokens_max=100))
        first = asyncio.create_task(client.generate(ask("first", tokens_max=100)))
        await seen(client, lambda status: status.slots[0].generated_tokens > 0)
        late = ask("late", tokens_max=100, deadline_us=50_000)
        assert (await failure_of(client, late)).code == "inference.deadline"
        assert not first.done()
        assert (await first).text == alone.text


# ---- Callers that leave, and callers that do not listen ------------------------------------------


def waits(status):
    return any(place.agent == "leaver" for place in status.queue)


def in_state(state):
    return lambda status: any(
        slot.agent == "leaver" and slot.state == state for slot in status.slots
    )


PHASES = {
    "queued": (waits, {}),
    "prefill": (in_state("prefill"), {"prompt": "disk " * 900}),
    "decode": (in_state("decode"), {}),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_whoever_leaves_leaves_nothing_behind(started, phase):
    is_there, changes = PHASES[phase]
    async with started(slots=1) as client:
        others = []
        if phase == "queued":
            others.append(asyncio.create_task(client.generate(ask("other", tokens_max=60))))
            await seen(client, lambda status: status.slots[0].state != "free")
        leaver = asyncio.create_task(client.generate(ask("leaver", tokens_max=900, **changes)))
        await seen(client, is_there)
        leaver.cancel()
        await asyncio.wait([leaver])
        status = await seen(client, lambda now: not (waits(now) or _runs(now, "leaver")))
        assert status.kv_cells_used <= status.kv_cells
        for other in others:
            assert (await other).usage.generated_tokens == 60
        await settled(client)
        assert (await client.generate(ask("leaver"))).usage.generated_tokens == 8


def _runs(status, agent):
    return any(slot.agent == agent and slot.state != "free" for slot in status.slots)


async def test_a_caller_that_is_gone_ends_the_engine_in_any_phase(model_path):
    async with running_engine() as engine:
        await engine.client.start(
            EngineStart(name="m", path=os.fspath(model_path), slots=2, context=CONTEXT)
        )
        asked = [
            asyncio.create_task(
                engine.client.generate(ask(str(number), prompt="disk " * 300, tokens_max=600))
            )
            for number in range(5)
        ]
        await seen(engine.client, lambda status: len(status.queue) == 3)
    assert engine.process.returncode == 0
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, Failure)


async def test_whoever_does_not_read_its_stream_holds_up_nobody(started):
    async with started(slots=2) as client:
        released = asyncio.Event()
        heard = []

        async def listen(item):
            await released.wait()
            heard.append(item.text)

        deaf = asyncio.create_task(
            client.generate(ask("deaf", tokens_max=200, stream=True), listen)
        )
        await seen(client, lambda status: _runs(status, "deaf"))
        answers = [await client.generate(ask("other", tokens_max=20)) for _ in range(3)]
        assert all(answer.usage.generated_tokens == 20 for answer in answers)
        await settled(client)
        assert not heard and not deaf.done()
        released.set()
        answer = await deaf
        assert "".join(heard) == answer.text


async def test_a_thousand_requests_at_once_are_all_answered_or_told_to_come_again(
    sound,
):
    async with running_engine() as engine:
        client = engine.client
        await client.start(EngineStart(name="m", path=os.fspath(sound), slots=8, context=CONTEXT))
        asked = [
            client.generate(ask(f"agent-{number % 40}", prompt="a", tokens_max=1))
            for number in range(1000)
        ]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                assert outcome.code == "inference.busy"
            else:
                assert outcome.usage.generated_tokens <= 1
        assert sum(not isinstance(outcome, Failure) for outcome in outcomes) > 500
        await settled(client)


# ---- Model files that are damaged ----------------------------------------------------------------


@pytest.fixture
def damaged(sound, tmp_path):
    """A copy that may be harmed."""
    path = tmp_path / "model.gguf"
    shutil.copy(sound, path)
    return path


async def load(engine, path):
    """The code of the failure; empty where the model could be loaded after all."""
    start = EngineStart(name="x", path=os.fspath(path), slots=2, context=256)
    try:
        await engine.client.start(start)
    except Failure as failure:
        return failure.code
    return ""


async def test_a_file_that_ends_too_early_is_an_invalid_model(damaged):
    size = damaged.stat().st_size
    tensors = damaged.read_bytes().index(b"token_embd.weight")
    ends = (0, 3, 4, 7, 8, 20, 24, 100, 5_000, tensors - 1, tensors + 20, tensors + 5_000)
    async with running_engine() as engine:
        for end in (size - 1, size // 2, *reversed(ends)):
            os.truncate(damaged, end)
            assert await load(engine, damaged) == "model.invalid", end


HUGE = 2**63 + 5

COUNTS = {
    "magic": (0, b"FUGG"),
    "version": (4, struct.pack("<I", 99)),
    "byte order": (4, struct.pack(">I", 3)),
    "tensors": (8, struct.pack("<Q", HUGE)),
    "a few too many tensors": (8, struct.pack("<Q", 60_000)),
    "no tensors": (8, struct.pack("<Q", 0)),
    "values": (16, struct.pack("<Q", HUGE)),
    "a few too many values": (16, struct.pack("<Q", 60_000)),
    "no values": (16, struct.pack("<Q", 0)),
    "the length of the first name": (24, struct.pack("<Q", HUGE)),
}


@pytest.mark.parametrize("what", COUNTS)
async def test_a_header_with_impossible_numbers_is_an_invalid_model(damaged, what):
    place, data = COUNTS[what]
    overwrite(damaged, place, data)
    async with running_engine() as engine:
        assert await load(engine, damaged) == "model.invalid"


FLIPS = 30

NUMBERS = {
    "olmo2.block_count": (3_000, 0),
    "olmo2.embedding_length": (0, 63, 2**31),
    "olmo2.attention.head_count": (0, 3, 2**31),
    "olmo2.attention.head_count_kv": (0, 2**31),
    "olmo2.feed_forward_length": (0, 2**31),
}


async def test_a_header_that_contradicts_its_tensors_is_an_invalid_model(damaged):
    content = damaged.read_bytes()
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(running_engine())
        for name, values in NUMBERS.items():
            place = content.index(name.encode()) + len(name) + 4
            for value in values:
                overwrite(damaged, place, struct.pack("<I", value))
                code = await load(engine, damaged)
                assert code in ("model.invalid", "inference.unavailable"), (name, value)
                if code == "inference.unavailable":
                    engine = await stack.enter_async_context(running_engine())
            overwrite(damaged, place, content[place : place + 4])


async def test_what_a_flipped_byte_of_the_header_does_is_told(damaged):
    """Most make the model invalid, and some only change a name. A few end the engine when it first
    computes, which its line says."""
    content = damaged.read_bytes()
    seed = os.environ.get("AGENTD_FLIP_SEED") or str(random.randrange(10**6))
    print(f"AGENTD_FLIP_SEED={seed}")
    randomly = random.Random(seed)
    vocabulary, tensors = content.index(b"tokenizer.ggml.tokens"), content.index(b"token_embd")
    regions = (0, vocabulary + 40), (tensors - 400, tensors + 2000)
    codes = collections.Counter()
    while codes.total() < FLIPS:
        code = "model.invalid"
        async with running_engine() as engine:
            while code == "model.invalid" and codes.total() < FLIPS:
                place = randomly.randrange(*randomly.choice(regions))
                flipped = content[place] ^ 1 << randomly.randrange(8)
                overwrite(damaged, place, bytes([flipped]))
                code = await load(engine, damaged)
                assert code in ("", "model.invalid", "inference.unavailable"), (place, flipped)
                codes[code] += 1
                overwrite(damaged, place, content[place : place + 1])
        died = code == "inference.unavailable"
        assert (engine.process.returncode != 0) == died, (place, flipped)
    assert codes["model.invalid"] > FLIPS / 2


def overwrite(path, place, data):
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)
