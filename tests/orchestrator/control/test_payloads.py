"""Payloads as people read them."""

import pytest

from orchestrator.control.payloads import readable


def test_text_is_text() -> None:
    payload = readable("größer".encode(), 8)
    assert (payload.text, payload.data, payload.cut) == ("größer", None, False)


def test_what_is_no_text_stays_bytes() -> None:
    payload = readable(b"\xff\x00", 2)
    assert (payload.text, payload.data, payload.cut) == (None, b"\xff\x00", False)


def test_a_cut_through_a_character_leaves_it_out() -> None:
    whole = "aé".encode()
    payload = readable(whole[:2], len(whole))
    assert (payload.text, payload.size_bytes, payload.cut) == ("a", 3, True)


@pytest.mark.parametrize("beginning", [b"a\xc3", b"\xc3"])
def test_a_text_that_ends_within_a_character_is_none(beginning: bytes) -> None:
    assert readable(beginning, len(beginning)).data == beginning
