"""The installation: what llama.cpp is built for, where its wheel is kept, and what is refused."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.doctor.cuda import Build, Card, Nvidia
from tests.orchestrator.doctor.machines import SYSTEM_PATH, script, with_card, with_toolkit

INSTALL = Path(__file__).parents[2] / "deploy" / "install.py"
H200 = Card("NVIDIA H200", "9.0", "580.95.05")
BUILD = Build("13.0", ("9.0",))

PIP = """\
echo "$CMAKE_ARGS|$CUDACXX|$*" >> "$LOG"
while [ $# -gt 0 ]; do
  if [ "$1" = --wheel-dir ]; then
    mkdir -p "$2" && touch "$2/llama_cpp_python-0.3.36-py3-none-linux.whl"
  fi
  shift
done
"""
"""A Python of an environment, whose pip writes down what it is asked and makes empty wheels."""


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_install", INSTALL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """One with an environment, a cache and the programs in `bin`."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.cache = folder / "cache"
        self.environment = folder / "venv"
        self._log = folder / "log"
        script(self.environment / "bin" / "python", PIP)

    def install(self, *choice: str) -> "subprocess.CompletedProcess[str]":
        self._log.write_text("")
        environment = {
            "PATH": f"{self.bin}:{SYSTEM_PATH}",
            "HOME": str(self.cache),
            "XDG_CACHE_HOME": str(self.cache),
            "LOG": str(self._log),
            "CMAKE_ARGS": "-DMINE=1",
        }
        command = [sys.executable, str(INSTALL), str(self.environment), *choice]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def asked(self, what: str) -> list[list[str]]:
        """CMake's flags, the compiler and the arguments of each call of pip with this word."""
        calls = [line.split("|") for line in self._log.read_text().splitlines()]
        return [call for call in calls if f" {what} " in f" {call[2]} "]

    def wheels(self) -> list[str]:
        return sorted(path.parent.name for path in self.cache.rglob("*.whl"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


CPU = f"cp{sys.version_info[0]}{sys.version_info[1]}"


def test_without_a_word_it_is_built_for_the_processor(machine: Machine) -> None:
    with_card(machine.bin)
    with_toolkit(machine.bin)
    done = machine.install()
    assert done.returncode == 0, done.stderr
    ((flags, compiler, _),) = machine.asked("wheel")
    assert (flags, compiler) == ("-DMINE=1 -DGGML_CUDA=OFF", "")
    assert machine.wheels() == [CPU]


def test_for_a_card_it_is_built_with_its_toolkit_and_kept_apart(machine: Machine) -> None:
    assert machine.install().returncode == 0
    with_card(machine.bin)
    compiler = with_toolkit(machine.bin)
    done = machine.install("1")
    assert done.returncode == 0, done.stderr
    ((flags, named, arguments),) = machine.asked("wheel")
    assert flags == "-DMINE=1 -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90"
    assert named == str(compiler)
    assert "--no-cache-dir" in arguments, "pip would hand out the wheel of the processor"
    assert machine.wheels() == [CPU, f"{CPU}-cuda13.0-sm90"]


def test_a_wheel_of_the_other_kind_takes_the_place_of_the_same_version(machine: Machine) -> None:
    with_card(machine.bin)
    with_toolkit(machine.bin)
    for choice, kind in (("0", CPU), ("1", f"{CPU}-cuda13.0-sm90"), ("0", CPU)):
        assert machine.install(choice).returncode == 0
        ((_, _, arguments),) = machine.asked("--force-reinstall")
        assert f"/{kind}/" in arguments
    assert machine.install("0").returncode == 0
    assert machine.asked("--force-reinstall") == machine.asked("wheel") == []


def test_an_environment_keeps_its_kind_until_it_is_told_another(machine: Machine) -> None:
    with_card(machine.bin)
    with_toolkit(machine.bin)
    assert machine.install("1").returncode == 0
    assert machine.install().returncode == 0
    ((_, _, arguments),) = machine.asked("install")
    assert "-cuda13.0-sm90/" in arguments
    assert machine.install("0").returncode == 0
    assert "-cuda13.0" not in machine.asked("install")[-1][2]


def test_a_toolkit_that_is_not_known_is_refused_and_taken_by_force(machine: Machine) -> None:
    with_card(machine.bin)
    with_toolkit(machine.bin, "12.4")
    refused = machine.install("1")
    assert refused.returncode == 1
    assert "CUDA 12.4 is none of the versions that are known to work (13.0)" in refused.stderr
    assert "make install CUDA=force" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert machine.wheels() == []
    assert machine.install("force").returncode == 0
    assert machine.wheels() == [f"{CPU}-cuda12.4-sm90"]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Nvidia(toolkit="13.0"), "no NVIDIA card"),
        (Nvidia(cards=(H200,)), "no `nvcc`"),
        (
            Nvidia(trouble="version mismatch", toolkit="13.0"),
            "`nvidia-smi` fails: version mismatch",
        ),
    ],
)
def test_who_asks_for_a_gpu_is_not_given_something_else(
    install: ModuleType, found: Nvidia, said: str
) -> None:
    with pytest.raises(SystemExit, match=said):
        install.cuda_build("1", found)
    assert install.cuda_build("0", found) is None


def test_a_kept_wheel_that_is_too_old_is_not_taken(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "requirement", lambda: "llama-cpp-python>=0.3.36")
    for version in ("0.3.9", "0.3.35"):
        (tmp_path / f"llama_cpp_python-{version}-py3-none-linux.whl").touch()
    assert install.kept_wheel(tmp_path) is None
    for version in ("0.3.36", "0.3.100", "0.3.40"):
        (tmp_path / f"llama_cpp_python-{version}-py3-none-linux.whl").touch()
    assert install.kept_wheel(tmp_path).name == "llama_cpp_python-0.3.100-py3-none-linux.whl"


def test_a_build_that_fails_leaves_nothing_behind(machine: Machine) -> None:
    script(machine.environment / "bin" / "python", "exit 7")
    assert machine.install("0").returncode != 0
    assert not [file for file in machine.cache.rglob("*") if file.name.startswith(".building")]


def test_the_compiler_of_the_user_is_left_alone_without_cuda(install: ModuleType) -> None:
    theirs = {"CUDACXX": "/mine/nvcc"}
    assert install.build_environment(None, "/bin/nvcc", theirs)["CUDACXX"] == "/mine/nvcc"
    assert install.build_environment(BUILD, "/bin/nvcc", {})["CUDACXX"] == "/bin/nvcc"


def test_a_choice_that_there_is_not_is_a_mistake(machine: Machine) -> None:
    done = machine.install("yes")
    assert done.returncode == 1
    assert "Usage: install.py VENV [CUDA]" in done.stderr
    assert machine.asked("install") == []


@pytest.mark.parametrize(
    ("words", "environment", "asked"),
    [
        ((), {}, ".venv\n"),
        (("CUDA=1",), {}, ".venv 1\n"),
        (("CUDA=force",), {}, ".venv force\n"),
        (("CUDA=yes",), {}, ".venv yes\n"),
        ((), {"CUDA": "1"}, ".venv 1\n"),
        ((), {"CUDA": "/usr/local/cuda"}, ".venv\n"),
    ],
)
def test_make_hands_the_choice_on(
    words: tuple[str, ...], environment: dict[str, str], asked: str
) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "CUDA"}
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "install", *words],
        cwd=INSTALL.parents[1],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"deploy/install.py {asked}" in done.stdout
