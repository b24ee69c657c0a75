"""What the facts about a machine mean, and that the facts are found."""

import sys
from pathlib import Path
from typing import Any

import pytest
from machines import script

from orchestrator.doctor.cuda import Card, Nvidia, Pin
from orchestrator.doctor.judging import Device, Facts, Finding, Llama, is_whole, judge
from orchestrator.doctor.probing import DEVICES, DEVICES_SECONDS_MAX, ask_llama, probe

PROCESSOR = Device("CPU", "AMD EPYC", "cpu", 24 * 2**30, 20 * 2**30)
GPU = Device("CUDA0", "NVIDIA H200", "gpu", 139 * 2**30, 139 * 2**30)
PLAIN = Llama("0.3.36", [PROCESSOR], gpu_offload=False)
WITH_CUDA = Llama("0.3.36", [GPU, PROCESSOR], gpu_offload=True)
H200 = Card("NVIDIA H200", "9.0", "580.95.05")
CARD = Nvidia(cards=(H200,), driver_cuda="13.0", nvcc="/bin/nvcc", toolkit="13.0")


def judged(**facts: Any) -> dict[str, Finding]:
    given = {"python": (3, 11, 7), "llama": PLAIN, "nvidia": Nvidia(), "pins": [Pin("13.0", "7.5")]}
    findings = judge(Facts(**{**given, **facts}))
    assert all(finding.cure or finding.state == "ok" for finding in findings)
    return {finding.check: finding for finding in findings}


def states(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.state for name, finding in findings.items()}


def test_a_machine_without_a_gpu_lacks_nothing() -> None:
    found = judged()
    assert states(found) == dict.fromkeys(("python", "llama.cpp", "device CPU", "nvidia"), "ok")
    assert found["device CPU"].found == "AMD EPYC, 20.0 GiB of 24.0 GiB free"
    assert "processor alone" in found["llama.cpp"].found
    assert is_whole(list(found.values()))


def test_an_old_python_is_missing_a_newer_one() -> None:
    found = judged(python=(3, 10, 2))
    assert found["python"].state == "missing"
    assert "3.11" in found["python"].cure
    assert not is_whole(list(found.values()))


def test_a_library_that_does_not_load_is_missing_with_what_it_said() -> None:
    found = judged(llama="libgomp.so.1: cannot open shared object file", nvidia=CARD)
    assert found["llama.cpp"].state == "missing"
    assert "libgomp" in found["llama.cpp"].found
    assert "gpu" not in found


def test_a_card_without_a_build_for_it_is_named_with_the_command() -> None:
    found = judged(nvidia=CARD)
    assert found["gpu"].state == "warning"
    assert found["gpu"].cure == "Run `make install CUDA=1`."
    assert is_whole(list(found.values()))


def test_a_card_that_is_used_is_in_order() -> None:
    found = judged(llama=WITH_CUDA, nvidia=CARD)
    assert set(states(found).values()) == {"ok"}
    assert "gpu" not in found
    assert "compute capability 9.0" in found["nvidia"].found
    assert "known to work" in found["cuda"].found


def test_a_build_for_a_gpu_that_is_not_there_is_a_warning() -> None:
    plain = Llama("0.3.36", [Device("CPU", "AMD EPYC", "cpu")], gpu_offload=True)
    found = judged(llama=plain)
    assert "finds none" in found["gpu"].found
    assert found["device CPU"].found == "AMD EPYC"


def test_a_driver_that_fails_says_why() -> None:
    found = judged(nvidia=Nvidia(trouble="Driver/library version mismatch\nmore"))
    assert found["nvidia"].found == "`nvidia-smi` fails: Driver/library version mismatch"


@pytest.mark.parametrize(
    ("nvidia", "state", "said"),
    [
        (Nvidia(toolkit="13.0"), "ok", "is known to work, and no card"),
        (Nvidia(toolkit="12.4"), "ok", "CUDA 12.4, which is not known to work, and no card"),
        (Nvidia(cards=(H200,)), "warning", "no `nvcc`"),
        (Nvidia(cards=(H200,), toolkit="12.4"), "warning", "CUDA 12.4 is none of the versions"),
        (Nvidia(cards=(H200,), toolkit="13.0"), "ok", "known to work"),
        (
            Nvidia(cards=(Card("V100", "7.0", "1"),), toolkit="13.0"),
            "warning",
            "compute capability 7.0",
        ),
        (
            Nvidia(cards=(H200,), toolkit="13.0", driver_cuda="12.8"),
            "warning",
            "a driver that runs CUDA 12.8 at most",
        ),
    ],
)
def test_the_toolkit_is_held_against_the_versions_that_work(
    nvidia: Nvidia, state: str, said: str
) -> None:
    found = judged(nvidia=nvidia)["cuda"]
    assert found.state == state
    assert said in found.found


def test_what_is_built_needs_no_toolkit_any_more() -> None:
    assert judged(llama=WITH_CUDA, nvidia=Nvidia(cards=(H200,)))["cuda"].state == "ok"


# ---- Asking the engine ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'Traceback' >&2; echo 'OSError: no libgomp' >&2; exit 1", "OSError: no libgomp"),
        ("exit 3", "it ended with status 3"),
        ("echo hello", "cannot be read"),
        ('echo \'{"version": "1", "gpu_offload": false}\'', "cannot be read"),
        ("exec sleep 60", "has not said within 1 s"),
    ],
)
def test_an_engine_that_does_not_say_what_it_runs_on_is_a_line_of_text(
    tmp_path: Path, body: str, said: str
) -> None:
    answer = ask_llama([str(script(tmp_path / "engine", body))], 1)
    assert isinstance(answer, str) and said in answer


def test_the_engine_of_this_installation_has_a_processor() -> None:
    answer = ask_llama(DEVICES, DEVICES_SECONDS_MAX)
    assert isinstance(answer, Llama)
    assert any(device.kind == "cpu" for device in answer.devices)


def test_the_facts_of_this_machine_are_found() -> None:
    facts = probe()
    assert facts.python == sys.version_info[:3]
    assert facts.pins
    assert judge(facts)[0].state == "ok"
