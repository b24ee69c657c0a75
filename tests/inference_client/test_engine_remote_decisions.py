"""What the remote engine decides and transforms without a network."""

import pytest

from inference_client.engine.planning.request import Request
from inference_client.engine.remote.messages import (
    ANSWER_CHARACTERS_MAX,
    Dialect,
    RemoteAnswer,
    body_of,
    prompt_tokens_of,
    refusal_of,
)
from inference_client.engine.remote.retries import BACKOFF, Refusal, delay_seconds
from inference_client.engine.remote.schema import AnswerSchema
from inference_client.engine.remote.sse import EVENT_CHARACTERS_MAX, EventReader
from inference_client.engine.remote.turns import STARVING_TURNS, STARVING_US, Turns
from ipc_protocol.errors import Failure
from ipc_protocol.inference import ChatMessage, Generate, Sampling, Share
from ipc_protocol.values import Priority

# ---- Events --------------------------------------------------------------------------------------

STREAM = (
    "\N{ZERO WIDTH NO-BREAK SPACE}: a comment\r\n"
    "event: message\n"
    "data: one é 你\n"
    "\n"
    "\n"
    "data:two\r\ndata:  three\r\n\r\n"
    "data\r\r"
    "id: 7\n\n"
    "data: [DONE]\n\n"
    "data: never ended"
).encode()
EVENTS = ["one é 你", "two\n three", "", "[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_are_read_wherever_the_pieces_end(size: int) -> None:
    reader = EventReader()
    found = [
        data for at in range(0, len(STREAM), size) for data in reader.feed(STREAM[at : at + size])
    ]
    assert found == EVENTS


def test_an_event_comes_with_its_last_byte_and_not_before() -> None:
    reader = EventReader()
    *early, last = [reader.feed(bytes([byte])) for byte in b"data: one\n\n"]
    assert early == [[]] * len(early)
    assert last == ["one"]


def test_nothing_at_all_is_no_event() -> None:
    assert EventReader().feed(b"") == []


@pytest.mark.parametrize("line", [b"data: ", b"data: x\ndata: ", b""])
def test_an_event_without_end_is_refused(line: bytes) -> None:
    reader = EventReader()
    reader.feed(line)
    with pytest.raises(Failure, match="more than") as failure:
        reader.feed(b"x" * EVENT_CHARACTERS_MAX)
        reader.feed(b"x")
    assert failure.value.code == "egress.failed"


def test_many_lines_of_one_event_are_refused_too() -> None:
    reader = EventReader()
    with pytest.raises(Failure, match="more than"):
        for _ in range(EVENT_CHARACTERS_MAX):
            reader.feed(b"data:" + b"x" * 1000 + b"\n")


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(Failure, match="UTF-8"):
        EventReader().feed(b"data: \xff\n\n")


# ---- Messages ------------------------------------------------------------------------------------


def ask(**changes: object) -> Generate:
    values: dict[str, object] = {
        "agent": "a",
        "priority": "normal",
        "messages": [ChatMessage(role="user", content="12345678")],
        "tokens_max": 4,
    }
    return Generate(**{**values, **changes})  # type: ignore[arg-type]


INSISTS = b'{"error": {"message": "Use \'max_completion_tokens\' instead.", "param": "max_tokens"}}'


def test_a_greedy_request_sends_no_seed() -> None:
    body = body_of(ask(sampling=Sampling(seed=3, presence_penalty=0.5)), "big")
    assert b"seed" not in body
    assert b'"presence_penalty":0.5' in body


def test_a_limit_has_the_name_that_the_server_asks_for() -> None:
    dialect = Dialect("big")
    older = dialect.body_of(ask())
    assert b'"max_tokens":4' in older
    assert not dialect.learn(ask(), older, 400, b"unsupported: temperature")
    assert not dialect.learn(ask(), older, 500, INSISTS)
    assert dialect.learn(ask(), older, 400, INSISTS)
    newer = dialect.body_of(ask())
    assert b'"max_completion_tokens":4' in newer
    assert b'"max_tokens"' not in newer
    assert dialect.learn(ask(), older, 400, INSISTS), "who was out meanwhile asks again, too"
    assert not dialect.learn(ask(), newer, 400, INSISTS), "there is no third name"
    text = ask(messages=[], prompt="x")
    assert b'"max_tokens":4' in dialect.body_of(text)
    assert not dialect.learn(text, dialect.body_of(text), 400, INSISTS)


def test_a_stop_string_is_not_sent_with_a_schema() -> None:
    sampling = Sampling(stop=["x"])
    assert b'"stop"' in body_of(ask(sampling=sampling), "big")
    assert b'"stop"' not in body_of(ask(sampling=sampling, schema={"type": "object"}), "big")


def test_a_prompt_is_estimated_by_its_length() -> None:
    assert prompt_tokens_of(ask()) == 2
    assert prompt_tokens_of(ask(messages=[], prompt="x")) == 1


def answer_of(*events: str) -> RemoteAnswer:
    answer = RemoteAnswer("big")
    for data in events:
        answer.feed(data)
    return answer


def test_an_answer_is_the_first_of_its_choices() -> None:
    answer = answer_of(
        '{"choices": [{"index": 0, "delta": {"role": "assistant"}}]}',
        '{"choices": [{"index": 1, "delta": {"content": "no"}}]}',
        '{"choices": [{"index": 0, "delta": {"content": "yes"}}]}',
        '{"choices": [{"index": 0}]}',
        '{"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}], "object": "x"}',
    )
    assert (answer.text, answer.finish, answer.done) == ("yes", "stop", False)
    assert answer.generated_tokens == 1, "about, since the server does not count"


def test_a_server_may_count_nothing_of_the_cache() -> None:
    counted = answer_of('{"usage": {"prompt_tokens": 3, "completion_tokens": 2}}').usage
    assert counted is not None
    assert counted.cached_tokens == 0
    counted = answer_of('{"usage": {"prompt_tokens": 3, "prompt_tokens_details": {}}}').usage
    assert counted is not None
    assert counted.cached_tokens == 0


@pytest.mark.parametrize("counted", [-1, 10**8, 10**30])
def test_a_count_that_cannot_be_is_charged_to_nobody(counted: int) -> None:
    with pytest.raises(Failure, match="not OpenAI's interface"):
        answer_of(f'{{"usage": {{"prompt_tokens": 3, "completion_tokens": {counted}}}}}')


def test_an_answer_without_text_cost_no_tokens() -> None:
    assert answer_of('{"choices": []}').generated_tokens == 0


def test_a_refusal_of_the_model_is_its_text() -> None:
    answer = answer_of('{"choices": [{"delta": {"refusal": "I will not."}}]}')
    assert answer.text == "I will not."


def test_likelihoods_without_bytes_are_those_of_the_text() -> None:
    answer = answer_of(
        '{"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1, '
        '"top_logprobs": [{"token": "b", "logprob": -2}]}]}}]}',
        '{"choices": [{"logprobs": {"content": null}}]}',
    )
    (one,) = answer.logprobs
    assert (one.piece, one.others) == (b"a", [(b"b", -2.0)])


def test_a_withheld_answer_is_refused() -> None:
    answer = answer_of('{"choices": [{"finish_reason": "content_filter"}]}')
    with pytest.raises(Failure, match="content_filter"):
        _ = answer.finish


@pytest.mark.parametrize(
    "data", ["", "[]", '{"choices": 1}', '{"choices": [{"index": "x"}]}', "[" * 100_000]
)
def test_what_is_no_chunk_is_broken(data: str) -> None:
    with pytest.raises(Failure) as failure:
        answer_of(data)
    assert failure.value.problem.details == {"reason": "broken"}


def test_an_answer_that_cannot_be_kept_is_ended() -> None:
    text = "x" * ANSWER_CHARACTERS_MAX
    with pytest.raises(Failure, match="longer than"):
        answer_of(f'{{"choices": [{{"delta": {{"content": "{text}x"}}}}]}}')


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model"),
        (b'{"error": "plain"}', "plain"),
        (b'{"message": "bare", "code": 7}', "bare"),
        (b'{"error": {"message": 5}}', "it does not say why"),
        (b"[1]", "it does not say why"),
        (b"<html>\x1b[31m\nred", "<html> [31m red"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"", "it does not say why"),
    ],
)
def test_what_a_server_says_about_an_error_is_shown_plainly(body: bytes, said: str) -> None:
    failure = refusal_of("big", 404, body)
    assert failure.problem.message == f"The server of big answered with 404: {said}"
    assert "remote_model" in failure.problem.cure


