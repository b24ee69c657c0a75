"""The file of an agent that is added while the daemon runs."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from orchestrator.config import AgentConfig, Config, ConfigErrors, load
from orchestrator.config.added import Added, read_added
from orchestrator.config.loader import Overrides

FILE = Path("/home/me/gate.toml")
CONFIG = Config(
    source=Path("/etc/agentd/agentd.toml"),
    prompts=Path("/etc/agentd/prompts"),
    agents={"opsclaw": AgentConfig(name="opsclaw", identity="x", consumes=["a.>"])},
)
GATE = '[agent.gate]\nidentity = "You guard."\nconsumes = ["a.b"]\npublishes = ["a.c"]\n'


@pytest.fixture
def component(tmp_path: Path) -> Path:
    path = tmp_path / "kept.wasm"
    path.write_bytes(b"\0asm")
    return path


def read(text: str, *, contents: dict[str, bytes] | None = None, **components: Path) -> Added:
    named = {f"{name}.wasm": path for name, path in components.items()}
    return read_added(CONFIG, FILE, text, contents or {}, named)


def mistakes(text: str, **contents: bytes) -> list[tuple[int | None, str]]:
    named = {f"{name}.txt": data for name, data in contents.items()}
    with pytest.raises(ConfigErrors) as errors:
        read(text, contents=named)
    return [(problem.line, problem.found) for problem in errors.value.problems]


def test_what_the_file_names_is_put_into_what_is_kept(component: Path) -> None:
    text = (
        '[agent.gate]\nidentity_file = "id.md"\nconfig_file = "c.json"\ncomponent = "a.wasm"\n'
        'consumes = ["a.b"]\n'
    )
    contents = {"id.md": b"You guard.", "c.json": b'{"x": 1}'}
    added = read(text, contents=contents, a=component)
    assert added.agent.identity == "You guard."
    assert added.agent.component_config == b'{"x": 1}'
    assert added.agent.component == component
    kept = tomllib.loads(added.text)["agent"]["gate"]
    assert kept == {
        "identity": "You guard.",
        "config": '{"x": 1}',
        "component": str(component),
        "consumes": ["a.b"],
    }


def test_warnings_are_those_of_the_new_agent_alone() -> None:
    added = read(GATE)
    assert added.warnings and all(each.key.startswith("agent.gate") for each in added.warnings)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [(None, "no agent")]),
        ("agent = 3\n", [(None, "no agent")]),
        ("x = [", [(1, "invalid value")]),
        ("[agent.a]\n[agent.b]\n", [(2, "2 agents")]),
        ("[daemon]\n", [(1, "a key that does not belong here")]),
        (f"[screening]\nignores = []\n{GATE}", [(1, "what all agents share")]),
        ("[agent]\ngate = 3\n", [(2, "3")]),
        (f"{GATE}duty = []\nmodel = 'x'\n", [(5, "an unknown key"), (6, 'no model "x"')]),
        (f'{GATE}component = "a.wasm"\n', [(5, "a.wasm, which did not come along")]),
        (f'{GATE}identity_file = "i.txt"\n', [(5, "both `identity` and `identity_file`")]),
        (
            '[agent.gate]\nidentity_file = "i.txt"\n',
            [(2, "i.txt, which did not come along")],
        ),
    ],
)
def test_every_mistake_has_its_line(text: str, found: list[tuple[int | None, str]]) -> None:
    assert mistakes(text) == found


def test_a_text_that_is_none_is_a_mistake() -> None:
    text = '[agent.gate]\nidentity_file = "i.txt"\n'
    assert (2, "bytes that are no UTF-8") in mistakes(text, i=b"\xff")


def test_the_first_conductor_may_come_later_and_a_second_may_not() -> None:
    text = '[agent.c]\nidentity = "x"\nrole = "conductor"\n'
    added = read(text)
    assert added.agent.role == "conductor"
    agents = {**CONFIG.agents, "c": added.agent}
    conversation = msgspec.structs.replace(CONFIG.conversation, conductor="c")
    led = msgspec.structs.replace(CONFIG, agents=agents, conversation=conversation)
    with pytest.raises(ConfigErrors, match=r"gate\.toml:3: agent\.d\.role"):
        read_added(led, FILE, text.replace("agent.c", "agent.d"), {}, {})


def test_what_the_daemon_has_written_is_loaded_beside_the_configuration(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "agents.d").mkdir(parents=True)
    (state / "agents.d" / "gate.toml").write_text(read(GATE).text)
    main = tmp_path / "agentd.toml"
    main.write_text('[daemon]\nstate = "state"\n')
    assert list(load(main).agents) == ["gate"]
    elsewhere = Overrides(state=tmp_path / "other")
    assert list(load(main, elsewhere).agents) == []


def test_an_agent_in_two_folders_is_a_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path / "agents.d", tmp_path / "agents.d" / "agents.d"):
        folder.mkdir()
        (folder / "gate.toml").write_text(GATE)
    main = tmp_path / "agentd.toml"
    main.write_text('[daemon]\nstate = "agents.d"\n')
    with pytest.raises(ConfigErrors, match="a second value"):
        load(main)
