"""What egress decides without a network: headers, the rate of bytes, secrets that come back."""

import pytest

from ipc_protocol.errors import Failure
from orchestrator.egress import headers
from orchestrator.egress.rate import ByteRate
from orchestrator.egress.redaction import STAND_IN, Redactor

SECRET = b"sk-secret-secret-42"


def test_a_caller_may_say_what_it_sends_and_takes() -> None:
    asked = {"Content-Type": "application/json", "accept": "text/event-stream"}
    assert headers.outgoing(asked) == {
        "content-type": "application/json",
        "accept": "text/event-stream",
    }


@pytest.mark.parametrize(
    "asked",
    [
        {"Authorization": "Bearer mine"},
        {"Host": "other.example"},
        {"Cookie": "a=b"},
        {"Proxy-Authorization": "Basic x"},
        {"Content-Length": "0"},
        {"Transfer-Encoding": "chunked"},
        {"accept\r\nauthorization": "x"},
        {"accept": "text/plain\r\nauthorization: x"},
        {"accept": "a", "Accept": "b"},
        {"accept": "é"},
        {"accept": "x" * 257},
    ],
)
def test_no_other_header_leaves(asked: dict[str, str]) -> None:
    with pytest.raises(Failure) as failure:
        headers.outgoing(asked)
    assert failure.value.code == "egress.not-permitted"


def test_few_headers_come_back() -> None:
    answered = [
        ("Content-Type", "text/event-stream"),
        ("Set-Cookie", "a=b"),
        ("Retry-After", "3"),
        ("retry-after", "4"),
        ("content-type", "é"),
    ]
    assert headers.incoming(answered) == {"content-type": "text/event-stream", "retry-after": "3"}


def test_a_burst_is_free_and_the_rest_comes_at_the_rate() -> None:
    rate = ByteRate(per_second=1000, burst=500, now_us=0)
    assert rate.take(500, 0) == 0
    assert rate.take(100, 0) == 100_000
    assert rate.take(0, 100_000) == 0
    assert rate.take(500, 10_000_000) == 0, "it has filled up, and to the burst alone"
    assert rate.take(1, 10_000_000) == 1000


@pytest.mark.parametrize("size", [1, 2, 5, 7, 100])
def test_a_secret_that_comes_back_is_taken_out_wherever_the_pieces_end(size: int) -> None:
    text = b"sk-se you sent " + SECRET + b" and " + SECRET + b", sk-secret-"
    redactor = Redactor(SECRET)
    pieces = [redactor.feed(text[at : at + size]) for at in range(0, len(text), size)]
    passed = b"".join(pieces) + redactor.finish()
    assert passed == b"sk-se you sent " + STAND_IN + b" and " + STAND_IN + b", sk-secret-"
    assert redactor.finish() == b""


def test_what_cannot_be_the_secret_is_not_held_back() -> None:
    redactor = Redactor(SECRET)
    assert redactor.feed(b"s is for token") == b"s is for token"
    assert redactor.feed(b"a s") == b"a "
    assert redactor.feed(b"un") == b"sun"


def test_a_header_is_redacted_whole() -> None:
    assert Redactor(SECRET).whole(f"key={SECRET.decode()}") == "key=[redacted]"
    assert Redactor(b"EMPTY").whole("EMPTY") == "EMPTY"


def test_a_word_is_no_secret() -> None:
    redactor = Redactor(b"EMPTY")
    assert redactor.feed(b"EMPTY") == b"EMPTY"
    assert redactor.finish() == b""
