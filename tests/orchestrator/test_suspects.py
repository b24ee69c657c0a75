"""Who ended the engine: the rules, and that they find every culprit and no other."""

import random

import pytest

from orchestrator.suspects import DEATHS_ALONE_MAX, TRIAL_TOKENS, Suspects

NORMAL = 2
URGENT = 0


def asked(suspects: Suspects, *requests: int, tokens: int | None = 0) -> None:
    """They are asked, and heard of unless `tokens` is None."""
    for request in requests:
        suspects.ask(request)
    for request in requests:
        if tokens is not None:
            suspects.hear(request, tokens)


def died(suspects: Suspects, *requests: int, deliberate: bool = False) -> None:
    for request in requests:
        suspects.fall(request, deliberate=deliberate)


def entered(suspects: Suspects, *ranks: int) -> list[int]:
    return [suspects.enter(rank) for rank in ranks]


def test_without_a_death_everybody_is_asked_at_once() -> None:
    suspects = Suspects()
    one, other = entered(suspects, NORMAL, NORMAL)
    asked(suspects, one)
    assert suspects.may_ask(other)
    asked(suspects, other)
    assert not suspects.on_trial(one) and not suspects.is_culprit(one)


def test_those_are_counted_who_have_not_left() -> None:
    suspects = Suspects()
    one, _ = entered(suspects, NORMAL, NORMAL)
    suspects.leave(one)
    assert len(suspects) == 1


def test_suspects_go_one_at_a_time_the_most_urgent_first_and_all_others_wait() -> None:
    suspects = Suspects()
    one, other, queued = entered(suspects, NORMAL, URGENT, URGENT)
    asked(suspects, one, other, tokens=5)
    asked(suspects, queued, tokens=None)
    died(suspects, one, other, queued)
    (late,) = entered(suspects, URGENT)
    assert [suspects.may_ask(request) for request in (one, other, queued, late)] == [
        False,
        True,
        False,
        False,
    ]
    asked(suspects, other, tokens=5)
    assert suspects.on_trial(other)
    assert not suspects.may_ask(one)
    suspects.leave(other)
    assert suspects.may_ask(one) and not suspects.may_ask(late)
    asked(suspects, one, tokens=5)
    suspects.hear(one, 5 + TRIAL_TOKENS - 1)
    assert not suspects.may_ask(late)
    suspects.hear(one, 5 + TRIAL_TOKENS)
    assert suspects.may_ask(late) and suspects.may_ask(queued)


def test_nobody_is_asked_before_all_have_noticed_the_death() -> None:
    suspects = Suspects()
    one, other, new = entered(suspects, NORMAL, NORMAL, NORMAL)
    asked(suspects, one, other)
    died(suspects, one)
    assert not suspects.may_ask(one) and not suspects.may_ask(new)
    died(suspects, other)
    assert suspects.may_ask(one) and not suspects.may_ask(new)


def test_who_is_withdrawn_before_he_noticed_the_death_holds_nobody_up() -> None:
    suspects = Suspects()
    one, other = entered(suspects, NORMAL, NORMAL)
    asked(suspects, one, other)
    died(suspects, one)
    suspects.leave(other)
    assert suspects.may_ask(one)


def test_a_suspect_who_is_withdrawn_frees_the_others() -> None:
    suspects = Suspects()
    one, other = entered(suspects, NORMAL, NORMAL)
    asked(suspects, one)
    died(suspects, one)
    assert not suspects.may_ask(other)
    suspects.leave(one)
    assert suspects.may_ask(other)


def test_a_request_that_ends_the_engine_alone_is_tried_again_and_then_is_the_culprit() -> None:
    suspects = Suspects()
    one, other = entered(suspects, NORMAL, NORMAL)
    asked(suspects, one, other)
    died(suspects, one, other)
    for death in range(1, DEATHS_ALONE_MAX + 1):
        assert suspects.may_ask(one)
        asked(suspects, one)
        died(suspects, one)
        assert suspects.is_culprit(one) is (death == DEATHS_ALONE_MAX)
    suspects.leave(one)
    assert suspects.may_ask(other) and not suspects.is_culprit(other)


def test_a_death_before_the_last_acquittal_counts_no_more() -> None:
    suspects = Suspects()
    (one,) = entered(suspects, NORMAL)
    tokens = 0
    for _ in range(3 * DEATHS_ALONE_MAX):
        asked(suspects, one, tokens=tokens)
        tokens += TRIAL_TOKENS
        suspects.hear(one, tokens)
        died(suspects, one)
        assert not suspects.is_culprit(one)


