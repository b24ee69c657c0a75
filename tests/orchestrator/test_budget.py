"""What a delivery may still spend."""

import pytest
from msgspec.structs import replace

from orchestrator.budget import (
    EFFECTS_APART_FROM_STEPS_MAX,
    EFFECTS_OF_COMPONENT_MAX,
    EFFECTS_PER_STEP_MAX,
    Allowance,
    Spent,
    over,
)

ALLOWANCE = Allowance(steps=2, tokens=100, time_us=1_000_000)


def test_a_fresh_delivery_may_do_everything() -> None:
    assert over(Spent(), ALLOWANCE, tool=True, infer=False) is None
    assert over(Spent(), ALLOWANCE, tool=False, infer=True) is None


def test_what_is_spent_adds_up() -> None:
    spent = Spent().plus(tool=True, tokens=0, time_us=5).plus(tool=False, tokens=7, time_us=3)
    assert spent == Spent(effects=2, steps=1, tokens=7, time_us=8)


@pytest.mark.parametrize(
    ("spent", "tool", "infer", "reason"),
    [
        (Spent(steps=2), True, False, "2 tool calls"),
        (Spent(tokens=100), False, True, "100 tokens"),
        (Spent(time_us=1_000_000), True, False, "for its 1 s"),
        (Spent(time_us=1_000_000), False, True, "for its 1 s"),
    ],
)
def test_each_budget_ends_what_it_limits(
    spent: Spent, tool: bool, infer: bool, reason: str
) -> None:
    found = over(spent, ALLOWANCE, tool=tool, infer=infer)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize("spent", [Spent(steps=9), Spent(tokens=999), Spent(time_us=9_000_000)])
def test_over_its_budget_a_delivery_can_still_say_what_came_of_it(spent: Spent) -> None:
    assert over(spent, ALLOWANCE, tool=False, infer=False) is None


def test_the_size_of_the_journal_adds_up() -> None:
    assert Spent().plus(journal_bytes=5).plus(journal_bytes=7).journal_bytes == 12


def test_a_component_has_effects_of_its_own() -> None:
    with_component = replace(ALLOWANCE, component=True)
    assert with_component.effects == ALLOWANCE.effects + EFFECTS_OF_COMPONENT_MAX


def test_effects_follow_from_steps() -> None:
    assert ALLOWANCE.effects == 2 * EFFECTS_PER_STEP_MAX + EFFECTS_APART_FROM_STEPS_MAX
