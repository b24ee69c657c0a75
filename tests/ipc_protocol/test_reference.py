"""docs/protocol.md says what the code does: its generated parts, its codes and its bytes."""

import re
from pathlib import Path

import msgspec
import pytest

from ipc_protocol import limits, reference
from ipc_protocol.control import Ask
from ipc_protocol.errors import CODES
from ipc_protocol.events import Hello, Request
from ipc_protocol.frames import VERSION, FrameDecoder, FrameType, encode
from ipc_protocol.methods import ASK, LINES
from ipc_protocol.states import SESSION, STREAM

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def part(name: str) -> str:
    found = re.search(f"<!-- begin {name} -->(.*?)<!-- end {name} -->", PAGE, re.DOTALL)
    assert found is not None, name
    return found[1]


def test_the_page_is_as_the_types_are() -> None:
    assert reference.renewed(PAGE) == PAGE, (
        "docs/protocol.md is out of date: run `python -m ipc_protocol.reference` over it"
    )


def test_the_page_has_every_generated_part() -> None:
    for name in reference.PARTS:
        assert part(name).strip()


def test_the_page_lists_exactly_the_codes_that_there_are() -> None:
    assert re.findall(r"^\| `([a-z.-]+)` \|", part("error codes"), re.MULTILINE) == list(CODES)


def test_every_code_that_the_page_mentions_exists() -> None:
    families = "|".join(sorted({code.split(".")[0] for code in CODES}))
    prose = re.sub(r"<!-- begin .*?<!-- end [a-z ]+ -->", "", PAGE, flags=re.DOTALL)
    mentioned = set(re.findall(rf"`((?:{families})\.[a-z-]+)`", prose))
    methods = {method.name for served in LINES.values() for method in served}
    assert len(mentioned - methods) > 8
    assert mentioned <= set(CODES) | methods


def test_the_page_lists_every_method_of_every_line() -> None:
    sections = re.split(r"^### Line ", part("methods"), flags=re.MULTILINE)[1:]
    listed = {
        section.split("`")[1]: re.findall(r"^\| `([a-z.]+)` \|", section, re.MULTILINE)
        for section in sections
    }
    assert listed == {line: [method.name for method in served] for line, served in LINES.items()}


def test_every_type_that_the_page_links_to_has_a_section() -> None:
    headings = {name.lower() for name in re.findall(r"^#+ (\w+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", PAGE)) <= headings


@pytest.mark.parametrize(
    ("name", "table"), [("session states", SESSION), ("stream states", STREAM)]
)
def test_a_diagram_has_every_row_of_its_table(
    name: str, table: dict[tuple[object, FrameType], object]
) -> None:
    drawn = set()
    for before, after, frames in re.findall(r"^    (\w+) --> (\w+): (.*)$", part(name), re.M):
        drawn |= {(before, frame, after) for frame in frames.split(", ") if after != "failed"}
    assert drawn == {
        (before.value, type_.name, after.value)  # type: ignore[attr-defined]
        for (before, type_), after in table.items()
    }


def hex_of_the_page() -> list[bytes]:
    dumps = re.findall(r"^```hex\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [
        bytes.fromhex("".join(re.findall(r"^((?:[0-9a-f]{2} )+) ", dump, re.MULTILINE)))
        for dump in dumps
    ]


def test_the_bytes_of_the_page_are_those_of_the_codec() -> None:
    hello, request = hex_of_the_page()
    assert hello == encode(FrameType.HELLO, 0, Hello(name="example"))
    params = msgspec.to_builtins(Ask(text="disk full"))
    assert request == encode(FrameType.REQUEST, 1, Request(method=ASK.name, params=params))


def test_the_bytes_of_the_page_decode_to_what_it_says() -> None:
    frames = list(FrameDecoder().feed(b"".join(hex_of_the_page())))
    assert [(frame.type, frame.stream, frame.body) for frame in frames] == [
        (FrameType.HELLO, 0, {"name": "example"}),
        (FrameType.REQUEST, 1, {"method": "ctl.ask", "params": {"text": "disk full"}}),
    ]


def test_what_the_prose_says_about_the_header_and_the_hello_is_so() -> None:
    assert f"`{VERSION.hex(' ')}`" in PAGE
    assert f"A frame is a header of {limits.HEADER_BYTES} bytes" in PAGE
    assert f"{limits.HELLO_SECONDS_MAX:g} seconds after the connection was made" in PAGE
