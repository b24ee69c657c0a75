"""`agentd init`, `check`, `run`, `models`, `bench`, and how fast the command line is there."""

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from inference_client.models import Registry
from orchestrator.cli.exits import EPILOG, MEANINGS, Exit
from orchestrator.cli.main import COMMANDS
from orchestrator.cli.measure import Measure
from orchestrator.config import Config
from tests.inference_client import ggufs

Agentd = Callable[..., Result]


def test_init_writes_a_configuration_that_lacks_nothing_but_its_model(
    agentd: Agentd, tmp_path: Path
) -> None:
    folder = tmp_path / 'it\'s "new"'
    made = agentd("init", folder)
    assert made.exit_code == Exit.OK, made.output
    assert "agentd run --config" in made.stdout
    before = agentd("check", "--config", folder)
    assert before.exit_code == Exit.CONFIG
    assert "model.default.file" in before.stdout
    assert "agentd models pull smollm2" in before.stdout
    register_model(folder / "state")
    after = agentd("check", "--config", folder)
    assert after.exit_code == Exit.OK, after.stdout
    assert "5 agents" in after.stdout


def register_model(state: Path, name: str = "smollm2") -> None:
    """A file that says of itself what a model's says."""
    state.mkdir(parents=True, exist_ok=True)
    (state / "tiny.gguf").write_bytes(ggufs.model())
    Registry(state / "models").add(state / "tiny.gguf", name)


def test_init_tells_a_program_what_it_wrote(agentd: Agentd, tmp_path: Path) -> None:
    document = json.loads(agentd("init", tmp_path, "--json").stdout)
    assert document["config"] == str(tmp_path / "agentd.toml")
    assert document["socket"] == str(tmp_path / "agentd.sock")
    assert str(tmp_path / "agents.d" / "opsclaw.toml") in document["wrote"]
    assert all(Path(path).is_file() for path in document["wrote"])
    again = agentd("init", tmp_path, "--json")
    assert again.exit_code == Exit.FAILED
    assert "exists" in json.loads(again.stderr)["message"]


def test_init_overwrites_nothing(agentd: Agentd, tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text("# mine")
    result = agentd("init", tmp_path)
    assert result.exit_code == Exit.FAILED
    assert "agentd.toml exists" in result.stderr
    assert (tmp_path / "agentd.toml").read_text() == "# mine"


def test_init_refuses_a_socket_that_could_not_be_bound(agentd: Agentd, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    assert "--socket" in agentd("init", folder).stderr
    assert not folder.exists()
    assert agentd("init", folder, "--socket", tmp_path / "s").exit_code == Exit.OK


def test_check_lists_all_mistakes_with_their_lines(agentd: Agentd, tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text(
        "[model]\n[deamon]\n[gateway]\nlisten = 1\nagents_max = -1\n"
    )
    result = agentd("check", "--config", tmp_path)
    assert result.exit_code == Exit.CONFIG
    for part in ("agentd.toml:2: deamon", "'daemon'?", "agentd.toml:4", "agentd.toml:5"):
        assert part in result.stdout
    document = json.loads(agentd("check", "--json", "--config", tmp_path).stdout)
    assert document["ok"] is False
    assert [problem["line"] for problem in document["problems"]] == [2, 4, 5]


def test_run_names_every_mistake_and_every_missing_model_and_makes_nothing(
    agentd: Agentd, tmp_path: Path
) -> None:
    (tmp_path / "agentd.toml").write_text(
        "[daemon]\nlog = 1\nstate = 'state'\nsocket = 'new/a.sock'\n"
        "[model.x]\nslots = 0\nfile = 'smolm2'\n[embedding]\nengine = 'no.gguf'\n"
    )
    result = agentd("run", "--config", tmp_path)
    assert result.exit_code == Exit.CONFIG
    assert "4 mistakes" in result.stderr
    for line in (2, 6, 7, 9):
        assert f"agentd.toml:{line}" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["agentd.toml"]


def test_run_hands_the_configuration_to_the_daemon_and_ends_with_its_status(
    agentd: Agentd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Config] = []
    daemon = types.ModuleType("orchestrator.daemon")
    daemon.run = lambda config: given.append(config) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "orchestrator.daemon", daemon)
    (tmp_path / "agentd.toml").write_text("[model]\n")
    result = agentd("run", "--config", tmp_path, "--state", tmp_path / "s", "--sandbox-off")
    assert result.exit_code == 7
    assert given[0].daemon.state == tmp_path / "s"
    assert given[0].daemon.sandbox == "off"


def test_models_are_listed_and_added_where_the_configuration_says(
    agentd: Agentd, tmp_path: Path
) -> None:
    empty = agentd("models", "list", "--state", tmp_path)
    assert "agentd models pull smollm2" in empty.stdout
    assert agentd("models", "list", "--json", "--state", tmp_path).stdout == "[]\n"
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    refused = agentd("models", "add", tmp_path / "x.gguf", "--state", tmp_path)
    assert refused.exit_code == Exit.FAILED
    assert "x.gguf" in refused.stderr
    unknown = agentd("models", "pull", "smolm2", "--json", "--state", tmp_path)
    assert unknown.exit_code == Exit.FAILED
    assert "smollm2" in json.loads(unknown.stderr)["cure"]


def test_a_bench_reports_in_the_shared_shape_and_fails_when_a_promise_is_broken(
    agentd: Agentd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("orchestrator.bench")
    package.__path__ = []
    triage = types.ModuleType("orchestrator.bench.triage")
    triage.run = lambda path, config: [  # type: ignore[attr-defined]
        Measure(measure="screening", value=0.84, unit="share"),
        Measure(measure="both", value=0.7, unit="share", expected=0.8, met=False),
    ]
    monkeypatch.setitem(sys.modules, "orchestrator.bench", package)
    monkeypatch.setitem(sys.modules, "orchestrator.bench.triage", triage)
    (tmp_path / "agentd.toml").write_text("[model]\n")
    arguments = ("bench", "triage", tmp_path / "x.jsonl", "--config", tmp_path)
    result = agentd(*arguments, "--json")
    assert result.exit_code == Exit.FAILED
    fields = ["measure", "value", "unit", "peer", "peer_value", "ratio", "expected", "met"]
    assert [list(one) for one in json.loads(result.stdout)] == [fields, fields]
    assert "0.84" in agentd(*arguments).stdout


# ---- The command line itself --------------------------------------------------------------------


def test_every_command_has_help_with_the_exit_statuses(agentd: Agentd) -> None:
    for command in ([], *[[name] for name in COMMANDS], ["ctl", "ask"]):
        result = agentd(*command, "--help")
        assert result.exit_code == Exit.OK
        for status, meaning in MEANINGS.items():
            assert str(status.value) in result.stdout and meaning in result.stdout
    assert "_AGENTD_COMPLETE" in agentd("--help").stdout
    assert set(MEANINGS) == set(Exit) and EPILOG


def test_help_imports_neither_rich_nor_the_daemon() -> None:
    """What makes it slow to come up is what it imports."""
    script = (
        "import sys; from orchestrator.cli.main import cli\n"
        "cli.main(['ctl', '--help'], standalone_mode=False)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for heavy in ("asyncio", "rich", "uvloop", "apsw", "numpy", "aiohttp", "tomllib"):
        assert f"'{heavy}'" not in run.stderr, run.stderr


def test_a_reader_that_leaves_early_is_no_error_message(tmp_path: Path) -> None:
    script = "from orchestrator.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
