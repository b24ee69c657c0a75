"""What a component gets of WASI, function by function. `test_host` has real components."""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.component import contract, limits
from agent_runtime.component.log import Log, escaped
from agent_runtime.component.types import (
    BYTES,
    STRING,
    Case,
    Enum,
    Flags,
    Function,
    Handle,
    Interface,
    ListOf,
    OptionOf,
    Primitive,
    Record,
    ResultOf,
    TupleOf,
    Type,
    Unsupported,
    Variant,
    err,
    ok,
)
from agent_runtime.component.wasi import Wasi, inert
from agent_runtime.component.wasi.files import OpenFile
from agent_runtime.component.wasi.filesystem import private_scratch
from agent_runtime.component.wasi.handles import Handles
from agent_runtime.component.wasi.moment import Moment
from agent_runtime.component.wasi.paths import PathRefused, names_of
from agent_runtime.component.wasi.surroundings import Surroundings, outside_moment
from agent_runtime.component.wasi.trap import HostTrap

NOW_US = 1_700_000_000_000_000
NOTHING: frozenset[str] = frozenset()


class Setting:
    """WASI around no component: functions are called by their names."""

    def __init__(self, scratch: Path | None = None) -> None:
        self.said = io.StringIO()
        self.around = Surroundings(Log(self.said), Moment(NOW_US, b"seed"))
        self.wasi = Wasi(self.around, None if scratch is None else str(scratch))

    def call(self, interface: str, function: str, *arguments: Any) -> Any:
        imported = Interface(functions={function: Function((), None)})
        functions = self.wasi.functions(f"wasi:{interface}@0.2.9", imported)
        return functions[function](*arguments)


# ---- Linked to nothing ---------------------------------------------------------------------------

ERROR_CODE = Enum(("unknown", "access-denied", "not-supported"))


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        (None, None),
        (OptionOf(STRING), None),
        (ListOf(STRING), []),
        (BYTES, b""),
        (ResultOf(STRING, ERROR_CODE), err("access-denied")),
        (ResultOf(STRING, None), err(None)),
        (
            ResultOf(None, Variant((("failed", Handle(True)), ("closed", None)))),
            err(Case("closed")),
        ),
        (
            ResultOf(None, Variant((("internal-error", OptionOf(STRING)),))),
            err(Case("internal-error")),
        ),
        (Record((("a", OptionOf(STRING)), ("b", ListOf(STRING)))), {"a": None, "b": []}),
        (TupleOf((Primitive("u8"), Primitive("bool"))), (0, False)),
        (Flags(("read",)), frozenset()),
        (Handle(True), 7),
        (Primitive("f64"), 0.0),
        (STRING, ""),
    ],
)
def test_what_is_linked_to_nothing_answers_harmlessly(result: Type | None, answer: Any) -> None:
    assert inert.answer(result, lambda: 7) == answer


@pytest.mark.parametrize(
    "result",
    [Unsupported("stream"), Enum(("directory", "file")), ResultOf(None, Enum(("full", "empty")))],
)
def test_where_no_answer_is_harmless_there_is_none(result: Type) -> None:
    with pytest.raises(inert.NoAnswer):
        inert.answer(result, lambda: 7)


def test_a_call_without_an_answer_traps_with_the_name_of_the_function() -> None:
    interface = Interface(
        functions={
            "pick": Function((), Enum(("a", "b"))),
            "open": Function((), Handle(True)),
        }
    )
    setting = Setting()
    functions = setting.wasi.functions("wasi:sockets/tcp@0.2.9", interface)
    with pytest.raises(HostTrap, match=r"wasi:sockets/tcp@0\.2\.9#pick"):
        functions["pick"]()
    assert functions["open"](1, 2, 3) == 1
    setting.wasi.drop(1)
    assert len(setting.around.handles) == 0


class Counted(dict[str, Function]):
    """Functions that are counted when they are asked for, which decodes them."""

    asked = 0

    def __getitem__(self, name: str) -> Function:
        self.asked += 1
        return super().__getitem__(name)


