"""Source projects of components: what a new one consists of, and what an existing one is.

A project is a folder with a `wit/` and either an `app.py` or a `package.json` whose `main` is its
source. A new one has a world of its own, with the contract as agentd ships it, and passes its own
tests once it is built.
"""

import importlib.util
import json
import string
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from orchestrator.config.types import (
    AGENT_NAME,
    AGENT_NAME_EXPECTED,
    AGENT_NAMES_RESERVED,
    Interface,
)

Language = Literal["python", "javascript"]
World = Literal["agent", "mind"]
Version = Literal["0.1.0", "0.2.0"]

LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)
WORLDS: Final[tuple[World, ...]] = get_args(World)
VERSIONS: Final[tuple[Version, ...]] = get_args(Version)

GRANTABLE: Final[tuple[str, ...]] = get_args(Interface)

PYTHON_SOURCE: Final = "app.py"
JAVASCRIPT_SOURCE: Final = "app.js"
PACKAGE_FILE: Final = "package.json"
WIT_FOLDER: Final = "wit"

IGNORED: Final = "*.wasm\n__pycache__/\nnode_modules/\n"
"""The `.gitignore`: what can be made again."""

CONTRACTS: Final = ("component", "contracts")
"""Within the folder of the agent runtime: `VERSION/agent-net.wit`."""


class ProjectError(Exception):
    """Why a project cannot be made, read or built, and what to do. `output` is a tool's."""

    def __init__(self, message: str, cure: str, output: str = "") -> None:
        super().__init__(message)
        self.cure = cure
        self.output = output


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """What a new project is made from. `imports` are interfaces of `agent-net:core` to import."""

    name: str
    language: Language
    world: World = "agent"
    version: Version = "0.2.0"
    imports: tuple[str, ...] = ()


class Project(msgspec.Struct, frozen=True):
    """An existing project. `source` is relative to `folder`."""

    folder: Path
    language: Language
    source: str

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def component(self) -> Path:
        """Where it is built to, unless somebody says otherwise."""
        return self.folder / f"{self.name}.wasm"


# ---- An existing project ------------------------------------------------------------------------


def read(folder: Path) -> Project:
    """The project in `folder`. Raises `ProjectError` where there is none."""
    folder = folder.absolute()
    if not (folder / WIT_FOLDER).is_dir():
        raise _no_project(folder, f"a folder {WIT_FOLDER}/ with its world")
    if (folder / PACKAGE_FILE).is_file():
        return Project(folder, "javascript", _main(folder / PACKAGE_FILE))
    if (folder / PYTHON_SOURCE).is_file():
        return Project(folder, "python", PYTHON_SOURCE)
    raise _no_project(folder, f"an {PYTHON_SOURCE}, or a {PACKAGE_FILE} that names its source")


def _main(package: Path) -> str:
    try:
        described = json.loads(package.read_text("utf-8"))
    except ValueError as error:
        raise ProjectError(f"{package} is not JSON: {error}.", "Correct it.") from error
    source = described.get("main") if isinstance(described, dict) else None
    if not isinstance(source, str) or not (package.parent / source).is_file():
        raise ProjectError(
            f"{package} does not name the source of the component.",
            f'Add "main": "{JAVASCRIPT_SOURCE}", or how the file is called.',
        )
    return source


def _no_project(folder: Path, lacks: str) -> ProjectError:
    return ProjectError(
        f"{folder} is not the project of a component: it lacks {lacks}.",
        "Name its folder, or make a project with `agentd component new`.",
    )


# ---- A new project ------------------------------------------------------------------------------


def create(folder: Path, template: Template) -> list[Path]:
    """Write a project into `folder`, which may exist if it is empty. Raises `ProjectError`."""
    files = plan(template)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(
            f"{folder} exists and is not empty; nothing was written.",
            "Choose another name, or move what is there out of the way.",
        )
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return [folder / name for name in files]


def plan(template: Template) -> dict[str, str]:
    """The files of a new project and their texts. Raises `ProjectError` for what cannot be."""
    _require_possible(template)
    wasm = f"{template.name}.wasm"
    python = template.language == "python"
    mind = template.world == "mind"
    names = {
        "name": template.name,
        "wasm": wasm,
        "language": "Python" if python else "JavaScript",
        "world": template.world,
        "version": template.version,
        "interfaces": "".join(
            f"  import agent-net:core/{name}@{template.version};\n" for name in template.imports
        ),
        "uses": "\n".join(_uses(template)) + "\n",
        "export": "Phases" if mind else "Lifecycle",
        "handle": "act" if mind else "handle",
        "source": PYTHON_SOURCE if python else JAVASCRIPT_SOURCE,
        "test": "test_app.py" if python else "app.test.js",
        "test_command": "python -m unittest" if python else "npm test",
        "grants": json.dumps(list(template.imports)),
    }
    source = f"{template.world}.{'py' if python else 'js'}"
    own = {names["source"]: source, names["test"]: names["test"]}
    if not python:
        own[PACKAGE_FILE] = PACKAGE_FILE
    shared = {
        "README.md": "README.md",
        f"{template.name}.toml": "agent.toml",
        f"{WIT_FOLDER}/world.wit": "world.wit",
    }
    contract = f"{WIT_FOLDER}/deps/agent-net/agent-net.wit"
    return {
        **{file: _filled(f"{template.language}/{one}", names) for file, one in own.items()},
        **{file: _filled(one, names) for file, one in shared.items()},
        contract: contract_text(template.version),
        ".gitignore": IGNORED,
    }


def contract_text(version: Version) -> str:
    """The WIT of `agent-net:core` in that version, as shipped."""
    # Only found, never imported: the runtime belongs to the programs that the zygote forks.
    spec = importlib.util.find_spec("agent_runtime")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations))).joinpath(*CONTRACTS)
    return (folder / version / "agent-net.wit").read_text("utf-8")


def _require_possible(template: Template) -> None:
    name = template.name
    if AGENT_NAME.fullmatch(name) is None or name in AGENT_NAMES_RESERVED:
        raise ProjectError(
            f"{name!r} cannot be the name of an agent.",
            f"Use {AGENT_NAME_EXPECTED}; {', '.join(sorted(AGENT_NAMES_RESERVED))} are taken.",
        )
    if template.version == "0.1.0" and (template.world == "mind" or template.imports):
        raise ProjectError(
            "agent-net:core@0.1.0 has the world agent alone, and it imports nothing but the bus.",
            "Use --version 0.2.0 for a mind, and for what agents may be granted.",
        )
    for one in template.imports:
        if one not in GRANTABLE:
            raise ProjectError(
                f"There is no interface {one!r} to be granted.",
                f"There are {', '.join(sorted(GRANTABLE))}.",
            )


def _uses(template: Template) -> Iterator[str]:
    """The lines of the source that bring the imported interfaces in."""
    if template.language == "javascript":
        for name in template.imports:
            yield f"import * as {name} from 'agent-net:core/{name}@{template.version}';"
        return
    if template.imports:
        yield f"from wit_world.imports import {', '.join(sorted(template.imports))}"
    yield "from wit_world.imports.bus import Envelope"
    if template.world == "mind":
        yield "from wit_world.imports.types import Outcome"


def _filled(name: str, names: Mapping[str, Any]) -> str:
    folder = resources.files("orchestrator.components") / "templates"
    return string.Template((folder / f"{name}.template").read_text("utf-8")).substitute(names)
