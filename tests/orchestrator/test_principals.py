"""Whose key it is, and what that allows."""

import hashlib

import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.values import Priority
from orchestrator.config.types import ClientConfig
from orchestrator.principals import allowed_models, check_model, class_of, client_of


def client(
    name: str, key: str = "", priority: Priority = "normal", models: list[str] | None = None
) -> ClientConfig:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return ClientConfig(key_sha256=digest, name=name, priority=priority, models=models or [])


CLIENTS = {"ada": client("ada", "sk-ada"), "bob": client("bob", "sk-bob"), "all": client("all", "")}


def test_a_key_belongs_to_one_client() -> None:
    assert client_of("sk-ada", CLIENTS).name == "ada"
    assert client_of("sk-bob", CLIENTS).name == "bob"


@pytest.mark.parametrize("key", ["", "sk-eve", "sk-ada ", "\ud800"])
def test_a_key_of_nobody_is_refused(key: str) -> None:
    """The empty one too, whatever somebody has configured."""
    with pytest.raises(Failure) as caught:
        client_of(key, CLIENTS)
    assert caught.value.code == "serve.unauthorized"


def test_without_a_list_of_models_all_are_allowed() -> None:
    assert allowed_models(client("ada"), ["a", "b"]) == ["a", "b"]
    assert allowed_models(client("ada", models=["b", "x"]), ["a", "b"]) == ["b"]
    check_model(client("ada"), "a", ["a"])
    check_model(client("ada", models=["a"]), "a", ["a"])


@pytest.mark.parametrize(
    ("models", "model", "code", "words"),
    [
        ([], "x", "model.unknown", "allows a, b"),
        (["x"], "x", "model.unknown", "none of this kind"),
        (["a"], "b", "serve.not-permitted", "allows a"),
        (["a"], "x", "serve.not-permitted", "does not allow"),
    ],
)
def test_another_model_is_refused_with_those_that_are_allowed(
    models: list[str], model: str, code: str, words: str
) -> None:
    with pytest.raises(Failure, match=words) as caught:
        check_model(client("ada", models=models), model, ["a", "b"])
    assert caught.value.code == code


def test_a_client_may_ask_for_its_class_and_for_less() -> None:
    assert class_of(client("ada"), None) == "normal"
    assert class_of(client("ada"), "normal") == "normal"
    assert class_of(client("ada"), "background") == "background"
    with pytest.raises(Failure, match="does not allow the class high") as caught:
        class_of(client("ada"), "high")
    assert caught.value.code == "serve.not-permitted"
