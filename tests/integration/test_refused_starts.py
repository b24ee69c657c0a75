"""What cannot work is refused before anything is started, and says what to do."""

from pathlib import Path

import pytest
from daemons import Installation, agentd, short_folder


def truncated(model: Path, folder: Path) -> Path:
    """The first half of a download."""
    path = folder / "truncated.gguf"
    data = model.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def foreign(_: Path, folder: Path) -> Path:
    path = folder / "foreign.gguf"
    path.write_bytes(b"\x7fELF" + bytes(4096))
    return path


def empty(_: Path, folder: Path) -> Path:
    path = folder / "empty.gguf"
    path.touch()
    return path


def missing(_: Path, folder: Path) -> Path:
    return folder / "missing.gguf"


@pytest.mark.parametrize("make", [truncated, foreign, empty, missing])
def test_a_file_that_is_no_model_is_named_and_nothing_is_started(
    installation: Installation, model_path: Path, make: object
) -> None:
    assert callable(make)
    path = make(model_path, installation.folder)
    installation.configure(model={"default": {"file": str(path)}})
    done = agentd("run", *installation.config_option)
    assert done.status != 0
    said = done.errors + done.output
    assert str(path) in said
    assert "is ready" not in said and "listening" not in said
    assert not installation.socket.exists()


def test_an_unknown_model_is_refused_with_the_nearest_name(installation: Installation) -> None:
    installation.configure(model={"default": {"file": "smolm2"}})
    done = agentd("run", *installation.config_option)
    assert done.status != 0
    assert "'smolm2'" in done.errors + done.output and "'smollm2'" in done.errors + done.output
    pulled = agentd("models", "pull", "smolm2", *installation.config_option)
    assert pulled.status == 1
    assert "'smollm2'" in pulled.errors


def test_a_daemon_that_is_not_there_is_an_exit_status_of_its_own() -> None:
    with short_folder() as folder:
        done = agentd("ctl", "status", "--socket", str(folder / "agentd.sock"))
    assert done.status == 3
    assert str(folder / "agentd.sock") in done.errors
    assert "agentd run" in done.errors
