"""The work folder against everything that could lead out of it or fill the disk."""

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc_protocol.errors import Failure
from orchestrator.tools import limits
from orchestrator.tools.folder import Entry, FolderLimits, WorkFolder
from orchestrator.tools.openat2 import BENEATH, openat2
from orchestrator.tools.paths import parse_path, scratch_name

SECRET = b"nobody may read this"


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def folder(inside: Path, secret: Path) -> WorkFolder:
    return WorkFolder(inside, FolderLimits())


@pytest.fixture
def root(inside: Path) -> Iterator[int]:
    descriptor = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


KEY = "0123456789abcdef"


def write(folder: WorkFolder, path: str, data: bytes, key: str = KEY) -> None:
    """Both steps of a write."""
    folder.stage(path, data, key)
    folder.put(path, key)


def refusal(action: object, *arguments: object) -> str:
    assert callable(action)
    with pytest.raises(Failure) as caught:
        action(*arguments)
    assert caught.value.code == "tool.failed"
    assert caught.value.problem.cure
    return str(caught.value)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# ---- What it is for ------------------------------------------------------------------------------


def test_what_is_written_is_read_back(folder: WorkFolder) -> None:
    write(folder, "notes/2026/today.md", b"all is well")
    file = folder.read("notes/2026/today.md")
    assert (file.data, file.size_bytes) == (b"all is well", 11)


def test_a_write_replaces_the_whole_file(folder: WorkFolder) -> None:
    write(folder, "a", b"a long text")
    write(folder, "a", b"short")
    assert folder.read("a").data == b"short"


def test_a_listing_shows_files_with_sizes_and_folders(folder: WorkFolder) -> None:
    write(folder, "b.txt", b"12345")
    write(folder, "a/c.txt", b"1")
    assert folder.list(".") == [Entry("a", True, 0), Entry("b.txt", False, 5)]
    assert folder.list("") == folder.list("./") == folder.list(".")
    assert folder.list("a") == [Entry("c.txt", False, 1)]


def test_names_in_every_script_work(folder: WorkFolder) -> None:
    write(folder, "Übersicht/日本語 📎.md", "Grüße".encode())
    assert folder.read("Übersicht/日本語 📎.md").data.decode() == "Grüße"


def test_a_large_file_is_read_up_to_the_limit(folder: WorkFolder, inside: Path) -> None:
    (inside / "large").write_bytes(b"x" * (limits.FILE_READ_BYTES_MAX + 7))
    file = folder.read("large")
    assert len(file.data) == limits.FILE_READ_BYTES_MAX
    assert file.size_bytes == limits.FILE_READ_BYTES_MAX + 7


def test_files_are_private_to_the_daemon(folder: WorkFolder, inside: Path) -> None:
    write(folder, "d/a", b"")
    assert (inside / "d/a").stat().st_mode & 0o077 == 0
    assert (inside / "d").stat().st_mode & 0o077 == 0


# ---- Ways out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../secret", "'..'"),
        ("a/../../secret", "'..'"),
        ("/etc/passwd", "slash"),
        ("a\0b", "cannot be printed"),
        ("a\nb", "cannot be printed"),
        ("a\u202eb", "cannot be printed"),
        ("\ud800", "cannot be printed"),
        ("x" * 201, "characters"),
        ("日" * 100, "bytes"),
        ("a/" * 9 + "b", "deep"),
        (scratch_name(KEY), "reserved"),
    ],
)
def test_a_path_of_the_wrong_form_is_refused_by_every_action(
    folder: WorkFolder, path: str, why: str
) -> None:
    assert why in refusal(folder.read, path)
    assert why in refusal(folder.list, path)
    assert why in refusal(write, folder, path, b"")


@given(st.text(st.characters(codec=None), max_size=300))
def test_a_parsed_path_has_only_names(text: str) -> None:
    try:
        names = parse_path(text)
    except Failure:
        return
    assert all(name not in ("", ".", "..") and "/" not in name for name in names)
    assert len("/".join(names).encode()) < 4096


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "link", "folder-link/x"])
def test_the_kernel_itself_refuses_what_leads_out(
    root: int, inside: Path, secret: Path, path: str
) -> None:
    (inside / "link").symlink_to(secret)
    (inside / "folder-link").symlink_to("/etc")
    with pytest.raises(OSError, match=r"cross-device|symbolic"):
        openat2(root, path, os.O_RDONLY, BENEATH)


def test_a_nul_byte_does_not_cut_a_path_short(root: int, inside: Path) -> None:
    (inside / "a").touch()
    with pytest.raises(OSError, match="NUL"):
        openat2(root, "a\0b", os.O_RDONLY, BENEATH)


def test_a_symbolic_link_is_not_followed(folder: WorkFolder, inside: Path, secret: Path) -> None:
    (inside / "link").symlink_to(secret)
    (inside / "beneath").symlink_to("own")
    (inside / "own").write_bytes(b"own")
    assert "symbolic link" in refusal(folder.read, "link")
    assert "symbolic link" in refusal(folder.read, "beneath")
    assert "symbolic link" in refusal(write, folder, "link", b"changed")
    assert secret.read_bytes() == SECRET


