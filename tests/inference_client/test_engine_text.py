"""Text comes out whole: characters are never split, and stop strings never shown."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from inference_client.engine.text import TextStream


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(at)]


def test_half_a_character_is_held_back():
    stream = TextStream([])
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert stream.feed(first) == ""
    assert stream.feed(second) == "é"


def test_half_a_character_at_the_end_is_replaced():
    stream = TextStream([])
    stream.feed("aé".encode()[:2])
    assert stream.finish() == "\ufffd"
    assert stream.text == "a\ufffd"


def test_what_may_become_a_stop_string_is_held_back():
    stream = TextStream(["END"])
    assert stream.feed(b"so E") == "so "
    assert stream.feed(b"N") == ""
    assert stream.feed(b"d") == "ENd"


def test_nothing_comes_after_a_stop_string():
    stream = TextStream(["END", ""])
    assert stream.feed(b"so EN") == "so "
    assert stream.feed(b"D and on") == ""
    assert stream.stopped
    assert stream.feed(b"more") == ""
    assert stream.finish() == ""
    assert stream.text == "so "


def test_the_earliest_stop_string_counts():
    stream = TextStream(["b", "ab"])
    assert stream.feed(b"xxab") == "xx"


def test_what_was_held_back_comes_at_the_end():
    stream = TextStream(["END"])
    assert stream.feed(b"so EN") == "so "
    assert stream.finish() == "EN"
    assert stream.text == "so EN"


@given(
    st.text(alphabet="abé你\U0001f600"), st.lists(st.integers(0, 200), max_size=8), st.booleans()
)
def test_however_a_text_is_cut_it_comes_out_the_same(text, cuts, stops):
    stream = TextStream(["ab", "b你"] if stops else [])
    shown = [stream.feed(piece) for piece in pieces(text.encode(), cuts)]
    shown.append(stream.finish())
    ends = [at for at in (text.find(stop) for stop in stream._stop) if at >= 0]
    assert "".join(shown) == stream.text == text[: min(ends, default=len(text))]


def undecided(text, stop):
    """By definition: the longest end of the text that begins a stop string and is shorter."""
    return max(
        (
            length
            for string in stop
            for length in range(1, len(string))
            if text.endswith(string[:length])
        ),
        default=0,
    )


@given(
    st.lists(st.text(alphabet="ab你", max_size=6), max_size=6),
    st.lists(st.text(alphabet="ab你", max_size=4), max_size=12),
)
def test_as_much_is_held_back_as_may_begin_a_stop_string_and_no_more(stop, parts):
    stream = TextStream(stop)
    fed = ""
    for part in parts:
        stream.feed(part.encode())
        fed += part
        if not stream.stopped:
            assert len(fed) - len(stream.text) == undecided(fed, stop)
