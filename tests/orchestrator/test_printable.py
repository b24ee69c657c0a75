"""What a terminal would obey is not shown."""

import pytest

from orchestrator.printable import LINE_BREAKS, printable


@pytest.mark.parametrize(
    "character", ["\x1b", "\r", "\n", "\t", "\x7f", "\x9b", "\u202e", "\u2028", "\ud800", "\u200b"]
)
def test_what_a_terminal_obeys_is_replaced(character: str) -> None:
    assert printable(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("text", ["", "plain", "Grüße\N{NO-BREAK SPACE}an 山", "👩\u200d🚀"])
def test_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_is_to_be_kept_is_kept() -> None:
    assert printable("a\n\tb\r", keep=LINE_BREAKS) == "a\n\tb\N{REPLACEMENT CHARACTER}"
