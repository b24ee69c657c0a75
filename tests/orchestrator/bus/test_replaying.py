"""Dead letters that a person sends again or removes, on a real store."""

from typing import Any

import msgspec
import pytest

from ipc_protocol.errors import Failure
from orchestrator.bus.leasing import Fail, ResumeDue, fail, resume_due
from orchestrator.bus.limits import CONVERSATION_MESSAGES_MAX, DEATHS_MAX, MESSAGE_TTL_US
from orchestrator.bus.registration import Registration, RetireAgent, retire_agent
from orchestrator.bus.replaying import (
    LEFT_OUT,
    Purge,
    Replay,
    Replayed,
    purge_letters,
    replay_letters,
)
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.store.audit import first_broken

Bus = Any
"""The fixture `bus`."""

REPORTER = Registration(name="opsclaw", consumes=["ops.>"], publishes=["ops.report"])
AUDITOR = Registration(name="auditor", consumes=["ops.report"])


async def failed(bus: Bus, delivery: int, error: str = "crash", *, final: bool = False) -> None:
    arguments = Fail(
        delivery=delivery, incarnation="w1", error=error, worker_died=not final, final=final
    )
    await bus.store.apply(fail, BUS, arguments)


async def letters(bus: Bus) -> list[int]:
    return [row[0] for row in await bus.reader.fetch("SELECT id FROM dead_letter ORDER BY id")]


async def die(bus: Bus, topic: str = "ops.disk", agent: str = "opsclaw", **more: Any) -> int:
    """The dead letter of a delivery whose completion was refused, for which nobody waits."""
    await bus.ask(topic=topic, **{"asked": False, **more})
    await failed(bus, await bus.leased(agent), "refused", final=True)
    return (await letters(bus))[-1]


async def replayed(bus: Bus, *numbers: int, again: bool = False) -> list[Replayed]:
    arguments = Replay(letters=list(numbers), again=again)
    found: list[Replayed] = await bus.store.apply(replay_letters, OPERATOR, arguments)
    return found


async def refusal(bus: Bus, number: int, *, again: bool = False) -> str:
    (outcome,) = await replayed(bus, number, again=again)
    assert outcome.message is None and outcome.problem is not None
    return outcome.problem.code


async def purged(bus: Bus, *numbers: int, **more: Any) -> int:
    count: int = await bus.store.apply(
        purge_letters, OPERATOR, Purge(letters=list(numbers), **more)
    )
    return count


# ---- What is kept of a death ---------------------------------------------------------------------


