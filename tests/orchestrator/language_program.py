"""A language engine without a model: it counts, and some prompts do harm to it.

`python language_program.py FD OPTIONS`, where OPTIONS is a JSON object (`Options`). An answer is
the numbers from 0 on, each a token, with the text "0 1 2 …"; the text of every third number is held
back until the next one, as half a character would be. What a prompt (the last message) does:

- `die at N`: the process ends when the request has N tokens, as of an error within llama.cpp.
- `die at N once PATH`: only if PATH is not there yet.
- `stick at N once PATH`: the process stands still there instead.
- `wait at N for PATH`: the request goes on when PATH is there.
- `die before its slot`: nobody hears of it any more.
- `refuse`: the engine's own failure, which leaves the engine alone.

Each request that gets a slot adds a line to the log: its agent, how many tokens it brought, and who
had a slot beside it.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import uvloop

from ipc_protocol import methods
from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import (
    EngineStart,
    EngineStatus,
    Generate,
    Generated,
    GeneratedText,
    ModelInfo,
    Nothing,
    Score,
    Scored,
    TokenLogprob,
    Usage,
)

TOKEN_SECONDS = 0.003


class Options(msgspec.Struct, frozen=True):
    log: str
    memory: int = 0
    device_memory: int = 0
    invalid_while: str = ""
    """The file is no model as long as this path is there."""
    dies_while: str = ""
    """The engine dies of loading as long as this path is there."""
    loads_slowly_while: str = ""


def text_of(tokens: list[int]) -> str:
    """All of it."""
    return "".join(f"{token} " for token in tokens)


def certain(tokens: list[int]) -> str:
    held_back = bool(tokens) and tokens[-1] % 3 == 2
    return text_of(tokens[:-1] if held_back else tokens)


def there(path: str) -> bool:
    return bool(path) and Path(path).exists()


def die(path: str) -> None:
    if not there(path):
        if path:
            Path(path).touch()
        os._exit(3)


def stick(path: str) -> None:
    if not there(path):
        Path(path).touch()
        time.sleep(600)


class Program:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._beside: list[str] = []
        self._steps = 0

    def handlers(self) -> Handlers:
        return (
            Handlers()
            .add(methods.ENGINE_START, self.start)
            .add(methods.ENGINE_STATUS, self.status)
            .add(methods.ENGINE_GENERATE, self.generate)
            .add(methods.ENGINE_SCORE, self.score)
        )

    async def start(self, params: EngineStart, _: Call) -> ModelInfo:
        options = self._options
        if there(options.invalid_while):
            raise Failure("model.invalid", f"{params.path} is no model.", "Fetch it again.")
        if there(options.dies_while):
            os._exit(4)
        while there(options.loads_slowly_while):
            self._steps += 1
            await asyncio.sleep(0.01)
        self._slots = asyncio.Semaphore(params.slots)
        self._info = ModelInfo(
            name=params.name,
            kind="language",
            architecture="counting",
            memory_bytes=options.memory,
            device_memory_bytes=options.device_memory,
        )
        return self._info

    async def status(self, _: Nothing, __: Call) -> EngineStatus:
        return EngineStatus(model=self._info, steps=self._steps, working=bool(self._beside))

    @contextlib.asynccontextmanager
    async def _slot(self, agent: str, produced: int) -> AsyncIterator[None]:
        async with self._slots:
            self._note(agent, produced)
            self._beside.append(agent)
            try:
                yield
            finally:
                self._beside.remove(agent)

    def _note(self, agent: str, produced: int) -> None:
        entry = {"agent": agent, "produced": produced, "beside": self._beside}
        with Path(self._options.log).open("a") as log:
            log.write(json.dumps(entry) + "\n")

    async def generate(self, params: Generate, call: Call) -> Generated:
        words = params.messages[-1].content.split()
        async with self._slot(params.agent, len(params.produced)):
            if words[:2] == ["die", "before"]:
                os._exit(3)
            await call.send_item(GeneratedText())
            if words[0] == "refuse":
                raise Failure("inference.schema", "no", "Ask for something else.")
            tokens = list(params.produced)
            sent = len(tokens)
            while True:
                await self._harm(words, len(tokens))
                if len(tokens) >= params.tokens_max:
                    break
                tokens.append(len(tokens))
                self._steps += 1
                await asyncio.sleep(TOKEN_SECONDS)
                if self._steps % 3 == 0:  # items hold one to three tokens
                    await self._send(call, tokens, sent, certain(tokens))
                    sent = len(tokens)
            await self._send(call, tokens, sent, text_of(tokens))
        return Generated(
            text=text_of(tokens),
            finish="length",
            usage=usage(len(tokens)),
            logprobs=logprobs(tokens[len(params.produced) :]),
        )

    async def _send(self, call: Call, tokens: list[int], sent: int, text: str) -> None:
        new = text[len(certain(tokens[:sent])) :]
        if new or tokens[sent:]:
            item = GeneratedText(text=new, tokens=tokens[sent:], logprobs=logprobs(tokens[sent:]))
            await call.send_item(item)

    async def _harm(self, words: list[str], tokens: int) -> None:
        if words[1:2] != ["at"] or int(words[2]) != tokens:
            return
        path = words[4] if len(words) > 4 else ""
        match words[0]:
            case "die":
                await asyncio.sleep(0.05)  # what was sent goes out
                die(path)
            case "stick":
                stick(path)
            case "wait":
                while not there(path):
                    self._steps += 1
                    await asyncio.sleep(0.01)

    async def score(self, params: Score, _: Call) -> Scored:
        async with self._slot(params.agent, 0):
            if params.prompt == "die":
                os._exit(3)
        return Scored(logprob=-1.0, usage=usage(0))


def usage(tokens: int) -> Usage:
    return Usage(
        prompt_tokens=7,
        cached_tokens=0,
        generated_tokens=tokens,
        queue_us=1,
        first_token_us=2,
        total_us=3,
    )


def logprobs(tokens: list[int]) -> list[TokenLogprob]:
    return [TokenLogprob(piece=f"{token} ".encode(), logprob=-float(token)) for token in tokens]


async def serve(line: socket.socket, options: Options) -> None:
    hello = Hello(name="engine/language")
    handlers = Program(options).handlers()
    async with Connection(line, hello, handlers, initiator=True) as connection:
        await connection.wait_closed()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as line:
        uvloop.run(serve(line, msgspec.json.decode(sys.argv[2], type=Options)))
