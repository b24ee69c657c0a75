"""Engines under supervision: they die, hang and are late; callers are told, or notice nothing."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from embedding_engines import IMPATIENT, HarmedEngine, clock_us, supervised, until

from ipc_protocol.errors import Failure
from ipc_protocol.inference import ChatMessage, EngineStart, Generate
from orchestrator.engine_life import Engine, Watch
from orchestrator.engines import (
    DEATHS_PER_REQUEST_MAX,
    OPTIONAL_SECONDS_MAX,
    EmbeddingEngine,
    LanguageEngine,
)


async def up(engine: Engine) -> int:
    """Wait until it answers; its pid."""

    async def answers() -> bool:
        return engine.answers

    await until(answers)
    assert engine.pid is not None
    return engine.pid


# ---- Waiting for one that is away ----------------------------------------------------------------


async def test_what_can_do_without_a_vector_waits_only_so_long_for_an_engine_that_is_late() -> None:
    engine = HarmedEngine()  # nobody starts it
    began = time.monotonic()
    with pytest.raises(Failure, match=r"has not answered within 0\.05 s") as failure:
        await engine.embed(["text"], wait_seconds=0.05)
    assert failure.value.code == "inference.unavailable"
    assert time.monotonic() - began < 2


async def test_a_caller_that_names_no_limit_is_one_that_can_do_without() -> None:
    async with asyncio.timeout(2 * OPTIONAL_SECONDS_MAX):
        with pytest.raises(Failure, match=f"within {OPTIONAL_SECONDS_MAX:g} s"):
            await HarmedEngine().embed(["text"])


async def test_what_cannot_do_without_waits_for_as_long_as_the_engine_takes() -> None:
    engine = HarmedEngine()
    asked = asyncio.create_task(engine.embed(["text"], wait_seconds=None))
    async with supervised(engine):
        assert len((await asked).vectors[0]) == 1024


# ---- Requests that outlive an engine -------------------------------------------------------------


async def test_a_line_that_breaks_costs_one_try_and_not_all_of_them(tmp_path: Path) -> None:
    async with supervised(HarmedEngine()) as engine:
        text = f"break once {tmp_path / 'broken'}"
        (vector,) = (await engine.embed([text], wait_seconds=None)).vectors
        assert len(vector) == 1024
        assert (tmp_path / "broken").exists()
        assert engine.restarted == ["engine/embed"]


async def test_a_request_is_refused_once_it_has_ended_as_many_engines_as_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.engines.DEATHS_PER_REQUEST_MAX", 2)
    assert DEATHS_PER_REQUEST_MAX > 2
    async with supervised(HarmedEngine()) as engine:
        with pytest.raises(Failure, match="died 2 times under one request"):
            await engine.embed(["die"], wait_seconds=None)
        await up(engine)
        assert len(engine.restarted) == 2
        assert len((await engine.embed(["text"])).vectors) == 1


# ---- Hangs ---------------------------------------------------------------------------------------


async def test_an_idle_engine_that_is_stopped_is_called_unhealthy_then_killed_and_replaced() -> (
    None
):
    async with supervised(HarmedEngine(IMPATIENT)) as engine:
        pid = await up(engine)
        os.kill(pid, signal.SIGSTOP)

        async def silent() -> bool:
            summary = await engine.summary()
            assert engine.pid == pid, "it was replaced before it was called unhealthy"
            return summary.status is None and "has not answered" in summary.detail

        async def replaced() -> bool:
            return engine.pid not in (None, pid)

        # Whoever looks would wait for longer than the engine has to live here.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("orchestrator.engine_life.STATUS_SECONDS_MAX", 0.05)
            await until(silent)
        assert not engine.answers
        await until(replaced)
        assert engine.restarted == ["engine/embed"]
        assert (await engine.summary()).status is not None


async def test_a_request_to_an_engine_that_hangs_is_asked_again_of_the_next() -> None:
    async with supervised(HarmedEngine(IMPATIENT)) as engine:
        os.kill(await up(engine), signal.SIGSTOP)
        assert (await engine.embed(["text"], wait_seconds=None)).tokens == 4
        assert engine.restarted == ["engine/embed"]


async def test_an_engine_that_answers_and_makes_no_step_is_hung() -> None:
    async with supervised(HarmedEngine(IMPATIENT)) as engine:
        pid = await up(engine)
        with pytest.raises(Failure, match="not answered"):
            await engine.embed(["stuck"], wait_seconds=0.1)

        async def replaced() -> bool:
            return engine.pid not in (None, pid)

        await until(replaced)


async def test_an_engine_that_is_held_up_for_less_than_the_patience_lives_on() -> None:
    slow = Watch(interval_seconds=0.05, silent_seconds=0.1, patience_us=60_000_000)
    async with supervised(HarmedEngine(slow)) as engine:
        pid = await up(engine)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.4)
        assert not engine.answers
        os.kill(pid, signal.SIGCONT)
        assert await up(engine) == pid
        assert engine.restarted == []


def test_a_watch_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="in this order"):
        Watch(interval_seconds=5, silent_seconds=5)


@pytest.mark.model
async def test_a_language_engine_that_is_stopped_at_work_is_replaced_and_its_request_answered(
    model_path: Path,
) -> None:
    restarted: list[str] = []
    start = EngineStart(name="default", path=str(model_path), slots=1, context=2048)
    request = Generate(
        agent="opsclaw",
        priority="normal",
        messages=[ChatMessage(role="user", content="Count to a hundred.")],
        tokens_max=40,
    )
    watch = Watch(interval_seconds=0.1, silent_seconds=0.5, patience_us=1_500_000)
    engine = LanguageEngine(start, clock_us, restarted.append, watch)
    async with supervised(engine):
        pid = await up(engine)
        asked = asyncio.create_task(engine.generate(request))

        async def at_work() -> bool:
            status = (await engine.summary()).status
            return status is not None and status.working

        await until(at_work)
        os.kill(pid, signal.SIGSTOP)
        generated = await asked
        assert generated.text.strip()
        assert engine.pid != pid
        assert restarted[:1] == ["engine/default"]


async def test_an_engine_that_leaves_while_it_is_asked_has_said_nothing() -> None:
    engine = HarmedEngine()
    async with supervised(engine):
        pid = await up(engine)
        os.kill(pid, signal.SIGSTOP)
        asked = asyncio.create_task(engine.summary())
        await asyncio.sleep(0)
    summary = await asked
    assert (summary.pid, summary.status) == (None, None)


# ---- A model of another width --------------------------------------------------------------------


async def test_an_embedding_model_of_another_width_is_refused_by_name_and_numbers() -> None:
    async with supervised(HarmedEngine(dimensions=128)) as engine:
        detail = ""

        async def refused() -> bool:
            nonlocal detail
            detail = (await engine.summary()).detail
            return bool(detail)

        await until(refused)
        assert "embed makes vectors of 128 dimensions" in detail and "holds 256" in detail
        assert not engine.answers
        with pytest.raises(Failure) as failure:
            await engine.embed(["text"], wait_seconds=0.05)
        assert failure.value.code == "inference.unavailable"


@pytest.mark.model
async def test_any_gguf_of_another_width_is_refused_by_its_path(model_path: Path) -> None:
    start = EngineStart(name="embed", path=str(model_path), context=256)
    async with supervised(EmbeddingEngine(start, clock_us, lambda _: None)) as engine:

        async def refused() -> bool:
            detail = (await engine.summary()).detail
            return str(model_path) in detail and "576 dimensions" in detail

        await until(refused)
