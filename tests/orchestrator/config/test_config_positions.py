"""The position index holds against tomllib for any document, however it is written."""

import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.positions import lines_of

_names = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=4),
)
_scalars = st.one_of(
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12),
    st.datetimes(),
)
_values: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_names, inner, max_size=3)
    ),
    max_leaves=8,
)
_documents = st.dictionaries(_names, _values, max_size=5)


def _string(draw: st.DrawFn, text: str, *, multiline: bool) -> str:
    escaped = "".join(f"\\U{ord(c):08x}" if c in '"\\' or not c.isprintable() else c for c in text)
    styles = [f'"{escaped}"']
    if text.isprintable() and "'" not in text:
        styles.append(f"'{text}'")
    if multiline:
        styles.append(f'"""\n# not a comment\\\n  {escaped}"""')
        if text.isprintable() and "'" not in text:
            styles.append(f"'''\n[not.a.table]\n{text}'''")
    return draw(st.sampled_from(styles))


def _inline(draw: st.DrawFn, value: Any, *, breaks: bool) -> str:
    """A value as an expression; line breaks and comments only where TOML allows them."""
    if isinstance(value, dict):
        pairs = [
            f"{_string(draw, key, multiline=False)} = {_inline(draw, item, breaks=False)}"
            for key, item in value.items()
        ]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        gap = draw(st.sampled_from(["", " ", "\n  ", " # ] comment\n"])) if breaks else ""
        items = [_inline(draw, item, breaks=breaks) for item in value]
        return f"[{gap}" + f",{gap}".join(items) + f"{gap}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(draw, value, multiline=breaks)
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def _table(draw: st.DrawFn, table: dict[str, Any], path: list[str]) -> Iterator[str]:
    nested: list[tuple[str, dict[str, Any]]] = []
    for key, value in table.items():
        name = _string(draw, key, multiline=False)
        if isinstance(value, dict) and draw(st.booleans()):
            nested.append((name, value))
        elif isinstance(value, dict) and value and draw(st.booleans()):
            for inner, item in value.items():
                dotted = f"{name} . {_string(draw, inner, multiline=False)}"
                yield f"  {dotted} = {_inline(draw, item, breaks=True)} # = [comment]"
        else:
            yield f"{name} = {_inline(draw, value, breaks=True)}"
        yield draw(st.sampled_from(["", "# a = 1", "\t"]))
    for name, value in nested:
        yield f"[{' . '.join([*path, name])}] # [x]"
        yield from _table(draw, value, [*path, name])


@st.composite
def _written(draw: st.DrawFn) -> str:
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    text = "\n".join(_table(draw, draw(_documents), []))
    return text.replace("\n", newline) + draw(st.sampled_from(["", newline]))


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))


@given(_written())
def test_the_index_has_exactly_the_paths_that_tomllib_reads(text: str) -> None:
    assert set(lines_of(text)) == set(_paths(tomllib.loads(text)))


@given(_written())
def test_a_file_cut_before_the_line_of_a_key_does_not_have_the_key(text: str) -> None:
    """The line is neither too early nor too late: the key appears when its line is added."""
    for path, line in lines_of(text).items():
        if not all(isinstance(part, str) for part in path):
            continue
        lines = text.split("\n")
        before = "\n".join(lines[: line - 1])
        assert path not in set(_paths(_read_or_nothing(before))), (path, line)


def _read_or_nothing(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def test_every_kind_of_key_has_its_line() -> None:
    text = '''title = "x"
[a.b]
c.d = 1
list = [
  "one",
  # a comment with ] in it
  "two",
]
text = """
[not.a.table]
"""
inline = { x = 1, y = { z = "}" } }

[["array"]]
k = 1
[[array]]
k = 2
[array.sub]
m = 3
'''
    lines = lines_of(text)
    expected = {
        ("title",): 1,
        ("a",): 2,
        ("a", "b"): 2,
        ("a", "b", "c"): 3,
        ("a", "b", "c", "d"): 3,
        ("a", "b", "list"): 4,
        ("a", "b", "list", 0): 5,
        ("a", "b", "list", 1): 7,
        ("a", "b", "text"): 9,
        ("a", "b", "inline"): 12,
        ("a", "b", "inline", "x"): 12,
        ("a", "b", "inline", "y"): 12,
        ("a", "b", "inline", "y", "z"): 12,
        ("array",): 14,
        ("array", 0): 14,
        ("array", 0, "k"): 15,
        ("array", 1): 16,
        ("array", 1, "k"): 17,
        ("array", 1, "sub"): 18,
        ("array", 1, "sub", "m"): 19,
    }
    assert lines == expected
