"""`agentd doctor` and `agentd keys`."""

import hashlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from orchestrator.cli.exits import Exit
from orchestrator.config import load
from orchestrator.doctor import probing
from orchestrator.doctor.cuda import Nvidia
from orchestrator.doctor.judging import Device, Facts, Llama

Agentd = Callable[..., Result]

WHOLE = Facts(
    python=(3, 11, 7),
    llama=Llama("0.3.36", [Device("CPU", "AMD \x1b[2JEPYC", "cpu")], gpu_offload=False),
    nvidia=Nvidia(),
    pins=[],
)
BROKEN = Facts(python=(3, 11, 7), llama="no libgomp", nvidia=Nvidia(), pins=[])


def test_what_is_there_is_a_table_and_a_status_of_0(
    agentd: Agentd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "probe", lambda: WHOLE)
    result = agentd("doctor")
    assert result.exit_code == Exit.OK, result.output
    assert "device CPU" in result.stdout and "EPYC" in result.stdout
    assert "\x1b" not in result.stdout


def test_what_is_missing_is_a_status_of_1_with_what_to_do(
    agentd: Agentd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "probe", lambda: BROKEN)
    result = agentd("doctor")
    assert result.exit_code == Exit.FAILED
    row = next(line for line in result.stdout.splitlines() if line.startswith("llama.cpp"))
    assert "missing" in row and "no libgomp" in row and "make install" in row
    document = json.loads(agentd("doctor", "--json").stdout)
    assert document["ok"] is False
    (llama,) = [one for one in document["checks"] if one["check"] == "llama.cpp"]
    assert set(llama) == {"check", "state", "found", "cure"}
    assert llama["state"] == "missing"


def test_a_new_key_is_shown_once_with_a_table_that_loads(agentd: Agentd, tmp_path: Path) -> None:
    made = json.loads(agentd("keys", "new", "editor", "--json").stdout)
    assert made["name"] == "editor"
    assert len(made["key"]) > 40
    assert made["key_sha256"] == hashlib.sha256(made["key"].encode()).hexdigest()
    assert tomllib.loads(made["table"]) == {
        "client": {"editor": {"key_sha256": made["key_sha256"]}}
    }
    (tmp_path / "agentd.toml").write_text(made["table"])
    assert load(tmp_path).clients["editor"].key_sha256 == made["key_sha256"]
    again = agentd("keys", "new", "editor").stdout
    assert "agentd-" in again and "[client.editor]" in again
    assert made["key"] not in again


@pytest.mark.parametrize("name", ["Editor", "operator", "a.b", ""])
def test_a_client_has_a_name_as_agents_have(agentd: Agentd, name: str) -> None:
    assert agentd("keys", "new", name).exit_code == Exit.USAGE
