"""Whose key it is, and what that allows. Pure."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from ipc_protocol.errors import Failure
from ipc_protocol.values import Priority, rank
from orchestrator.config.types import ClientConfig


def client_of(key: str, clients: Mapping[str, ClientConfig]) -> ClientConfig:
    """Raises `serve.unauthorized`. How long it takes says nothing about the keys that there are:
    every one is compared, in a time that does not depend on where they differ."""
    digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
    found = None
    for client in clients.values():
        if hmac.compare_digest(digest, client.key_sha256):
            found = client
    if found is None or not key:
        raise Failure(
            "serve.unauthorized",
            "No client has this key." if key else "The request has no key.",
            "Send `Authorization: Bearer KEY`; `agentd keys new NAME` makes one.",
        )
    return found


def allowed_models(client: ClientConfig, models: Iterable[str]) -> list[str]:
    """Those of `models` that the client may use, in their order."""
    return [name for name in models if not client.models or name in client.models]


def check_model(client: ClientConfig, model: str, models: Iterable[str]) -> None:
    """Raises `model.unknown` for one that there is not, `serve.not-permitted` for another's."""
    there = list(models)
    if client.models and model not in client.models:
        raise Failure(
            "serve.not-permitted",
            f"The key of {client.name} does not allow the model {model!r}.",
            f"It allows {', '.join(client.models)}.",
        )
    if model not in there:
        allowed = ", ".join(allowed_models(client, there)) or "none of this kind"
        raise Failure(
            "model.unknown",
            f"There is no model {model!r} that could answer this.",
            f"The key of {client.name} allows {allowed}.",
        )


def class_of(client: ClientConfig, asked: Priority | None) -> Priority:
    """The class of a request: the client's own, or a less urgent one. Raises
    `serve.not-permitted`."""
    if asked is None:
        return client.priority
    if rank(asked) < rank(client.priority):
        raise Failure(
            "serve.not-permitted",
            f"The key of {client.name} does not allow the class {asked}.",
            f"It allows {client.priority}, and what is less urgent.",
        )
    return asked
