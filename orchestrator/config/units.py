"""Durations and sizes as people write them: `"200ms"`, `"2h"`, `"256MiB"`. Pure, exact, strict."""

import re
from decimal import Decimal
from typing import Final

DURATION_UNITS_US: Final[dict[str, int]] = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}

SIZE_UNITS_BYTES: Final[dict[str, int]] = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}

DURATION_EXPECTED: Final = f'a duration such as "120s" ({", ".join(DURATION_UNITS_US)})'
SIZE_EXPECTED: Final = f'a size such as "256MiB" ({", ".join(SIZE_UNITS_BYTES)})'

INTEGER_MAX: Final = 2**63 - 1
"""Of the store, where some of them end up."""

_WRITTEN = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?) ?([A-Za-z]+)")


def parse_duration_us(text: str) -> int:
    """Microseconds. Raises `ValueError` that says what was expected."""
    return _parse(text, DURATION_UNITS_US, DURATION_EXPECTED)


def parse_size_bytes(text: str) -> int:
    """Bytes. Raises `ValueError` that says what was expected."""
    return _parse(text, SIZE_UNITS_BYTES, SIZE_EXPECTED)


def render_duration(us: int) -> str:
    """The shortest way to write it without a fraction; `parse_duration_us` reads it back."""
    return _render(us, DURATION_UNITS_US)


def render_size(size_bytes: int) -> str:
    """The shortest way to write it without a fraction; `parse_size_bytes` reads it back."""
    return _render(size_bytes, SIZE_UNITS_BYTES)


def rounded_size(size_bytes: int) -> str:
    """For people, about: `850 B`, `12.3 KiB`, `139.8 GiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    scaled = size_bytes / 1024
    for unit in ("KiB", "MiB"):
        if scaled < 1024:
            return f"{scaled:.1f} {unit}"
        scaled /= 1024
    return f"{scaled:.1f} GiB"


def _parse(text: str, units: dict[str, int], expected: str) -> int:
    match = _WRITTEN.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(expected)
    exact = Decimal(match[1]) * units[match[2]]
    if exact > INTEGER_MAX:
        raise ValueError(f"{expected}, below 2^63")
    if exact != int(exact):
        raise ValueError(f"{expected}, in whole units of {min(units, key=units.__getitem__)}")
    return int(exact)


def _render(value: int, units: dict[str, int]) -> str:
    fitting = [(value // one, unit) for unit, one in units.items() if value % one == 0]
    count, unit = min(fitting, key=lambda fit: (len(str(fit[0])), -units[fit[1]]))
    return f"{count}{unit}" if value else f"0{min(units, key=units.__getitem__)}"
