"""What the model found in the bus, or nearly did: each as the shortest way to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from driven_bus import DrivenBus, empty_store
from modelled_agents import agents
from modelled_steps import Steps
from modelled_things import Delivery

from ipc_protocol.work import Completion, Finished, Outgoing, StateChange
from orchestrator.bus.limits import CONVERSATION_MESSAGES_MAX, PAYLOADS_MAX
from orchestrator.bus.opening import Publish

SECOND_US = 1_000_000

ACTED = Completion(outcome="acted", reason="as told")
IGNORED = Completion(outcome="ignored", reason="as told")
REPLIED = Completion(
    outcome="acted", reason="as told", outputs=[Outgoing(topic="user.reply", payload=b"Done.")]
)

CHANGED = Completion(outcome="acted", reason="as told", state=[StateChange(key="k", value=b"1")])


class Driven:
    """The bus and its model, with workers of all its agents."""

    def __init__(self, bus: DrivenBus) -> None:
        self.bus = bus
        self.model = bus.model
        self.steps = Steps(bus.model)

    def start(self, **windows: int) -> None:
        for agent, window in windows.items():
            self.bus.do(self.steps.grant(agent, f"{agent}-1", window, ""))

    def publish(self, topic: str, count: int = 1, **more: object) -> list[Delivery]:
        before = len(self.model.deliveries)
        request = Publish(topic=topic, payloads=[b"p"] * count, **{"screened": True, **more})  # type: ignore[arg-type]
        self.bus.do(self.steps.publish(request))
        return self.model.deliveries[before:]

    def complete(self, delivery: Delivery, completion: Completion = ACTED) -> None:
        agent = delivery.agent
        self.bus.do(self.steps.complete(agent, delivery.number, f"{agent}-1", completion))

    def complete_all(self, agent: str, *finished: tuple[Delivery, Completion]) -> None:
        listed = [Finished(each.number, completion) for each, completion in finished]
        self.bus.do(self.steps.complete_all(agent, f"{agent}-1", listed))

    def fail_for_good(self, delivery: Delivery) -> None:
        how = {"worker_died": False, "final": True, "anew": False, "rest": True}
        worker = f"{delivery.agent}-1"
        self.bus.do(self.steps.fail(delivery.number, worker, **how))


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[Driven]:
    bus = DrivenBus(tmp_path / "agentd.db", empty_store(tmp_path), agents())
    yield Driven(bus)
    bus.close()


def test_a_restart_with_a_clock_that_was_set_back_gives_no_name_twice(driven: Driven) -> None:
    driven.publish("work.a", 2)
    driven.bus.crash([each for each in driven.model.agents.values() if each.active])
    driven.publish("work.a")


def test_a_delivery_that_was_begun_in_time_begins_anew_after_it(driven: Driven) -> None:
    driven.start(alfa=1)
    expires_us = driven.model.now_us + SECOND_US
    (delivery,) = driven.publish("agent.alfa", expires_us=expires_us)
    driven.model.now_us += 2 * SECOND_US
    how = {"worker_died": False, "final": False, "anew": True, "rest": True}
    driven.bus.do(driven.steps.fail(delivery.number, "alfa-1", **how))
    assert (delivery.state, delivery.run) == ("leased", 1)


def test_the_fallback_owner_is_asked_although_the_last_one_was_leased_before_the_screening(
    driven: Driven,
) -> None:
    driven.start(alfa=1, bravo=1)
    unscreened, screened = driven.publish("work.a", screened=False)
    driven.bus.do(driven.steps.screen(screened.message, {}, "carol"))
    driven.complete(screened, IGNORED)
    driven.complete_all("alfa", (unscreened, IGNORED))
    owner = driven.model.deliveries[-1]
    assert (owner.agent, owner.must_take) == ("carol", True)


def test_a_completion_that_comes_twice_in_one_frame_counts_once(driven: Driven) -> None:
    driven.start(alfa=2)
    first, second = driven.publish("work.b", 2)
    driven.complete_all("alfa", (first, ACTED), (first, ACTED), (second, ACTED))


def test_a_completion_is_applied_although_a_later_one_of_its_frame_begins_anew(
    driven: Driven,
) -> None:
    driven.start(alfa=3)
    stale, plain, last = driven.publish("work.b", 3)
    driven.bus.do(driven.steps.read_state(stale, "k"))
    driven.complete(last, CHANGED)
    driven.publish("work.b", 1, priority="urgent")
    driven.complete_all("alfa", (plain, ACTED), (stale, CHANGED))
    assert (plain.state, stale.run) == ("done", 1)


def test_what_stands_behind_one_that_begins_anew_is_handled_again(driven: Driven) -> None:
    driven.start(alfa=3)
    stale, behind, last = driven.publish("work.b", 3)
    driven.bus.do(driven.steps.read_state(stale, "k"))
    driven.complete(last, CHANGED)
    driven.complete_all("alfa", (stale, CHANGED), (behind, ACTED))
    assert (stale.state, behind.state) == ("leased", "leased")


def test_a_frame_cannot_complete_what_its_worker_has_not_been_handed(driven: Driven) -> None:
    driven.start(alfa=1)
    first, second = driven.publish("work.b", 2)
    later = Completion(outcome="deferred", reason="later", until_us=driven.model.now_us)
    driven.complete_all("alfa", (first, later), (second, ACTED))
    assert (first.state, second.state) == ("parked", "leased")


def test_what_is_composed_again_in_vain_is_answered_with_what_was_said(driven: Driven) -> None:
    driven.start(alfa=1, carol=1)
    (delivery,) = driven.publish("agent.alfa", asked=True)
    driven.complete(delivery, REPLIED)
    driven.fail_for_good(driven.model.deliveries[-1])
    driven.bus.do(driven.steps.replay(driven.model.letters, again=False))
    driven.complete(driven.model.deliveries[-1])
    assert driven.model.conversations[0].reply == "alfa: Done."


def test_the_number_of_a_dead_letter_is_not_given_twice(driven: Driven) -> None:
    driven.start(alfa=1)
    for _ in range(2):
        (delivery,) = driven.publish("agent.alfa")
        driven.fail_for_good(delivery)
        driven.bus.do(driven.steps.purge(driven.model.letters[:]))


def test_a_conversation_takes_so_many_messages_and_no_more(driven: Driven) -> None:
    agent = driven.model.agents["delta"]
    agent.inbox = 2 * CONVERSATION_MESSAGES_MAX
    driven.bus.do(driven.steps.add(agent))
    driven.start(delta=1)
    for _ in range(CONVERSATION_MESSAGES_MAX // PAYLOADS_MAX):
        driven.publish("late.x", PAYLOADS_MAX, correlation="c1")
    driven.publish("late.x", 1, correlation="c1")
    first = driven.model.deliveries[0]
    output = Outgoing(topic="work.a", payload=b"one more")
    driven.complete(first, Completion(outcome="acted", reason="as told", outputs=[output]))
    assert [each.code for each in driven.model.letters] == ["bus.conversation-full"]
