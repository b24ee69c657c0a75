"""Asks this machine for its NVIDIA cards and its CUDA toolkit. As `cuda`, it imports the standard
library alone."""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from orchestrator.doctor import cuda

PROGRAM_SECONDS_MAX: Final = 30.0
"""Of `nvidia-smi` and `nvcc`: the first takes seconds where the driver sleeps between two calls."""

TOOLKIT_FOLDER: Final = Path("/usr/local/cuda")
"""Where NVIDIA's own packages put it, and CMake looks last."""

PINS_FILE: Final = Path(__file__).parent / "cuda.toml"


def pins() -> list[cuda.Pin]:
    return cuda.pins_of(tomllib.loads(PINS_FILE.read_text("utf-8")))


def look(environment: Mapping[str, str] = os.environ) -> cuda.Nvidia:
    """Asks `nvidia-smi` and `nvcc`. What is not there is no error."""
    compiler = _find_nvcc(environment)
    version = None if compiler is None else cuda.toolkit_of(_run([compiler, "--version"])[1])
    lister = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if lister is None:
        return cuda.Nvidia(nvcc=compiler, toolkit=version)
    query = "--query-gpu=name,compute_cap,driver_version"
    failed, said = _run([lister, query, "--format=csv,noheader"])
    if failed:
        return cuda.Nvidia(trouble=said or "it says nothing", nvcc=compiler, toolkit=version)
    return cuda.Nvidia(
        cards=tuple(cuda.cards_of(said)),
        driver_cuda=cuda.driver_cuda_of(_run([lister])[1]),
        nvcc=compiler,
        toolkit=version,
    )


def _find_nvcc(environment: Mapping[str, str]) -> str | None:
    """As CMake looks for it: the one that is named, that of a named toolkit, that in PATH."""
    named = [environment.get("CUDACXX")]
    folders = [environment.get("CUDA_HOME"), environment.get("CUDA_PATH")]
    named += [str(Path(folder, "bin", "nvcc")) for folder in folders if folder]
    named += [shutil.which("nvcc", path=environment.get("PATH"))]
    named += [str(TOOLKIT_FOLDER / "bin" / "nvcc")]
    return next((path for path in named if path and os.access(path, os.X_OK)), None)


def _run(command: Sequence[str]) -> tuple[bool, str]:
    """Whether it failed, and what it said."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROGRAM_SECONDS_MAX,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return True, f"it has not ended within {PROGRAM_SECONDS_MAX:g} s"
    except OSError as error:
        return True, error.strerror or str(error)
    return done.returncode != 0, done.stdout.strip()
