"""What a trace says about deliveries that are parked, tried again, dead, or sent again."""

from typing import Any

from ipc_protocol import control
from orchestrator.bus.leasing import Fail, Park, fail, park
from orchestrator.bus.limits import DEFERRAL_US_MIN
from orchestrator.bus.replaying import Replay, replay_letters
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.cli import output, trace_view
from orchestrator.control.views import Views

Bus = Any
"""The fixture `bus`."""


async def trace(bus: Bus) -> control.Trace:
    return await Views(bus.reader).trace("c1")


async def only_delivery(bus: Bus) -> control.TracedDelivery:
    (delivery,) = (await trace(bus)).deliveries
    return delivery


def drawn(shown: control.Trace) -> str:
    console = output.console()
    with console.capture() as capture:
        console.print(trace_view.trace(shown), soft_wrap=True)
    return capture.get()


async def failed(bus: Bus, delivery: int, *, final: bool = False) -> None:
    arguments = Fail(
        delivery=delivery, incarnation="w1", error="crash", worker_died=not final, final=final
    )
    await bus.store.apply(fail, BUS, arguments)


async def test_a_parked_delivery_says_why_until_when_and_for_whom(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    delivery = await bus.leased("opsclaw")
    arguments = Park(
        delivery=delivery, incarnation="w1", reason="job", until_us=bus.now_us + 1, on="a long job"
    )
    await bus.store.apply(park, BUS, arguments)
    shown = await only_delivery(bus)
    assert (shown.state, shown.parked_reason, shown.parked_on, shown.parked_until_us) == (
        "parked",
        "job",
        "a long job",
        bus.now_us + 1,
    )
    assert "parked: job  on a long job  until" in drawn(await trace(bus))


async def test_a_delivery_says_how_often_it_was_tried_and_what_went_wrong_last(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    begun_us = bus.now_us
    await failed(bus, await bus.leased("opsclaw"))
    bus.now_us += 7
    await bus.leased("opsclaw")
    shown = await only_delivery(bus)
    assert (shown.state, shown.deaths, shown.attempts, shown.last_error) == (
        "leased",
        1,
        2,
        "crash",
    )
    assert (shown.begun_us, shown.run) == (begun_us, 0)
    assert "1 workers died of it" in drawn(await trace(bus))


async def test_a_deferral_begins_another_run(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    until_us = bus.now_us + DEFERRAL_US_MIN
    await bus.do_next("opsclaw", outcome="deferred", until_us=until_us)
    shown = await only_delivery(bus)
    assert (shown.run, shown.parked_reason, shown.begun_us) == (1, "deferred", None)


async def test_an_output_stands_under_the_delivery_that_published_it(bus: Bus) -> None:
    question = await bus.ask(topic="user.request")
    await bus.do_next("opsclaw", ("agent.devclaw", "write a script"), ("not.mine", "x"))
    shown = await trace(bus)
    asked, delegated = shown.messages
    handled = next(one for one in shown.deliveries if one.agent == "opsclaw")
    assert (asked.produced_by, asked.hops) == (None, 0)
    assert (delegated.cause, delegated.produced_by, delegated.hops) == (
        question.message,
        handled.delivery,
        1,
    )
    (letter,) = shown.dead_letters
    assert (letter.delivery, letter.message, letter.topic, letter.code) == (
        handled.delivery,
        None,
        "not.mine",
        "bus.not-permitted",
    )
    lines = drawn(shown).splitlines()
    depth = {word: next(line.index(word) for line in lines if word in line) for word in WORDS}
    assert depth["→ user.request"] < depth["acted"] < depth["→ agent.devclaw"]
    assert depth["dead letter"] < depth["→ not.mine"]


WORDS = ("→ user.request", "acted", "→ agent.devclaw", "dead letter", "→ not.mine")


async def test_a_dead_letter_says_as_what_it_was_sent_again(bus: Bus) -> None:
    await bus.ask(topic="ops.disk", asked=False)
    await failed(bus, await bus.leased("opsclaw"), final=True)
    ((number,),) = await bus.reader.fetch("SELECT id FROM dead_letter")
    (outcome,) = await bus.store.apply(replay_letters, OPERATOR, Replay(letters=[number]))
    shown = await trace(bus)
    (letter,) = shown.dead_letters
    assert (letter.number, letter.code, letter.replayed_as) == (
        number,
        "work.refused",
        outcome.message,
    )
    assert [delivery.state for delivery in shown.deliveries] == ["dead", "queued"]
    text = drawn(shown)
    assert f"sent again as message {outcome.message}" in text
    assert text.count("dead letter") == 1


async def test_counts_are_those_of_the_table(bus: Bus) -> None:
    await bus.ask(topic="user.request")
    await bus.do_next("opsclaw", outcome="ignored")
    await bus.ask(topic="ops.disk")
    await failed(bus, await bus.leased("opsclaw"), final=True)
    await bus.ask(topic="ops.disk")
    delivery = await bus.leased("opsclaw")
    await bus.store.apply(park, BUS, Park(delivery=delivery, incarnation="w1", reason="job"))
    await bus.ask(topic="ops.disk")
    counts = await Views(bus.reader).counts()
    sql = "SELECT state, count(*) FROM delivery GROUP BY state"
    assert counts.deliveries == dict(await bus.reader.fetch(sql))
    assert counts.agents == {"opsclaw": (1, 1, 1), "devclaw": (1, 0, 0)}
    assert (counts.parked, sum(counts.queued.values())) == ({"job": 1}, 2)
    assert counts.dead_letters == 1
