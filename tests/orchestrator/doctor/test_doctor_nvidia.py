"""What is found of NVIDIA's programs on a machine."""

from pathlib import Path

import pytest
from machines import environment, script, with_card, with_toolkit

from orchestrator.doctor import nvidia
from orchestrator.doctor.cuda import Card, Nvidia


@pytest.fixture(autouse=True)
def no_toolkit_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "TOOLKIT_FOLDER", tmp_path / "cuda")


def test_a_machine_without_any_of_it_is_no_error(tmp_path: Path) -> None:
    assert nvidia.look(environment(tmp_path)) == Nvidia()


def test_the_card_its_driver_and_the_toolkit_are_found_in_path(tmp_path: Path) -> None:
    with_card(tmp_path)
    compiler = with_toolkit(tmp_path)
    assert nvidia.look(environment(tmp_path)) == Nvidia(
        cards=(Card("NVIDIA H200", "9.0", "580.95.05"),),
        driver_cuda="13.0",
        nvcc=str(compiler),
        toolkit="13.0",
    )


def test_a_toolkit_that_is_named_comes_before_the_one_in_path(tmp_path: Path) -> None:
    with_toolkit(tmp_path)
    named = with_toolkit(tmp_path / "other" / "bin", "12.4")
    home = environment(tmp_path, CUDA_HOME=str(tmp_path / "other"))
    assert nvidia.look(home) == Nvidia(nvcc=str(named), toolkit="12.4")
    assert nvidia.look(environment(tmp_path, CUDA_HOME="/none", CUDACXX=str(named))).nvcc == str(
        named
    )


def test_a_toolkit_where_its_packages_put_it_is_found_without_path(tmp_path: Path) -> None:
    installed = with_toolkit(tmp_path / "cuda" / "bin")
    assert nvidia.look(environment(tmp_path)).nvcc == str(installed)


def test_a_driver_that_does_not_work_says_why(tmp_path: Path) -> None:
    script(tmp_path / "nvidia-smi", "echo 'Driver/library version mismatch'; exit 18")
    assert nvidia.look(environment(tmp_path)).trouble == "Driver/library version mismatch"
    script(tmp_path / "nvidia-smi", "exit 9")
    assert nvidia.look(environment(tmp_path)).trouble == "it says nothing"
    (tmp_path / "nvidia-smi").write_text("\x7fELF no program")
    assert nvidia.look(environment(tmp_path)).trouble


def test_a_program_that_never_ends_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "PROGRAM_SECONDS_MAX", 0.2)
    script(tmp_path / "nvidia-smi", "exec sleep 60")
    assert "has not ended within 0.2 s" in nvidia.look(environment(tmp_path)).trouble