def test_an_error_is_quoted_in_short() -> None:
    assert len(str(refusal_of("big", 500, b"x" * 10_000))) < 500


@pytest.mark.parametrize("kind", ["code", "type"])
def test_a_prompt_over_the_context_has_its_own_code(kind: str) -> None:
    error = f'{{"error": {{"message": "long", "{kind}": "exceed_context_size_error"}}}}'
    assert refusal_of("big", 400, error.encode()).code == "inference.context"


# ---- Typed answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"type": "string", "pattern": "(a+)+$"},
        {"type": "array", "items": [{"anyOf": [{"pattern": "x"}]}]},
        {"patternProperties": {"x": {}}},
        {"unevaluatedProperties": False},
    ],
)
def test_what_cannot_be_checked_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(Failure) as failure:
        AnswerSchema(schema)
    assert failure.value.code == "inference.schema"


def test_a_schema_without_end_is_refused() -> None:
    schema: dict[str, object] = {}
    for _ in range(5000):
        schema = {"not": schema}
    with pytest.raises(Failure, match=r"takes too long|nested"):
        AnswerSchema(schema).check("1", "big")


def test_a_property_may_be_called_pattern() -> None:
    schema = AnswerSchema({"properties": {"pattern": {"type": "string"}}})
    schema.check('{"pattern": "x"}', "big")


