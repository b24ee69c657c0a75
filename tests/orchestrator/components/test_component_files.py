"""Components kept by content: real files, uploads that stop and go on, and what damages them."""

import contextlib
import hashlib
import os
import re
import resource
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc_protocol.errors import Failure
from orchestrator.components import limits
from orchestrator.components.files import ComponentFile, ComponentFiles

WASM = b"\0asm\x0d\0\x01\0" + bytes(range(256)) * 20


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "components"


@pytest.fixture
def files(folder: Path) -> ComponentFiles:
    return ComponentFiles(folder)


def written(tmp_path: Path, data: bytes = WASM, name: str = "echo.wasm") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(files: ComponentFiles, sha256: str) -> bytes:
    with files.open(sha256) as file:
        return file.read()


@contextlib.contextmanager
def refused(code: str, says: str) -> Iterator[None]:
    with pytest.raises(Failure, match=re.escape(says)) as failed:
        yield
    assert failed.value.code == code


# ---- Added by a path or a descriptor -------------------------------------------------------------


def test_what_is_added_is_kept_under_its_hash(files: ComponentFiles, tmp_path: Path) -> None:
    kept = files.add(written(tmp_path))
    assert kept == ComponentFile(hash_of(WASM), len(WASM), kept.path)
    assert kept.path.name == f"{hash_of(WASM)}.wasm"
    assert kept.path.read_bytes() == WASM
    assert files.find(kept.sha256) == kept


def test_what_is_kept_is_the_daemon_s_alone(
    files: ComponentFiles, folder: Path, tmp_path: Path
) -> None:
    kept = files.add(written(tmp_path))
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert names(folder) == [kept.path.name]


def test_a_component_of_many_pieces_is_kept_whole(files: ComponentFiles, tmp_path: Path) -> None:
    data = os.urandom(limits.PIECE_BYTES * 2 + 1)
    kept = files.add(written(tmp_path, data))
    assert read(files, kept.sha256) == data


def test_a_descriptor_is_read_from_its_beginning_and_left_as_it_was(
    files: ComponentFiles, tmp_path: Path
) -> None:
    with written(tmp_path).open("rb") as file:
        file.seek(100)
        kept = files.add(file.fileno())
        assert file.tell() == 100
    assert kept.sha256 == hash_of(WASM)


def test_a_component_that_is_kept_is_not_written_again(
    files: ComponentFiles, tmp_path: Path
) -> None:
    first = files.add(written(tmp_path))
    inode = first.path.stat().st_ino
    assert files.add(written(tmp_path, name="same.wasm")) == first
    assert first.path.stat().st_ino == inode


def test_adding_mends_what_was_damaged(files: ComponentFiles, tmp_path: Path) -> None:
    kept = files.add(written(tmp_path))
    kept.path.write_bytes(WASM[:-1])
    files.add(written(tmp_path))
    assert read(files, kept.sha256) == WASM


def test_an_operator_s_path_may_be_a_link(files: ComponentFiles, tmp_path: Path) -> None:
    link = tmp_path / "current.wasm"
    link.symlink_to(written(tmp_path))
    assert files.add(link).sha256 == hash_of(WASM)


def test_a_socket_is_no_component(files: ComponentFiles) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, refused("component.malformed", "not a regular file"):
        files.add(ours.fileno())


def test_a_path_that_leads_nowhere_is_told(files: ComponentFiles, tmp_path: Path) -> None:
    with refused("component.unknown", "No such file"):
        files.add(tmp_path / "none.wasm")


def test_a_folder_is_no_component(files: ComponentFiles, tmp_path: Path) -> None:
    with refused("component.malformed", "not a regular file"):
        files.add(tmp_path)


