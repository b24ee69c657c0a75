"""Models, the endpoint and its clients: what is here, what is elsewhere, and who may use it."""

from typing import Final

from orchestrator.config.positions import KeyPath
from orchestrator.config.problems import did_you_mean, one_of
from orchestrator.config.reader import Findings
from orchestrator.config.types import (
    EMBEDDING_NAME,
    MODEL_NAME,
    MODEL_NAME_EXPECTED,
    ClientConfig,
    Config,
    ModelConfig,
)
from orchestrator.config.value_checks import check_list, check_listen, check_name
from orchestrator.config.wording import quoted
from orchestrator.egress_urls import GrantedUrl

LOCAL_KEYS: Final = (
    "context",
    "threads",
    "gpu_layers",
    "devices",
    "kv_type",
    "kv_layout",
    "flash_attention",
    "swap",
    "pin",
    "preference_weight",
)
"""Keys of a model that say how it is loaded here, and what is asked of it beyond text."""

REMOTE_KEYS: Final = ("remote_model", "key")
"""Keys of a model that say something about its server only."""

WHOLE_KV_TYPES: Final = frozenset({"f32", "f16", "bf16"})
"""The others are quantised, and llama.cpp has quantised values with flash attention alone."""

SLOT_TOKENS_MIN: Final = 256
"""A slot with less has no room for a system prompt and an answer; it is also the smallest
`context`."""


def check_inference(config: Config, findings: Findings) -> None:
    for name, model in config.models.items():
        if name == EMBEDDING_NAME:
            findings.problem(("model", name), "the name of the embedding model", "another name")
        elif MODEL_NAME.fullmatch(name) is None:
            findings.problem(("model", name), quoted(name), MODEL_NAME_EXPECTED)
        if model.is_remote:
            _check_remote(("model", name), model, findings)
        else:
            _check_local(("model", name), model, findings)
        check_list(model.devices, ("model", name, "devices"), findings)
    _check_endpoint(config, findings)
    owners: dict[str, str] = {}
    for client in config.clients.values():
        _check_client(client, config, findings)
        if client.key_sha256 and owners.setdefault(client.key_sha256, client.name) != client.name:
            found = f"the key of {owners[client.key_sha256]}"
            findings.problem(("client", client.name, "key_sha256"), found, "a key of its own")


# ---- Models -------------------------------------------------------------------------------------


def _check_local(path: KeyPath, model: ModelConfig, findings: Findings) -> None:
    if not findings.is_wrong((*path, "url")):
        for key in REMOTE_KEYS:
            if findings.is_said((*path, key)) and getattr(model, key):
                found = "a key for a remote server, and there is none"
                findings.problem((*path, key), found, "`url` too")
    if model.flash_attention == "off" and model.kv_type not in WHOLE_KV_TYPES:
        findings.problem(
            (*path, "kv_type"),
            f"{quoted(model.kv_type)} without flash attention",
            one_of(sorted(WHOLE_KV_TYPES)),
            'Or `flash_attention = "auto"`: values can be quantised only with it.',
        )
    if model.slots * SLOT_TOKENS_MIN > model.context:
        findings.warning(
            (*path, "slots"),
            f"{model.slots} slots that share {model.context} tokens",
            f"at least {SLOT_TOKENS_MIN} tokens of `context` for each",
            f"{max(1, model.context // SLOT_TOKENS_MIN)} slots, or "
            f"`context = {model.slots * SLOT_TOKENS_MIN}`.",
        )
    if model.devices and model.gpu_layers == 0:
        found = "devices, and no layer for them"
        findings.warning((*path, "devices"), found, "`gpu_layers` above 0, or -1 for all")


def _check_remote(path: KeyPath, model: ModelConfig, findings: Findings) -> None:
    if findings.is_said((*path, "file")):
        findings.problem((*path, "file"), "both `file` and `url`", "one of the two")
    for key in LOCAL_KEYS:
        if findings.is_said((*path, key)):
            found = "a key that a remote model has no use for"
            findings.warning((*path, key), found, "no such key")
    if model.key and not GrantedUrl.parse(model.url).keeps_secrets:
        found = "a key that would travel in the clear, for `url` is http"
        findings.problem((*path, "key"), found, "https, or a server on this machine")


# ---- The endpoint -------------------------------------------------------------------------------


def _check_endpoint(config: Config, findings: Findings) -> None:
    path: KeyPath = ("endpoint", "listen")
    listen = config.endpoint.listen
    check_listen(path, listen, findings)
    if not listen:
        return
    if listen == config.gateway.listen and not listen.endswith(":0"):
        findings.problem(path, f"{quoted(listen)}, as `gateway.listen`", "another address")
    if not config.clients:
        findings.warning(
            path,
            "an endpoint that answers nobody",
            "a table [client.NAME]",
            "`agentd keys new NAME` makes one, with its key.",
        )


def _check_client(client: ClientConfig, config: Config, findings: Findings) -> None:
    path: KeyPath = ("client", client.name)
    check_name(path, client.name, findings)
    if not config.endpoint.listen and not findings.is_wrong(("endpoint", "listen")):
        findings.warning(path, "a client, and nothing for it", "an address in `endpoint.listen`")
    for index, name in enumerate(client.models):
        known = (*config.models, EMBEDDING_NAME)
        if name and name not in known:
            findings.problem(
                (*path, "models", index),
                f"no model {quoted(name)}",
                one_of(known),
                did_you_mean(name, known) or f"Add a table [model.{name}].",
            )
    check_list(client.models, (*path, "models"), findings)
