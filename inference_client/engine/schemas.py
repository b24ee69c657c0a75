"""The grammars of the requests under way: how many different ones there may be, and who waits.

A grammar may take much memory, and a thousand requests may wait, each with a schema of its own. So
at most `GRAMMARS_MAX` schemas are in use at once. A request whose schema is among them goes on; one
with yet another waits, behind those that came before it, until a schema has no request any more.

On the event loop. One thread of its own compiles, one schema after another.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from inference_client.engine.grammar import Grammar, Grammars
from inference_client.engine.narrowing import serialised

GRAMMARS_MAX: Final = 16
"""Compiling takes 1 ms, so few need to be kept. One that is built to be hostile takes 80 MB."""


class Schemas:
    """Keeps the grammars of requests under way, and of those used last, `GRAMMARS_MAX` in all."""

    def __init__(self, build: Callable[[], Grammars]) -> None:
        """`build` is called once, in the thread, when the first schema comes."""
        self._build = build
        self._users: Counter[str] = Counter()
        """Requests under way, by the text of their schema."""
        self._places = asyncio.Semaphore(GRAMMARS_MAX)
        """One is taken for each text that has users."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._grammars: Grammars | None = None
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        """The one used last at the end. Only the thread touches it."""

    async def close(self) -> None:
        """End the thread, behind what it compiles at present."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def grammar(self, schema: dict[str, Any]) -> AsyncIterator[Grammar]:
        """The grammar of a schema, kept until the block ends. Raises `inference.schema`."""
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self._thread, serialised, schema)
        if text not in self._users:
            await self._places.acquire()
            if text in self._users:  # it came by another request in the meantime
                self._places.release()
        self._users[text] += 1
        try:
            yield await loop.run_in_executor(self._thread, self._grammar, text)
        finally:
            self._users[text] -= 1
            if not self._users[text]:
                del self._users[text]
                self._places.release()

    # -- in the thread

    def _grammar(self, text: str) -> Grammar:
        if self._grammars is None:
            self._grammars = self._build()
        grammar = self._kept.get(text)
        if grammar is None:
            self._make_room()
            grammar = self._kept[text] = self._grammars.compile(text)
        elif grammar.worn:
            self._grammars.renew(grammar)
        self._kept.move_to_end(text)
        return grammar

    def _make_room(self) -> None:
        """Let the grammar go that has been unused for longest, if there is no place left. One is
        unused: the text that the room is for has users as well."""
        if len(self._kept) >= GRAMMARS_MAX:
            # A request that comes for it at this very moment has it compiled anew.
            unused = (text for text in self._kept if text not in self._users)
            del self._kept[next(unused)]
