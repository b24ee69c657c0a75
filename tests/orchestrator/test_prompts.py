"""The prompts that an operator can read and override."""

from pathlib import Path

import pytest

from ipc_protocol.errors import Failure
from orchestrator import prompts


def test_the_shipped_prompts_are_found_without_importing_their_package() -> None:
    assert {"system", "triage", "act", "reflect", "compose"} <= prompts.load(
        "a", Path("/no")
    ).keys()


def test_an_agents_own_prompt_goes_before_that_for_all(tmp_path: Path) -> None:
    (tmp_path / "act.md").write_text("for all")
    (tmp_path / "reflect.md").write_text("for all")
    (tmp_path / "opsclaw").mkdir()
    (tmp_path / "opsclaw" / "act.md").write_text("its own")
    assert prompts.load("opsclaw", tmp_path)["act"] == "its own"
    assert prompts.load("opsclaw", tmp_path)["reflect"] == "for all"
    assert prompts.load("devclaw", tmp_path)["act"] == "for all"


def test_a_prompt_that_overrides_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "acct.md").write_text("typo")
    with pytest.raises(Failure, match="acct"):
        prompts.load("opsclaw", tmp_path)
