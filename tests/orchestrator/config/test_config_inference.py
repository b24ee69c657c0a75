"""Models here and elsewhere, the endpoint and its clients: what is wrong, and what is not meant."""

import os
from pathlib import Path

import pytest

from orchestrator.config import Config, ConfigErrors, ConfigProblem, load
from orchestrator.config.installed import load_installed
from orchestrator.config.types import fault_of_key_place, fault_of_url

HASH = "ab" * 32
REMOTE = '[model.big]\nurl = "https://models.example/v1"\n'
CLIENT = f'[client.editor]\nkey_sha256 = "{HASH}"\n'
ENDPOINT = '[endpoint]\nlisten = "unix:endpoint.sock"\n'
AGENT = '[agent.opsclaw]\nidentity = "x"\nduties = ["y"]\n'


def read(folder: Path, text: str) -> Config:
    (folder / "agentd.toml").write_text(text)
    return load(folder)


def problems(folder: Path, text: str) -> list[ConfigProblem]:
    with pytest.raises(ConfigErrors) as raised:
        read(folder, text)
    return raised.value.problems


def only(found: list[ConfigProblem]) -> ConfigProblem:
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def warnings(folder: Path, text: str) -> list[ConfigProblem]:
    """But for those of a configuration without agents."""
    return [each for each in read(folder, text).warnings if each.key]


# ---- What is right ------------------------------------------------------------------------------


def test_a_model_elsewhere_needs_an_address_and_nothing_else(tmp_path: Path) -> None:
    text = REMOTE + 'remote_model = "big-1"\nkey = "file:big.key"\nslots = 32\n'
    model = read(tmp_path, text).models["big"]
    assert model.is_remote
    assert model.key == f"file:{tmp_path / 'big.key'}"
    assert warnings(tmp_path, text) == []


def test_an_endpoint_with_a_client_is_right(tmp_path: Path) -> None:
    text = ENDPOINT + CLIENT + 'models = ["default"]\npriority = "high"\nweight = 2\nrequests = 4\n'
    config = read(tmp_path, text)
    client = config.clients["editor"]
    assert (client.name, client.share.weight, client.share.running_max) == ("editor", 2.0, 4)
    assert config.endpoint.listen == f"unix:{config.daemon.state / 'endpoint.sock'}"
    assert warnings(tmp_path, text) == []


def test_memory_for_models_is_a_size_or_left_to_what_there_is(tmp_path: Path) -> None:
    assert read(tmp_path, "").inference.memory_bytes is None
    assert read(tmp_path, '[inference]\nmemory = "8GiB"\n').inference.memory_bytes == 2**33


def test_what_an_agent_may_have_of_its_model_is_a_limit_of_its(tmp_path: Path) -> None:
    limits = "[agent.opsclaw.limits]\nweight = 3\nrequests = 1\ntokens_per_minute = 600\n"
    share = read(tmp_path, AGENT + limits).agents["opsclaw"].limits.share
    assert (share.weight, share.running_max, share.tokens_per_minute) == (3.0, 1, 600)


