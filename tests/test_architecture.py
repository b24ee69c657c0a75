"""docs/architecture.md and the import contracts against the code."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from pure_coverage import END, START, gaps, main, pure_modules
from state_diagrams import renewed

ROOT: Final = Path(__file__).parent.parent
DOCUMENT: Final = ROOT / "docs" / "architecture.md"
CONTRACTS: Final = ROOT / ".importlinter"
PACKAGES: Final = ("ipc_protocol", "inference_client", "agent_runtime", "orchestrator")

IMPURE: Final = frozenset(
    {
        "aiohttp", "apsw", "asyncio", "concurrent", "ctypes", "fcntl", "io", "llama_cpp",
        "logging", "multiprocessing", "os", "queue", "random", "secrets", "select",
        "selectors", "shutil", "signal", "socket", "sqlite_vec", "ssl", "subprocess", "sys",
        "tempfile", "threading", "time", "urllib", "uuid", "uvloop", "wasmtime", "wordllama",
    }
)  # fmt: skip
"""A clock, a socket, a task, a file, chance, or a library that has them. `datetime` may be used for
its arithmetic, `pathlib` for its paths; what they reach out with is looked for below."""
PURE_PARTS: Final = frozenset({"urllib.parse"})
"""Of such a library, and without what makes it impure: this one takes texts apart."""
REACHING_OUT: Final = frozenset(
    {
        "now", "utcnow", "today", "open", "input", "print", "read_text", "read_bytes", "write_text",
        "write_bytes", "exists", "is_file", "is_dir", "stat", "iterdir", "mkdir", "unlink", "cwd",
    }
)  # fmt: skip
"""Calls of `datetime` and `pathlib`, whose types are otherwise as good as numbers and texts."""


def impurities(source: str) -> Iterator[str]:
    """What keeps a module from being a function of its arguments."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] in IMPURE and name not in PURE_PARTS:
                yield f"imports {name}"
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield f"is asynchronous in line {node.lineno}"
        if isinstance(node, ast.Call):
            called = node.func
            # A method may be anybody's; a plain name that is not a builtin is the module's own.
            builtin = isinstance(called, ast.Name) and called.id in {"open", "input", "print"}
            last = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if builtin or (isinstance(called, ast.Attribute) and last in REACHING_OUT):
                yield f"calls {last} in line {node.lineno}"
        if isinstance(node, ast.Global):
            yield f"changes a global in line {node.lineno}"


def test_the_diagrams_are_those_of_the_tables() -> None:
    page = DOCUMENT.read_text("utf-8")
    assert page == renewed(page), "run `python -m tests.state_diagrams`"


# ---- The list of pure modules --------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed() -> list[str]:
    return pure_modules(DOCUMENT.read_text())


def test_every_listed_module_exists(listed: list[str]) -> None:
    assert [module for module in listed if not (ROOT / module).is_file()] == []


def test_every_listed_module_is_pure(listed: list[str]) -> None:
    found = {
        module: impure
        for module in listed
        if (impure := list(impurities((ROOT / module).read_text())))
    }
    assert found == {}


def test_every_module_that_calls_itself_pure_is_listed(listed: list[str]) -> None:
    claims = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if claims_to_be_pure(ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert [module for module in claims if module not in listed] == []


def claims_to_be_pure(docstring: str) -> bool:
    return any(
        sentence.strip().startswith(("Pure.", "Pure:", "This module is pure"))
        for sentence in docstring.replace("\n", " ").replace(". Pure", ".  Pure").split("  ")
    )


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "import os.path",
        "def f():\n  from time import monotonic",
        "async def f(): ...",
        "import datetime\ndatetime.datetime.now()",
        "open('x')",
        "import pathlib\npathlib.Path('x').read_text()",
        "def f():\n  global x\n  x = 1",
    ],
)
def test_an_impure_module_is_found(source: str) -> None:
    assert list(impurities(source))


def test_a_pure_module_is_not_objected_to() -> None:
    assert not list(impurities("import enum\nfrom .x import time_us\nnow_us = time_us + 1"))


@pytest.mark.parametrize(
    ("docstring", "claims"),
    [
        ("When to restart. Pure.", True),
        ("The queue.\n\nPure: requests in, order out.", True),
        ("This module is pure: vectors in.", True),
        ("`restart` and `child` are pure: they decide.", False),
        ("A shell around a pure core.", False),
    ],
)
def test_a_claim_of_purity_is_recognised(docstring: str, claims: bool) -> None:
    assert claims_to_be_pure(docstring) is claims


