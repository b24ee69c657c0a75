"""Errors as OpenAI's clients know them: a status, and a JSON object with type, parameter and code.

A code is OpenAI's own where clients look for one (`context_length_exceeded`), else the protocol's.
Pure.
"""

from typing import Final

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.limits import SENTENCE_CHARACTERS_MAX


class ApiError(Exception):
    """A request that gets an error for an answer. `retry` is whether to ask again can help; None
    leaves it to the client, which decides by the status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry: bool | None = None,
    ) -> None:
        self.message = _shown(message, MESSAGE_CHARACTERS_MAX)
        super().__init__(self.message)
        self.status = status
        self.kind = kind
        self.param = None if param is None else _shown(param, PARAM_CHARACTERS_MAX)
        self.code = code
        self.retry = retry

    @property
    def body(self) -> bytes:
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    @property
    def headers(self) -> dict[str, str]:
        """`x-should-retry` is what OpenAI's clients obey before they look at the status."""
        headers = {"Content-Type": "application/json"}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry is not None:
            headers["x-should-retry"] = str(self.retry).lower()
        if self.retry:
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return headers


MESSAGE_CHARACTERS_MAX: Final = 2 * SENTENCE_CHARACTERS_MAX + 1
"""A sentence and its cure. Many messages quote what the client sent, which may be megabytes."""
PARAM_CHARACTERS_MAX: Final = 128


def _shown(text: str, characters_max: int) -> str:
    """What can be sent of it: not the lone surrogates that stand for bytes which are no text."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


RETRY_AFTER_SECONDS: Final = 1
"""For who was turned away: requests of some hundred tokens leave about every second."""


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    """The request itself is wrong."""
    return ApiError(400, message, param=param, code=code)


class _Answer(msgspec.Struct, frozen=True):
    status: int
    kind: str = "invalid_request_error"
    code: str | None = None
    """None: that of the protocol."""
    param: str | None = None
    retry: bool | None = None


_BUSY: Final = _Answer(429, "rate_limit_error", "rate_limit_exceeded", retry=True)
_AWAY: Final = _Answer(503, "server_error", retry=True)
_REMOTE: Final = _Answer(502, "server_error")
_DEFECT: Final = _Answer(500, "server_error")

_ANSWERS: Final[dict[str, _Answer]] = {
    "serve.unauthorized": _Answer(401, "authentication_error", "invalid_api_key"),
    "serve.not-permitted": _Answer(403, "permission_error"),
    "model.unknown": _Answer(404, code="model_not_found", param="model"),
    "request.invalid": _Answer(400),
    "protocol.frame-too-long": _Answer(413),
    "inference.context": _Answer(400, code="context_length_exceeded", param="messages"),
    "inference.schema": _Answer(400, param="response_format"),
    # A 4xx that is not asked again: the same budget would end before the same answer.
    "inference.budget": _Answer(422, param="max_tokens"),
    "inference.busy": _BUSY,
    "protocol.too-many-streams": _BUSY,
    # Neither is asked again: the time is over, and the engine would be ended twice more.
    "inference.deadline": _Answer(504, "timeout_error", retry=False),
    "inference.culprit": _Answer(500, "server_error", retry=False),
    "inference.unavailable": _AWAY,
    "model.unavailable": _AWAY,
    "protocol.closed": _AWAY,
    "request.cancelled": _AWAY,
    "model.invalid": _Answer(500, "server_error", retry=False),
    "egress.failed": _REMOTE,
    "egress.refused": _REMOTE,
    "egress.not-permitted": _REMOTE,
}
"""Whatever is not here is a defect of the server."""


def of_failure(failure: Failure) -> ApiError:
    answer = _ANSWERS.get(failure.code, _DEFECT)
    return ApiError(
        answer.status,
        str(failure),
        kind=answer.kind,
        param=answer.param,
        code=answer.code or failure.code,
        retry=answer.retry,
    )
