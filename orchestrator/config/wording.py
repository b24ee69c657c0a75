"""Keys, values and types in the words of an error message. Pure."""

import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from orchestrator.config.positions import KeyPath
from orchestrator.config.problems import one_of
from orchestrator.config.units import (
    DURATION_EXPECTED,
    SIZE_EXPECTED,
    render_duration,
    render_size,
)

VALUE_CHARACTERS_MAX: Final = 60
"""A found value is quoted up to here, so that the message stays a line."""

_NAMES: Final[dict[Any, str]] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}
_UNITS: Final[dict[str | None, tuple[str, Callable[[Any], str]]]] = {
    "duration": (DURATION_EXPECTED, render_duration),
    "size": (SIZE_EXPECTED, render_size),
}


def dotted(path: KeyPath) -> str:
    """A key as it would be written: `agent.opsclaw.tools[2]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = part.isascii() and part.replace("-", "").replace("_", "").isalnum()
            text += ("." if text else "") + (part if bare else quoted(part))
    return text


def quoted(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[: VALUE_CHARACTERS_MAX - 3]}..."


def describe(value: object) -> str:
    """What was found, short enough for one line."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has none of these
    if isinstance(value, bool | int | float | str):
        return quoted(value)
    return f"{value} (a {type(value).__name__})"


def expectation(kind: Any) -> str:
    """What a type accepts."""
    extra = extra_of(kind)
    if "expected" in extra:
        return str(extra["expected"])
    if choices := extra.get("choices") or choices_of(kind):
        return one_of(choices)
    bare = bare_type(kind)
    if get_origin(bare) is list:
        return f"a list, each element {expectation(get_args(bare)[0])}"
    text, render = _UNITS.get(extra.get("unit"), (_NAMES.get(bare, "a value"), str))
    for meta in _metas(kind):
        bounds = [
            f"at least {render(meta.ge)}" if meta.ge is not None else "",
            f"more than {render(meta.gt)}" if meta.gt is not None else "",
            f"at most {render(meta.le)}" if meta.le is not None else "",
        ]
        if any(bounds):
            text += f", {' and '.join(filter(None, bounds))}"
        if meta.min_length:
            text += " that is not empty"
    return text


def bare_type(kind: Any) -> Any:
    """The type without its annotations, and without None where it is optional."""
    return _layers(kind)[-1]


def choices_of(kind: Any) -> tuple[str, ...]:
    """The names that a `Literal` accepts; empty for any other type."""
    bare = bare_type(kind)
    return get_args(bare) if get_origin(bare) is Literal else ()


def extra_of(kind: Any) -> dict[str, Any]:
    return {name: value for meta in _metas(kind) for name, value in (meta.extra or {}).items()}


def _metas(kind: Any) -> list[msgspec.Meta]:
    metas = [meta for layer in _layers(kind) for meta in getattr(layer, "__metadata__", ())]
    return [meta for meta in metas if isinstance(meta, msgspec.Meta)]


def _layers(kind: Any) -> list[Any]:
    """The type as it is written, what it annotates, and so on down to the bare one."""
    if hasattr(kind, "__metadata__"):
        return [kind, *_layers(kind.__origin__)]
    if get_origin(kind) in (types.UnionType, typing.Union):
        (inner,) = (one for one in get_args(kind) if one is not type(None))
        return [kind, *_layers(inner)]
    return [kind]
