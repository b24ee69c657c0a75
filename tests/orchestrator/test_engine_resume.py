"""Generations that outlive their engine: nothing is lost, and nothing comes twice."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from embedding_engines import IMPATIENT, clock_us, supervised, until
from language_engines import CountingEngine, Heard, asked
from language_program import text_of

from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart, Generate, Generated, GeneratedText, Score
from orchestrator.engines import LanguageEngine
from orchestrator.suspects import TRIAL_TOKENS

ALL = list(range(40))


async def failure_of(awaitable: "asyncio.Future[object]") -> Failure:
    with pytest.raises(Failure) as failure:
        await awaitable
    return failure.value


async def test_an_answer_is_told_as_it_comes_after_the_slot_and_is_whole_in_the_end(
    tmp_path: Path,
) -> None:
    heard = Heard()
    async with supervised(CountingEngine(tmp_path)) as engine:
        generated = await engine.generate(asked("count"), heard)
    assert heard.items[0] == GeneratedText()
    assert len(heard.items) > 2
    assert heard.tokens == ALL
    assert heard.text == generated.text == text_of(ALL)


async def test_a_stream_goes_on_after_the_death_of_its_engine_without_a_repetition(
    tmp_path: Path,
) -> None:
    heard = Heard()
    async with supervised(CountingEngine(tmp_path)) as engine:
        prompt = f"die at 20 once {tmp_path / 'dead'}"
        generated = await engine.generate(asked(prompt, logprobs=0), heard)
        assert engine.restarted == ["engine/default"]
    assert [entry["produced"] > 0 for entry in engine.entries] == [False, True]
    assert [item == GeneratedText() for item in heard.items].count(True) == 1
    assert heard.tokens == ALL
    assert heard.text == generated.text == text_of(ALL)
    assert [one.logprob for one in generated.logprobs] == [-float(token) for token in ALL]
    assert generated.usage.generated_tokens == len(ALL)
    assert generated.usage.queue_us < generated.usage.total_us


async def test_an_engine_that_is_killed_again_and_again_costs_no_token(tmp_path: Path) -> None:
    heard, tokens = Heard(), 14 * TRIAL_TOKENS
    async with supervised(CountingEngine(tmp_path)) as engine:
        answer = asyncio.create_task(engine.generate(asked("count", tokens=tokens), heard))
        for times in (1, 2, 3):
            goal = 2 * times * TRIAL_TOKENS - 20  # it is innocent by then

            async def further(goal: int = goal) -> bool:
                return len(heard.tokens) >= goal

            await until(further)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
        generated = await answer
        assert len(engine.restarted) == 3
    assert heard.tokens == list(range(tokens))
    assert heard.text == generated.text == text_of(list(range(tokens)))


async def test_a_generation_that_nobody_listens_to_goes_on_too(tmp_path: Path) -> None:
    async with supervised(CountingEngine(tmp_path)) as engine:
        prompt = f"die at 20 once {tmp_path / 'dead'}"
        generated = await engine.generate(asked(prompt))
        assert generated.text == text_of(ALL)
    assert engine.entries[1]["produced"] > 0


async def test_what_hangs_is_killed_and_its_request_goes_on(tmp_path: Path) -> None:
    async with supervised(CountingEngine(tmp_path, watch=IMPATIENT)) as engine:
        prompt = f"stick at 20 once {tmp_path / 'stuck'}"
        generated = await engine.generate(asked(prompt))
        assert generated.text == text_of(ALL)
        assert engine.restarted == ["engine/default"]


async def test_a_failure_of_the_engine_itself_is_the_answer(tmp_path: Path) -> None:
    async with supervised(CountingEngine(tmp_path)) as engine:
        for listener in (None, Heard()):
            failure = await failure_of(
                asyncio.ensure_future(engine.generate(asked("refuse"), listener))
            )
            assert failure.code == "inference.schema"
        assert engine.restarted == []


async def test_a_listener_who_is_slow_delays_nobody_and_gets_more_at_once(tmp_path: Path) -> None:
    resumed = asyncio.Event()
    slow = Heard()

    async def listen(item: GeneratedText) -> None:
        await slow(item)
        if item.tokens:
            await resumed.wait()

    async with supervised(CountingEngine(tmp_path)) as engine:
        # More items than a line holds for one reader: it would stop being read.
        answer = asyncio.create_task(engine.generate(asked("count", tokens=700), listen))
        await engine.wait_slot("opsclaw")
        other = await engine.generate(asked("count", agent="devclaw", tokens=750))
        assert other.usage.generated_tokens == 750
        assert not answer.done()
        resumed.set()
        await answer
    assert slow.tokens == list(range(700))
    assert len(slow.items) < 100


async def test_a_listener_who_fails_withdraws_the_request(tmp_path: Path) -> None:
    async def listen(item: GeneratedText) -> None:
        if item.tokens:
            raise Failure("protocol.closed", "The client is gone.")

    async with supervised(CountingEngine(tmp_path)) as engine:
        prompt = asked(f"wait at 20 for {tmp_path / 'never'}")
        failure = await failure_of(asyncio.ensure_future(engine.generate(prompt, listen)))
        assert failure.code == "protocol.closed"

        async def idle() -> bool:
            status = (await engine.summary()).status
            return status is not None and not status.working

        await until(idle)


async def test_a_deadline_is_kept_while_there_is_no_engine(tmp_path: Path) -> None:
    engine = CountingEngine(tmp_path)  # nobody starts it
    late = await failure_of(
        asyncio.ensure_future(engine.generate(asked("count", deadline_us=50_000)))
    )
    assert late.code == "inference.deadline" and "0.05 s" in str(late)
    past = await failure_of(asyncio.ensure_future(engine.generate(asked("count", deadline_us=-1))))
    assert past.code == "inference.deadline"


async def test_a_score_is_asked_again_of_the_next_engine(tmp_path: Path) -> None:
    async with supervised(CountingEngine(tmp_path, slots=1)) as engine:
        holding = asyncio.create_task(
            engine.generate(asked(f"wait at 5 for {tmp_path / 'go'}", agent="holder"))
        )
        await engine.wait_slot("holder")
        score = Score(agent="devclaw", priority="normal", prompt="p", continuation="c")
        scoring = asyncio.create_task(engine.score(score))
        await asyncio.sleep(0.1)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert (await scoring).logprob == -1.0
        assert (await holding).text == text_of(ALL)


# ---- The real engine -----------------------------------------------------------------------------


async def killed_within(engine: LanguageEngine, request: Generate, tokens: int) -> Generated:
    """Its answer, whose engine is killed when so many tokens have come; heard without a gap."""
    heard = Heard()
    async with supervised(engine):
        answer = asyncio.create_task(engine.generate(request, heard))

        async def begun() -> bool:
            return len(heard.tokens) >= tokens

        await until(begun)
        assert not answer.done() and engine.pid is not None
        before = engine.pid
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(60):
            generated = await answer
        assert engine.pid != before
    assert heard.text == generated.text
    assert len(heard.tokens) == generated.usage.generated_tokens
    return generated


@pytest.mark.model
async def test_the_real_engine_takes_up_an_answer_in_the_middle(model_path: Path) -> None:
    start = EngineStart(name="default", path=str(model_path), slots=2, context=2048)
    engine = LanguageEngine(start, clock_us, lambda name: None)
    request = asked("Write a long story about a lighthouse.", tokens=100, logprobs=0)
    generated = await killed_within(engine, request, 20)
    assert generated.finish == "length"
    assert generated.usage.generated_tokens == len(generated.logprobs) == 100
    assert b"".join(one.piece for one in generated.logprobs).decode() == generated.text


@pytest.mark.model
async def test_the_real_engine_takes_up_a_typed_answer_which_is_valid(model_path: Path) -> None:
    start = EngineStart(name="default", path=str(model_path), slots=2, context=2048)
    engine = LanguageEngine(start, clock_us, lambda name: None)
    words = {"type": "array", "items": {"type": "string"}, "minItems": 12, "maxItems": 12}
    short = {**words, "items": {"type": "string", "maxLength": 12}}
    schema = {"type": "object", "properties": {"words": short}, "required": ["words"]}
    request = asked("Twelve English words, as JSON.", tokens=300, schema=schema)
    generated = await killed_within(engine, request, 12)
    assert len(json.loads(generated.text)["words"]) == 12