def test_a_trial_that_takes_too_long_ends_in_an_acquittal() -> None:
    suspects = Suspects()
    one, other = entered(suspects, NORMAL, NORMAL)
    asked(suspects, one)
    died(suspects, one)
    asked(suspects, one)
    suspects.acquit(one)
    assert suspects.may_ask(other)
    suspects.acquit(one)  # a second time is too late for anything


def test_an_engine_that_was_told_to_leave_makes_no_suspects() -> None:
    suspects = Suspects()
    one, other = entered(suspects, NORMAL, NORMAL)
    for _ in range(2 * DEATHS_ALONE_MAX):
        asked(suspects, one)
        died(suspects, one, deliberate=True)
        assert suspects.may_ask(one) and suspects.may_ask(other)
    asked(suspects, one)
    died(suspects, one)
    assert not suspects.may_ask(other)


def test_one_that_nobody_heard_of_is_suspected_at_its_second_death() -> None:
    suspects = Suspects()
    heard, silent = entered(suspects, NORMAL, NORMAL)
    asked(suspects, heard)
    asked(suspects, silent, tokens=None)
    died(suspects, heard, silent)
    asked(suspects, heard, tokens=TRIAL_TOKENS)
    asked(suspects, silent, tokens=None)
    died(suspects, heard, silent)
    assert suspects.may_ask(silent)  # the other one was acquitted before
    asked(suspects, silent, tokens=None)
    assert suspects.on_trial(silent)


def test_who_died_on_trial_beside_the_acquitted_is_alone_next_time() -> None:
    suspects = Suspects()
    one, other = entered(suspects, NORMAL, NORMAL)
    asked(suspects, one, other)
    died(suspects, one, other)
    asked(suspects, one, tokens=TRIAL_TOKENS)
    asked(suspects, other)
    died(suspects, other, one)
    assert suspects.may_ask(other) and not suspects.may_ask(one)
    asked(suspects, other)
    died(suspects, other)
    assert suspects.may_ask(other) and not suspects.is_culprit(other)


class Simulated:
    """An engine of a few slots, and requests of which some kill it at a place of theirs."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.suspects = Suspects()
        self.slots = chance.choice([1, 2, 4])
        self.lengths = {
            self.suspects.enter(chance.randint(0, 4)): chance.randint(1, 150)
            for _ in range(chance.randint(1, 12))
        }
        self.deadly = {
            request: chance.randint(-1, length - 1)  # -1 is before anybody hears of it
            for request, length in self.lengths.items()
            if chance.random() < 0.3
        }
        self.tokens = dict.fromkeys(self.lengths, 0)
        self.waiting = set(self.lengths)
        self.under_way: list[int] = []
        self.answered: set[int] = set()
        self.refused: set[int] = set()
        self.deaths = 0

    def step(self) -> None:
        for request in sorted(self.waiting):
            if self.suspects.may_ask(request):
                self.waiting.discard(request)
                self.under_way.append(request)
                self.suspects.ask(request)
        assert self.under_way, "everybody waits"
        if self.dies():
            self.die()
        else:
            self.go_on()

    def dies(self) -> bool:
        running = self.under_way[: self.slots]
        if any(self.deadly.get(request) == -1 for request in running):
            return True
        for request in running:
            self.suspects.hear(request, self.tokens[request])
        killed = self.chance.random() < 0.0005  # by an operator
        return killed or any(self.deadly.get(one) == self.tokens[one] for one in running)

    def die(self) -> None:
        self.deaths += 1
        fallen, self.under_way = self.under_way, []
        self.chance.shuffle(fallen)
        for request in fallen:
            self.suspects.fall(request, deliberate=False)
        for request in fallen:
            if self.suspects.is_culprit(request):
                self.refused.add(request)
                self.suspects.leave(request)
            else:
                self.waiting.add(request)

    def go_on(self) -> None:
        for request in self.under_way[: self.slots]:
            self.tokens[request] += 1
            if self.tokens[request] == self.lengths[request]:
                self.under_way.remove(request)
                self.answered.add(request)
                self.suspects.leave(request)


@pytest.mark.parametrize("seed", range(200))
def test_every_culprit_is_found_and_everybody_else_is_answered(seed: int) -> None:
    engine = Simulated(seed)
    while engine.waiting or engine.under_way:
        engine.step()
        assert engine.deaths <= 8 * len(engine.lengths), f"seed {seed}"
    assert engine.refused == set(engine.deadly), f"seed {seed}"
    assert engine.answered == set(engine.lengths) - set(engine.deadly), f"seed {seed}"