def test_the_type_of_what_is_linked_to_nothing_is_decoded_once_and_when_it_is_called() -> None:
    counted = Counted({"list": Function((), ListOf(STRING)), "never": Function((), None)})
    functions = Setting().wasi.functions("wasi:sockets/tcp@0.2.9", Interface(counted))
    assert counted.asked == 0
    assert [functions["list"]() for _ in range(3)] == [[], [], []]
    assert counted.asked == 1


def test_another_version_of_wasi_is_linked_to_nothing() -> None:
    interface = Interface(functions={"now": Function((), Primitive("u64"))})
    functions = Setting().wasi.functions("wasi:clocks/monotonic-clock@0.3.0", interface)
    assert functions["now"]() == 0


def test_what_is_not_listed_as_inert_is_backed() -> None:
    assert Setting().wasi.backed > contract.BACKED


# ---- Time ----------------------------------------------------------------------------------------


def test_the_wall_clock_stands_at_the_beginning_of_the_delivery() -> None:
    setting = Setting()
    at = {"seconds": 1_700_000_000, "nanoseconds": 0}
    assert [setting.call("clocks/wall-clock", "now") for _ in range(3)] == [at] * 3
    assert setting.call("clocks/wall-clock", "resolution")["seconds"] == 0


def test_the_monotonic_clock_counts_its_readings() -> None:
    first, second = Setting(), Setting()
    readings = [first.call("clocks/monotonic-clock", "now") for _ in range(3)]
    assert readings == [NOW_US * 1000 + n for n in (1000, 2000, 3000)]
    assert [second.call("clocks/monotonic-clock", "now") for _ in range(3)] == readings
    assert first.call("clocks/monotonic-clock", "resolution") == 1000


def test_who_sleeps_is_put_forward() -> None:
    setting = Setting()
    hour = 3600 * 10**9
    before = setting.call("clocks/monotonic-clock", "now")
    timer = setting.call("clocks/monotonic-clock", "subscribe-duration", hour)
    assert setting.call("io/poll", "[method]pollable.ready", timer) is False
    setting.call("io/poll", "[method]pollable.block", timer)
    assert setting.call("io/poll", "[method]pollable.ready", timer) is True
    assert hour <= setting.call("clocks/monotonic-clock", "now") - before < 2 * hour


def test_polling_waits_for_the_first_timer_only() -> None:
    setting = Setting()
    now = setting.call("clocks/monotonic-clock", "now")
    timers = [
        setting.call("clocks/monotonic-clock", "subscribe-instant", now + seconds * 10**9)
        for seconds in (30, 10, 2**60)
    ]
    assert setting.call("io/poll", "poll", timers) == [1]
    stdin = setting.call("cli/stdin", "get-stdin")
    stream = setting.call("io/streams", "[method]input-stream.subscribe", stdin)
    assert setting.call("io/poll", "poll", [timers[0], stream]) == [1]
    with pytest.raises(HostTrap, match="empty list"):
        setting.call("io/poll", "poll", [])


def test_the_longest_sleep_leaves_a_time_that_can_be_told() -> None:
    setting = Setting()
    timer = setting.call("clocks/monotonic-clock", "subscribe-duration", 2**64 - 1)
    setting.call("io/poll", "[method]pollable.block", timer)
    assert setting.call("clocks/monotonic-clock", "now") < 2**64


# ---- Chance --------------------------------------------------------------------------------------


def test_chance_is_sha_256_in_counter_mode() -> None:
    blocks = [hashlib.sha256(b"seed" + n.to_bytes(8, "big")).digest() for n in (1, 2, 3)]
    setting = Setting()
    assert setting.call("random/random", "get-random-bytes", 40) == (blocks[0] + blocks[1])[:40]
    drawn = setting.call("random/random", "get-random-u64")
    assert drawn == int.from_bytes(blocks[2][:8], "little")


def test_chance_is_the_same_for_the_same_seed_and_no_other() -> None:
    draws = [
        Setting().call("random/insecure", "get-insecure-random-bytes", 16),
        Setting().call("random/random", "get-random-bytes", 16),
    ]
    assert draws[0] == draws[1]
    assert Moment(NOW_US, b"other").random(16) != draws[0]
    assert outside_moment(NOW_US).random(16) != outside_moment(NOW_US).random(16)
    first, second = Setting().call("random/insecure-seed", "insecure-seed")
    assert first != second
    assert 0 <= Setting().call("random/insecure", "get-insecure-random-u64") < 2**64


