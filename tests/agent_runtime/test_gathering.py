"""Completions that wait for others."""

import pytest

from agent_runtime.component import limits
from agent_runtime.gathering import (
    GATHERED_BYTES_MAX,
    GATHERED_MAX,
    GATHERED_SECONDS_MAX,
    Gathering,
)
from ipc_protocol.frames import FrameType, encode
from ipc_protocol.work import (
    Completion,
    Done,
    Finished,
    MemoryEntry,
    Outgoing,
    StateChange,
    TaskChange,
)

SMALL = Completion(outcome="acted", reason="")


def taken(gathering: Gathering) -> list[Finished]:
    done = gathering.take(0.0)
    return [] if done is None else done.finished


def test_what_is_taken_says_how_long_it_took() -> None:
    gathering = Gathering()
    gathering.add(1, SMALL, 10.0)
    gathering.add(2, SMALL, 10.5)
    done = gathering.take(11.25)
    assert done is not None
    assert done.worked_us == 1_250_000
    assert gathering.take(12.0) is None


def completion(size: int) -> Completion:
    """With an output of that many bytes."""
    outputs = [Outgoing(topic="x", payload=bytes(size))]
    return Completion(outcome="acted", reason="", outputs=outputs)


def test_what_is_taken_is_in_order_and_gone() -> None:
    gathering = Gathering()
    gathering.add(2, SMALL, 0.0)
    gathering.add(1, SMALL, 0.0)
    assert taken(gathering) == [Finished(2, SMALL), Finished(1, SMALL)]
    assert taken(gathering) == []


def test_nothing_is_never_due() -> None:
    assert not Gathering().is_due(1e9)


def test_a_full_frame_is_due() -> None:
    gathering = Gathering()
    for number in range(GATHERED_MAX):
        assert not gathering.is_due(0.0)
        gathering.add(number, SMALL, 0.0)
    assert gathering.is_due(0.0)
    gathering.take(0.0)
    gathering.add(1, SMALL, 0.0)
    assert not gathering.is_due(0.0)


def test_one_that_took_long_itself_does_not_wait() -> None:
    gathering = Gathering()
    gathering.add(1, SMALL, 5.0)
    assert gathering.is_due(5.0 + 2 * GATHERED_SECONDS_MAX)


def test_the_first_does_not_wait_long_whenever_the_last_has_come() -> None:
    gathering = Gathering()
    gathering.add(1, SMALL, 5.0)
    gathering.add(2, SMALL, 5.0 + GATHERED_SECONDS_MAX / 2)
    assert not gathering.is_due(5.0 + GATHERED_SECONDS_MAX / 2)
    assert gathering.is_due(5.0 + GATHERED_SECONDS_MAX * 1.01)
    gathering.take(0.0)
    gathering.add(3, SMALL, 6.0)
    assert not gathering.is_due(6.0)


def test_many_bytes_are_due_and_forgotten_once_they_are_taken() -> None:
    gathering = Gathering()
    gathering.add(1, completion(GATHERED_BYTES_MAX // 2), 0.0)
    assert not gathering.is_due(0.0)
    gathering.add(2, completion(GATHERED_BYTES_MAX // 2), 0.0)
    assert gathering.is_due(0.0)
    gathering.take(0.0)
    gathering.add(3, SMALL, 0.0)
    assert not gathering.is_due(0.0)


LARGE = GATHERED_BYTES_MAX // 4


@pytest.mark.parametrize(
    "large",
    [
        Completion(
            outcome="acted", reason="", state=[StateChange(key="k", value=bytes(4 * LARGE))]
        ),
        Completion(
            outcome="acted",
            reason="",
            memories=[MemoryEntry(text="x" * LARGE, outcome="success", lesson="", importance=0.5)],
        ),
        Completion(outcome="acted", reason="", tasks=[TaskChange(id=1, note="x" * LARGE)]),
        Completion(outcome="acted", reason="", tasks=[TaskChange(id=None, title="x" * LARGE)]),
    ],
)
def test_every_part_of_a_completion_counts(large: Completion) -> None:
    gathering = Gathering()
    gathering.add(1, large, 0.0)
    assert gathering.is_due(0.0)


def test_a_deleted_key_counts_as_a_part() -> None:
    gathering = Gathering()
    deletions = [StateChange(key="k", value=None)] * (GATHERED_BYTES_MAX // 128)
    gathering.add(1, Completion(outcome="acted", reason="", state=deletions), 0.0)
    assert gathering.is_due(0.0)


def test_the_largest_completion_on_top_of_the_most_that_waits_fits_into_a_frame() -> None:
    gathering = Gathering()
    empty = [Outgoing(topic="x" * 128, payload=b"")]
    parts_each = GATHERED_BYTES_MAX // GATHERED_MAX // 128 - 1
    for number in range(GATHERED_MAX - 1):
        gathering.add(
            number, Completion(outcome="acted", reason="", outputs=empty * parts_each), 0.0
        )
    assert not gathering.is_due(0.0)
    parts = [
        Outgoing(topic="x" * 128, payload=bytes(limits.STAGED_BYTES_MAX // 1024 - 256))
    ] * limits.OUTPUTS_KEPT_MAX
    gathering.add(1000, Completion(outcome="acted", reason="", outputs=parts), 0.0)
    assert gathering.is_due(0.0)
    encode(FrameType.ITEM, 1, Done(finished=taken(gathering)))