def test_the_order_of_keys_does_not_matter() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a", "b"]}
    AnswerSchema(schema).check('{"b": 1, "a": 2}', "big")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("not json", "is no JSON"),
        ('{"a": 1} and more', "is no JSON"),
        ("[" * 100_000, "takes too long|is no JSON"),
        ('{"a": "x"}', "`type` at \\$\\['a'\\]"),
        ("{}", "`required` at \\$"),
    ],
)
def test_an_answer_that_breaks_its_promise_is_named(text: str, fault: str) -> None:
    schema = AnswerSchema({"properties": {"a": {"type": "integer"}}, "required": ["a"]})
    with pytest.raises(Failure, match=fault) as failure:
        schema.check(text, "big")
    assert failure.value.code == "inference.schema"


def doubling(levels: int) -> dict[str, object]:
    """2 to the power of `levels` ways through one schema."""
    names = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**names, f"d{levels}": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"$ref": "#"}, "1"),
        (doubling(40), "1"),
        ({"uniqueItems": True}, f"[{','.join(['{}'] * 1000)}]"),
        ({"items": {"anyOf": [*[False] * 5000, True]}}, f"[{','.join('1' * 100)}]"),
        (
            {"items": {"anyOf": [{"const": {"a": [0] * 3000, "b": 1}}, True]}},
            f"[{','.join(['{}'] * 100)}]",
        ),
        ({"items": {"enum": [*([[n] * 50] for n in range(200)), 1]}}, f"[{','.join('1' * 100)}]"),
        (
            {"items": {"properties": {f"p{n}": {} for n in range(5000)}}},
            f"[{','.join(['{}'] * 100)}]",
        ),
    ],
)
def test_a_check_comes_to_an_end(schema: dict[str, object], text: str) -> None:
    with pytest.raises(Failure, match="takes too long"):
        AnswerSchema(schema).check(text, "big")


