"""What the pool does when llama.cpp has no room, or breaks: a real model, an unwilling context."""

import asyncio
import contextlib

import msgspec
import pytest

from inference_client.engine.context import Context
from inference_client.engine.llama import DecodeError
from inference_client.engine.loading import load
from inference_client.engine.pool import TEXT_INLINE_MAX, Pool
from inference_client.engine.schemas import GRAMMARS_MAX
from ipc_protocol.errors import Failure
from ipc_protocol.inference import ChatMessage, EngineStart, Generate, Score

pytestmark = pytest.mark.model


class UnwillingContext(Context):
    """Refuses the next `refusals` batches for want of room, and breaks when told to."""

    refusals = 0
    broken = False

    def decode(self, rows):
        if self.broken:
            raise DecodeError("told to")
        if self.refusals:
            self.refusals -= 1
            return None
        return super().decode(rows)


@pytest.fixture
async def unwilling(model_path):
    """A pool, its context, and an event that is set when the pool has broken."""
    start = EngineStart(name="m", path=str(model_path), slots=2, context=512)
    loaded = await asyncio.to_thread(load, start)
    context = loaded.context
    context.__class__ = UnwillingContext
    broken = asyncio.Event()
    pool = Pool(*loaded, broken.set)
    pool.start()
    yield pool, context, broken
    await pool.stop()


def ask(agent="a", tokens_max=8):
    messages = [ChatMessage(role="user", content=f"I am {agent}.")]
    return Generate(agent=agent, priority="normal", messages=messages, tokens_max=tokens_max)


async def test_a_batch_that_found_no_room_is_tried_again_when_some_was_made(unwilling):
    pool, context, _ = unwilling
    await pool.generate(ask("idle"))
    context.refusals = 1
    answer = await pool.generate(ask("a"))
    assert answer.usage.generated_tokens == 8


async def test_a_request_that_never_finds_room_fails_alone(unwilling):
    pool, context, _ = unwilling
    context.refusals = 1
    with pytest.raises(Failure) as failure:
        await pool.generate(ask())
    assert failure.value.code == "inference.context"
    assert (await pool.generate(ask())).text


async def test_when_the_decode_thread_breaks_everyone_is_told(unwilling):
    pool, context, broken = unwilling
    context.broken = True
    outcomes = await asyncio.gather(
        pool.generate(ask("a")), pool.generate(ask("b")), return_exceptions=True
    )
    assert [outcome.code for outcome in outcomes] == ["inference.unavailable"] * 2
    await broken.wait()
    with pytest.raises(Failure) as failure:
        await pool.generate(ask("c"))
    assert failure.value.code == "inference.unavailable"


async def test_a_queue_that_is_full_says_so(unwilling, monkeypatch):
    pool, _, _ = unwilling
    monkeypatch.setattr(pool._decoder._planner._queue, "_waiting_max", 1)
    outcomes = await asyncio.gather(
        *(pool.generate(ask(str(n))) for n in range(6)), return_exceptions=True
    )
    codes = {outcome.code for outcome in outcomes if isinstance(outcome, Failure)}
    assert codes == {"inference.busy"}
    assert any(not isinstance(outcome, Failure) for outcome in outcomes)


async def test_a_request_that_waits_for_a_grammar_has_its_deadline_and_holds_up_nobody(unwilling):
    pool, _, _ = unwilling
    new = msgspec.structs.replace(ask("new"), schema={"enum": [True]})
    known = {"type": "integer", "minimum": 0, "maximum": 9}
    async with contextlib.AsyncExitStack() as others:
        for number in range(GRAMMARS_MAX):
            schema = {**known, "minimum": number - GRAMMARS_MAX + 1}
            await others.enter_async_context(pool._schemas.grammar(schema))
        waiting = asyncio.create_task(pool.generate(new))
        with pytest.raises(Failure) as failure:
            await pool.generate(msgspec.structs.replace(new, deadline_us=20_000))
        assert failure.value.code == "inference.deadline"
        answer = await pool.generate(msgspec.structs.replace(ask("known"), schema=known))
        assert int(answer.text) in range(10)
        assert not waiting.done()
    answer = await waiting
    assert answer.text == "true"
    assert answer.usage.queue_us > 20_000, "it counts from its arrival"


async def test_a_failed_schema_leaves_its_request_and_the_next_one_is_served(unwilling):
    pool, _, _ = unwilling
    for _ in range(GRAMMARS_MAX + 1):
        with pytest.raises(Failure) as failure:
            await pool.generate(msgspec.structs.replace(ask(), schema={"not": {}}))
        assert failure.value.code == "inference.schema"
    assert (await pool.generate(msgspec.structs.replace(ask(), schema={"const": 1}))).text == "1"


async def test_a_long_text_is_not_tokenised_on_the_loop(unwilling, monkeypatch):
    pool, _, _ = unwilling
    threads = []
    to_thread = asyncio.to_thread

    async def noted(function, *args):
        threads.append(function.__name__)
        return await to_thread(function, *args)

    monkeypatch.setattr(asyncio, "to_thread", noted)
    long = "disk " * TEXT_INLINE_MAX
    for texts in ((long, "a"), ("a", long)):
        with pytest.raises(Failure) as failure:
            await pool.score(Score("a", "normal", *texts))
        assert failure.value.code == "inference.context"
    assert threads == ["tokenise", "tokenise"]


async def test_likelihoods_of_a_stream_come_with_its_items_alone(unwilling):
    pool, _, _ = unwilling
    heard = []

    async def send(item):
        heard.extend(item.logprobs)

    asked = msgspec.structs.replace(ask(), logprobs=1, stream=True)
    answer = await pool.generate(asked, send)
    assert answer.logprobs == []
    assert b"".join(one.piece for one in heard).decode() == answer.text
