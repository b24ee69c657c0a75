"""How often does a message find its right owner: by screening, by the model, and by both?

Each labelled message is treated as if it came on a topic that every agent listens to. `screening`
takes the best score, `model` what the model prefers among all owners, `both` the verdict that the
agents would reach.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
import uvloop
from msgspec import Meta

from ipc_protocol.errors import Failure
from orchestrator import assembly, screening, verdict
from orchestrator.cli.measure import Measure
from orchestrator.config.types import Config
from orchestrator.daemon import clock_us
from orchestrator.engines import EmbeddingEngine
from orchestrator.metrics import Metrics
from orchestrator.preferences import Preferences
from orchestrator.screener import build_board
from orchestrator.verdict import NOBODY
from orchestrator.version import VERSION

EXPECTED_SHARE: Final = 0.8
"""Promised for both together, with the embedded model, on stimuli that nobody tuned to."""

TEXTS_PER_REQUEST: Final = 256
"""Embedded at once: 2 ms of work."""


class Stimulus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One labelled message. `owner` is the name of an agent, or `none`."""

    text: Annotated[str, Meta(min_length=1)]
    owner: str


class Guess(msgspec.Struct, frozen=True):
    """Who takes a message, by each of the three; and how many would have taken it."""

    screening: str
    model: str
    both: str
    takers: int


def run(path: Path, config: Config) -> list[Measure]:
    """Measure on the messages of `path`. Raises `Failure` and `OSError`."""
    agents = [agent.name for agent in config.agents.values() if agent.duties]
    stimuli = read(path, [*agents, NOBODY])
    guesses = uvloop.run(_guess_all(stimuli, config))
    return measures(stimuli, guesses)


def read(path: Path, owners: Sequence[str]) -> list[Stimulus]:
    """The messages of a file of JSON lines. Raises `request.invalid` with the line."""
    stimuli = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            stimulus = msgspec.json.decode(line, type=Stimulus)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise _wrong(path, number, str(error), '{"text": …, "owner": …}') from error
        if stimulus.owner not in owners:
            found = f"the owner is {stimulus.owner!r}"
            raise _wrong(path, number, found, " or ".join(owners))
        stimuli.append(stimulus)
    if not stimuli:
        raise _wrong(path, 1, "there is no message", '{"text": …, "owner": …}')
    return stimuli


def _wrong(path: Path, line: int, found: str, expected: str) -> Failure:
    return Failure("request.invalid", f"{path}, line {line}: {found}.", f"Expected is {expected}.")


def measures(stimuli: Sequence[Stimulus], guesses: Sequence[Guess]) -> list[Measure]:
    """The shares of right owners, and how often nobody or several took a message. Pure."""

    def share(measure: str, holds: Callable[[Stimulus, Guess], bool]) -> Measure:
        hits = sum(holds(one, guess) for one, guess in zip(stimuli, guesses, strict=True))
        return Measure(measure=measure, value=round(hits / len(stimuli), 4), unit="share")

    both = share("both", lambda one, guess: guess.both == one.owner)
    return [
        share("screening", lambda one, guess: guess.screening == one.owner),
        share("model", lambda one, guess: guess.model == one.owner),
        msgspec.structs.replace(both, expected=EXPECTED_SHARE, met=both.value >= EXPECTED_SHARE),
        share("nobody-took", lambda _, guess: guess.both == NOBODY),
        share("nobody-took-wrongly", lambda one, guess: guess.both == NOBODY != one.owner),
        share("several-took", lambda _, guess: guess.takers > 1),
    ]


async def _guess_all(stimuli: Sequence[Stimulus], config: Config) -> list[Guess]:
    metrics = Metrics(VERSION, ())
    languages = assembly.language_engines(config, clock_us, metrics, None)
    embedding = assembly.embedding_engine(config, clock_us, metrics)
    default = next(iter(config.models))
    preferences = Preferences(languages[default], assembly.duties(config), metrics)
    engines = [languages[default], embedding]
    running = [asyncio.create_task(engine.run()) for engine in engines]
    try:
        weight = config.models[default].preference_weight
        return await _guess(stimuli, config, preferences, embedding, weight)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _guess(
    stimuli: Sequence[Stimulus],
    config: Config,
    preferences: Preferences,
    embedding: EmbeddingEngine,
    weight: float,
) -> list[Guess]:
    agents = [agent for agent in config.agents.values() if agent.duties]
    board = await build_board(agents, config.screening.ignores, embedding)
    guesses = []
    for first in range(0, len(stimuli), TEXTS_PER_REQUEST):
        some = stimuli[first : first + TEXTS_PER_REQUEST]
        embedded = await embedding.embed([stimulus.text for stimulus in some], wait_seconds=None)
        for stimulus, packed in zip(some, embedded.vectors, strict=True):
            found = screening.screen(np.frombuffer(packed, "<f4"), board)
            options = [*board.agents, NOBODY]
            preference = await preferences.of(stimulus.text, options, "normal")
            guesses.append(_guessed(found, preference, weight))
    return guesses


def _guessed(found: screening.Screening, preference: dict[str, float], weight: float) -> Guess:
    best = max(found.scores, key=lambda agent: (found.scores[agent].score, agent))
    verdicts = {}
    for agent in found.scores:
        evidence = found.evidence(agent)
        asked = {option: preference[option] for option in verdict.options(evidence)}
        verdicts[agent] = verdict.decide(evidence, asked, weight)
    takers = [agent for agent, verdict_ in verdicts.items() if verdict_.action == "act"]
    return Guess(
        screening=best if found.scores[best].score > found.nobody else NOBODY,
        model=max(preference, key=lambda option: (preference[option], option)),
        both=takers[0] if takers else NOBODY,
        takers=len(takers),
    )
