"""The language engine dies or hangs in the middle of what it generates, under a whole daemon.

Agents are at work and another program reads a stream meanwhile. Nobody is told of the death: every
conversation is answered once, and the stream goes on where it was.
"""

import hashlib
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx2
import openai
import pytest
from daemons import Installation, RunningDaemon, short_folder

pytestmark = pytest.mark.model

KEY: Final = "agentd-for-this-test"
COUNTED: Final = 20
PROMPT: Final = "Counting: " + ", ".join(map(str, range(1, COUNTED + 1))) + ","
"""The model goes on counting, so that each number that is lost or doubled is seen."""

TOKENS: Final = 160
DEATHS_AT: Final = (20, 90)
"""Tokens of the stream after which the engine dies."""

REQUESTS: Final = {
    "disk": "The disk on /var is full.",
    "backup": "The backup service does not start.",
}


@pytest.fixture(scope="module")
def daemon(model_path: Path) -> Iterator[RunningDaemon]:
    with short_folder() as folder:
        installation = Installation.create(folder, model_path)
        installation.remove_agents("devclaw", "secclaw", "uxclaw")
        client = {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest(), "priority": "high"}
        installation.configure(endpoint={"listen": "unix:models.sock"}, client={"ada": client})
        with installation.running() as daemon:
            yield daemon


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[openai.OpenAI]:
    path = daemon.seen(daemon.installation.state / "models.sock")
    with openai.OpenAI(
        base_url="http://agentd/v1",
        api_key=KEY,
        max_retries=0,
        timeout=300,
        http_client=httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path))),
    ) as client:
        yield client


def engine(daemon: RunningDaemon) -> dict[str, Any]:
    engines = {one["name"]: one for one in daemon.ctl("slots")["engines"]}
    found: dict[str, Any] = engines["default"]
    return found


@dataclass
class Told:
    """What came of a stream."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    completion_tokens: int = 0
    finish: str = ""
    killed: list[int] = field(default_factory=list)


def streamed(
    daemon: RunningDaemon, client: openai.OpenAI, by: signal.Signals, deaths_at: tuple[int, ...]
) -> Told:
    """Read a stream, and end the engine each time that so many tokens of it have come."""
    told = Told()
    for chunk in client.completions.create(
        model="default",
        prompt=PROMPT,
        max_tokens=TOKENS,
        temperature=0,
        logprobs=1,
        stream=True,
        stream_options={"include_usage": True},
    ):
        if chunk.usage is not None:
            told.completion_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            told.text += choice.text
            told.finish = choice.finish_reason or told.finish
            if choice.logprobs is not None:
                told.tokens += choice.logprobs.tokens or []
        if len(told.killed) < len(deaths_at) and len(told.tokens) >= deaths_at[len(told.killed)]:
            told.killed.append(engine(daemon)["pid"])
            os.kill(told.killed[-1], by)
    return told


def goes_on_counting(told: Told) -> bool:
    numbers = [int(number) for number in re.findall(r"\d+(?=,)", told.text)]
    return numbers[:1] == [COUNTED + 1] and all(
        after == before + 1 for before, after in pairwise(numbers)
    )


def outlived(daemon: RunningDaemon, client: openai.OpenAI, by: signal.Signals, deaths: int) -> None:
    """Conversations and a stream, over so many deaths of the engine."""
    before = engine(daemon)["restarts"]
    correlations = {name: f"{name}-{by.name}" for name in REQUESTS}
    for name, correlation in correlations.items():
        daemon.ask(REQUESTS[name], correlation, "--to", "opsclaw")
    told = streamed(daemon, client, by, DEATHS_AT[:deaths])
    assert len(set(told.killed)) == deaths
    assert (told.finish, told.completion_tokens, len(told.tokens)) == ("length", TOKENS, TOKENS)
    assert "".join(told.tokens) == told.text
    assert goes_on_counting(told), told.text

    for correlation in correlations.values():
        trace = daemon.wait_answer(correlation)
        assert trace["conversation"]["state"] == "answered"
        delivered = Counter((one["agent"], one["message"]) for one in trace["deliveries"])
        assert set(delivered.values()) == {1}
        replies = Counter(
            message["sender"] for message in trace["messages"] if message["topic"] == "user.reply"
        )
        assert set(replies.values()) == {1}
        assert {one["attempts"] for one in trace["deliveries"]} == {1}, "no agent died"
    assert engine(daemon)["restarts"] == before + deaths
    assert daemon.status()["dead_letters"] == 0


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGABRT], ids=lambda one: str(one.name))
def test_an_engine_that_dies_takes_no_answer_with_it(
    daemon: RunningDaemon, client: openai.OpenAI, by: signal.Signals
) -> None:
    outlived(daemon, client, by, deaths=2)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_an_engine_that_hangs_takes_no_answer_with_it(
    daemon: RunningDaemon, client: openai.OpenAI
) -> None:
    """It is waited for two minutes, which is longer than any step takes."""
    outlived(daemon, client, signal.SIGSTOP, deaths=1)
