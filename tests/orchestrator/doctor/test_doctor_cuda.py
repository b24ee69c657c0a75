"""Which CUDA llama.cpp is built with, for which cards."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.doctor import cuda, nvidia
from orchestrator.doctor.cuda import Build, Card, CudaRefused, Pin

ROOT = Path(__file__).parents[3]
PINS = [Pin("13.0", "7.5")]
H200 = Card("NVIDIA H200", "9.0", "580.95.05")
OLD = Card("Tesla V100", "7.0", "580.95.05")
NVCC = """\
nvcc: NVIDIA (R) Cuda compiler driver
Cuda compilation tools, release 13.0, V13.0.88
Build cuda_13.0.r13.0/compiler.36424714_0
"""
SMI = "| NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0     |\n"


def test_the_version_that_is_pinned_is_the_one_that_was_tried() -> None:
    assert nvidia.pins() == PINS


def test_versions_are_read_from_what_the_programs_say() -> None:
    assert cuda.toolkit_of(NVCC) == "13.0"
    assert cuda.toolkit_of("nvcc: command not found") is None
    assert cuda.driver_cuda_of(SMI) == "13.0"
    assert cuda.driver_cuda_of("No devices were found") is None


def test_cards_are_read_with_any_name_and_those_that_cuda_cannot_use_are_none() -> None:
    said = "NVIDIA H200, 9.0, 580.95.05\nOdd, the card, 8.6, 1\nGeForce 210, [N/A], 340.108\n\n"
    assert cuda.cards_of(said) == [H200, Card("Odd, the card", "8.6", "1")]
    assert cuda.cards_of("No devices were found") == []


def test_a_build_is_for_the_cards_that_are_there_and_is_named_after_them() -> None:
    ada, newer = Card("Ada", "8.9", "1"), Card("Newer", "10.0", "1")
    assert cuda.plan([H200, H200], "13.0", PINS) == Build("13.0", ("9.0",))
    build = cuda.plan([newer, ada, H200], "13.0", PINS)
    assert build.name == "cuda13.0-sm89-90-100"
    assert build.flags == ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=89;90;100")


@pytest.mark.parametrize(
    ("cards", "toolkit", "found", "cure"),
    [
        ([], "13.0", "no NVIDIA card", "driver"),
        ([H200], None, "no `nvcc`", "toolkit (13.0)"),
        ([H200], "12.4", "CUDA 12.4 is none of", "make install CUDA=force"),
        ([H200, OLD], "13.0", "Tesla V100 has compute capability 7.0", "Leave CUDA out"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_to_do(
    cards: list[Card], toolkit: str | None, found: str, cure: str
) -> None:
    with pytest.raises(CudaRefused) as refused:
        cuda.plan(cards, toolkit, PINS)
    assert found in refused.value.found
    assert cure in refused.value.cure
    assert str(refused.value) == f"{refused.value.found} {refused.value.cure}"


def test_a_version_that_is_not_pinned_is_taken_by_force() -> None:
    assert cuda.plan([OLD], "12.4", PINS, force=True) == Build("12.4", ("7.0",))
    with pytest.raises(CudaRefused):
        cuda.plan([], "12.4", PINS, force=True)


def test_versions_are_compared_as_numbers() -> None:
    assert cuda.is_older("9.0", "10.0") and not cuda.is_older("10.0", "9.0")


def test_the_installation_needs_the_standard_library_alone() -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import orchestrator.doctor.nvidia"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)
