"""The janitor sweeps on its own, rests in between, and comes back for what it passed over."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.bus.retention import Place
from orchestrator.janitor import (
    REST_FACTOR,
    REST_FACTOR_BEHIND,
    REST_SECONDS_MAX,
    REST_SECONDS_MIN,
    SWEEP_SECONDS_MAX,
    SWEEP_SECONDS_MIN,
    Janitor,
    place_after,
    rest_seconds,
    sweep_seconds,
)

Bus = Any
"""The fixture `bus`."""

DAY_US = 86_400_000_000
WEEK_US = 7 * DAY_US


async def answered(bus: Bus, *correlations: str) -> None:
    for correlation in correlations:
        await bus.ask(topic="ops.disk", correlation=correlation)
        await bus.do_next("opsclaw")
        await bus.do_next("conductor", ("user.reply", "done"), outcome="composed")


def janitor_of(bus: Bus, deleted: Counter[str]) -> Janitor:
    return Janitor(bus.store, WEEK_US, lambda: bus.now_us, deleted.update)


# ---- Decisions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("took_s", "late_us", "rests_s"),
    [
        (0.01, 0, 0.01 * REST_FACTOR),
        (0.01, WEEK_US // 10, 0.01 * REST_FACTOR),
        (0.01, WEEK_US // 10 + 1, 0.01 * REST_FACTOR_BEHIND),
        (0.0, 0, REST_SECONDS_MIN),
        (60.0, 0, REST_SECONDS_MAX),
    ],
)
def test_it_rests_the_longer_the_busier_the_store_is(
    took_s: float, late_us: int, rests_s: float
) -> None:
    assert rest_seconds(took_s, late_us, WEEK_US) == rests_s


@pytest.mark.parametrize(
    ("oldest_us", "waits_s"),
    [
        (None, SWEEP_SECONDS_MAX),
        (1_000, SWEEP_SECONDS_MIN),
        (1_000 + 600_000_000, 600.0),
        (1_000 + DAY_US, SWEEP_SECONDS_MAX),
        (0, SWEEP_SECONDS_MIN),
    ],
)
def test_it_waits_until_something_is_old(oldest_us: int | None, waits_s: float) -> None:
    assert sweep_seconds(oldest_us, before_us=1_000) == waits_s


def test_it_starts_over_every_hour() -> None:
    place = Place(conversation=7)
    assert place_after(place, SWEEP_SECONDS_MAX - 1) == place
    assert place_after(place, SWEEP_SECONDS_MAX) == Place()


# ---- On a bus -----------------------------------------------------------------------------------


async def test_it_deletes_what_is_old_and_counts_it(bus: Bus) -> None:
    await answered(bus, "c1", "c2")
    bus.now_us += WEEK_US + 1
    await answered(bus, "young", "newest")
    deleted: Counter[str] = Counter()
    told = asyncio.Event()

    def count(rows: Mapping[str, int]) -> None:
        deleted.update(rows)
        told.set()

    running = asyncio.create_task(Janitor(bus.store, WEEK_US, lambda: bus.now_us, count).run())
    await told.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await bus.value("SELECT count(*) FROM conversation") == 2
    assert (deleted["conversation"], deleted["message"], deleted["delivery"]) == (2, 6, 4)


async def test_a_sweep_ends_at_what_is_young_and_says_when_to_come_back(bus: Bus) -> None:
    await answered(bus, "c1")
    bus.now_us += DAY_US
    await answered(bus, "c2", "newest")
    bus.now_us += WEEK_US - DAY_US + 1
    deleted: Counter[str] = Counter()
    janitor = janitor_of(bus, deleted)
    place, waits_s = await janitor.sweep(Place())
    assert deleted["conversation"] == 1
    assert (place.conversation, waits_s) == (1, SWEEP_SECONDS_MAX)
    bus.now_us += DAY_US
    place, _ = await janitor.sweep(place)
    assert deleted["conversation"] == 2


async def test_what_was_passed_over_goes_when_it_starts_over(bus: Bus) -> None:
    await bus.ask(topic="ops.disk", correlation="slow")
    slow = await bus.leased("opsclaw")
    await answered_others(bus)
    deleted: Counter[str] = Counter()
    janitor = janitor_of(bus, deleted)
    bus.now_us += WEEK_US + 1
    place, _ = await janitor.sweep(Place())
    assert deleted["conversation"] == 1
    await bus.complete("opsclaw", slow)
    await bus.do_next("conductor", ("user.reply", "at last"), outcome="composed")
    await answered_others(bus, "newer")
    bus.now_us += WEEK_US + 1
    await answered_others(bus, "newest")
    await janitor.sweep(place)
    assert await bus.state("slow") == "answered"
    await janitor.sweep(Place())
    assert await bus.state("slow") is None


async def answered_others(bus: Bus, *correlations: str) -> None:
    """Conversations of the other agent's, so that nothing that waits is handled with them."""
    for correlation in correlations or ("c1", "c2"):
        await bus.ask(topic="dev.fix", correlation=correlation)
        await bus.do_next("devclaw")
        await bus.do_next("conductor", ("user.reply", "done"), outcome="composed")
