"""`agentd bench triage`: reading the file, and what is counted."""

from pathlib import Path

import pytest

from ipc_protocol.errors import Failure
from orchestrator.bench.triage import Guess, Stimulus, measures, read

OWNERS = ["opsclaw", "devclaw", "none"]


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "stimuli.jsonl"
    path.write_text('{"text": "disk full", "owner": "opsclaw"}\n\n{"text": "hi", "owner": "none"}')
    assert read(path, OWNERS) == [Stimulus("disk full", "opsclaw"), Stimulus("hi", "none")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{", "line 2"),
        ('{"text": "x"}', "owner"),
        ('{"text": "", "owner": "none"}', "length"),
        ('{"text": "x", "owner": "nobody"}', "'nobody'"),
        ('{"text": "x", "owner": "none", "more": 1}', "more"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "stimuli.jsonl"
    path.write_text(f'{{"text": "x", "owner": "none"}}\n{line}\n')
    with pytest.raises(Failure) as failure:
        read(path, OWNERS)
    assert found in str(failure.value)
    assert "line 2" in str(failure.value)


def test_an_empty_file_is_no_measurement(tmp_path: Path) -> None:
    path = tmp_path / "stimuli.jsonl"
    path.write_text("\n")
    with pytest.raises(Failure, match="there is no message"):
        read(path, OWNERS)


def test_the_shares_are_those_of_the_right_owners() -> None:
    stimuli = [Stimulus("a", "opsclaw"), Stimulus("b", "devclaw"), Stimulus("c", "none")]
    guesses = [
        Guess(screening="opsclaw", model="devclaw", both="opsclaw", takers=1),
        Guess(screening="devclaw", model="devclaw", both="none", takers=0),
        Guess(screening="opsclaw", model="devclaw", both="none", takers=2),
    ]
    found = {measure.measure: measure for measure in measures(stimuli, guesses)}
    assert found["screening"].value == pytest.approx(2 / 3, abs=1e-3)
    assert found["model"].value == pytest.approx(1 / 3, abs=1e-3)
    assert found["both"].value == pytest.approx(2 / 3, abs=1e-3)
    assert found["both"].met is False
    assert found["nobody-took"].value == pytest.approx(2 / 3, abs=1e-3)
    assert found["nobody-took-wrongly"].value == pytest.approx(1 / 3, abs=1e-3)
    assert found["several-took"].value == pytest.approx(1 / 3, abs=1e-3)
    assert {measure.unit for measure in found.values()} == {"share"}
