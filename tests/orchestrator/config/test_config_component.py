"""Agents that are components: what may be said about them, and what is wrong without one."""

import json
from pathlib import Path

import pytest

from orchestrator.config import Config, ConfigErrors, ConfigProblem, Overrides, load
from orchestrator.config.loader import COMPONENT_CONFIG_BYTES_MAX

AGENT = '[agent.gate]\ncomponent = "gate.wasm"\nconsumes = ["user.request"]\n'


def loaded(folder: Path, agent: str, **files: bytes) -> Config:
    (folder / "agents.d").mkdir()
    (folder / "agents.d" / "gate.wasm").write_bytes(b"\0asm")
    (folder / "agents.d" / "gate.toml").write_text(agent)
    (folder / "agentd.toml").write_text("")
    for name, content in files.items():
        (folder / "agents.d" / name).write_bytes(content)
    return load(folder)


def problem(folder: Path, agent: str, **files: bytes) -> ConfigProblem:
    with pytest.raises(ConfigErrors) as raised:
        loaded(folder, agent, **files)
    (found,) = raised.value.problems
    return found


# ---- What is right ------------------------------------------------------------------------------


def test_a_component_stands_beside_its_file(tmp_path: Path) -> None:
    config = loaded(tmp_path, AGENT)
    gate = config.agents["gate"]
    assert gate.component == tmp_path / "agents.d" / "gate.wasm"
    assert gate.identity == "You are gate."
    assert (gate.component_config, gate.imports, gate.strict_imports) == (b"", [], False)
    assert [warning.found for warning in config.warnings] == ["no conductor"]


def test_an_absolute_path_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.wasm"
    file.write_bytes(b"\0asm")
    config = loaded(tmp_path, f'[agent.gate]\ncomponent = "{file}"\nidentity = "You are Gate."\n')
    assert config.agents["gate"].component == file
    assert config.agents["gate"].identity == "You are Gate."


def test_its_limits_have_units_and_defaults(tmp_path: Path) -> None:
    limits = loaded(tmp_path, AGENT).agents["gate"].limits
    assert (limits.fuel, limits.call_us, limits.tables) == (2_000_000_000, 10_000_000, 100_000)
    assert (limits.linear_memory_bytes, limits.state_bytes) == (128 * 2**20, 16 * 2**20)


def test_everything_that_is_said_arrives(tmp_path: Path) -> None:
    gate = loaded(
        tmp_path,
        AGENT + 'imports = ["state", "logging"]\nstrict_imports = true\npreopen_scratch = true\n'
        "[agent.gate.limits]\nfuel = 5_000_000\ncall = '200ms'\nlinear_memory = '64MiB'\n"
        "tables = 7\nstate = '1MiB'\n",
    ).agents["gate"]
    assert (gate.imports, gate.strict_imports, gate.preopen_scratch) == (
        ["state", "logging"],
        True,
        True,
    )
    limits = gate.limits
    assert (limits.fuel, limits.call_us, limits.tables) == (5_000_000, 200_000, 7)
    assert (limits.linear_memory_bytes, limits.state_bytes) == (64 * 2**20, 2**20)


@pytest.mark.parametrize(
    ("text", "arrives"),
    [
        ('config = "threshold = 7\\n"\n', b"threshold = 7\n"),
        ('config = ""\n', b""),
        ('config_file = "gate.json"\n', b"\xff\x00 as it is"),
    ],
)
def test_a_text_or_a_file_arrives_as_it_is(tmp_path: Path, text: str, arrives: bytes) -> None:
    config = loaded(tmp_path, AGENT + text, **{"gate.json": b"\xff\x00 as it is"})
    assert config.agents["gate"].component_config == arrives


def test_a_table_arrives_as_json(tmp_path: Path) -> None:
    text = (
        "[agent.gate.config]\nthreshold = 7.5\nsince = 2026-01-01\n"
        '[agent.gate.config.names]\n"ä b" = [1, true, "x"]\n'
    )
    config = loaded(tmp_path, AGENT + text).agents["gate"].component_config
    assert json.loads(config) == {
        "threshold": 7.5,
        "since": "2026-01-01",
        "names": {"ä b": [1, True, "x"]},
    }


# ---- Models and screening -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "needs_model", "screened"),
    [
        (AGENT, False, False),
        (AGENT + 'imports = ["state"]\n', False, False),
        (AGENT + 'imports = ["inference"]\n', True, False),
        (AGENT + 'duties = ["disk full"]\n', True, True),
        ('[agent.gate]\nidentity = "x"\n', True, True),
    ],
)
def test_who_takes_what_comes_and_asks_nobody_needs_no_model(
    tmp_path: Path, text: str, needs_model: bool, screened: bool
) -> None:
    config = loaded(tmp_path, text)
    gate = config.agents["gate"]
    assert (gate.needs_model, gate.screened) == (needs_model, screened)
    assert set(config.models) == ({"default"} if needs_model else set())


def test_a_model_that_is_written_down_stays(tmp_path: Path) -> None:
    (tmp_path / "agents.d").mkdir()
    (tmp_path / "agents.d" / "gate.wasm").write_bytes(b"\0asm")
    (tmp_path / "agents.d" / "gate.toml").write_text(AGENT + 'model = "none"\n')
    (tmp_path / "agentd.toml").write_text("[model.big]\nslots = 2\n")
    assert set(load(tmp_path).models) == {"big"}


