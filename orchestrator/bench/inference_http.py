"""The load generator: `python -m orchestrator.bench.inference_http JOB.json`, a process of its own.

It reads a `Job`, plays its plan against a server with OpenAI's interface, and prints the answers as
one line of JSON. Every server is asked with the same bytes but for its key and the model's name.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import uvloop

from orchestrator.bench.inference_actors import AskError, Heard, play
from orchestrator.bench.inference_load import Actor, Answer, Ask, Job, Said, Target

ERROR_CHARS_MAX: Final = 400
"""Of what a server says when it refuses."""
LINE_BYTES_MAX: Final = 1024 * 1024
"""Of one event: some servers send all of an answer's metadata with it."""
RETRY_SECONDS: Final = 0.2
UNAVAILABLE: Final = 503
"""A server that loads its model."""
EVENT: Final = b"data:"
DONE: Final = b"[DONE]"


def request_of(ask: Ask, model: str) -> tuple[str, dict[str, Any]]:
    """The path below the interface's root, and the body."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": ask.tokens_max,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ask.schema is None:
        return "/completions", {**body, "prompt": ask.text}
    messages = [
        {"role": "system", "content": ask.identity},
        {"role": "user", "content": ask.text},
    ]
    answer = {"name": "answer", "schema": ask.schema, "strict": True}
    form = {"type": "json_schema", "json_schema": answer}
    return "/chat/completions", {**body, "messages": messages, "response_format": form}


class Hearing:
    """One answer, event by event."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._finish = ""
        self._usage: dict[str, Any] | None = None

    def take(self, event: bytes) -> bool:
        """Whether it brings text. Raises `AskError`."""
        try:
            said = json.loads(event)
            if "error" in said:
                raise AskError(str(said["error"])[:ERROR_CHARS_MAX])
            self._usage = said.get("usage") or self._usage
            text = ""
            for choice in said.get("choices", ()):
                self._finish = choice.get("finish_reason") or self._finish
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
        except (ValueError, TypeError, AttributeError) as error:
            raise AskError(f"an event that is none: {event[:ERROR_CHARS_MAX]!r}") from error
        self._text.append(text)
        return bool(text)

    def said(self) -> Said:
        """All of it. Raises `AskError` where the end is missing."""
        if self._finish not in ("stop", "length") or self._usage is None:
            raise AskError(f"the answer ended without its usage (finish {self._finish!r})")
        details = self._usage.get("prompt_tokens_details") or {}
        completion = self._usage.get("completion_tokens_details") or {}
        return Said(
            text="".join(self._text),
            finish="length" if self._finish == "length" else "stop",
            prompt_tokens=self._usage["prompt_tokens"],
            cached_tokens=details.get("cached_tokens") or 0,
            generated_tokens=self._usage["completion_tokens"],
            forced_tokens=completion.get("accepted_prediction_tokens") or 0,
        )


class Generator:
    """Asks one server."""

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._target = target

    async def ask(self, actor: Actor, ask: Ask, heard: Heard) -> Said:
        """One answer. Raises `AskError`."""
        hearing = Hearing()
        try:
            async with self._asked(actor, ask) as response:
                if response.status != 200:
                    text = (await response.text())[:ERROR_CHARS_MAX]
                    raise AskError(f"{response.status}: {text}")
                async for line in response.content:
                    event = line.strip()
                    if not event.startswith(EVENT):
                        continue
                    event = event.removeprefix(EVENT).strip()
                    if event != DONE and hearing.take(event):
                        heard()
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise AskError(f"{type(error).__name__}: {error}") from error
        return hearing.said()

    async def wait_up(self, patience_s: float) -> None:
        """Until the server has loaded its model. Raises `TimeoutError`."""
        async with asyncio.timeout(patience_s):
            while True:
                if await self._is_up():
                    return
                await asyncio.sleep(RETRY_SECONDS)

    async def _is_up(self) -> bool:
        """Whether it answers the shortest request."""
        probe = Ask(text="The", tokens_max=1)
        path, body = request_of(probe, self._target.model)
        try:
            async with self._session.post(
                self._target.url + path,
                json={**body, "stream": False, "stream_options": None},
                headers=self._headers(next(iter(self._target.keys), "")),
            ) as response:
                return response.status != UNAVAILABLE
        except (aiohttp.ClientError, ConnectionError):
            return False

    @contextlib.asynccontextmanager
    async def _asked(self, actor: Actor, ask: Ask) -> AsyncIterator[aiohttp.ClientResponse]:
        path, body = request_of(ask, self._target.model)
        async with self._session.post(
            self._target.url + path, json=body, headers=self._headers(actor.name)
        ) as response:
            yield response

    def _headers(self, actor: str) -> dict[str, str]:
        key = self._target.keys.get(actor)
        return {} if key is None else {"Authorization": f"Bearer {key}"}


async def perform(job: Job) -> list[Answer]:
    """Play the plan of a job. Raises `TimeoutError`."""
    async with aiohttp.ClientSession(
        # A connection for each request: servers close those that rest, some while one is sent.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None),  # the plan has a limit
        read_bufsize=LINE_BYTES_MAX,
    ) as session:
        generator = Generator(session, job.target)
        if job.patience_s:
            await generator.wait_up(job.patience_s)
        return await play(job.plan, generator.ask)


def main(path: Path) -> None:
    """Print the answers whole: with PYTHONUNBUFFERED a write to a pipe may be short."""
    job = msgspec.json.decode(path.read_bytes(), type=Job)
    said = memoryview(msgspec.json.encode(uvloop.run(perform(job))) + b"\n")
    while said:
        said = said[os.write(sys.stdout.fileno(), said) :]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
