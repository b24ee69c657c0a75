"""The cache of native code: what it made is handed out, and whatever was touched never is."""

import os
import resource
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ipc_protocol.components import Compiled, ComponentShape
from ipc_protocol.errors import Failure
from orchestrator.components import limits
from orchestrator.components.cache import NativeCache
from orchestrator.components.files import ComponentFile

SETTINGS = "50.0.1/abcd"
NATIVE = b"\x7fELF" + bytes(range(256)) * 10
SHAPE = ComponentShape(
    world="agent@0.2.0",
    imports=["agent-net:core/bus@0.2.0", "agent-net:core/state@0.2.0"],
    exports=["agent-net:core/lifecycle@0.2.0"],
    grants=["state"],
    inert=[],
)
ECHO = ComponentFile("e" * 64, 1000, Path("echo.wasm"))
OTHER = ComponentFile("0" * 64, 2000, Path("other.wasm"))


class Kept:
    """A cache with the native code of *ECHO*, and how often an entry was refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refusals = 0
        self.cache = self.opened()
        self.adopt(ECHO, NATIVE)

    def opened(self) -> NativeCache:
        """As a daemon that starts opens it."""
        return NativeCache(self.folder, self._count)

    def _count(self) -> None:
        self.refusals += 1

    def adopt(self, component: ComponentFile, native: bytes, **changes: object) -> None:
        draft = self.cache.draft()
        try:
            draft.file.write(native)
            compiled = Compiled(
                shape=SHAPE,
                settings=SETTINGS,
                native_bytes=len(native),
                compile_us=12,
                memory_bytes_peak=34,
            )
            compiled = msgspec.structs.replace(compiled, **changes)
            self.cache.adopt(draft, component, compiled)
        finally:
            draft.close()

    def native(self, component: ComponentFile = ECHO) -> Path:
        return self.folder / "native" / f"{component.sha256}.native"

    def sidecar(self, component: ComponentFile = ECHO) -> Path:
        return self.folder / "native" / f"{component.sha256}.json"

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "native").iterdir())


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "components")


def test_what_was_adopted_is_found_with_all_that_is_known_of_it(kept: Kept) -> None:
    native = kept.opened().find(ECHO.sha256, SETTINGS)
    assert native is not None
    assert os.pread(native.fd, len(NATIVE) + 1, 0) == NATIVE
    assert native.info.shape == SHAPE
    assert (native.info.size_bytes, native.info.native_bytes) == (1000, len(NATIVE))
    assert native.info.compile_us == 12
    assert native.info.details == {"settings": SETTINGS, "memory_bytes_peak": 34}
    assert kept.refusals == 0
    native.close()


def test_the_descriptor_cannot_be_written_through(kept: Kept) -> None:
    native = kept.cache.find(ECHO.sha256, SETTINGS)
    assert native is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(native.fd, b"x")
    native.close()


def test_the_files_and_the_key_are_the_daemon_s_alone(kept: Kept) -> None:
    for path in (kept.sidecar(), kept.folder / "key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (kept.folder, kept.folder / "native"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (kept.folder / "key").stat().st_size == limits.KEY_BYTES


def test_workers_of_other_users_may_read_native_code_and_nobody_may_write_it(kept: Kept) -> None:
    assert stat.S_IMODE(kept.native().stat().st_mode) == 0o444


def test_what_was_never_compiled_is_not_found_and_not_refused(kept: Kept) -> None:
    assert kept.cache.find(OTHER.sha256, SETTINGS) is None
    assert kept.refusals == 0


def test_what_is_replaced_while_it_is_used_stays_what_it_was(kept: Kept) -> None:
    native = kept.cache.find(ECHO.sha256, SETTINGS)
    assert native is not None
    evil = kept.folder / "evil"
    evil.write_bytes(b"evil")
    evil.replace(kept.native())
    assert os.pread(native.fd, len(NATIVE) + 1, 0) == NATIVE
    native.close()


# ---- Tampering -----------------------------------------------------------------------------------


def flip_a_byte(kept: Kept) -> None:
    with kept.native().open("r+b") as file:
        file.seek(len(NATIVE) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def truncate(kept: Kept) -> None:
    os.truncate(kept.native(), len(NATIVE) - 1)


def empty(kept: Kept) -> None:
    os.truncate(kept.native(), 0)


def lengthen(kept: Kept) -> None:
    with kept.native().open("ab") as file:
        file.write(b"\0")


def put_another_component_s_code_there(kept: Kept) -> None:
    kept.adopt(OTHER, b"other code")
    shutil.copyfile(kept.native(OTHER), kept.native())


def put_another_component_s_whole_entry_there(kept: Kept) -> None:
    kept.adopt(OTHER, b"other code")
    shutil.copyfile(kept.native(OTHER), kept.native())
    shutil.copyfile(kept.sidecar(OTHER), kept.sidecar())


def grant_more_in_the_sidecar(kept: Kept) -> None:
    text = kept.sidecar().read_bytes()
    assert b'"grants":["state"]' in text
    kept.sidecar().write_bytes(text.replace(b'"grants":["state"]', b'"grants":[]'))


def sign_with_another_key(kept: Kept) -> None:
    elsewhere = Kept(kept.folder.parent / "elsewhere")
    shutil.copyfile(elsewhere.sidecar(), kept.sidecar())


def garble_the_sidecar(kept: Kept) -> None:
    kept.sidecar().write_bytes(b"\xff\0\n")


def empty_the_sidecar(kept: Kept) -> None:
    kept.sidecar().write_bytes(b"")


def remove_the_sidecar(kept: Kept) -> None:
    kept.sidecar().unlink()


def open_the_sidecar_to_others(kept: Kept) -> None:
    kept.sidecar().chmod(0o606)


def let_the_group_write(kept: Kept) -> None:
    kept.native().chmod(0o620)


def let_others_write(kept: Kept) -> None:
    kept.native().chmod(0o446)


def put_a_link_there(kept: Kept) -> None:
    moved = kept.folder / "moved"
    kept.native().rename(moved)
    kept.native().symlink_to(moved)


def put_a_fifo_there(kept: Kept) -> None:
    kept.native().unlink()
    os.mkfifo(kept.native(), 0o600)


def keep_code_of_an_earlier_compilation(kept: Kept) -> None:
    """As a crash between the two renames leaves it."""
    old = kept.sidecar().read_bytes()
    kept.adopt(ECHO, NATIVE + b"newer")
    kept.sidecar().write_bytes(old)


TAMPERING: list[tuple[Callable[[Kept], None], str]] = [
    (flip_a_byte, "it was changed"),
    (truncate, "shorter"),
    (empty, "shorter"),
    (lengthen, "longer"),
    (put_another_component_s_code_there, "shorter"),
    (put_another_component_s_whole_entry_there, "that of component 0000"),
    (grant_more_in_the_sidecar, "not one that this daemon wrote"),
    (sign_with_another_key, "not one that this daemon wrote"),
    (garble_the_sidecar, "not one that this daemon wrote"),
    (empty_the_sidecar, "not one that this daemon wrote"),
    (remove_the_sidecar, "is missing"),
    (open_the_sidecar_to_others, "others may use it (mode 0606)"),
    (let_the_group_write, "others may use it (mode 0620)"),
    (let_others_write, "others may use it (mode 0446)"),
    (put_a_link_there, "symbolic link"),
    (put_a_fifo_there, "not a regular file"),
    (keep_code_of_an_earlier_compilation, "longer"),
]


@pytest.mark.parametrize(
    ("tamper", "reason"), TAMPERING, ids=lambda one: getattr(one, "__name__", "")
)
def test_what_was_tampered_with_is_told_removed_and_made_anew(
    kept: Kept, caplog: pytest.LogCaptureFixture, tamper: Callable[[Kept], None], reason: str
) -> None:
    tamper(kept)
    assert kept.cache.find(ECHO.sha256, SETTINGS) is None
    assert reason in caplog.text
    assert kept.refusals == 1
    assert not any(name.startswith(ECHO.sha256) for name in kept.left())
    kept.adopt(ECHO, NATIVE)
    native = kept.cache.find(ECHO.sha256, SETTINGS)
    assert native is not None
    native.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("of", [Kept.native, Kept.sidecar])
def test_a_file_of_somebody_else_is_refused(
    kept: Kept, caplog: pytest.LogCaptureFixture, of: Callable[[Kept], Path]
) -> None:
    os.chown(of(kept), 61_184, 61_184)
    assert kept.cache.find(ECHO.sha256, SETTINGS) is None
    assert "belongs to the user id 61184" in caplog.text


def test_code_for_other_settings_is_refused(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    assert kept.cache.find(ECHO.sha256, "51.0.0/ffff") is None
    assert "it is good for 50.0.1/abcd of the library, which is now 51.0.0/ffff" in caplog.text
    assert kept.left() == []


def test_a_sidecar_alone_is_removed_in_silence(kept: Kept) -> None:
    kept.native().unlink()
    assert kept.cache.find(ECHO.sha256, SETTINGS) is None
    assert (kept.left(), kept.refusals) == ([], 0)


# ---- The key -------------------------------------------------------------------------------------


def shorten_the_key(path: Path) -> None:
    os.truncate(path, limits.KEY_BYTES - 1)


def show_the_key(path: Path) -> None:
    path.chmod(0o640)


def link_the_key(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


@pytest.mark.parametrize("tamper", [shorten_the_key, show_the_key, link_the_key])
def test_a_key_that_others_may_know_is_replaced_with_all_it_has_signed(
    kept: Kept, caplog: pytest.LogCaptureFixture, tamper: Callable[[Path], None]
) -> None:
    key = kept.folder / "key"
    before = key.read_bytes()
    tamper(key)
    cache = kept.opened()
    assert "is replaced" in caplog.text
    assert key.read_bytes() != before
    assert not key.is_symlink()
    assert cache.find(ECHO.sha256, SETTINGS) is None
    assert kept.refusals == 1


# ---- What a compiler leaves ----------------------------------------------------------------------


def test_what_is_not_as_long_as_the_compiler_says_is_not_kept(kept: Kept) -> None:
    before = kept.left()
    with pytest.raises(Failure, match="wrote 3 bytes") as failed:
        kept.adopt(OTHER, b"abc", native_bytes=4)
    assert failed.value.code == "component.compile"
    assert kept.left() == before


def test_nothing_is_no_native_code(kept: Kept) -> None:
    with pytest.raises(Failure, match="wrote 0 bytes"):
        kept.adopt(OTHER, b"")


def test_native_code_has_a_limit(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.components.limits.NATIVE_BYTES_MAX", len(NATIVE) - 1)
    with pytest.raises(Failure, match="larger than"):
        kept.adopt(OTHER, NATIVE)


def test_a_shape_has_a_limit(kept: Kept) -> None:
    endless = msgspec.structs.replace(SHAPE, imports=["x" * 256] * 4096)
    before = kept.left()
    with pytest.raises(Failure, match="over the limit"):
        kept.adopt(OTHER, NATIVE, shape=endless)
    assert kept.left() == before


def test_the_largest_shape_that_is_allowed_is_kept(kept: Kept) -> None:
    names = [f"{number:0256}" for number in range(256)]
    largest = ComponentShape(
        world="agent@0.2.0", imports=names, exports=names, grants=names, inert=names
    )
    kept.adopt(OTHER, NATIVE, shape=largest)
    native = kept.cache.find(OTHER.sha256, SETTINGS)
    assert native is not None
    assert native.info.shape == largest
    native.close()


def test_a_draft_that_was_not_adopted_leaves_nothing(kept: Kept) -> None:
    before = kept.left()
    draft = kept.cache.draft()
    draft.file.write(b"half")
    draft.close()
    assert kept.left() == before


def test_a_full_disk_loses_no_entry_that_was_good(kept: Kept) -> None:
    before = kept.left()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(b"other code"), hard))
    try:
        with pytest.raises(Failure, match="Make room"):
            kept.adopt(OTHER, b"other code")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert kept.cache.find(OTHER.sha256, SETTINGS) is None
    assert kept.left() == before


# ---- What nobody uses ----------------------------------------------------------------------------


def age(kept: Kept, component: ComponentFile, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(kept.native(component), (then, then))


def test_code_that_no_agent_uses_is_removed_when_it_is_old(kept: Kept) -> None:
    kept.adopt(OTHER, b"other code")
    for component in (ECHO, OTHER):
        age(kept, component, limits.UNUSED_DAYS_MAX + 1)
    assert kept.cache.remove_unused({ECHO.sha256}) == [OTHER.sha256]
    assert kept.left() == sorted([kept.native().name, kept.sidecar().name])


def test_code_that_was_used_lately_stays(kept: Kept) -> None:
    age(kept, ECHO, limits.UNUSED_DAYS_MAX + 1)
    native = kept.cache.find(ECHO.sha256, SETTINGS)
    assert native is not None
    native.close()
    assert kept.cache.remove_unused(set()) == []


def test_of_too_much_code_the_oldest_goes(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.components.limits.UNUSED_BYTES_MAX", len(NATIVE))
    kept.adopt(OTHER, b"other code")
    age(kept, ECHO, 2)
    age(kept, OTHER, 1)
    assert kept.cache.remove_unused(set()) == [ECHO.sha256]


def test_what_a_crash_left_half_done_is_removed(kept: Kept) -> None:
    draft = kept.cache.draft()
    kept.cache.remove_unused(set())
    assert not draft.path.exists()
    draft.close()