# ---- What is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key", "found", "expected"),
    [
        (REMOTE + 'file = "a.gguf"\n', 3, "model.big.file", "both `file` and `url`", "one of"),
        (REMOTE + 'key = "sk-12345"\n', 3, "model.big.key", "another text", "`file:PATH`"),
        ('[model.big]\nkey = "env:KEY"\n', 2, "model.big.key", "remote server", "`url` too"),
        ('[model.big]\nremote_model = "x"\n', 2, "model.big.remote_model", "remote", "`url` too"),
        (
            '[model.big]\nurl = "http://models.example/v1"\nkey = "env:K"\n',
            *(3, "model.big.key", "in the clear", "https"),
        ),
        ('[model.big]\nurl = "ftp://x/v1"\n', 2, "model.big.url", "another text", "https://"),
        ("[model.big]\nurl = 3\n", 2, "model.big.url", "3", "https://"),
        ("[model.embed]\n", 1, "model.embed", "the embedding model", "another name"),
        ('[model."a/b"]\n', 1, 'model."a/b"', '"a/b"', "letters, digits"),
        ('[model."a\\nb"]\n', 1, 'model."a\\nb"', '"a\\nb"', "letters, digits"),
        ('[model.""]\n', 1, 'model.""', '""', "letters, digits"),
        ("[model.big]\npreference_weight = nan\n", 2, "model.big.preference_weight", "nan", "most"),
        ('[model.big]\nkv_type = "q9"\n', 2, "model.big.kv_type", '"q9"', "'q8_0'"),
        (
            '[model.big]\nkv_type = "q8_0"\nflash_attention = "off"\n',
            *(2, "model.big.kv_type", "without flash attention", "'f16'"),
        ),
        ('[model.big]\ndevices = ["", "x"]\n', 2, "model.big.devices[0]", '""', "not empty"),
        ("[model.big]\ngpu_layers = -2\n", 2, "model.big.gpu_layers", "-2", "at least -1"),
        ('[inference]\nmemory = "1MiB"\n', 2, "inference.memory", "1MiB", "at least 64MiB"),
        ('[endpoint]\nlisten = "0.0.0.0:80"\n', 2, "endpoint.listen", "0.0.0.0", "127.0.0.1:PORT"),
        (
            f'[endpoint]\nlisten = "unix:/{"x" * 107}"\n',
            *(2, "endpoint.listen", "108 bytes", "at most 107"),
        ),
        (
            '[gateway]\nlisten = "[::1]:8080"\n[endpoint]\nlisten = "[::1]:8080"\n',
            *(4, "endpoint.listen", "as `gateway.listen`", "another address"),
        ),
        ("[client.editor]\nweight = 1\n", 1, "client.editor.key_sha256", "no such key", "64"),
        ('[client.editor]\nkey_sha256 = "x"\n', 2, "client.editor.key_sha256", "text", "64"),
        (CLIENT + 'models = ["defualt"]\n', 3, "client.editor.models[0]", "defualt", "'default'"),
        (CLIENT + 'priority = "top"\n', 3, "client.editor.priority", '"top"', "'urgent'"),
        (CLIENT + "weight = 0\n", 3, "client.editor.weight", "0", "more than 0"),
        (CLIENT.replace("editor", "Editor"), 1, "client.Editor", '"Editor"', "lower-case"),
        (CLIENT.replace("editor", "operator"), 1, "client.operator", "itself", "another name"),
        (AGENT + CLIENT.replace("editor", "opsclaw"), 1, "agent.opsclaw", "client", "by name"),
        (
            CLIENT + CLIENT.replace("editor", "other"),
            *(4, "client.other.key_sha256", "the key of editor", "a key of its own"),
        ),
    ],
)
def test_a_mistake_names_its_line_what_was_found_and_what_was_expected(
    tmp_path: Path, text: str, line: int, key: str, found: str, expected: str
) -> None:
    problem = only(problems(tmp_path, text))
    assert (problem.line, problem.key) == (line, key)
    assert found in problem.found
    assert expected in problem.expected


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("model.big.url", "https://me:hunter2@models.example/v1"),
        ("model.big.url", "https://me:hunter2"),
        ("model.big.key", "hunter2"),
        ("client.editor.key_sha256", "hunter2"),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path, key: str, secret: str) -> None:
    table, _, name = key.rpartition(".")
    for problem in problems(tmp_path, f'[{table}]\n{name} = "{secret}"\n'):
        assert "hunter2" not in str(problem)


