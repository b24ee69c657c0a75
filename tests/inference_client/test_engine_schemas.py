"""How many schemas may be in use at once, and who waits: grammars of the real vocabulary."""

import asyncio
import contextlib

import pytest

from inference_client.engine import grammar as grammars
from inference_client.engine.grammar import Grammars
from inference_client.engine.llama import Model
from inference_client.engine.schemas import GRAMMARS_MAX, Schemas
from ipc_protocol.errors import Failure

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def vocabulary(model_path):
    model = Model(model_path)
    yield model
    model.close()


class Counting(Grammars):
    compiled = 0

    def compile(self, text):
        self.compiled += 1
        return super().compile(text)


@pytest.fixture
async def kept(vocabulary):
    """Schemas, and a list of what was built for them."""
    built = []

    def build():
        built.append(Counting(vocabulary.vocab, vocabulary.vocabulary, vocabulary.end_tokens))
        return built[-1]

    schemas = Schemas(build)
    yield schemas, built
    await schemas.close()


def numbered(number):
    return {"type": "integer", "minimum": number, "maximum": number + 9}


async def take(stack, schemas, number):
    return await stack.enter_async_context(schemas.grammar(numbered(number)))


async def test_requests_with_one_schema_share_its_grammar_and_it_is_compiled_once(kept):
    schemas, built = kept
    async with contextlib.AsyncExitStack() as stack:
        found = await asyncio.gather(*(take(stack, schemas, 1) for _ in range(40)))
        assert len(set(map(id, found))) == 1
    async with schemas.grammar(numbered(1)) as grammar:
        assert grammar is found[0]
    assert [one.compiled for one in built] == [1]


async def test_with_too_many_schemas_under_way_another_waits_and_known_ones_do_not(kept):
    schemas, _ = kept
    async with contextlib.AsyncExitStack() as others:
        async with schemas.grammar(numbered(0)):
            for number in range(1, GRAMMARS_MAX):
                await take(others, schemas, number)
            waiting = asyncio.create_task(take(others, schemas, 99))
            for number in range(GRAMMARS_MAX):
                async with schemas.grammar(numbered(number)):
                    assert not waiting.done()
        assert (await waiting).opening == ()
        assert len(schemas._kept) == GRAMMARS_MAX


async def test_several_that_wait_for_one_schema_need_one_place(kept):
    schemas, _ = kept
    async with contextlib.AsyncExitStack() as others:
        async with schemas.grammar(numbered(0)), schemas.grammar(numbered(1)):
            for number in range(2, GRAMMARS_MAX):
                await take(others, schemas, number)
            waiting = [asyncio.create_task(take(others, schemas, 99)) for _ in range(5)]
            last = asyncio.create_task(take(others, schemas, 100))
            async with schemas.grammar(numbered(0)):
                assert not any(task.done() for task in waiting)
        assert len({id(await task) for task in waiting}) == 1
        await last


async def test_whoever_leaves_while_it_waits_takes_no_place(kept):
    schemas, _ = kept
    async with contextlib.AsyncExitStack() as others:
        for number in range(GRAMMARS_MAX):
            await take(others, schemas, number)
        waiting = asyncio.create_task(take(others, schemas, 99))
        async with schemas.grammar(numbered(0)):
            waiting.cancel()
            await asyncio.wait([waiting])
    async with contextlib.AsyncExitStack() as others:
        for number in range(100, 100 + GRAMMARS_MAX):
            await take(others, schemas, number)
        assert len(schemas._kept) == GRAMMARS_MAX


async def test_a_schema_that_cannot_be_kept_takes_no_place(kept):
    schemas, _ = kept
    for number in range(GRAMMARS_MAX + 1):
        with pytest.raises(Failure, match="cannot be kept"):
            async with schemas.grammar({"type": f"type {number}"}):
                pass
    assert not schemas._kept and not schemas._users


async def test_those_used_last_are_kept_without_users(kept):
    schemas, built = kept
    for number in (*range(GRAMMARS_MAX), 0, 99, 0):
        async with schemas.grammar(numbered(number)):
            pass
    assert built[0].compiled == GRAMMARS_MAX + 1
    async with schemas.grammar(numbered(1)):
        assert built[0].compiled == GRAMMARS_MAX + 2, "it was the one unused for longest"


async def test_a_worn_grammar_is_renewed_for_the_next_request(kept):
    schemas, built = kept
    async with schemas.grammar(numbered(1)) as grammar:
        grammar.wear(grammars.GRAMMAR_TOKENS)
        async with schemas.grammar(numbered(1)) as again:
            assert again is grammar
            assert not grammar.worn
    assert built[0].compiled == 1