def test_a_model_that_is_needed_has_to_be_there(tmp_path: Path) -> None:
    found = problem(tmp_path, AGENT + 'imports = ["inference"]\nmodel = "defualt"\n')
    assert (found.key, found.line) == ("agent.gate.model", 5)


# ---- What is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "key", "line", "found", "expected"),
    [
        ('role = "conductor"', "component", 2, "the conductor", "none"),
        ('imports = ["sate"]', "imports[0]", 4, "sate", "'state'"),
        ('imports = ["state", "state"]', "imports[1]", 4, "second time", "once"),
        ("config = 7", "config", 4, "7", "a string, or a table"),
        ("config = ['x']", "config", 4, "a list", "a string, or a table"),
        ('config_file = "none.json"', "config_file", 4, "no such file", "the component"),
        ('config = "x"\nconfig_file = "a"', "config_file", 5, "both", "one of the two"),
        ("limits.linear_memory = '256MiB'", "limits.linear_memory", 4, "256MiB", "less than"),
        ("limits.fuel = 1", "limits.fuel", 4, "1", "at least 1000000"),
        ("limits.call = 10", "limits.call", 4, "10", "a duration"),
        ("limits.state = '2TiB'", "limits.state", 4, "2TiB", "a size"),
        ("limits.tables = 0", "limits.tables", 4, "0", "at least 1"),
        ("strict_imports = 'yes'", "strict_imports", 4, "yes", "true or false"),
    ],
)
def test_a_mistake_about_a_component_has_its_line(
    tmp_path: Path, more: str, key: str, line: int, found: str, expected: str
) -> None:
    mistake = problem(tmp_path, f"{AGENT}{more}\n", a=b"")
    assert (mistake.key, mistake.line) == (f"agent.gate.{key}", line)
    assert mistake.file == tmp_path / "agents.d" / "gate.toml"
    assert found in mistake.found
    assert expected in mistake.expected


def test_an_import_that_is_misspelt_has_a_suggestion(tmp_path: Path) -> None:
    assert "state" in problem(tmp_path, AGENT + 'imports = ["sate"]\n').cure


@pytest.mark.parametrize(
    ("path", "found"),
    [("none.wasm", "no such file"), (".", "no regular file"), ("gate.wasm/x", "not a directory")],
)
def test_a_component_is_a_file_that_is_there(tmp_path: Path, path: str, found: str) -> None:
    mistake = problem(tmp_path, f'[agent.gate]\ncomponent = "{path}"\nimports = ["state"]\n')
    assert (mistake.key, mistake.line) == ("agent.gate.component", 2)
    assert found in mistake.found
    assert str(tmp_path / "agents.d") in mistake.found


def test_for_a_daemon_that_is_to_run_a_component_that_is_gone_is_a_warning(tmp_path: Path) -> None:
    loaded(tmp_path, AGENT)
    (tmp_path / "agents.d" / "gate.wasm").unlink()
    with pytest.raises(ConfigErrors):
        load(tmp_path)
    config = load(tmp_path, Overrides())
    assert config.agents["gate"].component == tmp_path / "agents.d" / "gate.wasm"
    (warning,) = [each for each in config.warnings if each.key == "agent.gate.component"]
    assert "no such file" in warning.found and warning.line == 2


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ('config = "x"', "config"),
        ("config.a = 1", "config"),
        ('config_file = "a"', "config_file"),
        ('imports = ["state"]', "imports"),
        ("strict_imports = true", "strict_imports"),
        ("preopen_scratch = true", "preopen_scratch"),
        ("limits.fuel = 3_000_000", "limits.fuel"),
        ("limits.call = '1s'", "limits.call"),
        ("limits.linear_memory = '1MiB'", "limits.linear_memory"),
        ("limits.tables = 5", "limits.tables"),
        ("limits.state = '1MiB'", "limits.state"),
    ],
)
def test_what_is_for_a_component_says_nothing_without_one(
    tmp_path: Path, more: str, key: str
) -> None:
    mistake = problem(tmp_path, f'[agent.gate]\nidentity = "x"\nduties = ["y"]\n{more}\n', a=b"")
    assert (mistake.key, mistake.line) == (f"agent.gate.{key}", 4)
    assert "`component`" in mistake.expected


def test_a_component_that_is_no_path_is_one_mistake(tmp_path: Path) -> None:
    text = '[agent.gate]\ncomponent = 7\nidentity = "x"\nimports = ["state"]\n'
    assert problem(tmp_path, text).key == "agent.gate.component"


@pytest.mark.parametrize("key", ["config", "config_file"])
def test_a_configuration_that_no_frame_holds_is_refused(tmp_path: Path, key: str) -> None:
    text = "x" * (COMPONENT_CONFIG_BYTES_MAX + 1)
    value = text if key == "config" else "big"
    mistake = problem(tmp_path, f'{AGENT}{key} = "{value}"\n', big=text.encode())
    assert mistake.key == f"agent.gate.{key}"
    assert str(COMPONENT_CONFIG_BYTES_MAX) in mistake.expected


def test_an_identity_without_a_component_is_still_required(tmp_path: Path) -> None:
    assert problem(tmp_path, "[agent.gate]\nduties = ['x']\n").found == "no identity"
