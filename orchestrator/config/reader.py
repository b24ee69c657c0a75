"""TOML tables into the types of the configuration, all mistakes collected. Pure.

`msgspec.convert` judges each value and stops at the first mistake, so it is asked key by key and
element by element. A value that is wrong is reported and replaced by its default: the rest can then
still be read and checked, and the operator sees everything at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec

from orchestrator.config.positions import KeyPath
from orchestrator.config.problems import ConfigProblem, did_you_mean, one_of
from orchestrator.config.types import Key, keys_of
from orchestrator.config.units import parse_duration_us, parse_size_bytes
from orchestrator.config.wording import (
    bare_type,
    choices_of,
    describe,
    dotted,
    expectation,
    extra_of,
)

S = TypeVar("S", bound=msgspec.Struct)

_PARSERS: Final = {"duration": parse_duration_us, "size": parse_size_bytes}


class Place(msgspec.Struct, frozen=True):
    """Where a key stands."""

    file: Path
    line: int | None = None


class Findings:
    """The place of every key of all files, and what was wrong so far."""

    def __init__(self, main: Path) -> None:
        self._main = main
        self._places: dict[KeyPath, Place] = {}
        self._wrong: set[KeyPath] = set()
        self.problems: list[ConfigProblem] = []
        self.warnings: list[ConfigProblem] = []

    def note(self, path: KeyPath, place: Place) -> None:
        """The first place of a key counts."""
        self._places.setdefault(path, place)

    def place(self, path: KeyPath) -> Place:
        """The place of a key, or of the nearest table around it."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self._places:
                return self._places[path[:depth]]
        return Place(self._main)

    def problem(
        self, path: KeyPath, found: str, expected: str, cure: str = "", at: Place | None = None
    ) -> None:
        """A key that is wrong is wrong once: what follows from its first problem is not said."""
        if at is None and path:
            if path in self._wrong:
                return
            self._wrong.add(path)
        self.problems.append(self._finding(path, found, expected, cure, at))

    def warning(
        self, path: KeyPath, found: str, expected: str, cure: str = "", at: Place | None = None
    ) -> None:
        if path not in self._wrong:
            self.warnings.append(self._finding(path, found, expected, cure, at))

    def is_said(self, path: KeyPath) -> bool:
        """The key stands in a file, be it with its default."""
        return path in self._places

    def is_wrong(self, path: KeyPath) -> bool:
        """A problem of this very key was reported."""
        return path in self._wrong

    def in_order(self) -> tuple[list[ConfigProblem], list[ConfigProblem]]:
        """Problems and warnings in the order in which the files are read, and of their lines."""
        return sorted(self.problems, key=_order), sorted(self.warnings, key=_order)

    def _finding(
        self, path: KeyPath, found: str, expected: str, cure: str, at: Place | None
    ) -> ConfigProblem:
        place = at or self.place(path)
        return ConfigProblem(
            file=place.file,
            line=place.line,
            key=dotted(path),
            found=found,
            expected=expected,
            cure=cure,
        )


def _order(problem: ConfigProblem) -> tuple[int, Path, int]:
    return len(problem.file.parts), problem.file, problem.line or 0


def read_section(
    table: object, kind: type[S], path: KeyPath, findings: Findings, **derived: object
) -> S:
    """Read one table. `derived` are the fields that do not stand in it."""
    if not isinstance(table, Mapping):
        findings.problem(path, describe(table), f"a table [{dotted(path)}]")
        table = {}
    keys = {key.name: key for key in keys_of(kind) if not key.derived}
    values = dict(derived)
    for name, value in table.items():
        if name in keys:
            values[keys[name].field] = _read_key(value, keys[name], (*path, name), findings)
        else:
            findings.problem(
                (*path, name), "an unknown key", one_of(keys), did_you_mean(name, keys)
            )
    for key in keys.values():
        if key.required and key.field not in values:
            findings.problem((*path, key.name), "no such key", expectation(key.type))
    return kind(**values)


def _read_key(value: object, key: Key, path: KeyPath, findings: Findings) -> Any:
    bare = bare_type(key.type)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return read_section(value, bare, path, findings)
    if "of" in key.extra:
        return _read_tables(value, key.extra["of"], path, findings)
    if get_origin(bare) is list and isinstance(value, list):
        return _read_list(value, get_args(bare)[0], path, findings)
    if bare is Path:
        return _read_path(value, key.default, path, findings)
    return _read_value(value, key.type, key.default, path, findings)


def _read_tables(table: object, kind: type[S], path: KeyPath, findings: Findings) -> dict[str, S]:
    if not isinstance(table, Mapping):
        findings.problem(path, describe(table), f"tables [{dotted(path)}.NAME]")
        return {}
    return {name: read_section(one, kind, (*path, name), findings) for name, one in table.items()}


def _read_list(values: list[object], kind: Any, path: KeyPath, findings: Findings) -> list[Any]:
    """All elements, so that they keep their places. A wrong one is reported."""
    read = [
        _read_value(value, kind, value, (*path, index), findings)
        for index, value in enumerate(values)
    ]
    # All lists are lists of strings, and what is checked later relies on it.
    return [value if isinstance(value, str) else "" for value in read]


def _read_value(
    value: object, kind: Any, default: object, path: KeyPath, findings: Findings
) -> Any:
    extra = extra_of(kind)
    unit = extra.get("unit")
    # Findings are printed and logged: what may be a secret is not repeated in them.
    found = "another text" if extra.get("secret") and isinstance(value, str) else describe(value)
    try:
        converted = value
        if unit is not None:
            if not isinstance(value, str):
                raise ValueError(expectation(kind))
            converted = _PARSERS[unit](value)
        converted = msgspec.convert(converted, kind)
        if "fault" not in extra or (fault := extra["fault"](converted)) is None:
            return converted
        findings.problem(path, found, expectation(kind), f"It {fault}.")
    except msgspec.ValidationError:
        choices = extra.get("choices") or choices_of(kind)
        cure = did_you_mean(value, choices) if isinstance(value, str) else ""
        findings.problem(path, found, expectation(kind), cure)
    except ValueError as error:
        findings.problem(path, found, str(error))
    return default


def _read_path(value: object, default: object, path: KeyPath, findings: Findings) -> Any:
    """Relative paths are relative to the file they stand in."""
    if isinstance(value, str) and value and not value.startswith("~") and "\0" not in value:
        return findings.place(path).file.parent / value
    findings.problem(path, describe(value), "a path: absolute, or relative to this file")
    return default
