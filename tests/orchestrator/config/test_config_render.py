"""A new configuration is complete, valid, and says what the types say."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import load
from orchestrator.config.render import main_text, plan, write
from orchestrator.config.types import (
    AgentConfig,
    ClientConfig,
    Config,
    LimitsConfig,
    Section,
    keys_of,
)

FIVE = {"conductor", "devclaw", "opsclaw", "secclaw", "uxclaw"}


def uncommented(text: str) -> str:
    """With every key and table in force; prose has a space after its mark."""
    lines = [
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in text.split("\n")
    ]
    files = ("identity_file", "component =", "config =", "config_file")
    return "\n".join(line for line in lines if not line.startswith(files))


def test_a_new_configuration_loads_without_a_warning(tmp_path: Path) -> None:
    write(plan(tmp_path / "new"))
    config = load(tmp_path / "new")
    assert config.warnings == []
    assert set(config.agents) == FIVE
    assert config.conversation.conductor == "conductor"
    assert config.screening.ignores
    assert config.daemon.state == tmp_path / "new" / "state"
    assert "/proc/loadavg" in config.agents["opsclaw"].host_read


def test_every_key_is_written_and_its_default_is_what_it_says(tmp_path: Path) -> None:
    text = main_text(tmp_path / "state", tmp_path / "sock")
    (tmp_path / "agentd.toml").write_text(text)
    plain = load(tmp_path)
    full = uncommented(text).replace('identity = ""', 'identity = "x"')
    (tmp_path / "agentd.toml").write_text(full.replace("threads = 1", "threads = 7"))
    config = load(tmp_path)
    assert config.daemon == plain.daemon
    assert config.gateway == plain.gateway
    assert config.conversation == plain.conversation
    assert config.models["default"].threads == 7
    assert config.agents["name"] == AgentConfig(name="name", identity="x")
    assert config.clients["program"] == ClientConfig(name="program", key_sha256="0" * 64)
    assert plain.clients == {}
    sections: list[type[Section]] = [Config, ClientConfig, AgentConfig, LimitsConfig]
    for key in [key for section in sections for key in keys_of(section) if not key.derived]:
        assert f"{key.name} =" in text or f"[{key.name}" in text or f".{key.name}]" in text


def test_every_key_says_what_it_is_for() -> None:
    for section in Section.__subclasses__():
        if section is not Config:
            for key in keys_of(section):
                assert key.derived or key.description, f"{section.__name__}.{key.name}"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    files = plan(tmp_path)
    last = list(files)[-1]
    last.parent.mkdir()
    last.write_text("mine")
    with pytest.raises(FileExistsError):
        write(files)
    assert not (tmp_path / "agentd.toml").exists()
    assert last.read_text() == "mine"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_path_is_written_so_that_it_is_read_back(name: str) -> None:
    import tomllib

    path = Path("/base", name.lstrip("/") or "x")
    table = tomllib.loads(main_text(path, path / "s"))["daemon"]
    assert table == {"state": str(path), "socket": str(path / "s")}
