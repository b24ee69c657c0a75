"""Requests that end their engine: they are found and refused, and their neighbours are answered."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from embedding_engines import supervised, until
from language_engines import CountingEngine, asked
from language_program import text_of

from ipc_protocol.errors import Failure
from ipc_protocol.inference import Generated, Score
from orchestrator.suspects import DEATHS_ALONE_MAX

ALL = list(range(40))


async def outcomes(
    asking: Sequence["asyncio.Future[Generated]"],
) -> list[Generated | BaseException]:
    async with asyncio.timeout(60):
        return await asyncio.gather(*asking, return_exceptions=True)


async def test_a_prompt_that_kills_is_refused_by_name_and_its_neighbours_are_answered(
    tmp_path: Path,
) -> None:
    async with supervised(CountingEngine(tmp_path)) as engine:
        asking = [
            asyncio.create_task(engine.generate(asked("count", agent=f"agent{number}")))
            for number in range(4)
        ]
        killer = asyncio.create_task(engine.generate(asked("die at 10", agent="culprit")))
        refused, *answers = await outcomes([killer, *asking])
        assert isinstance(refused, Failure)
        assert refused.code == "inference.culprit"
        assert "culprit" in str(refused) and "default" in str(refused)
        assert refused.problem.details["agent"] == "culprit"
        for answer in answers:
            assert isinstance(answer, Generated)
            assert answer.text == text_of(ALL)
        alone = [one for one in engine.entries if one["agent"] == "culprit" and not one["beside"]]
        assert len(alone) >= DEATHS_ALONE_MAX
        assert (await engine.generate(asked("count"))).text == text_of(ALL)


async def test_while_a_suspect_is_tried_nobody_else_has_a_slot(tmp_path: Path) -> None:
    path = tmp_path / "go"
    async with supervised(CountingEngine(tmp_path)) as engine:
        first = asyncio.create_task(
            engine.generate(asked(f"die at 10 once {tmp_path / 'dead'}", agent="first"))
        )
        second = asyncio.create_task(
            engine.generate(asked(f"wait at 5 for {path}", agent="second", priority="low"))
        )
        await engine.wait_slot("second", 2)
        late = asyncio.create_task(engine.generate(asked("count", agent="late", priority="urgent")))
        await asyncio.sleep(0.2)
        assert "late" not in {entry["agent"] for entry in engine.entries}
        path.touch()
        for answer in await outcomes([first, second, late]):
            assert isinstance(answer, Generated)
            assert answer.text == text_of(ALL)
        assert len(engine.restarted) == 1
        tried = [one for one in engine.entries if one["agent"] == "first"][1]
        assert tried["beside"] == []


async def test_one_of_which_nobody_heard_is_found_too(tmp_path: Path) -> None:
    async with supervised(CountingEngine(tmp_path)) as engine:
        neighbour = asyncio.create_task(
            engine.generate(asked("count", agent="neighbour", tokens=300))
        )
        await engine.wait_slot("neighbour")
        killer = asyncio.create_task(engine.generate(asked("die before its slot", agent="culprit")))
        refused, answer = await outcomes([killer, neighbour])
        assert isinstance(refused, Failure) and refused.code == "inference.culprit"
        assert isinstance(answer, Generated)
        assert answer.text == text_of(list(range(300)))


async def test_a_score_that_kills_is_refused(tmp_path: Path) -> None:
    async with supervised(CountingEngine(tmp_path)) as engine:
        deadly = Score(agent="culprit", priority="normal", prompt="die", continuation="c")
        with pytest.raises(Failure, match="culprit") as failure:
            await engine.score(deadly)
        assert failure.value.code == "inference.culprit"
        assert len(engine.restarted) == DEATHS_ALONE_MAX - 1
        harmless = Score(agent="gate", priority="normal", prompt="p", continuation="c")
        assert (await engine.score(harmless)).logprob == -1.0


async def test_a_trial_that_does_not_end_holds_the_others_up_for_so_long_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.engines.TRIAL_SECONDS_MAX", 0.3)
    path = tmp_path / "go"
    async with supervised(CountingEngine(tmp_path)) as engine:
        # Who waits for a path brings no tokens, and so is not acquitted for them.
        stuck = asyncio.create_task(
            engine.generate(asked(f"die at 10 once {tmp_path / 'dead'}", agent="slow", tokens=10))
        )
        waiting = asyncio.create_task(
            engine.generate(asked(f"wait at 1 for {path}", agent="waiting"))
        )
        other = asyncio.create_task(engine.generate(asked("count", agent="other")))
        await asyncio.wait_for(asyncio.shield(other), 30)
        assert not waiting.done()
        path.touch()
        assert all(isinstance(answer, Generated) for answer in await outcomes([stuck, waiting]))


async def test_a_suspect_who_is_withdrawn_frees_the_others(tmp_path: Path) -> None:
    async with supervised(CountingEngine(tmp_path)) as engine:
        once = f"die at 10 once {tmp_path / 'dead'}"
        first = asyncio.create_task(engine.generate(asked(once, agent="first")))
        endless = asyncio.create_task(
            engine.generate(asked(f"wait at 5 for {tmp_path / 'never'}", agent="endless"))
        )
        await engine.wait_slot("endless", 2)
        late = asyncio.create_task(engine.generate(asked("count", agent="late")))
        endless.cancel()
        assert (await asyncio.wait_for(late, 30)).text == text_of(ALL)
        assert (await first).text == text_of(ALL)

        async def idle() -> bool:
            status = (await engine.summary()).status
            return status is not None and not status.working

        await until(idle)