def test_a_fifo_is_no_component_and_is_not_waited_for(
    files: ComponentFiles, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo.wasm")
    with refused("component.malformed", "not a regular file"):
        files.add(tmp_path / "fifo.wasm")


def test_a_file_of_more_than_the_limit_is_refused_and_nothing_stays(
    files: ComponentFiles, folder: Path, tmp_path: Path
) -> None:
    path = written(tmp_path)
    os.truncate(path, limits.COMPONENT_BYTES_MAX + 1)
    with refused("component.compile", "larger than 64 MiB"):
        files.add(path)
    assert names(folder) == []


@contextlib.contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """To a program, this is a full disk: a write says how much of it was possible, then fails."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_full_disk_leaves_nothing_half_done(
    files: ComponentFiles, folder: Path, tmp_path: Path
) -> None:
    path = written(tmp_path)
    with no_file_longer_than(len(WASM) - 1), refused("store.full", "Make room"):
        files.add(path)
    assert names(folder) == []


def test_an_upload_goes_on_when_a_full_disk_has_room_again(files: ComponentFiles) -> None:
    sha256 = hash_of(WASM)
    with no_file_longer_than(100), refused("store.full", "Make room"):
        files.append(sha256, 0, WASM, len(WASM))
    assert files.append(sha256, 100, WASM[100:], len(WASM)).file is not None


# ---- Opened --------------------------------------------------------------------------------------


def test_an_unknown_component_cannot_be_opened(files: ComponentFiles) -> None:
    assert files.find(hash_of(b"other")) is None
    with refused("component.unknown", "is not kept here"):
        files.open(hash_of(b"other"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "ab", "0" * 64 + "\n"])
def test_what_is_no_hash_names_no_file(files: ComponentFiles, name: str) -> None:
    with refused("request.invalid", "64 hexadecimal digits"):
        files.open(name)
    with refused("request.invalid", "64 hexadecimal digits"):
        files.find(name)
    with refused("request.invalid", "64 hexadecimal digits"):
        files.append(name, 0, b"", 1)


def test_a_damaged_component_is_missing_instead_of_wrong(
    files: ComponentFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = files.add(written(tmp_path))
    kept.path.write_bytes(b"\xff" + WASM[1:])
    with refused("component.unknown", "is not kept here"):
        files.open(kept.sha256)
    assert "it was damaged" in caplog.text
    assert files.find(kept.sha256) is None


def test_a_link_in_the_place_of_a_component_is_not_followed(
    files: ComponentFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = files.add(written(tmp_path))
    moved = tmp_path / "moved.wasm"
    kept.path.rename(moved)
    kept.path.symlink_to(moved)
    with refused("component.unknown", "is not kept here"):
        files.open(kept.sha256)
    assert "symbolic link" in caplog.text
    assert moved.read_bytes() == WASM


# ---- Uploaded in pieces --------------------------------------------------------------------------


def test_an_upload_is_kept_with_its_last_piece(files: ComponentFiles, folder: Path) -> None:
    sha256 = hash_of(WASM)
    assert files.append(sha256, 0, WASM[:100], len(WASM)).received_bytes == 100
    assert files.find(sha256) is None
    done = files.append(sha256, 100, WASM[100:], len(WASM))
    assert done.file == files.find(sha256)
    assert read(files, sha256) == WASM
    assert names(folder) == [f"{sha256}.wasm"]


def test_an_upload_goes_on_where_it_stopped_also_in_another_daemon(
    files: ComponentFiles, folder: Path
) -> None:
    sha256 = hash_of(WASM)
    files.append(sha256, 0, WASM[:100], len(WASM))
    again = ComponentFiles(folder)
    assert again.append(sha256, 0, b"", len(WASM)).received_bytes == 100
    assert again.append(sha256, 100, WASM[100:], len(WASM)).file is not None


def test_a_piece_that_is_not_the_next_one_is_left_out(files: ComponentFiles) -> None:
    sha256 = hash_of(WASM)
    files.append(sha256, 0, WASM[:100], len(WASM))
    assert files.append(sha256, 0, WASM[:50], len(WASM)).received_bytes == 100
    assert files.append(sha256, 200, WASM[200:300], len(WASM)).received_bytes == 100
    assert files.append(sha256, 100, WASM[100:], len(WASM)).file is not None


def test_what_is_kept_needs_no_upload(files: ComponentFiles, tmp_path: Path) -> None:
    kept = files.add(written(tmp_path))
    assert files.append(kept.sha256, 0, b"", len(WASM)).file == kept


def test_an_upload_of_something_else_is_refused_and_nothing_stays(
    files: ComponentFiles, folder: Path
) -> None:
    with refused("request.invalid", "its hash is another one"):
        files.append(hash_of(WASM), 0, WASM[1:] + b"\0", len(WASM))
    assert names(folder) == []


def test_an_upload_that_is_longer_than_it_said_is_refused(
    files: ComponentFiles, folder: Path
) -> None:
    files.append(hash_of(WASM), 0, WASM[:100], len(WASM))
    with refused("request.invalid", "longer"):
        files.append(hash_of(WASM), 100, WASM, len(WASM))
    assert names(folder) == []


def test_an_upload_over_the_limit_is_refused_before_it_begins(
    files: ComponentFiles, folder: Path
) -> None:
    with refused("component.compile", "larger than 64 MiB"):
        files.append(hash_of(WASM), 0, WASM, limits.COMPONENT_BYTES_MAX + 1)
    assert names(folder) == []


def begin_uploads(files: ComponentFiles, count: int) -> list[str]:
    begun = [hash_of(bytes([number])) for number in range(count)]
    for sha256 in begun:
        files.append(sha256, 0, b"x", 100)
    return begun


def test_there_is_room_for_so_many_uploads(files: ComponentFiles) -> None:
    begun = begin_uploads(files, limits.UPLOADS_MAX)
    with refused("component.busy", "other components"):
        files.append(hash_of(WASM), 0, WASM[:1], len(WASM))
    assert files.append(begun[0], 1, b"x", 100).received_bytes == 2


def test_an_upload_that_was_given_up_makes_room(files: ComponentFiles, folder: Path) -> None:
    begun = begin_uploads(files, limits.UPLOADS_MAX)
    long_ago = time.time() - limits.UPLOAD_IDLE_SECONDS_MAX - 1
    os.utime(folder / f"{begun[0]}.upload", (long_ago, long_ago))
    files.append(hash_of(WASM), 0, WASM[:1], len(WASM))
    assert not (folder / f"{begun[0]}.upload").exists()


# ---- What nobody uses ----------------------------------------------------------------------------


def test_what_no_agent_uses_and_what_was_never_finished_is_removed(
    files: ComponentFiles, folder: Path, tmp_path: Path
) -> None:
    used = files.add(written(tmp_path))
    unused = files.add(written(tmp_path, b"another"))
    (folder / "half.part").write_bytes(b"half")
    (folder / "key").write_bytes(b"of somebody else's")
    (begun,) = begin_uploads(files, 1)
    assert files.remove_unused({used.sha256}) == [unused.sha256]
    assert names(folder) == sorted([used.path.name, "key", f"{begun}.upload"])