def test_too_many_random_bytes_at_once_are_a_trap() -> None:
    most = limits.RANDOM_BYTES_MAX
    assert len(Setting().call("random/random", "get-random-bytes", most)) == most
    with pytest.raises(HostTrap, match=str(most)):
        Setting().call("random/random", "get-random-bytes", 2**64 - 1)


# ---- Streams -------------------------------------------------------------------------------------


def test_standard_error_is_the_log_line_by_line() -> None:
    setting = Setting()
    stderr = setting.call("cli/stderr", "get-stderr")
    write = "[method]output-stream.blocking-write-and-flush"
    assert setting.call("io/streams", "[method]output-stream.check-write", stderr).name == "ok"
    assert setting.call("io/streams", write, stderr, b"one\ntw") == ok()
    assert setting.said.getvalue() == "stderr: one\n"
    assert setting.call("io/streams", "[method]output-stream.flush", stderr) == ok()
    assert setting.call("io/streams", write, stderr, b"o\nno end") == ok()
    setting.around.log.end_call()
    assert setting.said.getvalue() == "stderr: one\nstderr: two\nstderr: no end\n"


def test_standard_output_is_discarded_and_standard_input_is_closed() -> None:
    setting = Setting()
    stdout = setting.call("cli/stdout", "get-stdout")
    assert setting.call("io/streams", "[method]output-stream.write", stdout, b"hello") == ok()
    zeroes = "[method]output-stream.write-zeroes"
    assert setting.call("io/streams", zeroes, stdout, 10) == ok()
    assert setting.call("io/streams", "[method]output-stream.blocking-flush", stdout) == ok()
    with pytest.raises(HostTrap, match="zeroes"):
        setting.call("io/streams", zeroes, stdout, 2**64 - 1)
    stdin = setting.call("cli/stdin", "get-stdin")
    closed = err(Case("closed"))
    assert setting.call("io/streams", "[method]input-stream.read", stdin, 10) == closed
    assert setting.call("io/streams", "[method]input-stream.skip", stdin, 10) == closed
    splice = "[method]output-stream.splice"
    assert setting.call("io/streams", splice, stdout, stdin, 10) == closed
    assert setting.said.getvalue() == ""


def test_a_handle_is_used_as_what_it_is() -> None:
    setting = Setting()
    stdin = setting.call("cli/stdin", "get-stdin")
    for number in (stdin, 99, -1):
        with pytest.raises(HostTrap, match=f"handle {number} is no OutputStream"):
            setting.call("io/streams", "[method]output-stream.check-write", number)


def test_handles_are_bounded_and_their_numbers_used_again() -> None:
    handles = Handles()
    numbers = [handles.add("resource") for _ in range(limits.HANDLES_MAX)]
    with pytest.raises(HostTrap, match="drops none"):
        handles.add("one more")
    handles.drop(numbers[3])
    handles.drop(numbers[3])
    assert handles.add("another") == numbers[3]
    assert handles.get(numbers[3], str) == "another"
    assert max(numbers) == limits.HANDLES_MAX


# ---- The program that it is not ------------------------------------------------------------------


def test_there_is_no_environment_and_no_terminal() -> None:
    setting = Setting()
    assert setting.call("cli/environment", "get-environment") == []
    assert setting.call("cli/environment", "get-arguments") == []
    assert setting.call("cli/environment", "initial-cwd") is None
    for stream in ("stdin", "stdout", "stderr"):
        assert setting.call(f"cli/terminal-{stream}", f"get-terminal-{stream}") is None


def test_exit_is_a_trap_that_says_so() -> None:
    with pytest.raises(HostTrap, match="exit without an error"):
        Setting().call("cli/exit", "exit", ok())
    with pytest.raises(HostTrap, match="exit with an error"):
        Setting().call("cli/exit", "exit", err())
    with pytest.raises(HostTrap, match="status 3"):
        Setting().call("cli/exit", "exit-with-code", 3)


