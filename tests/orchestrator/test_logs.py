"""Whoever reads the log can tell who says what."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from orchestrator.config.types import LogFormat
from orchestrator.logs import configure_logging

HOSTILE = "worker/a: \x1b[2Jfine\nworker/b: all is well\r"
SHOWN = (
    "worker/a: \N{REPLACEMENT CHARACTER}[2Jfine\n    worker/b: all is well\N{REPLACEMENT CHARACTER}"
)


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def logged(form: LogFormat, capsys: pytest.CaptureFixture[str]) -> str:
    configure_logging(form, "info")
    logging.getLogger("test").info("%s", HOSTILE)
    assert sys.stderr is not None
    return capsys.readouterr().err


def test_what_a_line_quotes_begins_no_line_and_draws_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert SHOWN in logged("text", capsys)


def test_programs_read_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(logged("json", capsys))["event"] == SHOWN
