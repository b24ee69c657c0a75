"""The tables of states, over the whole product of states and events."""

import itertools

import pytest

from orchestrator.bus import conversation, delivery
from orchestrator.bus.lifecycle import IllegalTransitionError

DELIVERIES = {
    ("queued", "lease", "leased"),
    ("queued", "die", "dead"),
    ("leased", "complete", "done"),
    ("leased", "park", "parked"),
    ("leased", "release", "queued"),
    ("leased", "die", "dead"),
    ("parked", "wake", "queued"),
    ("parked", "die", "dead"),
}
CONVERSATIONS = {
    ("open", "contribute", "open"),
    ("open", "compose", "composing"),
    ("open", "answer", "answered"),
    ("composing", "contribute", "open"),
    ("composing", "answer", "answered"),
    ("answered", "contribute", "open"),
}


@pytest.mark.parametrize(
    ("lifecycle", "states", "events", "allowed"),
    [
        (delivery.DELIVERY, delivery.STATES, delivery.EVENTS, DELIVERIES),
        (conversation.CONVERSATION, conversation.STATES, conversation.EVENTS, CONVERSATIONS),
    ],
)
def test_only_what_the_table_says_may_happen(lifecycle, states, events, allowed) -> None:  # type: ignore[no-untyped-def]
    happened = set()
    for state, event in itertools.product(states, events):
        try:
            happened.add((state, event, lifecycle.after(state, event)))
        except IllegalTransitionError as error:
            assert f"{state} cannot {event}" in str(error)
    assert happened == allowed


def test_nothing_leaves_done_or_dead() -> None:
    assert not {"done", "dead"} & {state for state, _ in delivery.DELIVERY.table}


def test_only_an_answered_conversation_begins_a_new_round() -> None:
    for state, event in conversation.CONVERSATION.table:
        begins = (state, event) == ("answered", "contribute")
        assert conversation.round_after(state, event, 1) == 1 + begins


def test_answers_are_joined_under_their_authors() -> None:
    assert conversation.joined([("a", "yes"), ("b", "no")]) == "a: yes\n\nb: no"