# ---- Paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a", ("a",)),
        ("a/b/", ("a", "b")),
        ("./a//./b", ("a", "b")),
        ("a/../b", ("b",)),
        (".", ()),
        ("a/..", ()),
    ],
)
def test_a_path_is_its_names(path: str, names: tuple[str, ...]) -> None:
    assert names_of(path) == names


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", "no-entry"),
        ("/", "not-permitted"),
        ("/etc/passwd", "not-permitted"),
        ("..", "not-permitted"),
        ("a/../..", "not-permitted"),
        ("../scratch/a", "not-permitted"),
        ("a\0b", "invalid"),
        ("a" * 5000, "name-too-long"),
        ("a/" * 40, "name-too-long"),
    ],
)
def test_a_path_that_leads_out_or_nowhere_is_refused(path: str, code: str) -> None:
    with pytest.raises(PathRefused) as caught:
        names_of(path)
    assert caught.value.code == code


# ---- Files ---------------------------------------------------------------------------------------


class Files(Setting):
    """A component with the folder `scratch`, which is open as `root`."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        ((self.root, name),) = self.call("filesystem/preopens", "get-directories")
        assert name == "/scratch"

    def do(self, function: str, *arguments: Any) -> Any:
        return self.call("filesystem/types", f"[method]descriptor.{function}", *arguments)

    def open(self, path: str, *open_flags: str, flags: str = "read write") -> Any:
        wanted = frozenset(flags.split())
        return self.do("open-at", self.root, NOTHING, path, frozenset(open_flags), wanted)

    def opened(self, path: str, *open_flags: str, flags: str = "read write") -> int:
        answer = self.open(path, *open_flags, flags=flags)
        assert answer.name == "ok", answer
        number: int = answer.payload
        return number


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    (tmp_path / "outside").write_text("secret")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    setting = Files(scratch)
    yield setting
    setting.around.handles.clear()


def test_without_the_grant_there_is_no_folder() -> None:
    assert Setting().call("filesystem/preopens", "get-directories") == []
    assert private_scratch() is None


def test_a_file_is_written_and_read(files: Files) -> None:
    number = files.opened("note.txt", "create")
    assert files.do("write", number, b"hello", 0) == ok(5)
    assert files.do("read", number, 3, 1) == ok((b"ell", False))
    assert files.do("read", number, 3, 5) == ok((b"", True))
    assert files.do("set-size", number, 2) == ok()
    assert files.do("stat", number).payload["size"] == 2
    assert files.do("get-type", number) == ok("regular-file")
    assert files.do("get-flags", number) == ok(frozenset({"read", "write"}))
    assert files.do("sync", number) == ok()
    assert files.do("sync-data", number) == ok()
    assert files.do("advise", number, 0, 0, "normal") == ok()


def test_a_file_is_streamed(files: Files) -> None:
    number = files.opened("note.txt", "create")
    writer = files.do("write-via-stream", number, 0).payload
    more = files.do("append-via-stream", number).payload
    write = "[method]output-stream.write"
    assert files.call("io/streams", write, writer, b"one") == ok()
    assert files.call("io/streams", write, writer, b"two") == ok()
    assert files.call("io/streams", write, more, b"three") == ok()
    assert files.call("io/streams", "[method]output-stream.flush", writer) == ok()
    reader = files.do("read-via-stream", number, 1).payload
    files.wasi.drop(number)  # its streams keep it open
    read = "[method]input-stream.blocking-read"
    assert files.call("io/streams", read, reader, 5) == ok(b"netwo")
    assert files.call("io/streams", "[method]input-stream.skip", reader, 2) == ok(2)
    assert files.call("io/streams", read, reader, 2**40) == ok(b"ree")
    assert files.call("io/streams", read, reader, 0) == ok(b"")
    assert files.call("io/streams", read, reader, 1) == err(Case("closed"))


def test_a_stream_goes_over_into_another(files: Files) -> None:
    number = files.opened("note.txt", "create")
    files.do("write", number, b"hello", 0)
    reader = files.do("read-via-stream", number, 0).payload
    stderr = files.call("cli/stderr", "get-stderr")
    splice = "[method]output-stream.blocking-splice"
    assert files.call("io/streams", splice, stderr, reader, 100) == ok(5)
    files.around.log.end_call()
    assert files.said.getvalue() == "stderr: hello\n"


def test_a_stream_that_fails_has_an_error_to_ask(files: Files) -> None:
    files.opened("note.txt", "create")
    read_only = files.opened("note.txt", flags="read")
    writer = files.do("write-via-stream", read_only, 0).payload
    failed = files.call("io/streams", "[method]output-stream.write", writer, b"x")
    assert failed.payload.name == "last-operation-failed"
    number = failed.payload.payload
    assert "Bad file descriptor" in files.call("io/error", "[method]error.to-debug-string", number)
    assert files.call("filesystem/types", "filesystem-error-code", number) == "bad-descriptor"


def test_folders_are_made_listed_and_removed(files: Files) -> None:
    assert files.do("create-directory-at", files.root, "b") == ok()
    assert files.do("create-directory-at", files.root, "b/c") == ok()
    assert files.do("create-directory-at", files.root, "b") == err("exist")
    files.opened("a.txt", "create")
    entries = files.do("read-directory", files.root).payload
    following = "[method]directory-entry-stream.read-directory-entry"
    listed = [files.call("filesystem/types", following, entries) for _ in range(3)]
    assert listed == [
        ok({"type": "regular-file", "name": "a.txt"}),
        ok({"type": "directory", "name": "b"}),
        ok(None),
    ]
    assert files.do("remove-directory-at", files.root, "b") == err("not-empty")
    assert files.do("remove-directory-at", files.root, "b/c") == ok()
    assert files.do("unlink-file-at", files.root, "a.txt") == ok()
    assert files.do("unlink-file-at", files.root, "a.txt") == err("no-entry")
    assert files.do("unlink-file-at", files.root, ".") == err("invalid")


def test_a_file_is_renamed_into_another_folder(files: Files) -> None:
    files.opened("a.txt", "create")
    files.do("create-directory-at", files.root, "b")
    folder = files.opened("b", "directory", flags="read")
    assert files.do("rename-at", files.root, "a.txt", folder, "c.txt") == ok()
    status = files.do("stat-at", files.root, NOTHING, "b/c.txt").payload
    assert (status["type"], status["link-count"]) == ("regular-file", 1)
    assert status["data-modification-timestamp"]["seconds"] > 0


def test_the_same_file_is_known_by_its_hash(files: Files) -> None:
    first, second = files.opened("a.txt", "create"), files.opened("a.txt")
    other = files.opened("b.txt", "create")
    assert files.do("is-same-object", first, second) is True
    assert files.do("is-same-object", first, other) is False
    hashed = files.do("metadata-hash", first)
    assert files.do("metadata-hash-at", files.root, NOTHING, "a.txt") == hashed
    assert files.do("metadata-hash", other) != hashed


def test_open_flags_are_kept(files: Files) -> None:
    assert files.open("a.txt") == err("no-entry")
    number = files.opened("a.txt", "create", "exclusive", flags="write")
    files.do("write", number, b"hello", 0)
    assert files.do("read", number, 1, 0) == err("bad-descriptor")
    assert files.open("a.txt", "create", "exclusive") == err("exist")
    assert files.open("a.txt", "directory", flags="read") == err("not-directory")
    files.opened("a.txt", "truncate")
    assert files.do("stat-at", files.root, NOTHING, "a.txt").payload["size"] == 0
    assert files.do("stat-at", files.root, NOTHING, ".").payload["type"] == "directory"
    assert files.open(".", "directory", flags="read").name == "ok"


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "b/../../outside"])
def test_no_path_leads_out_of_the_folder(files: Files, path: str) -> None:
    assert files.open(path, flags="read") == err("not-permitted")
    assert files.do("stat-at", files.root, NOTHING, path) == err("not-permitted")
    assert files.do("unlink-file-at", files.root, path) == err("not-permitted")
    assert files.do("rename-at", files.root, path, files.root, "mine") == err("not-permitted")


def test_no_link_leads_out_of_the_folder(files: Files, tmp_path: Path) -> None:
    (tmp_path / "scratch" / "link").symlink_to(tmp_path)
    (tmp_path / "scratch" / "file").symlink_to(tmp_path / "outside")
    assert files.open("link/outside", flags="read").name == "err"
    assert files.open("link", "directory", flags="read").name == "err"
    assert files.open("file", flags="read") == err("loop")
    status = files.do("stat-at", files.root, frozenset({"symlink-follow"}), "file").payload
    assert status["type"] == "symbolic-link"
    assert files.do("readlink-at", files.root, "file") == ok(str(tmp_path / "outside"))
    entries = files.do("read-directory", files.root).payload
    following = "[method]directory-entry-stream.read-directory-entry"
    first = files.call("filesystem/types", following, entries).payload
    assert first == {"type": "symbolic-link", "name": "file"}


def test_links_and_times_are_not_to_be_had(files: Files) -> None:
    files.opened("a.txt", "create")
    assert files.do("symlink-at", files.root, "a.txt", "b") == err("not-permitted")
    linked = files.do("link-at", files.root, NOTHING, "a.txt", files.root, "b")
    assert linked == err("not-permitted")
    now = Case("now")
    assert files.do("set-times", files.root, now, now) == err("unsupported")
    assert files.do("set-times-at", files.root, NOTHING, "a.txt", now, now) == err("unsupported")


def test_arguments_beyond_the_kernel_are_errors(files: Files) -> None:
    number = files.opened("a.txt", "create")
    for answer in (
        files.do("read", number, 1, 2**64 - 1),
        files.do("write", number, b"x", 2**64 - 1),
        files.do("set-size", number, 2**64 - 1),
        files.do("read-via-stream", number, 2**64 - 1),
        files.do("write-via-stream", number, 2**64 - 1),
    ):
        assert answer == err("invalid")


def test_open_files_are_bounded_and_closed_with_their_handles(files: Files) -> None:
    numbers = []
    while (answer := files.open("a.txt", "create")).name == "ok":
        numbers.append(answer.payload)
    assert answer == err("insufficient-memory")
    assert len(numbers) == limits.FILES_OPEN_MAX - 1
    files.wasi.drop(numbers.pop())
    assert files.open("a.txt").name == "ok"


def test_a_dropped_file_is_closed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    file = OpenFile(fd)
    assert os.fstat(file.fd)
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# ---- The log -------------------------------------------------------------------------------------


def test_a_flood_is_cut_off_and_the_next_call_begins_anew() -> None:
    said = io.StringIO()
    log = Log(said)
    for _ in range(2000):
        log.say("info", "x" * 1000)
    log.write_stderr(b"lost, too\n")
    log.end_call()
    assert len(said.getvalue()) < 1.1 * limits.LOG_BYTES_PER_CALL_MAX
    assert said.getvalue().count("no more is kept") == 1
    log.host("kept")
    log.begin_call()
    log.say("info", "kept, too")
    assert said.getvalue().endswith("component: kept\ninfo: kept, too\n")


@pytest.mark.parametrize("text", ["\n" * 1_000_000, "x\n" * 500_000])
def test_a_flood_of_lines_is_cut_off(text: str) -> None:
    for write in (
        lambda log: log.say("info", text),
        lambda log: log.write_stderr(text.encode()),
        lambda log: [log.write_stderr(b"\n") for _ in range(10_000)],
    ):
        said = io.StringIO()
        log = Log(said)
        write(log)
        log.end_call()
        lines = said.getvalue().splitlines()
        assert len(lines) == limits.LOG_LINES_PER_CALL_MAX + 1
        assert "no more is kept" in lines[-1]
        log.begin_call()
        log.say("info", "again")
        assert said.getvalue().endswith("info: again\n")


def test_a_long_line_is_shortened() -> None:
    said = io.StringIO()
    Log(said).say("info", "x" * 5000)
    assert said.getvalue() == f"info: {'x' * 4096}… (904 more characters)\n"


def test_nothing_in_a_line_is_obeyed_by_a_terminal() -> None:
    assert escaped("plain, naïve, 猫") == "plain, naïve, 猫"
    assert escaped("a\x1b[2J\rb\u2028c\u202ed") == "a\\x1b[2J\\rb\\u2028c\\u202ed"


def test_a_message_of_several_lines_is_several_lines() -> None:
    said = io.StringIO()
    Log(said).say("warning", "one\ntwo")
    assert said.getvalue() == "warning: one\nwarning: two\n"


def test_what_the_stream_cannot_encode_is_escaped() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    log = Log(out)
    log.say("info", "naïve")
    log.end_call()
    assert raw.getvalue() == b"info: na\\xefve\n"