@pytest.mark.parametrize(
    "reference",
    [
        *("http://127.0.0.1:1/schema", "#/$defs/none", "file:///etc"),
        *("http://[x", "#/enum/0", "#/enum/x", "#/title/0", "#/enum/99"),
    ],
)
def test_a_reference_leads_nowhere_else(reference: str) -> None:
    schema = AnswerSchema({"title": "x", "allOf": [{"$ref": reference}], "enum": [1]})
    with pytest.raises(Failure, match="refers to"):
        schema.check("1", "big")


def test_a_schema_of_another_kind_within_one_is_refused() -> None:
    within = {"$schema": "http://[x", "$id": "a"}
    with pytest.raises(Failure, match="refers to"):
        AnswerSchema({"$ref": "a", "$defs": {"a": within}}).check("1", "big")


def test_a_number_beyond_all_others_is_no_multiple() -> None:
    with pytest.raises(Failure, match="too large to check") as failure:
        AnswerSchema({"multipleOf": 0.5}).check("1" + "0" * 400, "big")
    assert failure.value.code == "inference.schema"


# ---- Asking again --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(status=200),
        Refusal(status=400),
        Refusal(status=500),
        Refusal(reason="timeout"),
        Refusal(reason="tls"),
        Refusal(reason="too-long"),
        Refusal(status=429, retry_after="61"),
    ],
)
def test_what_would_end_the_same_is_not_asked_again(refusal: Refusal) -> None:
    assert delay_seconds(refusal, 1, 0.5) is None


def test_waits_grow_and_end() -> None:
    refusal = Refusal(reason="unreachable")
    waits = [delay_seconds(refusal, attempt, 1.0) for attempt in range(1, 6)]
    assert waits == [1.0, 2.0, 4.0, 8.0, None]
    assert delay_seconds(refusal, 1, 0.0) == 0.5


@pytest.mark.parametrize(
    ("header", "wait"),
    [("7", 7.0), (" 0.5 ", 0.5), ("0", 0.0), ("", 0.5), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.5)],
)
def test_a_server_says_when_to_come_again(header: str, wait: float) -> None:
    assert delay_seconds(Refusal(status=503, retry_after=header), 1, 0.0) == wait
    assert BACKOFF.retry_after_seconds_max == 60.0


# ---- Turns ---------------------------------------------------------------------------------------


