"""What a failed call means to a person."""

import pytest

from agent_runtime.component import traps

MEMORY = 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("kind", "reason", "cure"),
    [
        ("fuel", "used up its fuel", "`fuel`"),
        ("deadline", "took too long", "`call`"),
        ("stack", "used up its stack", "recursion"),
        ("memory", "than it may have: the message", "`linear_memory`"),
        ("table", "than it may have: the message", "`tables`"),
        ("instances", "the message", "fewer modules"),
        ("encoding", "no value of its type: the message", "bindings"),
        ("output", "more than a call may copy: the message", "less"),
        ("link", "not there: the message", "Leave the import out"),
        ("unreachable", "trapped: the message", "backtrace"),
        ("something new", "trapped: the message", "backtrace"),
    ],
)
def test_a_trap_is_explained_with_its_cure(kind: str, reason: str, cure: str) -> None:
    found = traps.explained(kind, "component.code", "the message", MEMORY)
    assert found.code == "component.code"
    assert reason in found.reason
    assert cure in found.cure


@pytest.mark.parametrize(
    ("size", "code"), [(0xF10000, "component.memory"), (0x10000, "component.trapped")]
)
def test_a_reach_beyond_the_memory_is_the_limits_if_the_memory_is_used_up(
    size: int, code: str
) -> None:
    message = (
        f"0: memory fault at wasm address {size:#x} in linear memory of size {size:#x} "
        "1: wasm trap: out of bounds memory access"
    )
    assert traps.explained("bounds", "component.trapped", message, MEMORY).code == code


def test_a_reach_beyond_a_table_is_a_trap() -> None:
    message = "wasm trap: undefined element: out of bounds table access"
    assert traps.explained("bounds", "component.trapped", message, MEMORY).code.endswith("trapped")


def test_what_the_host_ends_has_its_reason() -> None:
    found = traps.ended_by_host("it called exit")
    assert (found.code, found.reason) == ("component.trapped", "was ended: it called exit")


def test_a_worker_without_memory_says_which_limit_to_raise() -> None:
    found = traps.explained("other", "component.trapped", "Cannot allocate (os error 12)", MEMORY)
    assert found == traps.out_of_memory()
    assert found.code == "component.memory"
    assert "`memory`" in found.cure
