"""Several models in little memory: they are loaded when they are asked for, and make room."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from embedding_engines import supervised, until
from language_engines import CountingEngine, all_supervised, asked
from language_program import text_of

from inference_client import gguf
from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart, ModelInfo
from orchestrator.engines import LOADS_FAILED_MAX, REQUESTS_MAX, LanguageEngine, RemoteEngine
from orchestrator.model_memory import PART_OF_MEMORY, ModelMemory

ALL = list(range(40))


class Machine:
    """Models of four bytes each, in ten bytes of memory; their names are those of their engines."""

    def __init__(self, folder: Path, budget: int | None = 10, *, devices: bool = False) -> None:
        self._folder = folder
        self.memory = ModelMemory(budget, devices=devices, available_bytes=lambda: 20)

    def engine(
        self,
        name: str,
        *,
        pinned: bool = False,
        wished: bool = False,
        memory: int = 4,
        **options: Any,
    ) -> CountingEngine:
        residence = self.memory.residence(name, pinned=pinned, wished=wished)
        options = {"expected": memory, "memory": memory, **options}
        return CountingEngine(self._folder, name, residence=residence, **options)


async def state_of(engine: LanguageEngine) -> str:
    return (await engine.summary()).state


def is_in(state: str, engine: LanguageEngine) -> Callable[[], Any]:
    async def found() -> bool:
        return await state_of(engine) == state

    return found


async def states(*engines: LanguageEngine) -> list[str]:
    return [await state_of(engine) for engine in engines]


async def refused(engine: LanguageEngine, **more: Any) -> Failure:
    async with asyncio.timeout(30):
        with pytest.raises(Failure) as failure:
            await engine.generate(asked("count", **more))
    return failure.value


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models may be unloaded as soon as they are loaded."""
    monkeypatch.setattr("orchestrator.residency.STAY_US", 0)


# ---- On demand -----------------------------------------------------------------------------------


async def test_what_agents_need_is_loaded_from_the_start_and_the_rest_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path)
    needed, other = machine.engine("needed", wished=True), machine.engine("other")
    async with all_supervised(needed, other):
        await until(is_in("ready", needed))
        assert await state_of(other) == "unloaded"
        assert (await other.generate(asked("count"))).text == text_of(ALL)
        assert await states(needed, other) == ["ready", "ready"]
        assert needed.restarted == other.restarted == []


async def test_what_agents_need_and_does_not_fit_waits_until_it_is_asked_for(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path)
    first, second, third = (machine.engine(name, wished=True) for name in "abc")
    async with all_supervised(first, second, third):
        for engine in (first, second):
            await until(is_in("ready", engine))
        assert await states(first, second, third) == ["ready", "ready", "unloaded"]


async def test_the_least_recently_used_model_makes_room(tmp_path: Path, impatient: None) -> None:
    machine = Machine(tmp_path)
    first, second, third = (machine.engine(name) for name in "abc")
    async with all_supervised(first, second, third):
        for engine in (first, second, first):
            await engine.generate(asked("count"))
        assert (await third.generate(asked("count"))).text == text_of(ALL)
        assert await states(first, second, third) == ["ready", "unloaded", "ready"]
        await second.generate(asked("count"))
        assert await states(first, second, third) == ["unloaded", "ready", "ready"]
        summary = await first.summary()
        assert (summary.restarts, summary.detail, summary.pid) == (0, "", None)
        assert first.restarted == second.restarted == third.restarted == []


async def test_an_urgent_request_takes_the_memory_of_a_busy_model_whose_requests_go_on_later(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path)
    busy, pinned, urgent = (
        machine.engine("busy"),
        machine.engine("pinned", pinned=True),
        machine.engine("urgent"),
    )
    path = tmp_path / "go"
    async with all_supervised(busy, pinned, urgent):
        low = asyncio.create_task(
            busy.generate(asked(f"wait at 20 for {path}", priority="background"))
        )
        await busy.wait_slot("opsclaw")
        status = (await busy.summary()).status
        assert status is not None
        answer = await urgent.generate(asked("count", priority="urgent"))
        assert answer.text == text_of(ALL)
        assert await state_of(pinned) == "ready"
        assert not low.done()
        path.touch()
        # The other one was just loaded: only for something urgent it goes again so soon.
        async with asyncio.timeout(30):
            await busy.generate(asked("count", priority="urgent", tokens=1))
            assert (await low).text == text_of(ALL)
        assert busy.entries[0]["agent"] == "opsclaw"
        assert busy.restarted == []


