"""From a file to a context: checks the header, loads the weights, and sizes the pool."""

from pathlib import Path

from inference_client import gguf
from inference_client.engine.llama import Context, Model
from inference_client.engine.planner import Policy
from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart, ModelInfo


def load(start: EngineStart) -> tuple[Policy, Context, ModelInfo]:
    """Load the model and its KV cache. Raises `model.invalid`."""
    if min(start.slots, start.context, start.threads) < 1:
        raise Failure("request.invalid", "`slots`, `context` and `threads` are at least 1.")
    path = Path(start.path)
    header = gguf.read(path)
    model = Model(path, start.gpu_layers)
    if not model.generates:
        raise Failure(
            "model.invalid",
            f"{path} is a model of architecture {header.architecture}, which generates no text.",
            "Use it as an embedding model, or choose another one.",
        )
    policy = Policy(
        width=start.slots if start.gpu_layers else min(start.slots, start.threads),
        context=min(start.context, model.context_trained),
    )
    batch = policy.batch_tokens(start.slots)
    context = Context(model, start.slots, start.context, start.threads, batch)
    info = ModelInfo(
        name=start.name,
        kind="language",
        architecture=header.architecture,
        parameters=model.parameters,
        context=policy.context,
        vocabulary=model.vocabulary,
    )
    return policy, context, info
