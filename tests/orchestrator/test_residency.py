"""Which models are loaded: who goes for whom, and that nobody waits for ever."""

import random
from typing import Any

import msgspec
import pytest

from ipc_protocol.inference import KvType
from orchestrator.residency import AGE_US, STAY_US, Ask, Model, Plan, decide, expected_bytes

URGENT, HIGH, NORMAL, LOW = 0, 1, 2, 3
LATER = 10 * AGE_US
"""Everything has been where it is for long."""


def ask(rank: int = NORMAL, since_us: int = LATER) -> tuple[Ask, ...]:
    return (Ask(rank, since_us),)


def inside(name: str, bytes_: int, **more: Any) -> Model:
    return Model(name, bytes_, place="in", **more)


# ---- What fits -----------------------------------------------------------------------------------


def test_what_nobody_asks_for_is_not_loaded() -> None:
    assert decide([Model("a", 1)], 10, LATER) == Plan()


def test_what_is_asked_for_is_loaded_where_there_is_room() -> None:
    models = [inside("a", 6, asks=ask()), Model("b", 4, asks=ask())]
    assert decide(models, 10, LATER) == Plan(load=("b",))


def test_at_the_start_the_pinned_ones_come_first_and_wishes_last_and_without_force() -> None:
    models = [
        Model("wished", 3, wished=True),
        Model("too_much", 3, wished=True),
        Model("asked", 3, asks=ask()),
        Model("pinned", 3, pinned=True),
    ]
    plan = decide(models, 10, LATER)
    assert plan == Plan(load=("pinned", "asked", "wished"), decline=("too_much",))


def test_what_can_never_fit_is_refused() -> None:
    assert decide([Model("a", 11, asks=ask())], 10, LATER) == Plan(refuse=("a",))
    pinned = inside("p", 6, pinned=True)
    assert decide([pinned, Model("a", 5, asks=ask())], 10, LATER) == Plan(refuse=("a",))
    models = [Model("p", 6, pinned=True), Model("a", 5, asks=ask())]
    assert decide(models, 10, LATER) == Plan(load=("p",), refuse=("a",))


def test_what_takes_no_memory_is_always_loaded() -> None:
    models = [inside("a", 12), Model("remote", 0, asks=ask())]
    assert decide(models, 10, LATER) == Plan(load=("remote",))


def test_one_alone_goes_ahead_while_the_budget_is_unknown() -> None:
    models = [
        Model("a", 5, wished=True),
        Model("b", 6, asks=ask()),
        Model("remote", 0, wished=True),
    ]
    assert decide(models, None, LATER) == Plan(load=("remote", "b"))
    assert decide([inside("b", 6), Model("a", 5, asks=ask())], None, LATER) == Plan()
    assert decide([], None, LATER) == Plan()


# ---- Who goes ------------------------------------------------------------------------------------


def test_idle_ones_go_before_busy_ones_then_the_least_urgent_then_the_least_recently_used() -> None:
    ranking = [
        inside("idle, of low, long ago", 2, rank=LOW, used_us=1),
        inside("idle, of low", 2, rank=LOW, used_us=2),
        inside("idle, of urgent", 2, rank=URGENT, used_us=0),
        inside("busy with low", 2, asks=ask(LOW)),
        inside("busy with high", 2, asks=ask(HIGH)),
    ]
    names = [model.name for model in ranking]
    random.Random(1).shuffle(ranking)
    for count in range(1, len(names) + 1):
        asker = Model("new", 2 * count, asks=ask(URGENT))
        plan = decide([*ranking, asker], 10, LATER)
        assert sorted(plan.unload) == sorted(names[:count])
        assert plan.load == ()


def test_a_large_one_that_goes_spares_the_small_ones_before_it() -> None:
    models = [
        inside("small", 2, used_us=1),
        inside("large", 8, used_us=2),
        Model("new", 8, asks=ask()),
    ]
    assert decide(models, 10, LATER).unload == ("large",)


def test_a_pinned_one_never_goes() -> None:
    models = [inside("p", 5, pinned=True), inside("a", 5), Model("new", 5, asks=ask(URGENT))]
    assert decide(models, 10, LATER).unload == ("a",)


def test_a_pinned_one_takes_its_room_from_busy_ones() -> None:
    models = [inside("a", 8, asks=ask(URGENT)), Model("p", 5, pinned=True)]
    assert decide(models, 10, LATER).unload == ("a",)


@pytest.mark.parametrize(
    ("asker", "busy", "goes"),
    [
        (URGENT, HIGH, True),
        (HIGH, NORMAL, True),
        (NORMAL, NORMAL, False),
        (LOW, NORMAL, False),
        (URGENT, URGENT, False),
    ],
)
def test_a_busy_one_goes_for_a_strictly_more_urgent_request_alone(
    asker: int, busy: int, goes: bool
) -> None:
    models = [inside("a", 8, asks=ask(busy)), Model("new", 8, asks=ask(asker))]
    assert bool(decide(models, 10, LATER).unload) is goes


def test_the_most_urgent_of_its_requests_protects_a_model() -> None:
    both = (Ask(LOW, LATER), Ask(NORMAL, LATER))
    models = [inside("a", 8, asks=both), Model("new", 8, asks=ask(NORMAL))]
    assert decide(models, 10, LATER).unload == ()


