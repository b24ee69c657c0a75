"""Listening on a path: what is taken over, what is left alone, and what is said about it."""

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from orchestrator.sockets import ListenError, listening


def refused(path: Path) -> str:
    with pytest.raises(ListenError) as caught, listening(path, mode=0o600, backlog=1):
        pass
    return str(caught.value)


def test_a_file_at_the_path_is_left_as_it_is_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("important")
    said = refused(path)
    assert str(path) in said and "no socket" in said and "another path" in said
    assert path.read_text() == "important"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_whatever_is_no_socket_is_left_alone(tmp_path: Path, make: object) -> None:
    path = tmp_path / "a.sock"
    assert callable(make)
    make(path)
    before = path.lstat()
    assert "no socket" in refused(path)
    assert path.lstat().st_ino == before.st_ino


def test_a_socket_in_use_says_so_and_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with listening(path, mode=0o600, backlog=1) as listener:
        said = refused(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.accept()[0].close()
    assert f"{path} is in use" in said and "Errno" not in said


def test_a_socket_whose_backlog_is_full_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    with listening(path, mode=0o600, backlog=1):
        for client in waiting:
            client.connect(str(path))
        assert "is in use" in refused(path)
    for client in waiting:
        client.close()


def test_the_socket_of_a_program_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(path, mode=0o600, backlog=1):
        assert path.is_socket()
    assert not path.exists()


def test_a_dead_socket_that_another_one_is_taking_over_is_in_use(tmp_path: Path) -> None:
    path, lock = tmp_path / "a.sock", tmp_path / "a.sock.lock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert f"{path} is in use" in refused(path)
        assert path.is_socket()
    with listening(path, mode=0o600, backlog=1), lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again once somebody listens


def test_the_lock_is_private_and_kept_and_not_made_beside_somebodys_file(tmp_path: Path) -> None:
    with listening(tmp_path / "a.sock", mode=0o666, backlog=1):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.sock.lock"]
    assert stat.S_IMODE((tmp_path / "a.sock.lock").stat().st_mode) == 0o600
    (tmp_path / "b").write_text("important")
    refused(tmp_path / "b")
    assert not (tmp_path / "b.lock").exists()


def test_a_socket_that_another_one_has_put_there_since_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        with listening(path, mode=0o600, backlog=1):
            path.rename(tmp_path / "moved.sock")
            other.bind(str(path))
        assert path.is_socket()


def test_the_permissions_are_those_that_were_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        with listening(tmp_path / "a.sock", mode=0o600, backlog=1):
            assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(mask)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    said = refused(tmp_path / "no" / "a.sock")
    assert str(tmp_path / "no") in said and "No such file or directory" in said