async def test_what_was_just_loaded_stays_for_a_while(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    first, second, third = (machine.engine(name) for name in "abc")
    async with all_supervised(first, second, third):
        for engine in (first, second):
            await engine.generate(asked("count"))
        late = await refused(third, deadline_us=300_000)
        assert late.code == "inference.deadline"
        assert await states(first, second, third) == ["ready", "ready", "unloaded"]
        await third.generate(asked("count", priority="urgent"))


async def test_a_model_that_died_and_waits_for_its_restart_can_make_room(
    tmp_path: Path, impatient: None
) -> None:
    machine = Machine(tmp_path)
    path = tmp_path / "broken"
    first = machine.engine("a", memory=8, dies_while=str(path))
    second = machine.engine("b", memory=8)
    async with all_supervised(first, second):
        await first.generate(asked("count"))
        path.touch()
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await until(is_in("backoff", first))
        assert (await second.generate(asked("count"))).text == text_of(ALL)
        path.unlink()
        assert (await first.generate(asked("count"))).text == text_of(ALL)


async def test_an_urgent_request_does_not_wait_until_another_model_is_loaded(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path)
    path = tmp_path / "slow"
    path.touch()
    slow = machine.engine("slow", memory=8, loads_slowly_while=str(path))
    urgent = machine.engine("urgent", memory=8)
    async with all_supervised(slow, urgent):
        low = asyncio.create_task(slow.generate(asked("count", priority="low")))
        await until(is_in("starting", slow))
        assert (await urgent.generate(asked("count", priority="urgent"))).text == text_of(ALL)
        summary = await slow.summary()
        assert (summary.state, summary.detail) == (
            "unloaded",
            "it is asked for, and waits for room",
        )
        path.unlink()
        await slow.generate(asked("count", priority="urgent"))
        assert (await low).text == text_of(ALL)


async def test_so_many_requests_wait_for_one_model_and_the_next_is_told(tmp_path: Path) -> None:
    engine = CountingEngine(tmp_path)  # nobody starts it
    waiting = [
        asyncio.create_task(engine.generate(asked("count", tokens=1))) for _ in range(REQUESTS_MAX)
    ]
    await asyncio.sleep(0)
    failure = await refused(engine)
    assert failure.code == "inference.busy"
    async with supervised(engine):
        answers = await asyncio.gather(*waiting)
    assert {answer.text for answer in answers} == {"0 "}


# ---- What there is -------------------------------------------------------------------------------


async def test_what_can_never_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    large, pinned = machine.engine("large", memory=7), machine.engine("pinned", pinned=True)
    async with all_supervised(large, pinned):
        await until(is_in("ready", pinned))
        failure = await refused(large)
        assert failure.code == "inference.unavailable"
        assert failure.problem.details == {"model": "large", "needed": 7, "budget": 10}
        assert "7 bytes" in str(failure) and "`[inference] memory`" in str(failure)
        assert await state_of(pinned) == "ready"


async def test_what_was_measured_counts_and_not_what_was_expected(
    tmp_path: Path, impatient: None
) -> None:
    machine = Machine(tmp_path)
    first = machine.engine("a", expected=1, memory=8)
    second = machine.engine("b", expected=4)
    async with all_supervised(first, second):
        await first.generate(asked("count"))
        await second.generate(asked("count"))
        assert await states(first, second) == ["unloaded", "ready"]


async def test_the_first_engine_says_what_memory_the_devices_have(
    tmp_path: Path, impatient: None
) -> None:
    machine = Machine(tmp_path, None, devices=True)
    assert machine.memory.budget_bytes is None
    first, second = (
        machine.engine(name, wished=True, memory=40, device_memory=100) for name in "ab"
    )
    third = machine.engine("c", memory=40)
    async with all_supervised(first, second, third):
        await until(is_in("ready", first))
        await until(is_in("ready", second))
        assert machine.memory.budget_bytes == 90
        await third.generate(asked("count"))
        assert await states(first, second, third) == ["unloaded", "ready", "ready"]


def test_without_devices_the_memory_of_the_host_is_divided(tmp_path: Path) -> None:
    assert Machine(tmp_path, None).memory.budget_bytes == int(PART_OF_MEMORY * 20)
    without = Machine(tmp_path, None, devices=True).memory
    without.measured(ModelInfo(name="a", kind="language", architecture="x"))
    assert without.budget_bytes == int(PART_OF_MEMORY * 20)


async def test_a_remote_model_takes_no_memory(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 0)

    class Remote(RemoteEngine):
        _command = CountingEngine._command
        _options = CountingEngine(tmp_path)._options

    residence = machine.memory.residence("remote", pinned=True)
    start = EngineStart(name="remote")
    async with supervised(
        Remote(start, lambda: 0, lambda name: None, residence=residence)
    ) as engine:
        assert (await engine.generate(asked("count"))).text == text_of(ALL)
    assert RemoteEngine.KIND == "remote"


# ---- What cannot be loaded -----------------------------------------------------------------------


async def test_a_file_that_is_no_model_is_an_error_to_who_asks_for_it_and_to_nobody_else(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path)
    path = tmp_path / "corrupt"
    path.touch()
    broken, other = (
        machine.engine("broken", memory=8, invalid_while=str(path)),
        machine.engine("other", memory=8),
    )
    async with all_supervised(broken, other):
        holding = asyncio.create_task(other.generate(asked(f"wait at 5 for {tmp_path / 'go'}")))
        await other.wait_slot("opsclaw")
        failure = await refused(broken, priority="urgent", deadline_us=20_000_000)
        assert failure.code == "model.invalid"
        (tmp_path / "go").touch()
        assert (await holding).text == text_of(ALL)
        path.unlink()

        async def answered() -> bool:
            try:
                await broken.generate(asked("count", priority="urgent"))
            except Failure as again:
                assert again.code == "model.invalid"
                return False
            return True

        await until(answered)


async def test_a_header_that_is_none_is_found_before_anybody_makes_room(
    tmp_path: Path, impatient: None
) -> None:
    machine = Machine(tmp_path)
    other = machine.engine("other", memory=8)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"nothing of the kind")
    residence = machine.memory.residence("broken")
    start = EngineStart(name="broken", path=str(file))
    broken = LanguageEngine(start, lambda: 0, lambda name: None, residence=residence)
    async with all_supervised(other, broken):
        await other.generate(asked("count"))
        failure = await refused(broken)
        assert failure.code == "model.invalid" and str(file) in str(failure)
        assert await state_of(other) == "ready"