def test_a_linked_folder_is_not_entered(folder: WorkFolder, inside: Path, tmp_path: Path) -> None:
    (inside / "up").symlink_to(tmp_path)
    assert "symbolic link" in refusal(folder.read, "up/secret")
    assert "symbolic link" in refusal(write, folder, "up/new", b"")
    refusal(folder.list, "up")
    assert not (tmp_path / "new").exists()


def test_a_hard_link_is_refused(folder: WorkFolder, inside: Path, secret: Path) -> None:
    (inside / "twin").hardlink_to(secret)
    assert "second name" in refusal(folder.read, "twin")
    assert "second name" in refusal(write, folder, "twin", b"changed")
    assert secret.read_bytes() == SECRET


def test_a_fifo_neither_blocks_nor_is_read(folder: WorkFolder, inside: Path) -> None:
    os.mkfifo(inside / "fifo")
    assert "regular" in refusal(folder.read, "fifo")
    assert "regular" in refusal(write, folder, "fifo", b"")


def test_a_socket_is_refused(
    folder: WorkFolder, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inside)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        assert "regular" in refusal(folder.read, "socket")
        assert "regular" in refusal(write, folder, "socket", b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_is_refused(folder: WorkFolder, inside: Path) -> None:
    try:
        os.mknod(inside / "zero", 0o020666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this container refuses device nodes")
    refusal(folder.read, "zero")
    refusal(write, folder, "zero", b"")


def test_a_folder_is_no_file_and_a_file_no_folder(folder: WorkFolder) -> None:
    write(folder, "d/a", b"")
    assert "is a folder" in refusal(folder.read, "d")
    assert "is a folder" in refusal(folder.read, ".")
    assert "is a folder" in refusal(write, folder, "d", b"")
    assert "names no file" in refusal(write, folder, ".", b"")
    assert "where a folder should be" in refusal(folder.list, "d/a")
    assert "where a folder should be" in refusal(write, folder, "d/a/b", b"")


def test_a_missing_file_says_how_to_find_one(folder: WorkFolder) -> None:
    assert "fs.list" in refusal(folder.read, "nothing")


def test_a_work_folder_that_is_itself_a_link_is_refused(tmp_path: Path, inside: Path) -> None:
    (tmp_path / "alias").symlink_to(inside)
    refusal(WorkFolder(tmp_path / "alias", FolderLimits()).list, ".")


def test_a_link_that_is_swapped_in_while_reading_and_writing_never_leads_out(
    folder: WorkFolder, inside: Path, tmp_path: Path
) -> None:
    outside, real, link, door = (
        tmp_path / "outside",
        inside / "real",
        inside / "link",
        inside / "door",
    )
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    real.mkdir()
    (real / "file").write_bytes(b"own")
    link.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            shutil.rmtree(door, ignore_errors=True)
            # A write between two of these makes the folder anew; the next round sorts that out.
            for old, new in ((real, door), (link, real), (real, link), (door, real)):
                with contextlib.suppress(OSError):
                    old.rename(new)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(1500):
            with contextlib.suppress(Failure):
                assert folder.read("real/file").data != SECRET
            with contextlib.suppress(Failure):
                write(folder, "real/file", b"own")
    finally:
        stop.set()
        swapper.join()
    assert (outside / "file").read_bytes() == SECRET
    assert [path.name for path in outside.iterdir()] == ["file"]


# ---- Limits and durability -----------------------------------------------------------------------


def test_bytes_are_counted_before_a_write(inside: Path) -> None:
    folder = WorkFolder(inside, FolderLimits(bytes_max=100))
    write(folder, "a", b"x" * 60)
    assert "100" in refusal(write, folder, "b", b"x" * 41)
    write(folder, "b", b"x" * 40)
    assert "limit" in refusal(write, folder, "a", b"x" * 61)


def test_a_replaced_file_gives_its_bytes_back(inside: Path) -> None:
    folder = WorkFolder(inside, FolderLimits(bytes_max=100))
    write(folder, "d/a", b"x" * 100)
    write(folder, "d/a", b"y" * 100)
    assert folder.read("d/a").data == b"y" * 100


def test_files_and_folders_are_counted_before_a_write(inside: Path) -> None:
    folder = WorkFolder(inside, FolderLimits(files_max=3))
    write(folder, "d/e/a", b"")
    assert "3 of 3" in refusal(write, folder, "b", b"")
    assert "needs 2 more" in refusal(write, folder, "f/b", b"")
    write(folder, "d/e/a", b"again")
    assert not (inside / "f").exists()


def test_what_a_person_put_there_counts_too(inside: Path) -> None:
    folder = WorkFolder(inside, FolderLimits(bytes_max=100))
    (inside / "theirs").write_bytes(b"x" * 99)
    refusal(write, folder, "mine", b"xx")


def test_a_tree_deeper_than_the_limit_is_refused_and_not_walked(
    folder: WorkFolder, inside: Path
) -> None:
    inside.joinpath(*"a" * (limits.FOLDER_DEPTH_MAX + 1)).mkdir(parents=True)
    assert "deep" in refusal(write, folder, "b", b"")


def test_two_writes_at_once_cannot_both_take_the_last_room(inside: Path) -> None:
    folder = WorkFolder(inside, FolderLimits(files_max=1))
    done: list[str] = []
    barrier = threading.Barrier(4)

    def write_empty(name: str) -> None:
        barrier.wait()
        try:
            write(folder, name, b"", key=name)
        except Failure:
            return
        done.append(name)

    threads = [threading.Thread(target=write_empty, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1


def test_a_staged_file_is_never_shown_and_replaces_what_a_crash_left_of_it(
    folder: WorkFolder, inside: Path
) -> None:
    (inside / scratch_name(KEY)).write_bytes(b"half")
    assert folder.list(".") == []
    write(folder, "a", b"whole")
    assert folder.read("a").data == b"whole"
    assert sorted(path.name for path in inside.iterdir()) == ["a"]


def test_what_is_staged_counts_until_it_is_discarded(inside: Path) -> None:
    folder = WorkFolder(inside, FolderLimits(bytes_max=100, files_max=2))
    folder.stage("a", b"x" * 60, "1")
    assert folder.staged() == {scratch_name("1")}
    assert "100" in refusal(folder.stage, "b", b"x" * 41, "2")
    folder.stage("b", b"", "2")
    assert "2 of 2" in refusal(folder.stage, "c", b"", "3")
    for _ in range(2):
        folder.discard([scratch_name("1")])
    folder.stage("c", b"x" * 100, "3")
    assert folder.staged() == {scratch_name("2"), scratch_name("3")}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    folder: WorkFolder, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "a", b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        assert "disk is full" in refusal(write, folder, "a", b"new")
    assert folder.read("a").data == b"old"
    assert [path.name for path in inside.iterdir()] == ["a"]


def test_a_replacement_that_fails_leaves_what_tells_that_it_was_not_made(
    folder: WorkFolder, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        refusal(write, folder, "a", b"new")
    assert [path.name for path in inside.iterdir()] == [scratch_name(KEY)]
    assert folder.finish("a", b"new", KEY)
    assert folder.read("a").data == b"new"


def test_a_write_that_may_not_outlast_a_power_cut_says_so(
    folder: WorkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.stage("a", b"new", KEY)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        assert "was written, but" in refusal(folder.put, "a", KEY)
    assert folder.read("a").data == b"new"


# ---- A write of which nobody knows whether it was made -------------------------------------------


def test_what_is_staged_was_not_put_and_is(folder: WorkFolder) -> None:
    write(folder, "d/a", b"old")
    folder.stage("d/a", b"new", KEY)
    assert folder.finish("d/a", b"new", KEY)
    assert folder.read("d/a").data == b"new"
    assert folder.finish("d/a", b"new", KEY)


def test_what_holds_something_else_and_is_not_staged_is_left_alone(folder: WorkFolder) -> None:
    write(folder, "a", b"new")
    write(folder, "a", b"newer", "another key")
    assert not folder.finish("a", b"new", KEY)
    assert folder.read("a").data == b"newer"


def test_what_is_gone_is_left_alone(folder: WorkFolder, inside: Path) -> None:
    write(folder, "a", b"new")
    (inside / "a").unlink()
    assert not folder.finish("a", b"new", KEY)
    assert list(inside.iterdir()) == []


def test_what_is_no_plain_file_any_more_tells_nothing(folder: WorkFolder, inside: Path) -> None:
    (inside / "folder").mkdir()
    (inside / "one").write_bytes(b"new")
    (inside / "two").hardlink_to(inside / "one")
    (inside / "link").symlink_to("one")
    for name in ("folder", "two", "link"):
        assert not folder.finish(name, b"new", KEY)


def test_a_folder_that_is_away_tells_nothing(folder: WorkFolder, inside: Path) -> None:
    inside.rename(inside.with_name("away"))
    assert not folder.finish("a", b"new", KEY)


def test_what_is_staged_and_cannot_be_put_is_refused(folder: WorkFolder, inside: Path) -> None:
    folder.stage("a", b"new", KEY)
    (inside / "a").mkdir()
    for _ in range(2):
        assert "is a folder" in refusal(folder.finish, "a", b"new", KEY)


def test_no_action_leaks_a_descriptor(folder: WorkFolder, inside: Path) -> None:
    (inside / "link").symlink_to("/etc")
    write(folder, "a/b/c", b"")
    before = open_descriptors()
    for path in ("a/b/c", "link/passwd", "a", "a/b/c/d", "..", "missing"):
        for action in (folder.read, folder.list, lambda path: write(folder, path, b"x")):
            with contextlib.suppress(Failure):
                action(path)
    assert open_descriptors() == before


def test_a_kernel_without_openat2_is_a_clear_error(
    folder: WorkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tools.openat2._NR_OPENAT2", 100_000)
    assert "Linux 5.6" in refusal(folder.read, "a")
