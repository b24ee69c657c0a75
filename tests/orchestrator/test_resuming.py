"""An answer made by several engines, one after another: as if one had made it."""

from typing import Any

import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.inference import Generate, Generated, GeneratedText, TokenLogprob, Usage
from orchestrator.resuming import KEPT_INTERVAL_US, Answer


def params(**more: Any) -> Generate:
    return Generate(agent="opsclaw", priority="normal", tokens_max=10, prompt="p", **more)


def item(text: str, *tokens: int, logprobs: bool = False) -> GeneratedText:
    likely = [TokenLogprob(piece=b"x", logprob=-float(token)) for token in tokens]
    return GeneratedText(text=text, tokens=list(tokens), logprobs=likely if logprobs else [])


def generated(text: str, **usage: int) -> Generated:
    spent = {"queue_us": 1, "first_token_us": 2, "total_us": 3, **usage}
    return Generated(
        text=text,
        finish="stop",
        usage=Usage(prompt_tokens=7, cached_tokens=0, generated_tokens=4, **spent),
    )


def test_an_engine_is_always_asked_to_stream_seldom_where_nobody_listens() -> None:
    silent = Answer(params(interval_us=5), 0, listened=False).ask(0)
    assert silent.stream and silent.interval_us == KEPT_INTERVAL_US
    listened = Answer(params(interval_us=5), 0, listened=True).ask(0)
    assert listened.stream and listened.interval_us == 5


def test_the_next_engine_gets_the_tokens_of_the_one_before() -> None:
    answer = Answer(params(produced=[9]), 0, listened=False)
    assert answer.ask(0).produced == [9]
    answer.take(item("a", 1, 2), 1)
    answer.take(item("b"), 1)
    answer.fall(2)
    assert answer.ask(3).produced == [9, 1, 2]
    assert answer.tokens == 3


def test_a_listener_is_told_of_the_first_slot_alone_and_of_each_token_once() -> None:
    answer = Answer(params(produced=[9]), 0, listened=True)
    assert answer.news() is None
    answer.take(item(""), 0)
    answer.take(item("a", 1, logprobs=True), 0)
    assert answer.news() == GeneratedText()
    assert answer.news() == item("a", 1, logprobs=True)
    assert answer.news() is None
    answer.fall(0)
    answer.take(item(""), 0)
    assert answer.news() is None
    answer.take(item("b", 2, logprobs=True), 0)
    answer.take(item("", 3, logprobs=True), 0)
    assert answer.news() == item("b", 2, 3, logprobs=True)
    answer.take(item("c"), 0)
    assert answer.news() == item("c")


def test_an_answer_of_one_engine_is_passed_on_with_the_time_before_it_was_asked() -> None:
    answer = Answer(params(), 100, listened=False)
    answer.ask(150)
    answer.take(item("ab", 1, 2, logprobs=True), 160)
    whole = answer.whole(generated("ab", queue_us=5, first_token_us=10, total_us=30))
    assert whole.text == "ab"
    assert [one.logprob for one in whole.logprobs] == [-1.0, -2.0]
    usage = whole.usage
    assert (usage.queue_us, usage.first_token_us, usage.total_us) == (55, 60, 80)
    assert (usage.prompt_tokens, usage.generated_tokens) == (7, 4)


def test_the_costs_of_several_engines_are_added_up_and_only_waiting_is_waiting() -> None:
    answer = Answer(params(), 0, listened=False)
    answer.ask(10)
    answer.take(item(""), 20)
    answer.take(item("a", 1, logprobs=True), 25)
    answer.fall(40)  # 20 in a slot
    answer.ask(50)
    answer.fall(60)  # never had a slot
    answer.ask(70)
    answer.take(item(""), 75)
    answer.take(item("b", 2, logprobs=True), 80)
    whole = answer.whole(generated("ab", queue_us=5, first_token_us=10, total_us=30))
    assert [one.logprob for one in whole.logprobs] == [-1.0, -2.0]
    assert whole.usage.total_us == 100
    assert whole.usage.first_token_us == 25
    assert whole.usage.queue_us == 70 - 20 + 5


def test_what_each_engine_has_forced_and_preempted_is_added_up() -> None:
    answer = Answer(params(), 0, listened=False)
    answer.ask(0)
    answer.take(GeneratedText(text="ab", tokens=[1, 2], forced_tokens=1), 0)
    answer.take(GeneratedText(text="c", tokens=[3], preemptions=2), 0)
    answer.fall(0)
    answer.ask(0)
    answer.take(GeneratedText(text="d", tokens=[4], forced_tokens=1, preemptions=1), 0)
    usage = answer.whole(generated("abcd", forced_tokens=1, preemptions=1)).usage
    assert (usage.forced_tokens, usage.preemptions) == (2, 3)


def test_an_answer_without_tokens_begins_again_until_a_listener_was_told_of_it() -> None:
    answer = Answer(params(), 0, listened=True)
    likely = [TokenLogprob(piece=b"x", logprob=-1.0)]
    answer.ask(0)
    answer.take(item(""), 0)
    answer.take(GeneratedText(text="a", logprobs=likely), 0)
    assert (answer.progress, answer.tokens) == (2, 0)
    answer.fall(0)
    answer.ask(0)
    answer.take(item(""), 0)
    answer.take(GeneratedText(text="b", logprobs=likely), 0)
    assert answer.news() == GeneratedText()
    assert answer.news() == GeneratedText(text="b", logprobs=likely)
    assert len(answer.whole(generated("b")).logprobs) == 1
    with pytest.raises(Failure, match="no other can continue") as failure:
        answer.fall(0)
    assert failure.value.code == "inference.unavailable"


def test_a_deadline_is_less_for_each_engine_that_is_asked() -> None:
    answer = Answer(params(deadline_us=2_000_000), 0, listened=False)
    assert answer.seconds_left(500_000) == 1.5
    assert answer.ask(500_000).deadline_us == 1_500_000
    with pytest.raises(Failure, match="within 2 s") as failure:
        answer.ask(2_000_000)
    assert failure.value.code == "inference.deadline"
    assert failure.value.problem.details == {"generated_tokens": 0}


def test_without_a_deadline_there_is_time() -> None:
    answer = Answer(params(), 0, listened=False)
    assert answer.seconds_left(10**15) is None
    assert answer.ask(10**15).deadline_us is None


def test_a_deadline_in_the_past_has_passed_at_once() -> None:
    with pytest.raises(Failure, match="within 0 s"):
        Answer(params(deadline_us=-5), 0, listened=False).ask(0)
