"""Standing credit: how many deliveries a worker may hold, and which ones it holds now.

A worker's driver grants it once. From then on whatever makes a delivery ready leases it in the same
transaction, as long as there is room, and hands it over when that is on disk; so the way of a
message from its publisher to its worker is one commit. Credit belongs to one incarnation of a
worker, and lives in memory: the leases themselves are in the table, and a start of the daemon gives
all of them back.
"""

import secrets
from typing import Final

import msgspec

from ipc_protocol.work import Setting
from orchestrator.store.transaction import Transaction

_KEY: Final = "bus.credit"

SEED_MASK: Final = 2**62 - 1
"""A seed is an integer of the store, and stays one when a delivery's number is added."""


class Held(msgspec.Struct, frozen=True):
    """A delivery in the hands of a worker, as far as its end in the ordinary way needs it."""

    message: int
    conversation: int
    sender: str
    rank: int
    plain: bool
    """Neither composing nor with a fallback owner: nothing follows but its conversation's end."""


class Credit(msgspec.Struct):
    """What one incarnation may hold."""

    incarnation: str
    window: int
    """Deliveries at once."""
    setting_id: int
    setting: Setting
    held: dict[int, Held] = {}
    dry: bool = False
    """Nothing is queued that it could be given: it was filled as far as there was, and nobody has
    queued anything since."""

    @property
    def room(self) -> int:
        return max(0, self.window - len(self.held))

    @property
    def worst_rank(self) -> int:
        """Of the least urgent one it holds, or -1."""
        return max((held.rank for held in self.held.values()), default=-1)


class Credits:
    """The credit of each agent's worker."""

    def __init__(self) -> None:
        self._by_agent: dict[str, Credit] = {}
        self._seed_base = secrets.randbits(62)

    @property
    def seeding(self) -> tuple[int, int]:
        """What SQL computes the seed of a delivery from."""
        return self._seed_base, SEED_MASK

    def seed(self, delivery: int) -> int:
        """A number that nobody can foresee, another one for each delivery."""
        return (self._seed_base + delivery) & SEED_MASK

    def of(self, agent: str) -> Credit | None:
        return self._by_agent.get(agent)

    def holder(self, agent: str, incarnation: str) -> Credit | None:
        """The credit of `agent`, if it is this incarnation's."""
        credit = self._by_agent.get(agent)
        return credit if credit is not None and credit.incarnation == incarnation else None

    def grant(self, tx: Transaction, agent: str, credit: Credit | None) -> None:
        """Give `agent` this credit in the place of what it had; None gives it none."""
        before = self._by_agent.get(agent)
        self._put(agent, credit)
        tx.on_undo(lambda: self._put(agent, before))

    def revoke(self, tx: Transaction, incarnation: str) -> None:
        """This one gets nothing more."""
        for agent, credit in tuple(self._by_agent.items()):
            if credit.incarnation == incarnation:
                self.grant(tx, agent, None)

    def found_dry(self, tx: Transaction, credit: Credit) -> None:
        """There was less than it had room for."""
        credit.dry = True

        def undo() -> None:
            credit.dry = False

        tx.on_undo(undo)

    def note_queued(self, agent: str) -> None:
        """Something of `agent` is queued now; it may turn out not to be, which does no harm."""
        credit = self._by_agent.get(agent)
        if credit is not None:
            credit.dry = False

    def take(self, tx: Transaction, credit: Credit, held: dict[int, Held]) -> None:
        """These deliveries are in its hands."""
        credit.held.update(held)

        def undo() -> None:
            for delivery in held:
                del credit.held[delivery]

        tx.on_undo(undo)

    def give_back(self, tx: Transaction, credit: Credit, deliveries: list[int]) -> None:
        """These are not in its hands any more, where they were."""
        gone = {each: credit.held.pop(each) for each in deliveries if each in credit.held}
        if gone:
            tx.on_undo(lambda: credit.held.update(gone))

    def _put(self, agent: str, credit: Credit | None) -> None:
        if credit is None:
            self._by_agent.pop(agent, None)
        else:
            self._by_agent[agent] = credit


def credits_of(tx: Transaction) -> Credits:
    return tx.cached(_KEY, Credits)
