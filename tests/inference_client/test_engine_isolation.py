"""What one agent tells the model never reaches another, by slots, shared beginnings or swaps.

A real engine with the real model, fewer slots than agents, and room for their caches in host
memory. Each agent has a secret and is asked for it: were a cell of another in its context, its
answer would be another one. `AGENTD_ISOLATION_SEED` makes a run again.
"""

import asyncio
import itertools
import os
import random
import re

import pytest
from engines import running_engine

from ipc_protocol.inference import EngineStart, Generate, Score

pytestmark = pytest.mark.model

AGENTS = 5
ROUNDS = 3
SLOTS = 2
SWAP_BYTES = 64 * 1024 * 1024
CLASSES = ("background", "low", "normal", "high", "urgent")

PREAMBLE = "You keep the hosts of a small company healthy: disks, services, load and backups. "
"""All of them begin so: what they have in common may be shared."""

EXACT = {"kv_type": "f32", "flash_attention": "off"}
"""As exact as the model allows: what shares a batch changes as little as it can."""

NOISE = 0.3
"""By how much a logarithm of a likelihood may differ for no other reason than its batch: quantised
weights are multiplied in other ways for many tokens than for one."""

LEAK = 3.0
"""By how much it differs at least where the secret of another was told."""


@pytest.fixture
def randomly():
    seed = os.environ.get("AGENTD_ISOLATION_SEED") or str(random.randrange(10**6))
    print(f"AGENTD_ISOLATION_SEED={seed}")
    return random.Random(seed)


def secret_of(agent):
    return str(random.Random(f"secret {agent}").randrange(10**5, 10**6))


def prompt_of(agent, round_):
    """What it has said so far, with its secret in it again and again, and then a question."""
    said = " ".join(
        f"Note {number}: the code of agent {agent} is {secret_of(agent)}." for number in range(6)
    )
    asked = " ".join(f"Question {number}: what is the code?" for number in range(round_ + 1))
    return f"{PREAMBLE}I am agent {agent}. {said} {asked} Answer: the code is"


def start_of(model_path, slots, layout):
    return EngineStart(
        name="m",
        path=os.fspath(model_path),
        slots=slots,
        context=4096,
        kv_layout=layout,
        swap_bytes=SWAP_BYTES,
        **EXACT,
    )


async def answer(client, agent, round_, priority):
    return await client.generate(
        Generate(
            agent=agent,
            priority=priority,
            prompt=prompt_of(agent, round_),
            tokens_max=1 + len(secret_of(agent)),
            logprobs=0,
        )
    )


@pytest.fixture
async def alone(model_path):
    """What each agent is answered, and how sure the model is, one after the other."""
    expected = {}
    async with running_engine() as engine:
        await engine.client.start(start_of(model_path, 1, "unified"))
        for agent in map(str, range(AGENTS)):
            for round_ in range(ROUNDS):
                expected[agent, round_] = await answer(engine.client, agent, round_, "normal")
    return expected


@pytest.mark.parametrize("layout", ["unified", "streams"])
async def test_each_agent_is_answered_as_if_it_were_alone(model_path, alone, randomly, layout):
    found = {}

    async def converse(client, agent):
        for round_ in range(ROUNDS):
            await asyncio.sleep(randomly.random() * 0.1)
            found[agent, round_] = await answer(client, agent, round_, randomly.choice(CLASSES))

    async with running_engine() as engine:
        await engine.client.start(start_of(model_path, SLOTS, layout))
        async with asyncio.TaskGroup() as tasks:
            for agent in map(str, range(AGENTS)):
                tasks.create_task(converse(engine.client, agent))
        counters = (await engine.client.status()).counters

    assert counters.swapped_in_bytes > 0, "or nothing is shown about swaps"
    assert counters.prefix_hits > 0, "or nothing is shown about shared beginnings"
    secrets = {agent: secret_of(agent) for agent, _ in found}
    for (agent, round_), answered in found.items():
        assert secrets[agent] in answered.text
        others = {secret for other, secret in secrets.items() if other != agent}
        assert others.isdisjoint(re.findall(r"\d+", answered.text))
        expected = alone[agent, round_]
        for one, other in zip(answered.logprobs, expected.logprobs, strict=True):
            assert one.piece == other.piece
            assert one.logprob == pytest.approx(other.logprob, abs=NOISE)


async def test_a_first_request_finds_no_more_than_it_has_in_common_with_what_others_sent(
    model_path,
):
    """It finds identical tokens, whoever computed them: what it sent itself, and no more."""
    common = PREAMBLE * 4
    async with running_engine() as engine:
        client = engine.client
        await client.start(start_of(model_path, SLOTS, "unified"))
        # A preamble alone: its tokens are those that all prompts begin with.
        shared = await client.generate(
            Generate(agent="first", priority="normal", prompt=common, tokens_max=1)
        )
        for agent in map(str, range(AGENTS)):
            whole = await client.generate(
                Generate(
                    agent=agent,
                    priority="normal",
                    prompt=f"{common}The code of agent {agent} is {secret_of(agent)}.",
                    tokens_max=4,
                )
            )
            # "The code of agent" may be found too; the name and the secret may not.
            assert whole.usage.cached_tokens <= shared.usage.prompt_tokens + 4


async def test_nobody_finds_out_by_the_cache_what_another_has_in_host_memory(model_path):
    """A guess of another's text that was swapped out is not answered out of host memory."""
    async with running_engine() as engine:
        client = engine.client
        await client.start(start_of(model_path, 1, "unified"))
        prompt = prompt_of("victim", 0)
        for _ in range(2):  # who returns is worth keeping
            await client.generate(
                Generate(agent="victim", priority="normal", prompt=prompt, tokens_max=2)
            )
            await client.generate(
                Generate(agent="other", priority="urgent", prompt="x " * 400, tokens_max=2)
            )
        status = await client.status()
        assert status.swap_bytes_used > 0
        guess = Generate(agent="thief", priority="normal", prompt=prompt, tokens_max=2)
        assert (await client.generate(guess)).usage.cached_tokens == 0
        own = Generate(agent="victim", priority="normal", prompt=prompt + " again", tokens_max=2)
        assert (await client.generate(own)).usage.cached_tokens > 100


async def test_scores_are_those_of_each_alone(model_path):
    """Also of continuations, which are not kept. Were another's secret known, its likelihood would
    not be that of a number that nobody has told."""

    def asked(agent, of=None):
        secret = secret_of(agent if of is None else of)
        return Score(
            agent=agent,
            priority="normal",
            prompt=prompt_of(agent, 0),
            continuation=f" {secret}",
        )

    agents = list(map(str, range(AGENTS)))
    async with running_engine() as engine:
        await engine.client.start(start_of(model_path, 1, "unified"))
        alone = [(await engine.client.score(asked(agent))).logprob for agent in agents]
    async with running_engine() as engine:
        await engine.client.start(start_of(model_path, SLOTS, "unified"))
        found = await asyncio.gather(*(engine.client.score(asked(agent)) for agent in agents))
        stolen = await asyncio.gather(
            *(engine.client.score(asked(thief, of)) for thief, of in itertools.pairwise(agents[:3]))
        )
    assert [one.logprob for one in found] == pytest.approx(alone, abs=NOISE)
    assert all(one.logprob < min(alone) - LEAK for one in stolen)
