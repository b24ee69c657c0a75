"""Create the virtual environment and install agentd with its development tools into it.

llama.cpp comes as source and is built here, which takes minutes: this says so, shows that it goes
on, and keeps the wheel in the user's cache so that the next environment installs it in seconds.

Usage: install.py VENV
"""

import os
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_OLDEST = (3, 11)
BEAT_SECONDS = 15


def main(folder: Path) -> int:
    if sys.version_info < PYTHON_OLDEST:
        print(f"agentd needs Python 3.11 or later; this is {sys.version.split()[0]}.")
        return 1
    began = time.monotonic()
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"Creating {folder} …", flush=True)
        venv.create(folder, symlinks=True, with_pip=True)
    wheel = llama_wheel(python)
    print("Installing agentd and its other dependencies …", flush=True)
    pip(python, "install", str(wheel), "--editable", f"{ROOT}[dev]")
    print(f"Installed in {time.monotonic() - began:.0f} s.", flush=True)
    return 0


def llama_wheel(python: Path) -> Path:
    """The wheel of llama-cpp-python for this interpreter and processor, built if need be."""
    kept = cache() / sysconfig.get_platform() / f"cp{sys.version_info[0]}{sys.version_info[1]}"
    kept.mkdir(parents=True, exist_ok=True)
    wheels = sorted(kept.glob("llama_cpp_python-*.whl"))
    if wheels:
        print(f"llama.cpp was built before: {wheels[-1].name}", flush=True)
        return wheels[-1]
    print("Building llama.cpp: about 5 minutes on two cores, once. The wheel is kept.", flush=True)
    building = kept / f".building-{os.getpid()}"
    pip(python, "wheel", "--no-deps", "--wheel-dir", str(building), requirement())
    (built,) = building.glob("llama_cpp_python-*.whl")
    wheel = built.rename(kept / built.name)
    building.rmdir()
    return wheel


def requirement() -> str:
    """The line of pyproject.toml that asks for llama-cpp-python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return next(line for line in project["dependencies"] if line.startswith("llama-cpp-python"))


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentd" / "wheels"


def pip(python: Path, *arguments: str) -> None:
    """Run pip with a sign of life every few seconds; its output is shown only when it fails."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