def test_a_name_that_is_nearly_a_model_is_suggested(tmp_path: Path) -> None:
    assert "'default'" in only(problems(tmp_path, CLIENT + 'models = ["defualt"]\n')).cure


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", None),
        ("https://models.example/v1", None),
        ("http://[::1]:8080", None),
        ("models.example/v1", "no address"),
        ("https:///v1", "no address"),
        ("https://me:pass@models.example", "credentials"),
        ("https://models.example/v1?key=1", "no address"),
        ("https://models.example:99999/v1", "no address"),
        ("https://models.example/v1\n", "no address"),
    ],
)
def test_an_address_is_one_that_egress_takes_and_has_nothing_secret(
    url: str, fault: str | None
) -> None:
    said = fault_of_url(url)
    assert said is None if fault is None else fault in (said or "")


@pytest.mark.parametrize("place", ["", "file:big.key", "env:BIG_KEY", "credential:big"])
def test_a_key_is_named_by_its_place(place: str) -> None:
    assert fault_of_key_place(place) is None


@pytest.mark.parametrize("place", ["sk-0123456789", "file:", "credential:../big"])
def test_what_names_no_place_may_be_the_key_itself(place: str) -> None:
    assert "take it out" in (fault_of_key_place(place) or "")


def test_the_file_of_a_key_is_there_and_for_the_daemon_alone(tmp_path: Path) -> None:
    text = f'[daemon]\nstate = "s"\n[model]\n{REMOTE}key = "file:big.key"\n'
    (tmp_path / "agentd.toml").write_text(text)
    key = tmp_path / "big.key"

    def found() -> str:
        with pytest.raises(ConfigErrors) as raised:
            load_installed(tmp_path)
        return only(raised.value.problems).found

    assert f"{key}, which is not there" in found()
    key.mkdir()
    assert "is no regular file" in found()
    key.rmdir()
    key.touch()
    key.chmod(0o644)
    assert "by every user" in found()
    key.chmod(0o000)
    assert load_installed(tmp_path).models["big"].is_remote


def test_a_model_with_a_wrong_address_is_not_looked_for_here(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text('[model.big]\nurl = "https://models..example"\n')
    with pytest.raises(ConfigErrors) as raised:
        load_installed(tmp_path)
    assert only(raised.value.problems).key == "model.big.url"


def test_where_the_folder_of_a_key_is_closed_to_who_checks_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agentd.toml").write_text(f'[model]\n{REMOTE}key = "file:big.key"\n')
    stat = Path.stat

    def closed(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.name == "big.key":
            raise PermissionError
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", closed)
    assert load_installed(tmp_path).models["big"].is_remote


# ---- What is probably not meant -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key", "found"),
    [
        (REMOTE + "context = 8192\n", 3, "model.big.context", "no use for"),
        (REMOTE + 'swap = "1GiB"\n', 3, "model.big.swap", "no use for"),
        (REMOTE + "pin = true\n", 3, "model.big.pin", "no use for"),
        (REMOTE + "preference_weight = 1\n", 3, "model.big.preference_weight", "no use for"),
        ("[model.big]\nslots = 64\n", 2, "model.big.slots", "64 slots that share 8192 tokens"),
        (
            '[model.big]\ngpu_layers = 0\ndevices = ["CUDA0"]\n',
            *(3, "model.big.devices", "no layer for them"),
        ),
        (ENDPOINT, 2, "endpoint.listen", "answers nobody"),
        (CLIENT, 1, "client.editor", "nothing for it"),
    ],
)
def test_what_works_and_is_probably_not_meant_is_a_warning(
    tmp_path: Path, text: str, line: int, key: str, found: str
) -> None:
    warning = only(warnings(tmp_path, text))
    assert (warning.line, warning.key) == (line, key)
    assert found in warning.found


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_key_may_go_to_this_machine_readable(tmp_path: Path, host: str) -> None:
    text = f'[model.big]\nurl = "http://{host}:8080/v1"\nkey = "env:K"\n'
    assert warnings(tmp_path, text) == []


def test_two_that_take_any_free_port_do_not_meet(tmp_path: Path) -> None:
    any_port = 'listen = "127.0.0.1:0"\n'
    assert warnings(tmp_path, f"[gateway]\n{any_port}[endpoint]\n{any_port}{CLIENT}") == []