@pytest.mark.parametrize(
    "document",
    [
        "no list",
        f"{START}\n- `a.py`\n",
        f"{END}\n- `a.py`\n{START}",
        f"{START}\nnothing\n{END}",
        f"{START}\n- a.py\n{END}",
        f"{START}\n- `a.py`\n- `a.py`\n{END}",
        f"{START}\n- `a.py`\n{END}\n{START}\n- `b.py`\n{END}",
    ],
)
def test_a_document_without_one_good_list_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="list"):
        pure_modules(document)


def test_the_list_is_read_with_its_remarks() -> None:
    text = f"intro\n{START}\n\n- `a/b.py`: decides\n- `c.py`\n\n{END}\nrest"
    assert pure_modules(text) == ["a/b.py", "c.py"]


# ---- Their coverage ------------------------------------------------------------------------------


def coverage_of(**file: Any) -> dict[str, Any]:
    whole = {"missing_lines": [], "missing_branches": [], "excluded_lines": [], **file}
    return {"meta": {"branch_coverage": True}, "files": {"a.py": whole}}


def test_a_covered_module_has_no_gap() -> None:
    assert gaps(["a.py"], coverage_of()) == []


@pytest.mark.parametrize(
    ("coverage", "gap"),
    [
        (coverage_of(missing_lines=[3, 4]), "lines 3, 4"),
        (coverage_of(missing_branches=[[3, 5]]), "3 to 5"),
        (coverage_of(missing_branches=[[3, -1]]), "3 to its end"),
        (coverage_of(excluded_lines=[9]), "excluded"),
        ({"meta": {"branch_coverage": True}, "files": {}}, "no test"),
        ({"meta": {"branch_coverage": False}, "files": {}}, "without branches"),
    ],
)
def test_every_kind_of_gap_is_told(coverage: dict[str, Any], gap: str) -> None:
    (found,) = gaps(["a.py"], coverage)
    assert gap in found


def test_the_program_fails_on_a_gap_and_passes_without(tmp_path: Path) -> None:
    document, coverage = tmp_path / "architecture.md", tmp_path / "coverage.json"
    document.write_text(f"{START}\n- `a.py`\n{END}")
    coverage.write_text(json.dumps(coverage_of()))
    assert main([str(coverage), str(document)]) == 0
    coverage.write_text(json.dumps(coverage_of(missing_lines=[1])))
    assert main([str(coverage), str(document)]) == 1
    assert main([]) == 2


# ---- The import contracts ------------------------------------------------------------------------

LAYOUT: Final = (
    *(f"{package}/__init__.py" for package in PACKAGES),
    "inference_client/engine/__init__.py",
    "orchestrator/egress/__init__.py",
    "orchestrator/gateway/__init__.py",
    "orchestrator/daemon.py",
)


def contracts_hold(folder: Path, where: str, statement: str) -> bool:
    for file in LAYOUT:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / where).write_text(statement)
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    checked = subprocess.run(
        [*lint, "--config", str(CONTRACTS), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert "Contracts:" in checked.stdout, checked.stdout + checked.stderr
    return checked.returncode == 0


@pytest.mark.parametrize(
    ("where", "statement"),
    [
        ("ipc_protocol/__init__.py", "import inference_client"),
        ("inference_client/__init__.py", "import orchestrator.daemon"),
        ("inference_client/__init__.py", "import agent_runtime"),
        ("agent_runtime/__init__.py", "import inference_client"),
        ("agent_runtime/__init__.py", "import orchestrator.daemon"),
        ("orchestrator/daemon.py", "import agent_runtime"),
        ("orchestrator/daemon.py", "import inference_client.engine"),
        ("orchestrator/daemon.py", "import orchestrator.gateway"),
        ("orchestrator/daemon.py", "import orchestrator.egress"),
    ],
)
def test_a_forbidden_import_breaks_a_contract(tmp_path: Path, where: str, statement: str) -> None:
    assert not contracts_hold(tmp_path, where, statement)


def test_the_allowed_imports_break_none(tmp_path: Path) -> None:
    assert contracts_hold(
        tmp_path, "orchestrator/daemon.py", "import inference_client\nimport ipc_protocol"
    )