async def test_a_dead_letter_says_what_went_wrong_before_it_died(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    for number in range(DEATHS_MAX):
        await failed(bus, await bus.leased("opsclaw"), f"crash {number + 1}")
    sql = "SELECT code, reason, last_error, attempts FROM dead_letter"
    assert await bus.reader.fetch(sql) == [("work.deaths", "crash 5", "crash 4", DEATHS_MAX)]


async def test_what_died_at_once_has_no_last_error(bus: Bus) -> None:
    await die(bus)
    assert await bus.value("SELECT last_error FROM dead_letter") == ""


async def test_an_output_that_cannot_arrive_has_the_last_error_of_its_delivery(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    await failed(bus, await bus.leased("opsclaw"), "crash")
    await bus.do_next("opsclaw", ("not.mine", "x"))
    assert await bus.value("SELECT last_error FROM dead_letter") == "crash"


# ---- A delivery that died ------------------------------------------------------------------------


async def test_a_delivery_that_died_is_repeated_for_its_receiver_alone(bus: Bus) -> None:
    letter = await die(bus, "user.request", "opsclaw")
    (outcome,) = await replayed(bus, letter)
    assert (outcome.correlation, outcome.problem) == ("c1", None)
    sql = "SELECT agent, state FROM delivery WHERE message = ?"
    assert await bus.reader.fetch(sql, (outcome.message,)) == [("opsclaw", "queued")]
    lease = await bus.lease("opsclaw")
    assert lease is not None
    envelope = lease.handle.envelope
    assert (envelope.id, envelope.payload, envelope.sender) == (
        outcome.message,
        b"disk full",
        OPERATOR,
    )


async def test_it_is_in_its_old_class_with_hops_and_time_to_live_begun_anew(bus: Bus) -> None:
    letter = await die(bus, priority="urgent", expires_us=bus.now_us + 1000)
    bus.now_us += MESSAGE_TTL_US
    (outcome,) = await replayed(bus, letter)
    sql = "SELECT class, hops, expires_us FROM message WHERE id = ?"
    assert await bus.reader.fetch(sql, (outcome.message,)) == [(0, 0, bus.now_us + MESSAGE_TTL_US)]
    assert await bus.value("SELECT class FROM delivery WHERE message = ?", outcome.message) == 0


async def test_what_nobody_began_in_time_can_be_handled_after_all(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    bus.now_us += MESSAGE_TTL_US
    await bus.store.apply(resume_due, BUS, ResumeDue())
    (letter,) = await letters(bus)
    assert await bus.value("SELECT code FROM dead_letter") == "bus.expired"
    await replayed(bus, letter)
    assert (await bus.do_next("opsclaw")).state == "done"


async def test_an_answered_conversation_opens_again(bus: Bus) -> None:
    letter = await die(bus)
    assert await bus.state() == "answered"
    await replayed(bus, letter)
    assert await bus.state() == "open"
    await bus.do_next("opsclaw", ("user.reply", "freed"))
    assert await bus.state() == "composing"
    lease = await bus.lease("conductor")
    assert [answer.text for answer in lease.handle.answers] == ["freed"]


async def test_what_had_to_be_taken_still_has_to_be(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    await bus.do_next("opsclaw", ("agent.devclaw", "write a script"))
    await failed(bus, await bus.leased("devclaw"), "refused", final=True)
    (letter,) = await letters(bus)
    (outcome,) = await replayed(bus, letter)
    sql = "SELECT must_take, screened FROM delivery WHERE message = ?"
    assert await bus.reader.fetch(sql, (outcome.message,)) == [(1, 1)]
    cause = await bus.value("SELECT cause FROM message WHERE id = ?", outcome.message)
    assert cause == await bus.value("SELECT min(id) FROM message")


async def test_it_counts_towards_the_messages_of_its_conversation(bus: Bus) -> None:
    letter = await die(bus)
    before = await bus.value("SELECT messages FROM conversation")
    await replayed(bus, letter)
    assert await bus.value("SELECT messages FROM conversation") == before + 1


# ---- A composition that died ---------------------------------------------------------------------


async def composition_died(bus: Bus) -> int:
    await bus.ask(topic="ops.disk")
    await bus.do_next("opsclaw", ("user.reply", "freed"))
    await failed(bus, await bus.leased("conductor"), "refused", final=True)
    assert await bus.state() == "answered"
    return (await letters(bus))[-1]


async def test_a_composition_that_died_is_repeated_with_the_answers_that_it_had(bus: Bus) -> None:
    letter = await composition_died(bus)
    await replayed(bus, letter)
    assert await bus.state() == "composing"
    lease = await bus.lease("conductor")
    assert lease is not None and lease.composing
    assert [answer.text for answer in lease.handle.answers] == ["freed"]
    delivery = lease.handle.delivery
    await bus.complete("conductor", delivery, ("user.reply", "All is well."), outcome="composed")
    assert await bus.value("SELECT reply FROM conversation") == "All is well."
    assert await bus.state() == "answered"


async def test_a_composition_is_not_repeated_where_the_conversation_has_gone_on(bus: Bus) -> None:
    letter = await composition_died(bus)
    await bus.ask("and now?", topic="ops.disk")
    assert await refusal(bus, letter) == "deadletter.unsendable"


# ---- An output that never became a message -------------------------------------------------------


async def output_died(bus: Bus, topic: str = "not.mine", text: str = "report") -> int:
    await bus.ask(topic="ops.disk", asked=True)
    await bus.do_next("opsclaw", (topic, text))
    return (await letters(bus))[-1]


async def test_an_output_goes_through_the_routing_rules_in_its_senders_name(bus: Bus) -> None:
    letter = await output_died(bus, "ops.report")
    assert await refusal(bus, letter) == "bus.no-subscriber"
    await bus.register(REPORTER, AUDITOR)
    (outcome,) = await replayed(bus, letter)
    sql = "SELECT sender, topic, payload, hops FROM message WHERE id = ?"
    row = ("opsclaw", "ops.report", b"report", 0)
    assert await bus.reader.fetch(sql, (outcome.message,)) == [row]
    sql = "SELECT agent FROM delivery WHERE message = ?"
    assert await bus.reader.fetch(sql, (outcome.message,)) == [("auditor",)]


async def test_an_output_that_is_not_permitted_stays_so_until_it_is(bus: Bus) -> None:
    letter = await output_died(bus, "not.mine")
    assert await refusal(bus, letter) == "bus.not-permitted"
    assert await bus.value("SELECT replayed_as FROM dead_letter") is None


async def test_an_output_of_an_agent_that_is_gone_is_refused(bus: Bus) -> None:
    letter = await output_died(bus)
    await bus.register(AUDITOR)
    assert await refusal(bus, letter) == "agent.unknown"


async def test_outputs_that_were_not_kept_cannot_be_sent(bus: Bus) -> None:
    letter = await output_died(bus)
    await changed(bus, letter, "code", LEFT_OUT)
    assert await refusal(bus, letter) == "deadletter.unsendable"


async def test_an_answer_that_is_sent_after_all_is_composed_into_a_reply(bus: Bus) -> None:
    letter = await output_died(bus)
    await bus.do_next("conductor", ("user.reply", "nothing to say"), outcome="composed")
    await changed(bus, letter, "topic", "user.reply")
    await replayed(bus, letter)
    assert await bus.state() == "composing"
    lease = await bus.lease("conductor")
    assert [answer.text for answer in lease.handle.answers] == ["report"]


async def changed(bus: Bus, letter: int, column: str, value: Any, actor: str = BUS) -> None:
    def change(tx: Any, _: None) -> None:
        tx.execute(f"UPDATE dead_letter SET {column} = ? WHERE id = ?", (value, letter))

    await bus.store.apply(change, actor, None)


# ---- What has been cleaned away ------------------------------------------------------------------

GONE = 999
"""The number of a row that is not there any more."""


async def test_a_delivery_that_was_cleaned_away_is_repeated_from_its_dead_letter(bus: Bus) -> None:
    letter = await die(bus)
    await changed(bus, letter, "delivery", GONE)
    (outcome,) = await replayed(bus, letter)
    sql = "SELECT agent, screened, must_take FROM delivery WHERE message = ?"
    assert await bus.reader.fetch(sql, (outcome.message,)) == [("opsclaw", 0, 0)]


async def test_without_its_conversation_a_dead_letter_cannot_be_sent(bus: Bus) -> None:
    letter = await die(bus)
    await changed(bus, letter, "conversation", GONE)
    assert await refusal(bus, letter) == "conversation.unknown"


# ---- What is refused -----------------------------------------------------------------------------


async def test_a_number_that_is_not_there_is_refused(bus: Bus) -> None:
    assert await refusal(bus, 99) == "deadletter.unknown"


async def test_what_was_sent_again_is_sent_once_more_only_if_that_is_said(bus: Bus) -> None:
    letter = await die(bus)
    (first,) = await replayed(bus, letter)
    assert await refusal(bus, letter) == "deadletter.replayed"
    (second,) = await replayed(bus, letter, again=True)
    assert second.message != first.message
    sql = "SELECT replayed_as, replayed_us FROM dead_letter"
    assert await bus.reader.fetch(sql) == [(second.message, bus.now_us)]


async def test_who_is_retired_gets_nothing_again(bus: Bus) -> None:
    letter = await die(bus)
    await bus.store.apply(retire_agent, BUS, RetireAgent(name="opsclaw", by=OPERATOR))
    assert await refusal(bus, letter) == "agent.unknown"


async def test_a_full_inbox_takes_nothing_again(bus: Bus) -> None:
    letter = await die(bus)
    for number in range(3):
        await bus.ask(topic="ops.disk", correlation=f"more{number}")
    assert await refusal(bus, letter) == "bus.backpressure"


async def test_a_conversation_that_is_full_takes_nothing_again(bus: Bus) -> None:
    letter = await die(bus)
    await bus.store.apply(_filled, BUS, None)
    assert await refusal(bus, letter) == "bus.conversation-full"


def _filled(tx: Any, _: None) -> None:
    tx.execute("UPDATE conversation SET messages = ?", (CONVERSATION_MESSAGES_MAX,))


async def test_one_that_is_refused_keeps_none_of_the_others_from_it(bus: Bus) -> None:
    first, second = await die(bus), await die(bus, correlation="c2")
    outcomes = await replayed(bus, first, 99, second)
    assert [outcome.problem is None for outcome in outcomes] == [True, False, True]
    assert await bus.value("SELECT count(*) FROM dead_letter WHERE replayed_as IS NULL") == 0


# ---- What is written down ------------------------------------------------------------------------


async def test_who_sent_it_again_is_in_the_audit_trail(bus: Bus) -> None:
    letter = await die(bus)
    (outcome,) = await replayed(bus, letter)
    sql = "SELECT owner, action, subject, data FROM audit"
    ((owner, action, subject, data),) = await bus.reader.fetch(sql)
    assert (owner, action, subject) == (OPERATOR, "deadletter.replay", str(letter))
    assert msgspec.json.decode(data)["message"] == outcome.message
    assert await bus.reader.view(first_broken) is None


async def test_a_refusal_leaves_no_trace(bus: Bus) -> None:
    letter = await output_died(bus)
    before = await bus.value("SELECT count(*) FROM message")
    await replayed(bus, letter, 99)
    assert await bus.value("SELECT count(*) FROM audit") == 0
    assert await bus.value("SELECT count(*) FROM message") == before


# ---- Removing ------------------------------------------------------------------------------------


async def test_what_is_removed_is_gone_and_written_down_once(bus: Bus) -> None:
    first, second = await die(bus), await die(bus, correlation="c2")
    kept = await die(bus, correlation="c3")
    assert await purged(bus, first, second) == 2
    assert await letters(bus) == [kept]
    ((action, subject, data),) = await bus.reader.fetch("SELECT action, subject, data FROM audit")
    assert (action, subject) == ("deadletter.purge", f"{first} to {second}")
    assert msgspec.json.decode(data) == {"numbers": [first, second]}


async def test_where_one_is_missing_none_is_removed(bus: Bus) -> None:
    letter = await die(bus)
    with pytest.raises(Failure) as failure:
        await purged(bus, letter, 99)
    assert failure.value.code == "deadletter.unknown"
    assert await letters(bus) == [letter]


async def test_what_somebody_else_has_removed_is_passed_over_if_that_is_said(bus: Bus) -> None:
    letter = await die(bus)
    assert await purged(bus, letter, 99, missing_ok=True) == 1
    assert await purged(bus, letter, missing_ok=True) == 0


async def test_only_the_bus_itself_writes_dead_letters(bus: Bus) -> None:
    letter = await die(bus)
    with pytest.raises(Failure) as failure:
        await changed(bus, letter, "code", "x", actor="opsclaw")
    assert failure.value.code == "store.ownership"
