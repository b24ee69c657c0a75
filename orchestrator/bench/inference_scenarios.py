"""What `agentd bench inference` does to each server: its scenarios, in their sizes. Pure.

A plan is made from a seed. Repeats take different seeds, so that nothing is cached from the one
before; all who are measured in a repeat get the same one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from orchestrator.bench import inference_texts as texts
from orchestrator.bench.inference_load import Actor, Ask, Plan
from orchestrator.bench.inference_sizes import Sizes

Schemas = Mapping[str, dict[str, Any]]
"""By the name of a decision, in the order in which an agent makes them."""

CELLS_STEP: Final = 256
"""llama.cpp rounds the context of a sequence to this."""
SPARE_TOKENS: Final = 32
"""Of each sequence: control tokens that the model's template or its vocabulary adds."""
TOKENS_PER_SECOND_MIN: Final = 15.0
"""A run that is slower has failed: ten times less than one slow core makes."""
START_SECONDS: Final = 60.0
"""On top of that, for a run of a few tokens on a machine that is busy."""

ORDER_SECONDS: Final = 0.01
"""From one agent to the next within a round, so that all are asked in the same order."""
MESSAGE_TOKENS: Final = 64
"""What an agent is asked, behind its identity."""
REPLY_TOKENS: Final = 32
TYPED_IDENTITY_TOKENS: Final = 96
TYPED_TOKENS_MAX: Final = 256
"""More than the longest decision has: what is cut off is not valid."""
INSTRUCTION: Final = " Answer with one JSON object."

WARM_UP_PROMPT_TOKENS: Final = 32
WARM_UP_TOKENS: Final = 4

URGENT_PROMPT_TOKENS: Final = 32
URGENT_TOKENS: Final = 16
URGENT_EVERY_S: Final = 2.0
IDLE_EVERY_S: Final = 1.0
LOW_PROMPT_TOKENS: Final = 64
LOW_TOKENS: Final = 128
LOW_ASKS: Final = 32
"""Different ones of each agent, before it begins again."""
LOW_TRIAL_S: Final = 12.0
LOW_FILL_S: Final = 4.0
"""Until the slots are full and others wait."""

LONG_BEGIN_S: Final = 1.5
"""Until the decodes beside it have their first tokens."""
LONG_TOKENS: Final = 8
LONG_DECODES: Final = 4
LONG_DECODE_PROMPT_TOKENS: Final = 32


class Scenario(NamedTuple):
    """One of them: what a server needs for it, and its run."""

    name: str
    slots: int
    context: int
    """Of all slots."""
    plan: Callable[[int], Plan]
    """By a seed."""
    trial: Callable[[int], Plan]
    """A shorter run, to find a server's best settings."""


