"""What the model prefers is asked once for all agents that share a message."""

import asyncio

import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart, Score, Scored, Usage
from orchestrator.engines import LanguageEngine
from orchestrator.metrics import Metrics
from orchestrator.preferences import Preferences

USAGE = Usage(
    prompt_tokens=1,
    cached_tokens=0,
    generated_tokens=0,
    queue_us=0,
    first_token_us=1,
    total_us=1,
)
DUTIES = {"opsclaw": ["disk full"], "devclaw": ["write a script"]}


class Scorer(LanguageEngine):
    """An engine without a process: it scores by the length of the list."""

    def __init__(self) -> None:
        super().__init__(EngineStart(name="x", path=""), lambda: 0, lambda name: None)
        self.asked: list[Score] = []
        self.go_on = asyncio.Event()
        self.both_asked = asyncio.Event()
        self.failure: Failure | None = None

    async def score(self, params: Score) -> Scored:
        self.asked.append(params)
        if len(self.asked) == len(DUTIES):
            self.both_asked.set()
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        return Scored(logprob=-float(len(params.prompt)), usage=USAGE)


@pytest.fixture
async def scorer() -> Scorer:
    return Scorer()


def preferences_of(scorer: Scorer) -> Preferences:
    return Preferences(scorer, DUTIES, Metrics("0", ()))


async def test_agents_that_share_a_message_ask_once(scorer: Scorer) -> None:
    preferences = preferences_of(scorer)
    asking = [
        asyncio.create_task(preferences.of("help", ["opsclaw", "devclaw"], "normal"))
        for _ in range(3)
    ]
    await asyncio.sleep(0)
    scorer.go_on.set()
    one, *others = await asyncio.gather(*asking)
    assert others == [one, one]
    assert sorted(one) == ["devclaw", "opsclaw"]
    assert len(scorer.asked) == len(DUTIES)
    assert await preferences.of("help", ["devclaw", "opsclaw"], "urgent") == one
    assert len(scorer.asked) == len(DUTIES)


async def test_an_urgent_question_does_not_wait_behind_a_background_one(scorer: Scorer) -> None:
    preferences = preferences_of(scorer)
    asking = [
        asyncio.create_task(preferences.of("help", ["opsclaw"], "background")),
        asyncio.create_task(preferences.of("help", ["opsclaw"], "urgent")),
    ]
    await asyncio.wait_for(scorer.both_asked.wait(), 10)
    assert {score.priority for score in scorer.asked} == {"background", "urgent"}
    scorer.go_on.set()
    await asyncio.gather(*asking)


async def test_whoever_asked_first_may_leave(scorer: Scorer) -> None:
    preferences = preferences_of(scorer)
    first = asyncio.create_task(preferences.of("help", ["opsclaw"], "normal"))
    second = asyncio.create_task(preferences.of("help", ["opsclaw"], "normal"))
    await asyncio.sleep(0)
    first.cancel()
    scorer.go_on.set()
    assert "opsclaw" in await second


async def test_a_question_that_failed_is_asked_again(scorer: Scorer) -> None:
    preferences = preferences_of(scorer)
    scorer.go_on.set()
    scorer.failure = Failure("inference.unavailable", "away")
    with pytest.raises(Failure, match="away"):
        await preferences.of("help", ["opsclaw"], "normal")
    scorer.failure = None
    assert "opsclaw" in await preferences.of("help", ["opsclaw"], "normal")


async def test_an_owner_without_duties_is_not_asked_about(scorer: Scorer) -> None:
    assert await preferences_of(scorer).of("help", ["stranger"], "normal") == {}
    assert not scorer.asked


async def test_owners_who_come_and_go_are_asked_about_from_then_on(scorer: Scorer) -> None:
    preferences = preferences_of(scorer)
    scorer.go_on.set()
    before = await preferences.of("help", ["opsclaw"], "normal")
    preferences.know({"opsclaw": ["something quite different"], "gate": ["guard"]})
    now = await preferences.of("help", ["opsclaw", "devclaw", "gate"], "normal")
    assert sorted(now) == ["gate", "opsclaw"]
    assert now["opsclaw"] != before["opsclaw"]


async def test_an_owner_who_goes_while_he_is_asked_about_is_answered_for(scorer: Scorer) -> None:
    preferences = preferences_of(scorer)
    asking = asyncio.create_task(preferences.of("help", ["opsclaw"], "normal"))
    await asyncio.sleep(0)
    preferences.know({})
    scorer.go_on.set()
    assert "opsclaw" in await asking
    assert await preferences.of("help", ["opsclaw"], "normal") == {}