@pytest.mark.model
async def test_a_model_is_expected_to_take_its_file_and_the_cells_of_its_slots(
    model_path: Path,
) -> None:
    start = EngineStart(name="a", path=str(model_path), context=1000)
    engine = LanguageEngine(start, lambda: 0, lambda name: None)
    cell = 30 * 3 * (64 + 64) * 2  # 30 layers with 3 heads of 64 for keys and for values
    assert await engine._estimate() == gguf.read(model_path).size + 1000 * cell


async def test_an_engine_that_always_dies_of_loading_is_an_error_in_the_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "broken"
    path.touch()
    async with supervised(CountingEngine(tmp_path, dies_while=str(path))) as engine:
        failure = await refused(engine)
        assert failure.code == "inference.unavailable"
        assert f"{LOADS_FAILED_MAX} times" in str(failure)
        path.unlink()

        async def up() -> bool:
            return engine.answers

        await until(up)
        assert (await engine.generate(asked("count"))).text == text_of(ALL)


async def test_one_death_while_it_is_loaded_is_only_a_delay(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.touch()
    async with supervised(CountingEngine(tmp_path, dies_while=str(path))) as engine:
        answer = asyncio.create_task(engine.generate(asked("count")))
        await until(is_in("backoff", engine))
        path.unlink()
        assert (await answer).text == text_of(ALL)
        assert len(engine.restarted) >= 1


async def test_a_model_that_is_never_loaded_is_an_error_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.engine_life.LOAD_SECONDS_MAX", 0.5)
    path = tmp_path / "slow"
    path.touch()
    async with supervised(CountingEngine(tmp_path, loads_slowly_while=str(path))) as engine:
        failure = await refused(engine)
        assert failure.code == "inference.unavailable"
        assert "has not loaded 'default' within 0.5 s" in str(failure)
        assert len(engine.restarted) == 0, "it was asked again before anybody was told"
        path.unlink()

        async def up() -> bool:
            return engine.answers

        await until(up)
        assert (await engine.generate(asked("count"))).text == text_of(ALL)