def _scenario(
    name: str,
    slots: int,
    sequence: int,
    plan: Callable[[int], Plan],
    trial: Callable[[int], Plan] | None = None,
) -> Scenario:
    """`sequence` is how many tokens the longest one has, prompt and answer."""
    cells = -(-(sequence + SPARE_TOKENS) // CELLS_STEP) * CELLS_STEP
    return Scenario(name, slots, slots * cells, plan, trial or plan)


def _limit_s(actors: list[Actor]) -> float:
    """A word is a token, nearly."""
    asks = [ask for actor in actors for ask in actor.asks]
    tokens = sum(ask.text.count(" ") + ask.identity.count(" ") + ask.tokens_max for ask in asks)
    return START_SECONDS + tokens / TOKENS_PER_SECOND_MIN


def _plan(actors: list[Actor], *, rounds: bool = False) -> Plan:
    return Plan(actors=actors, limit_s=_limit_s(actors), rounds=rounds)


def warm_up(scenario: Scenario) -> Plan:
    """One short request of the first agent: then the model is loaded and has run."""
    first = scenario.plan(0).actors[0]
    ask = Ask(text=texts.endless(WARM_UP_PROMPT_TOKENS, "warm"), tokens_max=WARM_UP_TOKENS)
    warm = Actor(name=first.name, kind=first.kind, priority=first.priority, asks=[ask])
    return _plan([warm])


URGENT: Final = "urgent"
LOW: Final = "low"
AGENT: Final = "agent"
DECODE: Final = "decode"
PREFILL: Final = "prefill"
"""Kinds of actors; those of a kind are counted together."""


def _agent(number: int) -> str:
    return f"agent{number:02}"


# ---- All at once --------------------------------------------------------------------------------


def burst(sizes: Sizes) -> Scenario:
    """Everybody asks at the same time, and there is a slot for each."""

    def plan(seed: int) -> Plan:
        return _plan(
            [
                Actor(
                    name=_agent(number),
                    kind=AGENT,
                    asks=[
                        Ask(
                            text=texts.endless(sizes.prompt, "burst", seed, number),
                            tokens_max=sizes.answer,
                        )
                    ],
                )
                for number in range(sizes.agents)
            ]
        )

    name = f"{sizes.agents} agents at once, {sizes.prompt} in, {sizes.answer} out"
    return _scenario(name, sizes.agents, sizes.prompt + sizes.answer, plan)


def preamble(sizes: Sizes) -> Scenario:
    """The same, behind a text that all have in common and nobody has read before."""

    def plan(seed: int) -> Plan:
        common = texts.opening(sizes.preamble, "preamble", seed)
        return _plan(
            [
                Actor(
                    name=_agent(number),
                    kind=AGENT,
                    asks=[
                        Ask(
                            text=common + texts.going_on(sizes.prompt, "own", seed, number),
                            tokens_max=sizes.answer,
                        )
                    ],
                )
                for number in range(sizes.agents)
            ]
        )

    name = f"the same from cold behind a common preamble of {sizes.preamble}"
    sequence = sizes.preamble + sizes.prompt + sizes.answer
    return _scenario(name, sizes.agents, sequence, plan)


# ---- Identities ---------------------------------------------------------------------------------


def identities(sizes: Sizes) -> Scenario:
    """More agents than slots, each with a beginning of its own that should not be read again."""

    def plan(seed: int, rounds: int) -> Plan:
        places = [_places(sizes.residents, seed, turn) for turn in range(rounds)]
        return _plan(
            [
                Actor(
                    name=_agent(number),
                    kind=AGENT,
                    asks=[
                        Ask(
                            text=texts.opening(sizes.identity, "identity", seed, number)
                            + texts.going_on(MESSAGE_TOKENS, "message", seed, number, turn),
                            tokens_max=REPLY_TOKENS,
                            delay_s=places[turn][number] * ORDER_SECONDS,
                        )
                        for turn in range(rounds)
                    ],
                )
                for number in range(sizes.residents)
            ],
            rounds=True,
        )

    name = (
        f"{sizes.residents} agents on {sizes.resident_slots} slots, identities of "
        f"{sizes.identity}, {sizes.rounds} rounds"
    )
    sequence = sizes.identity + MESSAGE_TOKENS + REPLY_TOKENS
    return _scenario(
        name,
        sizes.resident_slots,
        sequence,
        lambda seed: plan(seed, sizes.rounds),
        lambda seed: plan(seed, min(2, sizes.rounds)),
    )


def _places(count: int, *seed: object) -> dict[int, int]:
    """Each agent's place in a round."""
    return {agent: place for place, agent in enumerate(texts.shuffled(count, *seed))}


# ---- Typed decisions ----------------------------------------------------------------------------


def typed(sizes: Sizes, how: str, schemas: Schemas) -> Scenario:
    """Every agent triages, acts and reflects, again and again. Answers are as long as they are."""

    def plan(seed: int, rounds: int) -> Plan:
        return _plan(
            [
                Actor(
                    name=_agent(number),
                    kind=AGENT,
                    asks=[
                        Ask(
                            identity=texts.opening(TYPED_IDENTITY_TOKENS, "typed", seed, number),
                            text=texts.opening(MESSAGE_TOKENS, "event", seed, number, turn)
                            + INSTRUCTION,
                            tokens_max=TYPED_TOKENS_MAX,
                            schema=schema,
                        )
                        for turn in range(rounds)
                        for schema in schemas.values()
                    ],
                )
                for number in range(sizes.typed_agents)
            ]
        )

    decisions = ", ".join(schemas)
    name = f"{sizes.typed_agents} agents, typed decisions ({decisions}), {how}"
    sequence = TYPED_IDENTITY_TOKENS + MESSAGE_TOKENS + TYPED_TOKENS_MAX
    return _scenario(
        name,
        sizes.typed_agents,
        sequence,
        lambda seed: plan(seed, sizes.typed_rounds),
        lambda seed: plan(seed, 1),
    )


# ---- Urgent beside low --------------------------------------------------------------------------


class Urgency(NamedTuple):
    """Three runs of the same servers, whose differences are the measure."""

    mixed: Scenario
    low_alone: Callable[[int], Plan]
    idle: Callable[[int], Plan]


def urgency(sizes: Sizes) -> Urgency:
    """More low work than there are slots; and one urgent request every two seconds."""

    def mixed(seed: int, low_s: float) -> Plan:
        return _plan([*_low(sizes, low_s, seed), _urgent(LOW_FILL_S, low_s, seed)])

    name = (
        f"{sizes.low_agents} agents of low work on {sizes.low_slots} slots, one urgent request "
        f"every {URGENT_EVERY_S:g} s"
    )
    return Urgency(
        _scenario(
            name,
            sizes.low_slots,
            LOW_PROMPT_TOKENS + LOW_TOKENS,
            lambda seed: mixed(seed, sizes.low_s),
            lambda seed: mixed(seed, min(LOW_TRIAL_S, sizes.low_s)),
        ),
        low_alone=lambda seed: _plan(_low(sizes, sizes.low_s, seed)),
        idle=lambda seed: _plan([_idle(sizes, seed)]),
    )


def _low(sizes: Sizes, until_s: float, seed: int) -> list[Actor]:
    return [
        Actor(
            name=_agent(number),
            kind=LOW,
            priority="low",
            asks=[
                Ask(
                    text=texts.endless(LOW_PROMPT_TOKENS, "low", seed, number, turn),
                    tokens_max=LOW_TOKENS,
                )
                for turn in range(LOW_ASKS)
            ],
            until_s=until_s,
        )
        for number in range(sizes.low_agents)
    ]


def _urgent(begin_s: float, until_s: float, seed: int) -> Actor:
    return Actor(
        name=URGENT,
        kind=URGENT,
        priority="urgent",
        asks=_urgent_asks(round((until_s - begin_s) / URGENT_EVERY_S), "beside", seed),
        begin_s=begin_s,
        until_s=until_s,
        every_s=URGENT_EVERY_S,
    )


def _idle(sizes: Sizes, seed: int) -> Actor:
    return Actor(
        name=URGENT,
        kind=URGENT,
        priority="urgent",
        asks=_urgent_asks(sizes.idle_asks, "idle", seed),
        until_s=sizes.idle_asks * IDLE_EVERY_S,
        every_s=IDLE_EVERY_S,
    )


def _urgent_asks(count: int, *seed: object) -> list[Ask]:
    return [
        Ask(text=texts.endless(URGENT_PROMPT_TOKENS, *seed, number), tokens_max=URGENT_TOKENS)
        for number in range(count)
    ]


# ---- One long prompt ----------------------------------------------------------------------------


def long_prompt(sizes: Sizes) -> Scenario:
    """Four that decode, and one that comes with a long prompt of the same class."""

    def plan(seed: int) -> Plan:
        decodes = [
            Actor(
                name=_agent(number),
                kind=DECODE,
                asks=[
                    Ask(
                        text=texts.endless(LONG_DECODE_PROMPT_TOKENS, "decode", seed, number),
                        tokens_max=sizes.long_decode,
                    )
                ],
            )
            for number in range(LONG_DECODES)
        ]
        long = Actor(
            name=_agent(LONG_DECODES),
            kind=PREFILL,
            asks=[
                Ask(
                    text=texts.endless(sizes.long_prompt, "long", seed),
                    tokens_max=LONG_TOKENS,
                )
            ],
            begin_s=LONG_BEGIN_S,
        )
        return _plan([*decodes, long])

    name = f"a prompt of {sizes.long_prompt} beside {LONG_DECODES} decodes"
    return _scenario(name, LONG_DECODES + 1, sizes.long_prompt + LONG_TOKENS, plan)
