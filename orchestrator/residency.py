"""Which models are loaded within a budget of memory, and which must go for another. Pure.

A model is *in* from the decision to load it until its engine has left. One that is asked for and is
out is an *asker*. When it does not fit, the models go that matter least: never a pinned one, never
one with requests of a class more urgent than the asker's; idle ones before busy ones, then the
least urgent class, then the least recently used. Busy ones are taken by a strictly more urgent
asker alone, and their requests go on when they are loaded again.

Nobody starves: an asker rises by one class for every `AGE_US` that it waits, so that it comes to
take what its own class keeps busy. Urgent requests lose their model to none that is not urgent
itself. And nothing is loaded only to be unloaded: for `STAY_US` a model stays, whoever asks, unless
that is urgent.

Times are microseconds of one steady clock, ranks those of classes: 0 for urgent.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from inference_client.gguf import BLOCKS, KV_BYTES
from ipc_protocol.inference import KvType

STAY_US: Final = 30_000_000
"""Loading takes seconds, from a slow disk tens of them: half of the time at least is to be spent at
work where two models take turns."""

AGE_US: Final = 60_000_000
"""Twice `STAY_US`: two models of one class, both always busy, change places once a minute."""
assert AGE_US >= 2 * STAY_US

RANK_IDLE: Final = 5
"""Behind background: a wish to be loaded that nobody waits for."""


KV_BLOCKS: Final[dict[KvType, tuple[int, int]]] = {
    "f32": BLOCKS[0], "f16": BLOCKS[1], "bf16": BLOCKS[30], "q8_0": BLOCKS[8], "q5_1": BLOCKS[7],
    "q5_0": BLOCKS[6], "q4_1": BLOCKS[3], "q4_0": BLOCKS[2], "iq4_nl": BLOCKS[20],
}  # fmt: skip
"""What a KV cache is kept in: numbers in a block, and its bytes."""


def expected_bytes(size: int, kv_bytes_per_token: int, context: int, kv_type: KvType) -> int:
    """What a model will take that was never loaded: its file, and its cache. `kv_bytes_per_token`
    is for a cache of `KV_BYTES` a number, as the file's header tells."""
    numbers, bytes_ = KV_BLOCKS[kv_type]
    return size + kv_bytes_per_token * context * bytes_ // (numbers * KV_BYTES)


class Ask(msgspec.Struct, frozen=True):
    """One request for a model, under way or waiting."""

    rank: int
    since_us: int


class Model(msgspec.Struct, frozen=True):
    """One model as it stands. `bytes` is what it takes, or is expected to; a remote one takes none
    and always fits."""

    name: str
    bytes: int
    place: Literal["out", "in", "leaving"] = "out"
    pinned: bool = False
    wished: bool = False
    """It is loaded if there is room, without anybody asking."""
    since_us: int = 0
    """When it came in, or went out."""
    used_us: int = 0
    """When it last had a request."""
    rank: int = RANK_IDLE
    """Of its last request."""
    asks: tuple[Ask, ...] = ()

    @property
    def busy(self) -> bool:
        return bool(self.asks)

    @property
    def most_urgent(self) -> int:
        return min((ask.rank for ask in self.asks), default=self.rank)


class Plan(msgspec.Struct, frozen=True):
    """What to do now: `load` and `unload`. `refuse` can never fit, `decline` are wishes for which
    there is no room. At `again_us` time alone may change the plan."""

    load: tuple[str, ...] = ()
    unload: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()
    decline: tuple[str, ...] = ()
    again_us: int | None = None


class _Asker(msgspec.Struct, frozen=True):
    model: Model
    rank: int
    """With what waiting has added; -1 is an urgent one that has waited."""
    since_us: int
    rises_us: int | None
    """When waiting will add more."""

    @property
    def order(self) -> tuple[bool, int, int]:
        return not self.model.pinned, self.rank, self.since_us


def decide(models: Sequence[Model], budget_bytes: int | None, now_us: int) -> Plan:
    """The plan for these models. A budget of None is not known before an engine has been loaded,
    so that one goes ahead.

    While room is made for an asker nothing else is loaded; while one can only wait, those behind it
    may take what is free, and unload nothing.
    """
    inside = [model for model in models if model.place != "out"]
    askers = sorted((_asker(one, now_us) for one in models if _asks(one)), key=lambda a: a.order)
    if budget_bytes is None:
        return _before_anything_is_known(inside, askers)
    return _Round(inside, budget_bytes, now_us).plan(askers)


