"""Names of conversations."""

from typing import Any

from orchestrator.bus.correlations import NAMES_PER_TICK, TICK_US, Names, fresh, is_own
from orchestrator.store.store import Store

Bus = Any
"""The fixture `bus`."""

NOW_US = 1_800_000_000_000_000


def test_names_are_in_the_order_in_which_they_were_made() -> None:
    names = Names()
    made = [
        name
        for now_us in (NOW_US, NOW_US, NOW_US + TICK_US, NOW_US + 9 * TICK_US)
        for name in names.next(now_us, 40)
    ]
    assert made == sorted(set(made))
    assert len(made) == 160


def test_a_clock_that_is_set_back_repeats_no_name() -> None:
    names = Names()
    made = names.next(NOW_US, 3) + names.next(NOW_US - 50 * TICK_US, 3)
    assert len(set(made)) == 6


def test_more_than_a_tick_has_are_taken_from_the_next() -> None:
    names = Names()
    first = names.next(NOW_US, NAMES_PER_TICK)
    (following,) = names.next(NOW_US, 1)
    assert following > first[-1]


def test_another_life_goes_on_behind_the_latest_name() -> None:
    *_, latest = Names().next(NOW_US, 3)
    (following,) = Names(latest).next(NOW_US, 1)
    assert following > latest


def test_a_clients_own_name_is_none_of_the_buss() -> None:
    (own,) = Names().next(NOW_US, 1)
    assert is_own(own)
    assert not is_own(fresh())


async def test_a_daemon_with_its_clock_set_back_repeats_no_name(bus: Bus) -> None:
    first = await bus.ask(topic="ops.disk", correlation=None)
    await bus.store.close()
    bus.now_us -= 3600_000_000
    bus.store = await Store.open(bus.path, clock_us=lambda: bus.now_us)
    second = await bus.ask(topic="ops.disk", correlation=None)
    assert second.correlation > first.correlation
