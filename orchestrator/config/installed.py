"""Whether this machine has what a configuration names: the model files.

Not a part of `loader.load`, because a configuration may be read where its models are not yet.
`agentd check` and `agentd run` ask here, so that one says what the other would trip over.
"""

import stat
from pathlib import Path

from inference_client import gguf
from inference_client.fetch import SOURCES
from inference_client.models import Registry
from ipc_protocol.errors import Failure
from orchestrator.config.loader import NO_OVERRIDES, Overrides, read, settled
from orchestrator.config.positions import KeyPath
from orchestrator.config.problems import did_you_mean, one_of
from orchestrator.config.reader import Findings
from orchestrator.config.types import Config, ModelConfig


def load_installed(path: Path, overrides: Overrides = NO_OVERRIDES) -> Config:
    """Like `loader.load`, for a configuration that is to run on this machine."""
    config, findings = read(path, overrides)
    check_models(config, findings)
    return settled(config, findings)


def model_file(model: ModelConfig, registry: Registry) -> Path:
    """Where the model lies. Raises `model.unknown` for a name that is not registered."""
    return Path(model.file) if model.is_path else registry.resolve(model.file)


def embedding_file(config: Config) -> Path | None:
    """Where the embedding model lies; None for the one that comes with agentd."""
    engine = config.embedding.engine
    return None if engine == "wordllama" else Path(engine)


def check_models(config: Config, findings: Findings) -> None:
    """Every model is registered, every file is one that can be loaded, and every file with the key
    to a remote server is there. Who checks may not be the one who may read it."""
    registry = Registry(config.models_folder)
    for name, model in config.models.items():
        if model.is_remote:
            _check_key_file(model.key, ("model", name, "key"), findings)
            continue
        if findings.is_wrong(("model", name, "url")):  # it was meant to be one of those
            continue
        key: KeyPath = ("model", name, "file")
        try:
            file = model_file(model, registry)
        except Failure as failure:
            _report_unknown(model.file, failure, registry, config, key, findings)
        else:
            _check_file(file, key, findings)
    embedding = embedding_file(config)
    if embedding is not None:
        _check_file(embedding, ("embedding", "engine"), findings)


def _report_unknown(
    name: str,
    failure: Failure,
    registry: Registry,
    config: Config,
    key: KeyPath,
    findings: Findings,
) -> None:
    if failure.code != "model.unknown":  # the registry itself is damaged
        expected = "the name of a model that can be looked up"
        findings.problem(key, failure.problem.message.rstrip("."), expected, failure.problem.cure)
        return
    known = [*registry.names(), *SOURCES]
    cure = did_you_mean(name, known)
    if name in SOURCES:
        cure = f"Fetch it with `agentd models pull {name} --config {config.source}`."
    findings.problem(
        key,
        f"{name!r}, which is not registered in {registry.folder}",
        f"{one_of(dict.fromkeys(known))}, or the path of a GGUF file",
        cure,
    )


def _check_key_file(place: str, key: KeyPath, findings: Findings) -> None:
    if not place.startswith("file:"):
        return
    file, found = Path(place.removeprefix("file:")), ""
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            found = "is no regular file"
        elif mode & stat.S_IRWXO:
            found = "can be read or written by every user of this machine"
    except PermissionError:
        return
    except OSError:
        found = "is not there"
    if found:
        expected = "a file with the key and nothing else, for the daemon's user alone"
        findings.problem(key, f"{file}, which {found}", expected)


def _check_file(file: Path, key: KeyPath, findings: Findings) -> None:
    try:
        gguf.read(file)
    except Failure as failure:
        said = failure.problem.message.removeprefix(f"{file} ").rstrip(".")
        findings.problem(
            key,
            f"{file}, which {said}",
            "a GGUF model",
            "Correct the path, or copy the file again.",
        )