class Asking:
    """Requests with numbers of their own."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(
        self, agent: str, priority: Priority = "normal", at_us: int = 0, **changes: int
    ) -> Request:
        self.made += 1
        return Request(
            id=self.made,
            agent=agent,
            priority=priority,
            tokens=[0] * 10,
            tokens_max=10,
            arrived_us=at_us,
            share=Share(**changes),
        )


def test_free_slots_are_given_at_once() -> None:
    asking, turns = Asking(), Turns(2, 10)
    first, second, third = asking("a"), asking("b"), asking("c")
    for request in (first, second, third):
        turns.submit(request)
    assert turns.grant(5) == [first, second]
    assert turns.grant(5) == []
    turns.begun(first, 7)
    states = [(slot.state, slot.agent, slot.age_us) for slot in turns.slots(9)]
    assert states == [("decode", "a", 4), ("prefill", "b", 4)]
    turns.leave(first, 30, 9)
    assert turns.grant(9) == [third]
    assert third.slot == 0


def test_who_has_spent_less_goes_first() -> None:
    asking, turns = Asking(), Turns(1, 10)
    turns.submit(asking("a"))
    (running,) = turns.grant(0)
    waiting = [asking("a", at_us=1), asking("b", at_us=2)]
    for request in waiting:
        turns.submit(request)
    turns.leave(running, 500, 3)
    assert turns.grant(3) == [waiting[1]]
    assert [one.agent for one in turns.queue(4)] == ["a"]


def test_who_leaves_the_queue_costs_nothing() -> None:
    asking, turns = Asking(), Turns(1, 10)
    running, waiting = asking("a"), asking("b")
    turns.submit(running)
    turns.submit(waiting)
    turns.grant(0)
    turns.leave(waiting, None, 1)
    assert turns.queue(1) == []
    assert turns.working
    turns.leave(running, None, 1)
    assert not turns.working


def test_an_agent_waits_for_its_minute() -> None:
    asking, turns = Asking(), Turns(2, 10)
    turns.submit(asking("a", tokens_per_minute=60))
    (running,) = turns.grant(0)
    turns.leave(running, 120, 0)
    turns.submit(asking("a", tokens_per_minute=60))
    turns.submit(asking("b"))
    assert [request.agent for request in turns.grant(0)] == ["b"]
    (place,) = turns.queue(0)
    assert "this minute" in place.reason
    assert place.estimate_us is not None
    assert turns.grant(place.estimate_us - 2_000_000) == []
    assert [request.agent for request in turns.grant(place.estimate_us)] == ["a"]


def test_a_turn_in_ten_is_for_who_has_waited_too_long() -> None:
    asking, turns = Asking(), Turns(1, 100)
    turns.submit(asking("limited", "background", running_max=1))
    running = turns.grant(0)[0]
    starving = asking("starving", "background")
    turns.submit(starving)
    order: list[str] = []
    for turn in range(2 * STARVING_TURNS + 1):
        now_us = STARVING_US + turn
        turns.submit(asking("busy", "high", at_us=now_us))
        turns.leave(running, 20, now_us)
        (running,) = turns.grant(now_us)
        order.append(running.agent)
    assert order.count("starving") == 1
    assert order.index("starving") < STARVING_TURNS


def test_nobody_starving_goes_before_an_urgent_request() -> None:
    asking, turns = Asking(), Turns(1, 100)
    turns.submit(asking("first", "urgent"))
    running = turns.grant(0)[0]
    turns.submit(asking("starving", "background"))
    for turn in range(2 * STARVING_TURNS):
        now_us = STARVING_US + turn
        turns.submit(asking("busy", "urgent", at_us=now_us))
        turns.leave(running, 20, now_us)
        (running,) = turns.grant(now_us)
        assert running.agent == "busy"


def test_the_starving_keep_to_their_limits_too() -> None:
    asking, turns = Asking(), Turns(2, 100)
    turns.submit(asking("limited", "background", running_max=1))
    turns.submit(asking("busy", "high"))
    _, running = turns.grant(0)[::-1]
    assert running.agent == "busy"
    turns.submit(asking("limited", "background", running_max=1))
    for turn in range(2 * STARVING_TURNS):
        now_us = STARVING_US + turn
        turns.submit(asking("busy", "high", at_us=now_us))
        turns.leave(running, 20, now_us)
        (running,) = turns.grant(now_us)
        assert running.agent == "busy"
    turns.leave(running, 20, 2 * STARVING_US)
    assert turns.grant(2 * STARVING_US) == []


def test_a_place_comes_with_a_guess_once_something_was_seen() -> None:
    asking, turns = Asking(), Turns(2, 10)
    for agent in "abcd":
        turns.submit(asking(agent))
    first, second = turns.grant(0)
    assert [place.estimate_us for place in turns.queue(0)] == [None, None]
    assert turns.queue(0)[0].reason == "all 2 slots are taken"
    turns.leave(first, 20, 1000)
    (third,) = turns.grant(1000)
    assert [place.estimate_us for place in turns.queue(1000)] == [500]
    turns.leave(second, 20, 3000)
    turns.grant(3000)
    turns.leave(third, None, 4000)
    assert not turns.queue(4000)
