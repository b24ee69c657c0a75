"""What a language model prefers in triage: how well a message goes on each owner's list of duties.

Asked whose message it is, a small model answers by temperament. Asked how likely the message is as
the next line of a list of somebody's duties, it tells owners apart; `screening` has the form of the
list and `benchmarks/triage` the measurements. The answer does not depend on who asks, so the agents
that share a message ask once and settle on the same owner.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from ipc_protocol.inference import Score
from ipc_protocol.values import Priority
from orchestrator.engines import LanguageEngine
from orchestrator.metrics import Metrics
from orchestrator.screening import list_item, list_prompt

ANSWERS_MAX: Final = 256
"""Messages whose answer is kept: those that are being triaged, a few hundred agents at a time."""

ASKED_BY: Final = "screening"
"""Whose tokens they are in the accounts. To the engine each option is an agent of its own, named
after it with a dot, so that the KV cache keeps a list for each; no agent's name has a dot."""


_Key = tuple[str, ...]
"""The message as a line of a list, and the lists that are asked about."""


class Preferences:
    """Asks one language model, once for each message."""

    def __init__(
        self, language: LanguageEngine, duties: Mapping[str, Sequence[str]], metrics: Metrics
    ) -> None:
        self._language = language
        self._metrics = metrics
        self._answers: OrderedDict[_Key, dict[str, float]] = OrderedDict()
        self._under_way: dict[tuple[_Key, Priority], asyncio.Task[dict[str, float]]] = {}
        self.know(duties)

    def know(self, duties: Mapping[str, Sequence[str]]) -> None:
        """These are the owners from now on, each with its duties."""
        self._prompts = {option: list_prompt(phrases) for option, phrases in duties.items()}

    async def of(
        self, message: str, options: Sequence[str], priority: Priority
    ) -> dict[str, float]:
        """Log-likelihood of the message for each option that has duties, in nats.

        Raises the engine's `Failure`; then the next one asks again.
        """
        asked_about = {
            option: self._prompts[option] for option in sorted(options) if option in self._prompts
        }
        if not asked_about:
            return {}
        item = list_item(message)
        key = (item, *asked_about, *asked_about.values())
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key]
        asked = self._under_way.get((key, priority))
        if asked is None:
            asked = asyncio.create_task(self._ask(item, asked_about, priority))
            self._under_way[key, priority] = asked
            asked.add_done_callback(lambda done: self._keep(key, priority, done))
        # Whoever asked first may be cancelled; the others still wait for the answer.
        return await asyncio.shield(asked)

    def _keep(
        self, key: "_Key", priority: Priority, asked: "asyncio.Task[dict[str, float]]"
    ) -> None:
        del self._under_way[key, priority]
        if asked.cancelled() or asked.exception() is not None:
            return
        self._answers[key] = asked.result()
        if len(self._answers) > ANSWERS_MAX:
            self._answers.popitem(last=False)

    async def _ask(
        self, item: str, prompts: Mapping[str, str], priority: Priority
    ) -> dict[str, float]:
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = {
                    option: tasks.create_task(self._score(item, option, prompt, priority))
                    for option, prompt in prompts.items()
                }
        except ExceptionGroup as group:  # the first failure is the reason
            raise group.exceptions[0] from None
        return {option: task.result() for option, task in asked.items()}

    async def _score(self, item: str, option: str, prompt: str, priority: Priority) -> float:
        scored = await self._language.score(
            Score(
                agent=f"{ASKED_BY}.{option}",
                priority=priority,
                prompt=prompt,
                continuation=item,
            )
        )
        self._metrics.inference(ASKED_BY, priority, scored.usage)
        return scored.logprob
