"""Keys of remote servers: where they are read, and that nobody shows them."""

import os
import pickle
from pathlib import Path

import pytest

from ipc_protocol.errors import Failure
from orchestrator import secrets
from orchestrator.secrets import SECRET_BYTES_MAX, Secret

KEY = "sk-0123456789"


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_holds_a_key_in_one_line(tmp_path: Path, end: str) -> None:
    path = written(tmp_path / "key", f"{KEY}{end}".encode())
    assert secrets.read(f"file:{path}", {}).reveal() == KEY


def test_the_environment_holds_a_key() -> None:
    assert secrets.read("env:BIG_KEY", {"BIG_KEY": KEY}).reveal() == KEY


def test_systemd_holds_a_key(tmp_path: Path) -> None:
    written(tmp_path / "big", KEY.encode(), 0o400)
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert secrets.read("credential:big", environment).reveal() == KEY


def test_a_key_shows_itself_to_nobody() -> None:
    secret = Secret(KEY)
    assert KEY not in f"{secret} {secret!r} {secret!s} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def refused(reference: str, environment: dict[str, str]) -> str:
    with pytest.raises(Failure) as failure:
        secrets.read(reference, environment)
    assert failure.value.code == "model.unavailable"
    assert KEY not in repr(failure.value.problem)
    return failure.value.problem.message


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (f"{KEY} two".encode(), "a space"),
        (f"{KEY}\nsecond line".encode(), "a line end"),
        (f"{KEY}\x00".encode(), "plain ASCII"),
        (f"{KEY}é".encode(), "plain ASCII"),
        (b"x" * (SECRET_BYTES_MAX + 1), "longer than"),
    ],
)
def test_what_is_no_key_is_refused_unseen(tmp_path: Path, content: bytes, fault: str) -> None:
    path = written(tmp_path / "key", content)
    assert fault in refused(f"file:{path}", {})


def test_a_key_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "key", KEY.encode(), 0o644)
    assert "every user" in refused(f"file:{path}", {})


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert "no regular file" in refused(f"file:{fifo}", {})
    assert "no regular file" in refused(f"file:{tmp_path}", {})
    assert "cannot be opened" in refused(f"file:{tmp_path / 'none'}", {})


def test_what_is_not_there_is_named() -> None:
    assert "BIG_KEY is not set" in refused("env:BIG_KEY", {})
    assert "no credentials" in refused("credential:big", {})


@pytest.mark.parametrize(
    "reference",
    [
        KEY,
        "",
        "file:",
        "env:",
        "env:a=b",
        "credential:../key",
        "credential:..",
        "vault:x",
        "file:\0",
    ],
)
def test_what_is_no_reference_may_be_the_key_itself_and_is_not_quoted(reference: str) -> None:
    assert secrets.kind_of(reference) is None
    assert "A key is not" in refused(reference, {})


def test_programs_that_start_later_do_not_inherit_a_key() -> None:
    environment = {"BIG_KEY": KEY, "HOME": "/"}
    secrets.withdraw(["env:BIG_KEY", "env:GONE", "file:HOME"], environment)
    assert environment == {"HOME": "/"}
