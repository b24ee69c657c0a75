"""How large the scenarios of `agentd bench inference` are. Pure."""

from typing import Final, NamedTuple


class Sizes(NamedTuple):
    """How large the scenarios are on a kind of device. Lengths are tokens."""

    agents: int
    """Of a burst, which has as many slots."""
    prompt: int
    answer: int
    preamble: int
    residents: int
    """Agents with an identity each."""
    resident_slots: int
    identity: int
    rounds: int
    typed_agents: int
    typed_rounds: int
    low_agents: int
    low_slots: int
    low_s: float
    idle_asks: int
    long_prompt: int
    long_decode: int
    """What each of the decodes beside it has to say."""


CPU: Final = Sizes(
    agents=8, prompt=256, answer=64, preamble=2048,
    residents=12, resident_slots=4, identity=1024, rounds=10,
    typed_agents=8, typed_rounds=3,
    low_agents=16, low_slots=4, low_s=60.0, idle_asks=12,
    long_prompt=6000, long_decode=512,
)  # fmt: skip
GPU: Final = CPU._replace(
    agents=32, prompt=512, answer=128,
    typed_agents=32, low_agents=96, low_slots=32, long_decode=1024,
)  # fmt: skip


def quick(sizes: Sizes) -> Sizes:
    """To see whether it works. Such figures say little."""
    return sizes._replace(
        agents=sizes.agents // 2,
        prompt=sizes.prompt // 2,
        answer=sizes.answer // 2,
        preamble=sizes.preamble // 4,
        residents=6,
        resident_slots=2,
        identity=sizes.identity // 4,
        rounds=3,
        typed_agents=sizes.typed_agents // 2,
        typed_rounds=1,
        low_agents=sizes.low_agents // 2,
        low_slots=sizes.low_slots // 2,
        low_s=14.0,
        idle_asks=4,
        long_prompt=sizes.long_prompt // 4,
        long_decode=sizes.long_decode // 2,
    )
