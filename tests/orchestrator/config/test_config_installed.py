"""What a configuration names must be on this machine: `check` and `run` both say so."""

import json
from pathlib import Path

import pytest

from inference_client.models import Registry
from orchestrator.config import ConfigErrors, ConfigProblem
from orchestrator.config.installed import load_installed
from tests.inference_client import ggufs


def main_file(folder: Path, text: str) -> Path:
    path = folder / "agentd.toml"
    path.write_text(f'[daemon]\nstate = "state"\n{text}')
    return path


def problems(folder: Path, text: str) -> list[ConfigProblem]:
    with pytest.raises(ConfigErrors) as caught:
        load_installed(main_file(folder, text))
    return caught.value.problems


def only(folder: Path, text: str) -> ConfigProblem:
    [problem] = problems(folder, text)
    return problem


def whole(path: Path) -> Path:
    path.write_bytes(ggufs.model())
    return path


def test_an_unknown_model_is_a_mistake_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    problem = only(tmp_path, '[model.default]\nfile = "smolm2"\n')
    assert (problem.file, problem.line) == (tmp_path / "agentd.toml", 4)
    assert problem.key == "model.default.file"
    assert "'smolm2'" in problem.found and "'smollm2'" in problem.cure


def test_a_known_model_that_is_not_pulled_is_a_mistake_with_the_command(tmp_path: Path) -> None:
    problem = only(tmp_path, '[model.default]\n#file = "smollm2"\n')
    assert problem.line == 3
    assert "agentd models pull smollm2 --config " in problem.cure


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "is not a GGUF file"),
        (b"\x7fELF" + bytes(4096), "is not a GGUF file"),
        (ggufs.model()[:-64], "is truncated"),
    ],
)
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[model.default]\nfile = "x.gguf"\n', "model.default.file"),
        ('[model]\n[embedding]\nengine = "x.gguf"\n', "embedding.engine"),
    ],
)
def test_a_file_that_is_no_model_is_a_mistake_wherever_it_is_named(
    tmp_path: Path, content: bytes | None, said: str, text: str, key: str
) -> None:
    if content is not None:
        (tmp_path / "x.gguf").write_bytes(content)
    problem = only(tmp_path, text)
    assert problem.key == key
    assert problem.line is not None
    assert str(tmp_path / "x.gguf") in problem.found and said in problem.found


def test_all_that_is_wrong_is_said_at_once_with_the_mistakes_of_the_file(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        'log = "xml"\n[model.a]\nfile = "x.gguf"\n[model.b]\nfile = "y"\n'
        '[embedding]\nengine = "z.gguf"\n',
    )
    assert [problem.key for problem in found] == [
        "daemon.log",
        "model.a.file",
        "model.b.file",
        "embedding.engine",
    ]


def test_what_is_there_is_in_order(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "state" / "models")
    registry.add(whole(tmp_path / "a.gguf"), "tiny")
    whole(tmp_path / "b.gguf")
    config = load_installed(
        main_file(
            tmp_path,
            '[model.default]\nfile = "tiny"\n[model.other]\nfile = "b.gguf"\n'
            '[embedding]\nengine = "b.gguf"\n',
        )
    )
    assert list(config.models) == ["default", "other"]


def test_an_index_of_models_that_is_damaged_is_a_mistake(tmp_path: Path) -> None:
    index = tmp_path / "state" / "models" / "index.json"
    index.parent.mkdir(parents=True)
    index.write_text("{")
    problem = only(tmp_path, '[model.default]\nfile = "tiny"\n')
    assert str(index) in problem.found
    assert "Delete it" in problem.cure
    index.write_text(json.dumps({"models": {}}))
    assert "not registered" in only(tmp_path, '[model.default]\nfile = "tiny"\n').found
