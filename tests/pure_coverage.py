"""Fails unless every pure module is covered to its last branch.

    coverage json -o build/coverage.json
    python tests/pure_coverage.py build/coverage.json docs/architecture.md

The pure modules are those that docs/architecture.md lists between its two markers.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

START: Final = "<!-- pure-modules:start -->"
END: Final = "<!-- pure-modules:end -->"
BULLET: Final = re.compile(r"^[-*] `([^`]+)`", re.MULTILINE)


def pure_modules(document: str) -> list[str]:
    """The paths that the document lists. Raises `ValueError` when it has no such list."""
    before, start, rest = document.partition(START)
    listed, end, after = rest.partition(END)
    if not start or not end or START in after or END in before:
        raise ValueError(f"expected exactly one list between {START} and {END}")
    found = BULLET.findall(listed)
    bullets = [line for line in listed.splitlines() if line.startswith(("- ", "* "))]
    if not found or len(found) != len(bullets):
        raise ValueError("each bullet of the list starts with a path in backticks")
    if len(set(found)) != len(found):
        raise ValueError("a module is listed twice")
    return found


def gaps(modules: Sequence[str], coverage: dict[str, Any]) -> list[str]:
    """What is not covered, one sentence for each module with a gap."""
    if not coverage.get("meta", {}).get("branch_coverage"):
        return ["The coverage was measured without branches; run it with --branch."]
    files: dict[str, Any] = coverage["files"]
    found: list[str] = []
    for module in modules:
        file = files.get(module)
        if file is None:
            found.append(f"{module}: no test has imported it")
            continue
        lines: list[int] = file["missing_lines"]
        branches = [(start, end) for start, end in file["missing_branches"] if start not in lines]
        if lines:
            found.append(f"{module}: lines {', '.join(map(str, lines))} are never run")
        if branches:
            ways = ", ".join(
                f"{start} to {'its end' if end < 0 else end}" for start, end in branches
            )
            found.append(f"{module}: the ways from line {ways} are never taken")
        if file.get("excluded_lines"):
            excluded = ", ".join(map(str, file["excluded_lines"]))
            found.append(f"{module}: lines {excluded} are excluded from coverage")
    return found


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: pure_coverage.py COVERAGE.json ARCHITECTURE.md", file=sys.stderr)
        return 2
    coverage, document = (Path(argument) for argument in arguments)
    modules = pure_modules(document.read_text())
    found = gaps(modules, json.loads(coverage.read_text()))
    for gap in found:
        print(gap, file=sys.stderr)
    if not found:
        print(f"All {len(modules)} pure modules are covered to every branch.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
