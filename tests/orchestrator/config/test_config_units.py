"""Durations and sizes, as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.units import (
    parse_duration_us,
    parse_size_bytes,
    render_duration,
    render_size,
    rounded_size,
)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("200ms", 200_000),
        ("120s", 120_000_000),
        ("1.5 s", 1_500_000),
        ("2min", 120_000_000),
        ("2h", 7_200_000_000),
        ("1d", 86_400_000_000),
        ("0s", 0),
    ],
)
def test_a_duration_is_read_as_microseconds(text: str, us: int) -> None:
    assert parse_duration_us(text) == us


@pytest.mark.parametrize(
    ("text", "size"), [("256MiB", 2**28), ("1kB", 1000), ("0.5 GiB", 2**29), ("7B", 7)]
)
def test_a_size_is_read_as_bytes(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "120", "-1s", "1 fortnight", "s", "1S", "1e3s", "٣s", "0.1us", "9999999999d"]
)
def test_anything_else_says_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match='such as "120s"'):
        parse_duration_us(text)


@given(st.integers(0, 10**15))
def test_what_is_rendered_is_read_back(value: int) -> None:
    assert parse_duration_us(render_duration(value)) == value
    assert parse_size_bytes(render_size(value)) == value


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (256 * 2**20, "256.0 MiB"),
        (139 * 2**30, "139.0 GiB"),
        (5 * 2**40, "5120.0 GiB"),
    ],
)
def test_a_size_is_rounded_for_people(size_bytes: int, shown: str) -> None:
    assert rounded_size(size_bytes) == shown