def _asks(model: Model) -> bool:
    return model.place == "out" and (model.busy or model.pinned or model.wished)


def _before_anything_is_known(inside: Sequence[Model], askers: Sequence[_Asker]) -> Plan:
    load = [asker.model.name for asker in askers if not asker.model.bytes]
    first = next((asker.model.name for asker in askers if asker.model.bytes), None)
    if first is not None and not any(model.bytes for model in inside):
        load.append(first)
    return Plan(load=tuple(load))


def _asker(model: Model, now_us: int) -> _Asker:
    aged = [_aged(ask, model.since_us, now_us) for ask in model.asks]
    rank = min((rank for rank, _ in aged), default=RANK_IDLE)
    rises = [at_us for _, at_us in aged if at_us is not None]
    since_us = min((ask.since_us for ask in model.asks), default=now_us)
    return _Asker(model, rank, since_us, min(rises, default=None))


def _aged(ask: Ask, out_since_us: int, now_us: int) -> tuple[int, int | None]:
    """The rank of a request that waits to be loaded for, and when it rises."""
    waits_since_us = max(ask.since_us, out_since_us)
    best = 0 if ask.rank > 0 else -1
    risen = (now_us - waits_since_us) // AGE_US
    rank = max(best, ask.rank - risen)
    return rank, None if rank == best else waits_since_us + (risen + 1) * AGE_US


class _Round:
    """One pass over the askers, the first of them first."""

    def __init__(self, inside: Sequence[Model], budget_bytes: int, now_us: int) -> None:
        self._inside = inside
        self._budget = budget_bytes
        self._now_us = now_us
        self._pinned = sum(model.bytes for model in inside if model.pinned)
        self._free = budget_bytes - sum(model.bytes for model in inside)
        self._leaving = sum(model.bytes for model in inside if model.place == "leaving")
        self._again: list[int] = []

    def plan(self, askers: Sequence[_Asker]) -> Plan:
        load: list[str] = []
        refuse: list[str] = []
        decline: list[str] = []
        unload: tuple[str, ...] = ()
        waits = False
        for asker in askers:
            model = asker.model
            if model.bytes > max(0, self._budget - self._pinned):
                refuse.append(model.name)
            elif model.bytes <= max(0, self._free):
                load.append(model.name)
                self._take(model)
            elif not model.busy and not model.pinned:
                decline.append(model.name)
            elif not waits:
                victims = self._victims(asker)
                if victims is not None:
                    unload = tuple(victim.name for victim in victims)
                    break
                waits = True
        return Plan(
            load=tuple(load),
            unload=unload,
            refuse=tuple(refuse),
            decline=tuple(decline),
            again_us=min(self._again, default=None),
        )

    def _take(self, model: Model) -> None:
        self._free -= model.bytes
        if model.pinned:
            self._pinned += model.bytes

    def _victims(self, asker: _Asker) -> list[Model] | None:
        """Who goes so that it fits, beside those that leave already; None if it has to wait."""
        lacking = asker.model.bytes - self._free - self._leaving
        victims: list[Model] = []
        for model in sorted(self._inside, key=_worth):
            if lacking <= 0:
                break
            if self._may_take(asker, model):
                victims.append(model)
                lacking -= model.bytes
        if lacking > 0:
            return None
        for victim in reversed(victims):  # a large one may have made smaller ones needless
            if lacking + victim.bytes <= 0:
                victims.remove(victim)
                lacking += victim.bytes
        return victims

    def _may_take(self, asker: _Asker, model: Model) -> bool:
        """Whether it may be unloaded for the asker now. Notes when time will change the answer."""
        if model.pinned or model.place == "leaving":
            return False
        if model.busy and model.most_urgent <= asker.rank and not asker.model.pinned:
            if asker.rises_us is not None:
                self._again.append(asker.rises_us)
            return False
        stays_until_us = model.since_us + STAY_US
        if self._now_us < stays_until_us and asker.model.most_urgent > 0:
            self._again.append(stays_until_us)
            return False
        return True


def _worth(model: Model) -> tuple[bool, int, int]:
    """The least worth comes first."""
    return model.busy, -model.most_urgent, model.used_us
