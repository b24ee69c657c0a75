"""Whose turn it is: the whole table."""

import itertools
from typing import get_args

from orchestrator.bus.lifecycle import IllegalTransitionError
from orchestrator.turn import TURN, Turn, TurnEvent

ALLOWED = {
    ("working", "ask", "performing"),
    ("performing", "answer", "working"),
    ("working", "end", "ended"),
    ("performing", "end", "ended"),
    ("ended", "answer", "ended"),
    ("ended", "end", "ended"),
}


def test_only_what_the_table_says_may_happen() -> None:
    happened = set()
    for turn, event in itertools.product(get_args(Turn), get_args(TurnEvent)):
        try:
            happened.add((turn, event, TURN.after(turn, event)))
        except IllegalTransitionError as error:
            assert f"{turn} cannot {event}" in str(error)
    assert happened == ALLOWED


def test_nothing_begins_again_once_it_has_ended() -> None:
    assert {after for (before, _), after in TURN.table.items() if before == "ended"} == {"ended"}
