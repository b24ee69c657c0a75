"""What the facts about a machine mean: a list of checks, each with what to do about it. Pure."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from orchestrator.config.units import rounded_size
from orchestrator.doctor.cuda import CudaRefused, Nvidia, Pin, pinned, plan

PYTHON_OLDEST: Final = (3, 11)

CUDA_BUILD: Final = "make install CUDA=1"

State = Literal["ok", "warning", "missing"]


class Device(msgspec.Struct, frozen=True):
    """One that llama.cpp computes on, by the name that `devices` of a model takes."""

    name: str
    description: str
    kind: Literal["cpu", "gpu", "igpu", "accel"]
    memory_bytes: int = 0
    memory_free_bytes: int = 0


class Llama(msgspec.Struct, frozen=True):
    """llama.cpp as it was built: what `python -m inference_client.engine --devices` prints."""

    version: str
    devices: list[Device]
    gpu_offload: bool

    @property
    def has_gpu(self) -> bool:
        return any(device.kind in ("gpu", "igpu") for device in self.devices)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as it was found. `llama` is what went wrong where it could not be asked."""

    python: tuple[int, int, int]
    llama: Llama | str
    nvidia: Nvidia
    pins: list[Pin]


class Finding(msgspec.Struct, frozen=True):
    """One check. *missing* is needed, a *warning* means that something is not as good as it could
    be; both have a cure."""

    check: str
    state: State
    found: str
    cure: str = ""


def judge(facts: Facts) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(facts)]


def is_whole(findings: Sequence[Finding]) -> bool:
    """Nothing is missing."""
    return all(finding.state != "missing" for finding in findings)


def _python(facts: Facts) -> Iterator[Finding]:
    version = ".".join(map(str, facts.python))
    if facts.python >= PYTHON_OLDEST:
        yield Finding("python", "ok", version)
    else:
        oldest = ".".join(map(str, PYTHON_OLDEST))
        yield Finding("python", "missing", version, f"Install Python {oldest} or later.")


def _llama(facts: Facts) -> Iterator[Finding]:
    llama = facts.llama
    if isinstance(llama, str):
        cure = "`make install` builds it; what it says there is why it does not work."
        yield Finding("llama.cpp", "missing", llama, cure)
        return
    built = "built for a GPU" if llama.gpu_offload else "built for the processor alone"
    yield Finding("llama.cpp", "ok", f"llama-cpp-python {llama.version}, {built}")
    for device in llama.devices:
        memory = ""
        if device.memory_bytes:
            free, whole = device.memory_free_bytes, device.memory_bytes
            memory = f", {rounded_size(free)} of {rounded_size(whole)} free"
        yield Finding(f"device {device.name}", "ok", f"{device.description}{memory}")


def _cards(facts: Facts) -> Iterator[Finding]:
    nvidia = facts.nvidia
    if nvidia.trouble:
        lines = nvidia.trouble.splitlines()
        cure = "Its driver does not work: `dmesg` says more. A restart helps after an update of it."
        yield Finding("nvidia", "warning", f"`nvidia-smi` fails: {lines[0]}", cure)
    elif not nvidia.cards:
        yield Finding("nvidia", "ok", "no card")
    for card in nvidia.cards:
        found = f"{card.name}, compute capability {card.capability}, driver {card.driver}"
        yield Finding("nvidia", "ok", found)


def _use(facts: Facts) -> Iterator[Finding]:
    """Whether a card that is there is used, and the one that llama.cpp was built for is there."""
    llama = facts.llama
    if isinstance(llama, str) or llama.has_gpu:
        return
    if llama.gpu_offload:
        cure = "Is its driver installed, and new enough? `make install CUDA=0` builds without."
        found = "llama.cpp was built for a GPU and finds none"
        yield Finding("gpu", "warning", f"{found}: models run on the processor", cure)
    elif facts.nvidia.cards:
        found = "a card that is not used, for llama.cpp was built for the processor alone"
        yield Finding("gpu", "warning", found, f"Run `{CUDA_BUILD}`.")


def _toolkit(facts: Facts) -> Iterator[Finding]:
    """Whether llama.cpp can be built for the card, and what it was built with runs."""
    nvidia, toolkit = facts.nvidia, facts.nvidia.toolkit
    if not nvidia.cards:
        if toolkit is not None:
            known = "known to work" if pinned(toolkit, facts.pins) else "not known to work"
            yield Finding("cuda", "ok", f"CUDA {toolkit}, which is {known}, and no card")
        return
    if toolkit is None and isinstance(facts.llama, Llama) and facts.llama.has_gpu:
        yield Finding("cuda", "ok", "no toolkit, and none is needed any more")
        return
    try:
        plan(nvidia.cards, toolkit, facts.pins)
    except CudaRefused as refused:
        yield Finding("cuda", "warning", refused.found.rstrip("."), refused.cure)
        return
    assert toolkit is not None, "there is no plan without one"
    if nvidia.driver_cuda is not None and _major(nvidia.driver_cuda) < _major(toolkit):
        found = f"CUDA {toolkit}, and a driver that runs CUDA {nvidia.driver_cuda} at most"
        yield Finding("cuda", "warning", found, "Install a newer driver, and restart.")
    else:
        yield Finding("cuda", "ok", f"CUDA {toolkit}, which is known to work")


def _major(version: str) -> int:
    """A driver runs what any toolkit of its own major version has made."""
    return int(version.partition(".")[0])


CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    _python,
    _llama,
    _cards,
    _use,
    _toolkit,
)
