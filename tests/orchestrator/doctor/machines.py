"""A machine with NVIDIA's programs, or without: scripts that say what those say."""

from pathlib import Path

SYSTEM_PATH = "/usr/bin:/bin"


def script(file: Path, body: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


def with_card(folder: Path, *, capability: str = "9.0", driver_cuda: str = "13.0") -> None:
    body = f'case "$1" in --query-gpu=*) echo "NVIDIA H200, {capability}, 580.95.05";;'
    script(folder / "nvidia-smi", f'{body} *) echo "CUDA Version: {driver_cuda} ";; esac')


def with_toolkit(folder: Path, version: str = "13.0") -> Path:
    said = f"Cuda compilation tools, release {version}, V{version}.88"
    return script(folder / "nvcc", f'echo "{said}"')


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{folder}:{SYSTEM_PATH}", **more}
