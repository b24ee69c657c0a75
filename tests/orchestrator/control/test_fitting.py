"""A trace fits into a frame, whatever is in it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc_protocol import control
from ipc_protocol.frames import FrameType, encode
from ipc_protocol.work import Memory
from orchestrator.control.effect_lines import SUMMARY_CHARACTERS_MAX
from orchestrator.control.fitting import DEPTH_MAX, fit, share, size_of
from orchestrator.control.tracing import ROWS_MAX, STEPS_MAX

LONG = "ä" * 300_000


def step(request: dict[str, Any], result: dict[str, Any], summary: str = "") -> control.JournalStep:
    return control.JournalStep(
        step=1,
        kind="tool",
        phase="act",
        summary=summary,
        at_us=2**52,
        took_us=2**40,
        generated_tokens=2**20,
        request=request,
        result=result,
    )


def delivery(*steps: control.JournalStep, **more: Any) -> control.TracedDelivery:
    values: dict[str, Any] = {
        "delivery": 2**40,
        "message": 2**40,
        "agent": "a" * 32,
        "topic": "t" * 128,
        "sender": "s" * 32,
        "state": "done",
        "outcome": "delegated",
        "reason": "because",
        "attempts": 5,
        "queued_us": 2**52,
        "done_us": 2**52,
        "steps": list(steps),
        "memories": [],
    }
    return control.TracedDelivery(**{**values, **more})


def trace(*deliveries: control.TracedDelivery, **more: Any) -> control.Trace:
    values: dict[str, Any] = {
        "conversation": control.Conversation(
            correlation="c1", state="answered", question="why?", reply="so", opened_us=1
        ),
        "messages": [],
        "deliveries": list(deliveries),
        "dead_letters": [],
    }
    return control.Trace(**{**values, **more})


def message(text: str) -> control.TracedMessage:
    return control.TracedMessage(
        message=2**40,
        topic="t" * 128,
        sender="s" * 32,
        text=text,
        sent_us=2**52,
        cause=2**40,
        produced_by=2**40,
        priority="background",
        hops=32,
    )


def test_a_trace_of_ordinary_size_is_not_touched() -> None:
    whole = trace(delivery(step({"type": "tool", "name": "fs.read"}, {"output": "x" * 10_000})))
    assert fit(whole) is whole


def test_the_longest_are_cut_and_the_others_are_not() -> None:
    fitted = fit(
        trace(
            delivery(step({"name": "fs.read"}, {"output": "x" * 9_000}, "read")),
            messages=[message("short"), message("m" * 9_000)],
        ),
        text_bytes_max=4_000,
    )
    short, long = fitted.messages
    assert short.text == "short"
    assert long.text.endswith("… (cut: 9000 bytes in all)")
    (cut,) = fitted.deliveries[0].steps
    assert (cut.request, cut.summary) == ({"name": "fs.read"}, "read")
    assert cut.result["bytes"] > 9_000 and cut.result["cut"].startswith('{"output":"xxx')
    assert fitted.cut.startswith("2 texts are cut, to 19")


def test_one_cut_is_told_beside_what_was_left_out() -> None:
    fitted = fit(trace(messages=[message("m" * 900)], cut="Only the first."), text_bytes_max=100)
    assert fitted.cut.startswith("Only the first. 1 text is cut, to ")


def test_what_nests_too_deeply_for_a_frame_is_cut() -> None:
    deep: dict[str, Any] = {}
    for _ in range(DEPTH_MAX):
        deep = {"inside": deep}
    assert size_of(deep).depth == DEPTH_MAX + 1
    fitted = fit(trace(delivery(step(deep, {}))))
    assert set(fitted.deliveries[0].steps[0].request) == {"cut", "bytes"}
    assert fit(trace(delivery(step(deep["inside"], {})))).cut == ""


def test_what_has_too_many_values_for_a_frame_is_cut() -> None:
    many = {"numbers": [1] * 200_000}
    fitted = fit(trace(delivery(step({"name": "x"}, many))))
    encode(FrameType.RESULT, 1, fitted)
    assert fitted.deliveries[0].steps[0].request == {"name": "x"}
    assert "cut" in fitted.deliveries[0].steps[0].result


def fullest() -> control.Trace:
    """As many rows as `views` reads, and each of them as long as can be."""
    memory = Memory(id=2**40, text=LONG, outcome="success", importance=0.123456, created_us=2**52)
    # The same long text, again and again, costs no memory.
    steps = [step({"text": LONG}, {"n": 1.5}, "😀" * SUMMARY_CHARACTERS_MAX)] * STEPS_MAX
    first = delivery(*steps, memories=[memory] * ROWS_MAX, reason=LONG)
    letter = control.DeadLetter(
        message=2**40,
        agent="a" * 32,
        reason=LONG,
        at_us=2**52,
        number=2**40,
        delivery=2**40,
        topic="t" * 128,
        code="component.strict-imports",
        attempts=5,
        last_error=LONG,
        replayed_as=2**40,
    )
    parked = delivery(
        reason=LONG,
        composing=True,
        run=7,
        begun_us=2**52,
        deaths=4,
        last_error=LONG,
        parked_reason="backpressure",
        parked_until_us=2**52,
        parked_on=LONG,
    )
    return trace(
        first,
        *[parked] * (ROWS_MAX - 1),
        messages=[message(LONG)] * ROWS_MAX,
        dead_letters=[letter] * ROWS_MAX,
        conversation=control.Conversation(
            correlation="c" * 64, state="answered", question=LONG, reply=LONG, opened_us=2**52
        ),
    )


def test_the_fullest_trace_there_can_be_fits_into_a_frame() -> None:
    whole = fullest()
    fitted = fit(whole)
    encode(FrameType.RESULT, 1, fitted)
    assert len(fitted.deliveries[0].steps) == STEPS_MAX
    assert "texts are cut" in fitted.cut


@given(st.lists(st.integers(0, 10_000), max_size=50), st.integers(0, 100_000))
def test_the_shares_fit_and_are_as_large_as_they_can_be(sizes: list[int], total_max: int) -> None:
    limit = share(sizes, total_max)
    assert sum(min(size, limit) for size in sizes) <= total_max
    if sum(sizes) > total_max:
        assert sum(min(size, limit + 1) for size in sizes) > total_max
    else:
        assert limit == max(sizes, default=0)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=30,
)
values = st.dictionaries(st.text(max_size=8), plain, max_size=4)


@settings(max_examples=60)
@given(st.lists(st.tuples(values, values), max_size=6), st.integers(0, 400), st.integers(0, 40))
def test_texts_and_values_together_stay_within_what_is_given_to_them(
    steps: list[tuple[dict[str, Any], dict[str, Any]]], text_bytes_max: int, values_max: int
) -> None:
    fitted = fit(
        trace(delivery(*(step(*each) for each in steps), reason="x" * 30)),
        text_bytes_max,
        values_max,
    )
    kept = [
        value
        for each in fitted.deliveries[0].steps
        for value in (each.request, each.result)
        if "bytes" not in value
    ]
    assert sum(len(msgspec.msgpack.encode(value)) for value in kept) <= text_bytes_max
    assert sum(size_of(value).values for value in kept) <= values_max


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"a": [1, {"b": 2}]}])
def test_a_value_that_stays_is_the_same_object(value: dict[str, Any]) -> None:
    fitted = fit(trace(delivery(step(value, {})), messages=[message("m" * 999)]), 200)
    assert fitted.deliveries[0].steps[0].request is value


def test_a_backtrace_without_end_is_cut_like_other_texts() -> None:
    trap = control.Trap(code="component.trapped", message=LONG, at_us=1, backtrace=LONG)
    fitted = fit(trace(delivery(traps=[trap])), text_bytes_max=100_000)
    (cut,) = fitted.deliveries[0].traps
    assert "(cut: 600000 bytes in all)" in cut.backtrace and "cut" in cut.message
    assert fitted.cut.startswith("2 texts are cut")
