"""From a file to a context: checks the header, loads the weights, and finds out what it has got."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from inference_client import gguf
from inference_client.engine.context import Context
from inference_client.engine.llama import Device, Model, devices
from inference_client.engine.planning.planner import Policy
from inference_client.engine.planning.swap import SwapArea
from inference_client.engine.threads import Cores
from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart, KvLayout, ModelInfo

STREAM_TOKENS_MIN: Final = 4096
"""Context of one sequence from which each has its own cells by default. With fewer, a request of an
ordinary length would not fit into what one slot has."""

STATUS_FILE: Final = Path("/proc/self/status")


class Loaded(NamedTuple):
    context: Context
    policy: Policy
    swap: SwapArea
    info: ModelInfo
    cores: Cores


def load(start: EngineStart) -> Loaded:
    """Load the model and its KV cache. Raises `model.invalid`, `model.unavailable`."""
    if min(start.slots, start.context, start.threads) < 1:
        raise Failure("request.invalid", "`slots`, `context` and `threads` are at least 1.")
    if start.context < start.slots:
        raise Failure("request.invalid", "`context` holds less than one token for each slot.")
    path = Path(start.path)
    header = gguf.read(path)
    accelerators = _accelerators(start)
    before = _memory(accelerators)
    model = Model(path, start.gpu_layers, start.devices)
    if not model.generates:
        model.close()
        raise Failure(
            "model.invalid",
            f"{path} is a model of architecture {header.architecture}, which generates no text.",
            "Use it as an embedding model, or choose another one.",
        )
    try:
        return _with_context(model, start, header.architecture, accelerators, before)
    except BaseException:
        model.close()
        raise


def _with_context(
    model: Model,
    start: EngineStart,
    architecture: str,
    accelerators: Sequence[Device],
    before: int,
) -> Loaded:
    layout = start.kv_layout or _layout(start)
    cells = start.context if layout == "unified" else start.context // start.slots
    policy = Policy(
        width=start.slots if accelerators else 1, context=min(cells, model.context_trained)
    )
    context = Context(model, start, layout, policy.batch_tokens(start.slots))
    swap = SwapArea(start.swap_bytes, context.token_bytes, context.fixed_bytes)
    weights = 0 if accelerators else model.bytes
    info = ModelInfo(
        name=start.name,
        kind="language",
        architecture=architecture,
        parameters=model.parameters,
        context=policy.context,
        vocabulary=model.vocabulary,
        slots=start.slots,
        kv_layout=layout,
        partial_removal=context.partial_removal,
        device_sampling=bool(accelerators) and context.samples(),
        devices=[device.name for device in accelerators],
        memory_bytes=max(0, _memory(accelerators) - before) + weights,
        device_memory_bytes=sum(device.memory_bytes for device in accelerators),
    )
    return Loaded(context, policy, swap, info, Cores(start.threads))


def _accelerators(start: EngineStart) -> list[Device]:
    """The GPUs that will have layers of the model."""
    if start.gpu_layers == 0:
        return []
    gpus = [device for device in devices() if device.kind in ("gpu", "igpu")]
    return [gpu for gpu in gpus if not start.devices or gpu.name in start.devices]


def _layout(start: EngineStart) -> KvLayout:
    """With cells of its own a sequence attends to nothing else: a tenth faster on a processor, a
    quarter on a GPU. Sharing by reference leaves more of them where there are few."""
    return "streams" if start.context // start.slots >= STREAM_TOKENS_MIN else "unified"


def _memory(accelerators: Sequence[Device]) -> int:
    """Bytes in use on these devices now; without any, of this process beside what it has mapped."""
    names = {device.name for device in accelerators}
    if names:
        return sum(
            device.memory_bytes - device.memory_free_bytes
            for device in devices()
            if device.name in names
        )
    try:
        lines = STATUS_FILE.read_text("ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
