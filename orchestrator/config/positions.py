"""On which line every key of a TOML file stands. `tomllib` has read it before, and does not say.

A light scanner: it follows the structure (tables, keys, arrays, inline tables, strings) and skips
the rest, so it may only be given text that `tomllib.loads` accepts. Pure.
"""

import re
import tomllib

KeyPath = tuple[str | int, ...]
"""A key as a path: names, and indices within arrays."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")'
    r"|'''.*?'{3,5}(?!')"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


def lines_of(text: str) -> dict[KeyPath, int]:
    """Path of every key, table and array element to the line (from 1) where it first stands."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}
        """How many elements each array of tables has so far."""

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            table = self._header() if self._peek("[") else table
            if not self._before_key():
                self._skip(_BLANK)
                continue
            self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _before_key(self) -> bool:
        """After a header comes a line break; before a pair its key."""
        return self._at < len(self._text) and self._text[self._at] not in "\r\n# \t["

    def _header(self) -> KeyPath:
        array = self._text.startswith("[[", self._at)
        self._take("[[" if array else "[")
        names = self._key()
        path = self._descend(names[:-1])
        if array:
            index = self._elements.get((*path, names[-1]), 0)
            self._elements[(*path, names[-1])] = index + 1
            self._note((*path, names[-1]))
            path = (*path, names[-1], index)
        else:
            path = (*path, names[-1])
        self._note(path)
        self._skip(_SPACE)
        self._take("]]" if array else "]")
        self._skip(_SPACE)
        return path

    def _descend(self, names: list[str]) -> KeyPath:
        """The path of a table; within an array of tables its newest element is meant."""
        path: KeyPath = ()
        for name in names:
            path = (*path, name)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
            self._note(path)
        return path

    def _pair(self, table: KeyPath) -> None:
        names = self._key()
        for depth in range(1, len(names) + 1):
            self._note((*table, *names[:depth]))
        self._skip(_SPACE)
        self._take("=")
        self._skip(_SPACE)
        self._value((*table, *names))

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip(_SPACE)
            if self._text[self._at] in "\"'":
                quoted = self._skip(_STRING)
                names.append(next(iter(tomllib.loads(f"{quoted} = 0"))))
            else:
                names.append(self._skip(_BARE))
            self._skip(_SPACE)
            if not self._peek("."):
                return names
            self._take(".")

    def _value(self, path: KeyPath) -> None:
        if self._peek("["):
            self._array(path)
        elif self._peek("{"):
            self._inline_table(path)
        else:
            self._skip(_STRING if self._text[self._at] in "\"'" else _SCALAR)

    def _array(self, path: KeyPath) -> None:
        self._take("[")
        index = 0
        while True:
            self._skip(_BLANK)
            if self._peek("]"):
                return self._take("]")
            self._note((*path, index))
            self._value((*path, index))
            index += 1
            self._skip(_BLANK)
            if self._peek(","):
                self._take(",")

    def _inline_table(self, path: KeyPath) -> None:
        self._take("{")
        while True:
            self._skip(_BLANK)
            if self._peek("}"):
                return self._take("}")
            self._pair(path)
            self._skip(_BLANK)
            if self._peek(","):
                self._take(",")

    def _note(self, path: KeyPath) -> None:
        self._lines.setdefault(path, self._line)

    def _peek(self, mark: str) -> bool:
        return self._text.startswith(mark, self._at)

    def _take(self, mark: str) -> None:
        assert self._peek(mark), f"line {self._line}: {mark!r} was expected; is this valid TOML?"
        self._at += len(mark)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, f"line {self._line}: is this valid TOML?"
        self._line += match[0].count("\n")
        self._at = match.end()
        return match[0]
