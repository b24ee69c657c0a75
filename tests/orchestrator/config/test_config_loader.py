"""Real files in, a configuration or all that is wrong with it out."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest

from orchestrator.config import Config, ConfigErrors, ConfigProblem, Overrides, load
from orchestrator.config.loader import load_daemon
from orchestrator.config.reader import Findings, Place
from orchestrator.config.types import HOST_REPORTS, ToolName
from orchestrator.tools.catalogue import CATALOGUE
from orchestrator.tools.host import DISK_REPORT

AGENT = """
[agent.opsclaw]
identity = "You are OpsClaw."
duties = ["disk full"]
consumes = ["user.request"]
publishes = ["user.reply"]
"""
CONDUCTOR = """
[agent.conductor]
role = "conductor"
identity = "You are the Conductor."
publishes = ["user.reply"]
"""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "agentd.toml"


def loaded(folder: Path, main: str, **more: str) -> Config:
    return load(write(folder, {"agentd.toml": main, **more}))


def problems(folder: Path, main: str, more: Mapping[str, str] | None = None) -> list[ConfigProblem]:
    with pytest.raises(ConfigErrors) as raised:
        load(write(folder, {"agentd.toml": main, **(more or {})}))
    return raised.value.problems


def only(found: list[ConfigProblem]) -> ConfigProblem:
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


# ---- What is right ------------------------------------------------------------------------------


def test_an_empty_file_is_a_configuration_of_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, "")
    assert config.source == tmp_path / "agentd.toml"
    assert config.daemon.sandbox == "strict"
    assert config.models["default"].file == "smollm2"
    assert config.agents == {}


def test_a_state_folder_beside_the_main_file_has_no_agents_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for state in (".", "link"):
        main = f'[daemon]\nstate = "{state}"\n'
        assert list(loaded(tmp_path, main, **{"agents.d/opsclaw.toml": AGENT}).agents) == [
            "opsclaw"
        ]


def test_a_retired_agent_is_no_mistake_where_it_is_named(tmp_path: Path) -> None:
    agent = AGENT + 'delegate = ["bee"]\n'
    prompt = {"prompts/bee/act.md": "Act."}
    assert {each.key for each in problems(tmp_path, agent, prompt)} == {
        "",
        "agent.opsclaw.delegate[0]",
    }
    gone = {"state/agents.d/bee.retired": ""}
    warnings = loaded(tmp_path, '[daemon]\nstate = "state"\n' + agent, **gone).warnings
    assert "which was retired" in str([str(each) for each in warnings])


def test_values_arrive_in_their_units_and_places(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        '[daemon]\nstate = "var"\nsocket = "/run/x.sock"\n'
        '[model.default]\nfile = "models/big.gguf"\nthreads = 3\n'
        '[conversation]\ntime_to_live = "2h"\n' + AGENT + CONDUCTOR + "[agent.opsclaw.limits]\n"
        'time = "90s"\nmemory = "512MiB"\n[agent.opsclaw.sampling]\ntemperature = 1\n',
    )
    assert config.daemon.state == tmp_path / "var"
    assert str(config.daemon.socket) == "/run/x.sock"
    assert config.models["default"].file == str(tmp_path / "models/big.gguf")
    assert config.gateway.listen == f"unix:{tmp_path / 'var' / 'gateway.sock'}"
    assert config.conversation.time_to_live_us == 7_200_000_000
    assert config.conversation.conductor == "conductor"
    agent = config.agents["opsclaw"]
    assert (agent.name, agent.limits.time_us, agent.limits.memory_bytes) == (
        "opsclaw",
        90_000_000,
        2**29,
    )
    assert agent.sampling.temperature == 1.0
    assert config.warnings == []


def test_agents_come_from_files_of_their_own(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        {
            "agentd.toml": "",
            "agents.d/opsclaw.toml": AGENT,
            "agents.d/conductor.toml": CONDUCTOR,
            "agents.d/common.toml": '[screening]\nignores = ["hello"]\n',
            "agents.d/.#opsclaw.toml": "the lock of an editor",
            "agents.d/notes.txt": "not read",
        },
    )
    config = load(main.parent)
    assert set(config.agents) == {"opsclaw", "conductor"}
    assert config.screening.ignores == ["hello"]


def test_an_identity_may_stand_in_a_file_beside(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        {
            "agentd.toml": "",
            "agents.d/a.toml": '[agent.a]\nidentity_file = "a.md"\nduties = ["x"]\n',
            "agents.d/a.md": "You are A.\n",
        },
    )
    assert load(main).agents["a"].identity == "You are A."


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    main = write(tmp_path, {"agentd.toml": '[daemon]\nstate = "a"\nsocket = "b"\n'})
    overrides = Overrides(state=tmp_path / "s", socket=tmp_path / "t", sandbox_off=True)
    config = load(main, overrides)
    assert config.daemon.state == tmp_path / "s"
    assert config.daemon.socket == tmp_path / "t"
    assert config.daemon.sandbox == "off"
    assert config.gateway.listen == f"unix:{tmp_path / 's' / 'gateway.sock'}"


def test_as_many_threads_as_there_are_cores_may_decode_and_all_layers_may_go_to_a_gpu(
    tmp_path: Path,
) -> None:
    model = loaded(tmp_path, "").models["default"]
    assert [model.threads_on(cores) for cores in (1, 2, 8)] == [1, 2, 8]
    assert model.offloaded_layers == -1
    told = loaded(tmp_path, "[model.default]\nthreads = 3\ngpu_layers = 0\n").models["default"]
    assert (told.threads_on(2), told.offloaded_layers) == (3, 0)


def test_the_socket_is_found_in_a_configuration_with_mistakes_elsewhere(tmp_path: Path) -> None:
    main = write(tmp_path, {"agentd.toml": '[daemon]\nsocket = "a.sock"\n[modle]\nx = 1\n'})
    assert load_daemon(main).socket == tmp_path / "a.sock"


def test_the_names_of_tools_are_those_of_the_catalogue() -> None:
    assert set(get_args(ToolName)) == set(CATALOGUE.names)
    assert {DISK_REPORT} == HOST_REPORTS


# ---- What is wrong ------------------------------------------------------------------------------


def test_all_mistakes_are_named_at_once_with_their_lines(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        '[daemon]\nlog_level = "warn"\n[model.default]\nslots = 0\n',
        {
            "agents.d/a.toml": '[agent.a]\nidentity = "A"\nmodel = "defualt"\n'
            'delegate = [\n  "b",\n  "cc",\n]\n[agent.a.limits]\ntime = "120"\n',
            "agents.d/b.toml": '[agent.b]\nidentity = "B"\ntools = ["fs.raed"]\n'
            '[agent.ccc]\nidentity = "C"\nduites = []\n',
        },
    )
    where = [(problem.file.name, problem.line, problem.key) for problem in found]
    assert where == [
        ("agentd.toml", 2, "daemon.log_level"),
        ("agentd.toml", 4, "model.default.slots"),
        ("a.toml", 3, "agent.a.model"),
        ("a.toml", 6, "agent.a.delegate[1]"),
        ("a.toml", 9, "agent.a.limits.time"),
        ("b.toml", 3, "agent.b.tools[0]"),
        ("b.toml", 6, "agent.ccc.duites"),
    ]
    cures = [problem.cure for problem in found]
    for cure, near in zip(
        cures, ["warning", "", "default", "ccc", "", "fs.read", "duties"], strict=True
    ):
        assert near in cure, cures


@pytest.mark.parametrize(
    ("main", "line", "found", "expected"),
    [
        ("a = [1\n", 2, "", "valid TOML"),
        ('x = "\\q"\n', 1, "unescaped", "valid TOML"),
        ("[daemon]\nstate = 3\n", 2, "3", "a path"),
        ('[daemon]\nstate = "~/x"\n', 2, "~/x", "a path"),
        ('[daemon]\nsandbox = "off"\n', 2, "off", "'strict', 'standard'"),
        ('[screening]\nignores = "thanks"\n', 2, "thanks", "a list"),
        ('[daemon]\nrequire = ["cgroup"]\n', 2, "an unknown key", "'sandbox'"),
        ('[gateway]\nlisten = "localhost:9464"\n', 2, "localhost", "127.0.0.1:PORT"),
        ("[agent.supervisor]\nidentity = 'x'\n", 1, "the daemon uses itself", "another name"),
        ("[agent.a]\nidentity = 'x'\nconsumes = ['Ops.Alert']\n", 3, "Ops.Alert", "a-z"),
        ("[agent.a]\nidentity = 'x'\npublishes = ['a.>.b']\n", 3, "a.>.b", "a final `>`"),
        ("daemon = 1\n", 1, "1", "a table"),
        ("model = 1\n", 1, "1", "tables [model.NAME]"),
        ("[model.default]\nthreads = 0\n", 2, "0", "an integer, at least 1"),
        ("[model.default]\nslots = true\n", 2, "true", "an integer"),
        ('[gateway]\nlisten = "0.0.0.0:80"\n', 2, "0.0.0.0:80", "127.0.0.1:PORT"),
        ('[gateway]\nlisten = "127.0.0.1:99999"\n', 2, "99999", "127.0.0.1:PORT"),
        (f'[daemon]\nsocket = "/{"x" * 107}"\n', 2, "108 bytes", "at most 107"),
        ("[agent.Ops]\nidentity = 'x'\n", 1, "Ops", "lower-case"),
        ("[agent.operator]\nidentity = 'x'\n", 1, "the daemon uses itself", "another name"),
        ("[agent.a]\nduties = ['x']\n", 1, "no identity", "identity_file"),
        ("[agent.a]\nidentity_file = 'a.md'\n", 2, "no such file", "a file with the identity"),
        ("[agent.a]\nidentity = 'x'\ndelegate = ['a']\n", 3, "itself", "nothing"),
        ("[agent.a]\nidentity = 'x'\nduties = ['y', '']\n", 3, '""', "not empty"),
        ("[agent.a]\nidentity = 'x'\nduties = ['y', 'y']\n", 3, "second time", "once"),
        ("[agent.a]\nidentity = 'x'\nconsumes = ['a..b']\n", 3, "a..b", "dots between"),
        ("[agent.a]\nidentity = 'x'\nhost_read = ['/a/../b']\n", 3, "/a/../b", "absolute path"),
        ("[agent.a]\nidentity = 'x'\nsampling.top_p = nan\n", 3, "nan", "from 0 to 1"),
        ("[agent.a]\nidentity = 'x'\nlimits.memory = '1MiB'\n", 3, "1MiB", "at least 64MiB"),
        ("[agent.a]\nidentity = 'x'\ntools = [{}]\n", 3, "a table", "fs.read"),
        ("[agent.a]\nidentity = 'x'\nlimits.time = 120\n", 3, "120", "a duration"),
        ("[daemon]\nlog_level = ['debug']\n", 2, "a list", "'debug', 'info'"),
        ("[daemon]\nlog_level = 2026-01-01\n", 2, "2026-01-01 (a date)", "'debug', 'info'"),
        ("[model.default]\nfile = ''\n", 2, '""', "not empty"),
    ],
)
def test_a_mistake_names_its_line_what_was_found_and_what_was_expected(
    tmp_path: Path, main: str, line: int, found: str, expected: str
) -> None:
    problem = only(problems(tmp_path, main))
    assert problem.line == line
    assert found.lower() in problem.found.lower()
    assert expected in problem.expected


def test_a_key_without_a_place_of_its_own_is_placed_in_its_table() -> None:
    findings = Findings(Path("agentd.toml"))
    findings.note(("agent", "a"), Place(Path("a.toml"), 3))
    assert findings.place(("agent", "a", "limits", "time")) == Place(Path("a.toml"), 3)
    assert findings.place(("gateway", "listen")) == Place(Path("agentd.toml"))


def test_a_missing_configuration_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as raised:
        load(tmp_path / "agentd.toml")
    assert "agentd init" in only(raised.value.problems).cure


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_bytes(b"# fine\nx = '\xff'\n")
    with pytest.raises(ConfigErrors) as raised:
        load(tmp_path)
    assert only(raised.value.problems).line == 2


def test_a_key_in_two_files_is_refused_and_both_are_named(tmp_path: Path) -> None:
    more = {"agents.d/x.toml": "\n[agent.opsclaw]\nidentity = 'again'\n"}
    problem = only(problems(tmp_path, AGENT + CONDUCTOR, more))
    assert (problem.file.name, problem.line) == ("x.toml", 3)
    assert "agentd.toml:3" in problem.expected


def test_files_of_agents_configure_nothing_else(tmp_path: Path) -> None:
    more = {"agents.d/x.toml": "\n[daemon]\nlog = 'json'\n"}
    problem = only(problems(tmp_path, "", more))
    assert (problem.file.name, problem.line, problem.key) == ("x.toml", 2, "daemon")
    assert "agentd.toml" in problem.cure


def test_a_second_conductor_is_refused(tmp_path: Path) -> None:
    other = CONDUCTOR.replace("agent.conductor", "agent.other")
    problem = only(problems(tmp_path, CONDUCTOR + other))
    assert problem.key == "agent.other.role"


def test_a_prompt_that_overrides_nothing_is_refused(tmp_path: Path) -> None:
    more = {"prompts/traige.md": "x", "prompts/opsclaw/act.md": "y", "prompts/opclaw/act.md": "z"}
    found = problems(tmp_path, AGENT + CONDUCTOR, more)
    assert [problem.file.name for problem in found] == ["opclaw", "traige.md"]
    assert "opsclaw" in found[0].cure
    assert "triage" in found[1].cure


# ---- What is probably not meant -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key", "near"),
    [
        (('"user.reply"]', '"user.repyl"]'), "agent.opsclaw.publishes[0]", "user.reply"),
        (('"user.request"]', '"user.reqest"]'), "agent.opsclaw.consumes[0]", "user.request"),
        (('["disk full"]', "[]"), "agent.opsclaw", "screening"),
        (("duties", 'host_read = ["/proc/stat"]\nduties'), "agent.opsclaw.host_read", ""),
        (("duties", 'tools = ["host.read"]\nduties'), "agent.opsclaw.tools", ""),
    ],
)
def test_what_works_and_is_probably_not_meant_is_a_warning(
    tmp_path: Path, change: tuple[str, str], key: str, near: str
) -> None:
    warning = only(loaded(tmp_path, AGENT.replace(*change) + CONDUCTOR).warnings)
    assert warning.key == key
    assert near in warning.cure


def test_a_pattern_hears_the_topics_that_it_matches(tmp_path: Path) -> None:
    text = AGENT.replace('["user.request"]', '["user.request", "ops.>", "*.reply"]').replace(
        '["user.reply"]', '["ops.report.disk", "agent.conductor"]'
    )
    assert loaded(tmp_path, text + CONDUCTOR).warnings == []


def test_agents_without_a_conductor_are_a_warning(tmp_path: Path) -> None:
    assert "no conductor" in only(loaded(tmp_path, AGENT).warnings).found
