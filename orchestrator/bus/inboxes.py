"""How full each inbox is, and with whose messages: counted in memory, since every publish asks.

What is counted are deliveries that are not finished. Composing ones are left out: the bus itself
sends them, and they come on top.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from orchestrator.store.transaction import Transaction

_KEY: Final = "bus.inboxes"

SHARE: Final = 7
"""A sender may have in an inbox at most seven times what is free in it. So one that floods leaves
an eighth of it to others, and two together a fifteenth. One alone can fill an inbox of up to eight.
(Choudhury and Hahne, Dynamic Queue Length Thresholds for Shared-Memory Packet Switches, IEEE/ACM
Transactions on Networking 6(2), 1998.)"""


def places(held: int, own: int, inbox_max: int) -> int:
    """How many more of a sender's messages an inbox takes that holds `held`, `own` of them its."""
    free = inbox_max - held
    beyond = SHARE * free - own
    if free <= 0 or beyond < 0:
        return 0
    return min(free, beyond // (SHARE + 1) + 1)


class Inboxes:
    """The number of unfinished deliveries by agent and sender."""

    def __init__(self) -> None:
        self._held: dict[str, Counter[str]] = {}
        self._totals: Counter[str] = Counter()

    def depth(self, tx: Transaction, agent: str) -> int:
        self._loaded(tx, agent)
        return self._totals[agent]

    def places(
        self, tx: Transaction, agent: str, sender: str, inbox_max: int, coming: int = 0
    ) -> int:
        """How many more messages of `sender` the inbox of `agent` takes, with those `coming`."""
        held = self._loaded(tx, agent)
        return places(self._totals[agent] + coming, held[sender] + coming, inbox_max)

    def change(self, tx: Transaction, changes: Mapping[tuple[str, str], int]) -> None:
        """Count deliveries of (agent, sender) that have come, or gone where negative."""
        for (agent, sender), change in changes.items():
            if agent in self._held:  # else they are counted when somebody asks
                self._add(agent, sender, change)
        tx.on_undo(lambda: self._take_back(changes))

    def _take_back(self, changes: Mapping[tuple[str, str], int]) -> None:
        for (agent, sender), change in changes.items():
            if agent in self._held:
                self._add(agent, sender, -change)

    def _add(self, agent: str, sender: str, change: int) -> None:
        self._totals[agent] += change
        held = self._held[agent]
        held[sender] += change
        if not held[sender]:
            del held[sender]

    def _loaded(self, tx: Transaction, agent: str) -> Counter[str]:
        held = self._held.get(agent)
        if held is None:
            rows = tx.rows(
                "SELECT m.sender, count(*) FROM delivery d JOIN message m ON m.id = d.message"
                " WHERE d.agent = ? AND d.finished_us IS NULL AND d.composing = 0 GROUP BY 1",
                (agent,),
            )
            held = self._held[agent] = Counter(dict(rows))
            self._totals[agent] = held.total()
            tx.on_undo(lambda: self._forget(agent))
        return held

    def _forget(self, agent: str) -> None:
        """What was counted may be taken back."""
        self._held.pop(agent, None)
        self._totals.pop(agent, None)


def inboxes_of(tx: Transaction) -> Inboxes:
    return tx.cached(_KEY, Inboxes)