def test_the_most_urgent_asker_is_served_first_then_the_first_that_came() -> None:
    models = [
        inside("idle", 8),
        Model("late", 8, asks=ask(NORMAL, LATER - 1)),
        Model("early", 6, asks=ask(NORMAL, LATER - 2)),
        Model("high", 4, asks=ask(HIGH)),
    ]
    assert decide(models, 10, LATER) == Plan(unload=("idle",))
    smaller = [inside("idle", 4), *models[1:]]
    assert decide(smaller, 10, LATER).load == ("high",)
    assert decide(smaller[:-1], 10, LATER).load == ("early",)


# ---- Room that is being made ---------------------------------------------------------------------


def test_while_room_is_made_for_one_nothing_else_is_unloaded_or_loaded() -> None:
    models = [
        Model("leaves", 6, place="leaving"),
        inside("idle", 2),
        Model("new", 8, asks=ask(HIGH)),
        Model("small", 1, asks=ask(NORMAL)),
    ]
    assert decide(models, 10, LATER) == Plan()


def test_who_can_only_wait_leaves_what_is_free_to_those_behind_who_may_unload_nothing() -> None:
    models = [
        inside("busy", 6, asks=ask(HIGH)),
        inside("idle", 2),
        Model("large", 6, asks=ask(HIGH)),
        Model("medium", 3, asks=ask(NORMAL)),
        Model("small", 2, asks=ask(LOW)),
    ]
    plan = decide(models, 10, LATER)
    assert (plan.load, plan.unload) == (("small",), ())


# ---- Time ----------------------------------------------------------------------------------------


def test_what_was_just_loaded_stays_for_a_while_unless_it_is_urgent() -> None:
    def models(rank: int) -> list[Model]:
        return [inside("a", 8, since_us=LATER), Model("new", 8, asks=ask(rank))]

    assert decide(models(HIGH), 10, LATER) == Plan(again_us=LATER + STAY_US)
    assert decide(models(HIGH), 10, LATER + STAY_US).unload == ("a",)
    assert decide(models(URGENT), 10, LATER).unload == ("a",)


def test_who_waits_for_a_model_rises_until_it_takes_what_its_own_class_keeps_busy() -> None:
    models = [inside("a", 8, asks=ask(NORMAL, 0)), Model("new", 8, asks=ask(NORMAL))]
    assert decide(models, 10, LATER) == Plan(again_us=LATER + AGE_US)
    assert decide(models, 10, LATER + AGE_US - 1).unload == ()
    assert decide(models, 10, LATER + AGE_US).unload == ("a",)


def test_it_counts_from_when_the_model_went_out_however_old_the_request_is() -> None:
    models = [
        inside("a", 8, asks=ask(NORMAL)),
        Model("new", 8, since_us=LATER, asks=ask(NORMAL, 0)),
    ]
    assert decide(models, 10, LATER) == Plan(again_us=LATER + AGE_US)


def test_nobody_rises_so_far_that_he_takes_a_model_from_urgent_requests_but_an_urgent_one() -> None:
    def models(rank: int) -> list[Model]:
        return [inside("a", 8, asks=ask(URGENT, 0)), Model("new", 8, asks=ask(rank, 0))]

    assert decide(models(LOW), 10, LATER) == Plan()
    assert decide(models(URGENT), 10, LATER).unload == ("a",)


@pytest.mark.parametrize("seed", range(15))
def test_whoever_asks_is_served_within_a_bounded_time(seed: int) -> None:
    """Models that are asked for at random, each always busy for a while, and small memory."""
    chance = random.Random(seed)
    sizes = {name: chance.randint(1, 5) for name in "abcd"}
    budget = max(*sizes.values(), 6)
    state = {name: Model(name, size) for name, size in sizes.items()}
    now_us, loads, horizon_us = 0, 0, 30 * AGE_US
    while now_us < horizon_us:
        for name, model in state.items():
            asks = model.asks
            if chance.random() < 0.3:
                asks = (*asks, Ask(chance.randint(HIGH, LOW), now_us))
            if model.place == "in":  # it serves the oldest
                asks = asks[1:]
            used_us = now_us if asks else model.used_us
            state[name] = msgspec.structs.replace(model, asks=asks, used_us=used_us)
            for waiting in asks:
                waited_us = now_us - waiting.since_us
                assert waited_us <= 4 * len(sizes) * AGE_US, f"seed {seed}: {name}"
        for _ in range(len(sizes) + 1):
            plan = decide(list(state.values()), budget, now_us)
            for name in plan.unload:
                model = state[name]
                state[name] = Model(name, model.bytes, since_us=now_us, asks=model.asks)
            for name in plan.load:
                model = state[name]
                loads += 1
                state[name] = inside(name, model.bytes, since_us=now_us, asks=model.asks)
            assert sum(one.bytes for one in state.values() if one.place == "in") <= budget
            if not plan.unload and not plan.load:
                break
        now_us += 1_000_000
    assert loads <= len(sizes) * (horizon_us // STAY_US + 1), f"seed {seed}"


# ---- What a model will take ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kv_type", "expected"), [("f16", 1000 + 8192), ("f32", 1000 + 16384), ("q8_0", 1000 + 4352)]
)
def test_a_model_is_expected_to_take_its_file_and_its_cache(kv_type: KvType, expected: int) -> None:
    assert expected_bytes(1000, 64, 128, kv_type) == expected
