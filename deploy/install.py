"""Create the virtual environment and install agentd with its development tools into it.

llama.cpp comes as source and is built here, which takes minutes: this says so, shows that it goes
on, and keeps the wheel in the user's cache so that the next environment installs it in seconds.

Usage: install.py VENV [CUDA]

CUDA is 0 for a llama.cpp that runs on the processor alone, 1 for one that is built for the NVIDIA
cards of this machine, and *force* for the same with a CUDA that is not known to work. Without it
the environment keeps the kind that it has; a new one is built for the processor.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from orchestrator.doctor import cuda, nvidia  # noqa: E402 - the standard library alone, as this

PYTHON_OLDEST = (3, 11)
BEAT_SECONDS = 15
WHEELS = "llama_cpp_python-*.whl"

CHOICES = ("0", "1", "force")
CHOICE_FILE = ".cuda"
"""In the environment: the choice that it was made with."""
WHEEL_FILE = ".llama"
"""In the environment: the folder of the wheel that is installed."""


def main(folder: Path, choice: str | None) -> int:
    if sys.version_info < PYTHON_OLDEST:
        print(f"agentd needs Python 3.11 or later; this is {sys.version.split()[0]}.")
        return 1
    began = time.monotonic()
    choice = choice or remembered(folder / CHOICE_FILE) or "0"
    found = nvidia.look() if choice != "0" else cuda.Nvidia()
    build = cuda_build(choice, found)
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"Creating {folder} …", flush=True)
        venv.create(folder, symlinks=True, with_pip=True)
    wheel = llama_wheel(python, build, found.nvcc)
    if remembered(folder / WHEEL_FILE) != str(wheel):
        # To pip a wheel of the same version is the same wheel, for whatever it was built.
        pip(python, "install", "--force-reinstall", "--no-deps", str(wheel))
    print("Installing agentd and its other dependencies …", flush=True)
    pip(python, "install", str(wheel), "--editable", f"{ROOT}[dev]")
    (folder / CHOICE_FILE).write_text(choice)
    (folder / WHEEL_FILE).write_text(str(wheel))
    print(f"Installed in {time.monotonic() - began:.0f} s.", flush=True)
    return 0


def remembered(file: Path) -> str | None:
    return file.read_text().strip() if file.exists() else None


def cuda_build(choice: str, found: cuda.Nvidia) -> cuda.Build | None:
    """How to build for the cards that were found; None for the processor alone. Ends the program
    where it cannot be done: who asked for a GPU is not given something else."""
    if choice == "0":
        return None
    try:
        if found.trouble:
            cure = "Its driver does not work: `dmesg` says more."
            raise cuda.CudaRefused(f"`nvidia-smi` fails: {found.trouble}.", cure)
        return cuda.plan(found.cards, found.toolkit, nvidia.pins(), force=choice == "force")
    except cuda.CudaRefused as refused:
        raise SystemExit(f"{refused.found}\n{refused.cure}") from refused


def llama_wheel(python: Path, build: cuda.Build | None, nvcc: str | None) -> Path:
    """The wheel of llama-cpp-python for this interpreter and what it runs on, built if need be."""
    kept = wheel_folder(build)
    kept.mkdir(parents=True, exist_ok=True)
    if (wheel := kept_wheel(kept)) is not None:
        print(f"llama.cpp was built before: {kept.name}/{wheel.name}", flush=True)
        return wheel
    if build is None:
        minutes = "about 5 minutes on two cores"
    else:
        minutes = f"for {build.name}, about half an hour on two cores"
    print(f"Building llama.cpp, {minutes}, once. The wheel is kept.", flush=True)
    # pip's own cache knows a wheel by its version alone, and would hand out one for the other.
    own_cache = ["--no-cache-dir"] if build is not None else []
    with tempfile.TemporaryDirectory(prefix=".building-", dir=kept) as building:
        command = ["wheel", "--no-deps", *own_cache, "--wheel-dir", building, requirement()]
        pip(python, *command, environment=build_environment(build, nvcc, os.environ))
        (built,) = Path(building).glob(WHEELS)
        return built.rename(kept / built.name)


def kept_wheel(folder: Path) -> Path | None:
    """The newest one there that is new enough, if there is one."""
    oldest = version_of(requirement().partition(">=")[2])
    wheels = {version_of(file.name.split("-")[1]): file for file in folder.glob(WHEELS)}
    newest = max(wheels, default=None)
    return None if newest is None or newest < oldest else wheels[newest]


def version_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def wheel_folder(build: cuda.Build | None) -> Path:
    """Where the wheels of one kind are kept: none of another kind is ever among them."""
    interpreter = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    folder = interpreter if build is None else f"{interpreter}-{build.name}"
    return cache() / sysconfig.get_platform() / folder


def build_environment(
    build: cuda.Build | None, nvcc: str | None, environment: Mapping[str, str]
) -> dict[str, str]:
    """What CMake is told, behind what the user has it told: the last word counts."""
    flags = cuda.CPU_FLAGS if build is None else build.flags
    said = [environment.get("CMAKE_ARGS", ""), *flags]
    made = {**environment, "CMAKE_ARGS": " ".join(filter(None, said))}
    if build is not None and nvcc is not None:
        made["CUDACXX"] = nvcc
    return made


def requirement() -> str:
    """The line of pyproject.toml that asks for llama-cpp-python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return next(line for line in project["dependencies"] if line.startswith("llama-cpp-python"))


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentd" / "wheels"


def pip(python: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run pip with a sign of life every few seconds; its output is shown only when it fails."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    began = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=BEAT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                print(f"  … still at it after {time.monotonic() - began:.0f} s", flush=True)
    if process.returncode != 0:
        print(output)
        raise SystemExit(f"pip failed with status {process.returncode}.")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], *([one] for one in CHOICES)):
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else None))
