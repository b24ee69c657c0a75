"""Build llama-server and llama-batched-bench from the source of the installed llama-cpp-python.

Its source distribution carries llama.cpp. The same version as the installed one is fetched and
built with the settings of its own wheel, so that `agentd bench inference` compares servers, and not
versions or compilers. The programs are kept in the user's cache, by version and kind.

Run it with the Python of the environment: build_peers.py [--cuda 0|1|force] [--sdist FILE]
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.bench.inference_builds import PROGRAMS, builds_folder, name_of
from orchestrator.doctor import cuda, nvidia

PACKAGE = "llama-cpp-python"
CHOICE_FILE = Path(sys.prefix) / ".cuda"
"""What `make install` has built llama-cpp-python for."""
SOURCE = Path("vendor") / "llama.cpp"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",  # so that a program can be moved to where it is kept
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
)
BEAT_SECONDS = 15
LOG_LINES = 30


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the peers of `agentd bench inference`.")
    parser.add_argument("--cuda", choices=("0", "1", "force"), help="as for `make install`")
    parser.add_argument("--sdist", type=Path, help="the distribution, where it cannot be fetched")
    options = parser.parse_args(arguments)
    version = importlib.metadata.version(PACKAGE)
    plan, environment = cuda_build(options.cuda or chosen())
    kept = builds_folder() / name_of(version, plan.name if plan else "")
    if all((kept / name).exists() for name in PROGRAMS):
        print(f"Built before: {kept}", flush=True)
        return 0
    if shutil.which("cmake") is None:
        print("There is no cmake: `pip install cmake`, or the package of this system.")
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="agentd-peers-") as name:
        workshop = Path(name)
        sdist = options.sdist or fetched(version, workshop)
        print("Building llama.cpp's programs: about 10 minutes on two cores, once.", flush=True)
        flags = plan.flags if plan else cuda.CPU_FLAGS
        built = build(unpacked(sdist, workshop), workshop, flags, environment)
        keep(built, kept)
    print(f"Built in {time.monotonic() - began:.0f} s: {kept}", flush=True)
    return 0


def chosen() -> str:
    return CHOICE_FILE.read_text().strip() if CHOICE_FILE.exists() else "0"


def cuda_build(choice: str) -> tuple[cuda.Build | None, dict[str, str]]:
    """How to build for the cards that are here, and the environment for it. None for the processor
    alone. Ends the program where it cannot be done."""
    environment = dict(os.environ)
    if choice == "0":
        return None, environment
    found = nvidia.look()
    try:
        plan = cuda.plan(found.cards, found.toolkit, nvidia.pins(), force=choice == "force")
    except cuda.CudaRefused as refused:
        raise SystemExit(f"{refused.found}\n{refused.cure}") from refused
    if found.nvcc is not None:
        environment["CUDACXX"] = found.nvcc
    return plan, environment


def fetched(version: str, workshop: Path) -> Path:
    """The source distribution, from the package index."""
    print(f"Fetching the source of {PACKAGE} {version} …", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", PACKAGE, "--dest", str(workshop), f"{PACKAGE}=={version}"]
    run(command, workshop, dict(os.environ))
    (sdist,) = workshop.glob("*.tar.gz")
    return sdist


def unpacked(sdist: Path, workshop: Path) -> Path:
    """The source of llama.cpp within it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(workshop, filter="data")
    return next(workshop.glob(f"*/{SOURCE}"))


def build(source: Path, workshop: Path, flags: Sequence[str], environment: dict[str, str]) -> Path:
    """The folder with the programs."""
    folder = workshop / "build"
    run(["cmake", "-S", str(source), "-B", str(folder), *OPTIONS, *flags], workshop, environment)
    jobs = str(len(os.sched_getaffinity(0)))
    command = ["cmake", "--build", str(folder), "-j", jobs, "--target", *PROGRAMS]
    run(command, workshop, environment)
    return folder / "bin"


def keep(built: Path, kept: Path) -> None:
    """Move them to where they stay: never half of them."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=kept.parent) as name:
        new = Path(name) / "programs"
        new.mkdir()
        for program in PROGRAMS:
            shutil.copy2(built / program, new / program)
        if kept.exists():
            shutil.rmtree(kept)
        new.replace(kept)


def run(command: Sequence[str], workshop: Path, environment: dict[str, str]) -> None:
    """Run a command with a sign of life every few seconds; its end is shown when it fails."""
    began = time.monotonic()
    log = workshop / "log"
    with (
        log.open("ab") as file,
        subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        while True:
            try:
                status = process.wait(BEAT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                took = f"{time.monotonic() - began:.0f} s"
                print(f"  … still at it after {took}{progress(log)}", flush=True)
    if status != 0:
        print("\n".join(log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:]))
        raise SystemExit(f"{command[0]} failed with status {status}.")


def progress(log: Path) -> str:
    """How far a build has come, by the share that its last line begins with."""
    lines = log.read_text("utf-8", "replace").splitlines()
    share = next((line[1:5].strip() for line in reversed(lines) if line.startswith("[")), "")
    return f", {share}" if share.endswith("%") else ""


if __name__ == "__main__":
    raise SystemExit(main())
