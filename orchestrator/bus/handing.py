"""Handing deliveries to the worker that has credit for them. All of it runs as the bus.

A delivery that is ready is leased at once where there is room, else it is queued. So as long as a
worker has room nothing of its agent's is queued, and a message that is published can be leased by
the very statement that inserts it.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ipc_protocol.work import Answer, Beginning, Delivery, Evidence, Handle, Setting, Work
from orchestrator.budget import Spent
from orchestrator.bus.credit import Credit, Held, credits_of
from orchestrator.bus.journal import BEGINNING_STEP, spent
from orchestrator.bus.routing import BUS
from orchestrator.bus.topics import USER_REPLY
from orchestrator.store.database import Query, Row
from orchestrator.store.transaction import Transaction


class GivenBack(msgspec.Struct, frozen=True):
    """What was handed over before is not leased any more."""


class Leased(msgspec.Struct, frozen=True):
    """A delivery for a worker, and what earlier attempts have spent of its budgets."""

    delivery: Delivery
    setting: Setting
    composing: bool = False
    spent: Spent = Spent()

    @property
    def handle(self) -> Handle:
        """As the worker's loop sees it."""
        return Work(setting=self.setting, deliveries=[]).handle(self.delivery)


_SELECT_READY: Final = (
    "SELECT d.id, d.deaths, d.message, m.topic, m.sender, m.payload, c.correlation, d.class,"
    " m.sent_us, m.expires_us, m.cause, m.hops, d.begun_us, d.seed, d.must_take, d.deferred,"
    " d.evidence, d.composing, d.conversation, d.run, d.setting, m.round,"
    " m.fallback IS NOT NULL"
    "  OR EXISTS (SELECT 1 FROM delivery u WHERE u.message = d.message AND u.screened = 0)"
    " FROM delivery d JOIN message m ON m.id = d.message"
    " JOIN conversation c ON c.id = d.conversation "
)


class _Ready(msgspec.Struct, frozen=True):
    """A row of `_SELECT_READY`."""

    id: int
    deaths: int
    message: int
    topic: str
    sender: str
    payload: bytes
    correlation: str
    rank: int
    sent_us: int
    expires_us: int
    cause: int | None
    hops: int
    begun_us: int | None
    seed: int | None
    must_take: int
    deferred: int
    evidence: str | None
    composing: int
    conversation: int
    run: int
    setting: int | None
    round: int
    has_fallback: int
    """Somebody takes it if nobody does, or may, once it is screened."""


def refill(tx: Transaction, agent: str) -> None:
    """Lease what is queued for `agent`, the most urgent first, as far as its credit goes."""
    credit = credits_of(tx).of(agent)
    if credit is None or credit.dry or not credit.room:
        return
    room = credit.room
    # What nobody has begun within its time to live is left to those who give it up.
    rows = tx.rows(
        _SELECT_READY + "WHERE d.agent = ? AND d.state = 'queued' AND d.finished_us IS NULL"
        " AND d.screened = 1 AND (m.expires_us > ? OR d.begun_us IS NOT NULL OR d.run > 0)"
        " ORDER BY d.class, d.id LIMIT ?",
        (agent, tx.now_us, room),
    )
    if len(rows) < room:
        credits_of(tx).found_dry(tx, credit)
    if rows:
        _lease(tx, agent, credit, [_Ready(*row) for row in rows])


def tell_waiting(tx: Transaction, agent: str, delivery: int, rank: int) -> None:
    """Say so when a delivery of class `rank` still waits, behind what is less urgent."""
    credit = credits_of(tx).of(agent)
    if credit is None or delivery in credit.held or credit.room:
        return
    if rank < credit.worst_rank:
        tx.emit("delivery.waiting", agent=agent, rank=rank)


def _lease(tx: Transaction, agent: str, credit: Credit, found: Sequence[_Ready]) -> None:
    fresh: list[int] = []
    begun: list[int] = []
    handed: list[Leased] = []
    for ready in found:
        pinned = None if ready.setting is None else setting_by_id(tx, ready.setting)
        if pinned is not None and not _continues(pinned, credit.setting):
            # Another loop or component would ask something else at the same step: it begins anew.
            begin_anew(tx, ready.id)
            pinned = None
        (fresh if pinned is None else begun).append(ready.id)
        handed.append(_leased(tx, credit, ready, pinned))
    with tx.acting_as(BUS):
        if fresh:
            tx.execute(
                "UPDATE delivery SET state = 'leased', incarnation = ?1, leased_us = ?2,"
                " begun_us = ?2, seed = (?3 + id) & ?4, setting = ?5"
                " WHERE id IN (SELECT value FROM json_each(?6))",
                (
                    credit.incarnation,
                    tx.now_us,
                    *credits_of(tx).seeding,
                    credit.setting_id,
                    _json(fresh),
                ),
            )
        if begun:
            tx.execute(
                "UPDATE delivery SET state = 'leased', incarnation = ?, leased_us = ?"
                " WHERE id IN (SELECT value FROM json_each(?))",
                (credit.incarnation, tx.now_us, _json(begun)),
            )
    held = {
        ready.id: Held(
            message=ready.message,
            conversation=ready.conversation,
            sender=ready.sender,
            rank=ready.rank,
            plain=not ready.composing and not ready.has_fallback,
        )
        for ready in found
    }
    hand(tx, agent, credit, held, handed)


def hand(
    tx: Transaction, agent: str, credit: Credit, held: dict[int, Held], handed: Sequence[Leased]
) -> None:
    """Give to the worker what is leased to it in the table."""
    credits_of(tx).take(tx, credit, held)
    for leased in handed:
        tx.hand_over(credit.incarnation, leased)
    if tx.follows("delivery.leased"):
        for leased in handed:
            tx.emit(
                "delivery.leased",
                delivery=leased.delivery.delivery,
                message=leased.delivery.message,
                agent=agent,
                correlation=leased.delivery.correlation,
                attempt=leased.delivery.attempt,
                composing=leased.composing,
            )


def _leased(tx: Transaction, credit: Credit, ready: _Ready, pinned: Setting | None) -> Leased:
    begun_us, seed = ready.begun_us, ready.seed
    if pinned is None or begun_us is None or seed is None:
        begun_us, seed = tx.now_us, credits_of(tx).seed(ready.id)
    is_new = ready.begun_us is None and ready.run == 0 and not ready.deaths
    return Leased(
        _delivery(tx, ready, begun_us, seed),
        pinned or credit.setting,
        bool(ready.composing),
        Spent() if is_new else spent(tx, ready.id, (pinned or credit.setting).component),
    )


def _delivery(query: Query, ready: _Ready, begun_us: int, seed: int) -> Delivery:
    question, answers = _contributions(query, ready) if ready.composing else ("", [])
    evidence = ready.evidence
    return Delivery(
        ready.id,
        ready.deaths + 1,
        ready.message,
        ready.topic,
        ready.sender,
        ready.payload,
        ready.correlation,
        ready.rank,
        ready.sent_us,
        ready.expires_us,
        ready.cause,
        ready.hops,
        begun_us,
        seed,
        bool(ready.must_take),
        bool(ready.deferred),
        None if evidence is None else msgspec.json.decode(evidence, type=Evidence),
        question,
        answers,
    )


def load_leased(query: Query, delivery: int) -> Leased | None:
    """A delivery as its present run was handed over; None where nobody has begun that."""
    found = query.row(_SELECT_READY + "WHERE d.id = ? AND d.begun_us IS NOT NULL", (delivery,))
    if found is None:
        return None
    ready = _Ready(*found)
    assert ready.setting is not None and ready.begun_us is not None and ready.seed is not None
    setting = load_setting(query, ready.setting)
    return Leased(_delivery(query, ready, ready.begun_us, ready.seed), setting)


def _continues(pinned: Setting, present: Setting) -> bool:
    return (pinned.loop, pinned.component) == (present.loop, present.component)


def _contributions(query: Query, ready: _Ready) -> tuple[str, list[Answer]]:
    found = query.row(
        "SELECT q.payload FROM conversation c JOIN message q ON q.id = c.question WHERE c.id = ?",
        (ready.conversation,),
    )
    question = "" if found is None else found[0].decode(errors="replace")
    return question, answers_of(query, ready.conversation, ready.round, ready.message)


def answers_of(
    query: Query, conversation: int, number: int, before: int | None = None
) -> list[Answer]:
    """What agents replied in round `number`, in order; only what came before message `before`."""
    rows = query.rows(
        "SELECT sender, payload FROM message WHERE conversation = ? AND round = ?"
        " AND topic = ? AND composed = 0 AND (?4 IS NULL OR id < ?4) ORDER BY id",
        (conversation, number, USER_REPLY, before),
    )
    return [Answer(agent=sender, text=payload.decode(errors="replace")) for sender, payload in rows]


# ---- Settings and beginnings --------------------------------------------------------------------


def keep_setting(tx: Transaction, setting: Setting) -> int:
    """The row of `setting`, written if it is a new one. A prompt's texts are kept once for all."""
    prompts = msgspec.json.encode(setting.prompts, order="sorted")
    prompts_hash = hashlib.sha256(prompts).hexdigest()
    with tx.acting_as(BUS):
        tx.execute(
            "INSERT INTO prompt_set (hash, prompts, first_us) VALUES (?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (prompts_hash, prompts.decode(), tx.now_us),
        )
        key = (setting.loop, setting.component, prompts_hash)
        tx.execute(
            "INSERT INTO setting (loop, component, prompt_set) VALUES (?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            key,
        )
    found = tx.row(
        "SELECT id FROM setting WHERE loop = ? AND component = ? AND prompt_set = ?", key
    )
    assert found is not None
    identity: int = found[0]
    return identity


def setting_by_id(tx: Transaction, identity: int) -> Setting:
    return tx.cached(f"bus.setting.{identity}", lambda: load_setting(tx, identity))


def load_setting(query: Query, identity: int) -> Setting:
    found = query.row(
        "SELECT loop, component, prompts FROM setting"
        " JOIN prompt_set ON prompt_set.hash = setting.prompt_set WHERE setting.id = ?",
        (identity,),
    )
    assert found is not None
    loop, component, prompts = found
    return Setting(
        loop=loop,
        component=component,
        prompts=msgspec.json.decode(prompts, type=dict[str, str]),
    )


def begin_anew(tx: Transaction, delivery: int) -> None:
    """The next attempt begins another run, with a journal of its own; this run's beginning is kept
    in the journal."""
    row = tx.row(
        "SELECT run, begun_us, seed, setting, evidence, must_take, deferred FROM delivery"
        " WHERE id = ?",
        (delivery,),
    )
    assert row is not None
    with tx.acting_as(BUS):
        if row[1] is not None:
            _archive(tx, delivery, row)
        tx.execute(
            "UPDATE delivery SET run = run + 1, begun_us = NULL, seed = NULL, setting = NULL"
            " WHERE id = ?",
            (delivery,),
        )


def _archive(tx: Transaction, delivery: int, row: Row) -> None:
    run, begun_us, seed, setting, evidence, must_take, deferred = row
    pinned = setting_by_id(tx, setting)
    beginning = Beginning(
        now_us=begun_us,
        seed=seed,
        loop=pinned.loop,
        component=pinned.component,
        prompts={},
        evidence=None if evidence is None else msgspec.json.decode(evidence, type=Evidence),
        must_take=bool(must_take),
        deferred=bool(deferred),
    )
    entry = msgspec.json.encode(beginning)
    tx.execute(
        "INSERT INTO journal (delivery, run, step, kind, key_hash, request, result, prompt_set,"
        " started_us, finished_us) VALUES (?, ?, ?, 'beginning', ?, 'null', ?,"
        " (SELECT prompt_set FROM setting WHERE id = ?), ?, ?)",
        (
            delivery,
            run,
            BEGINNING_STEP,
            hashlib.sha256(entry).digest(),
            entry.decode(),
            setting,
            begun_us,
            begun_us,
        ),
    )


def _json(numbers: Sequence[int]) -> Any:
    return msgspec.json.encode(numbers).decode()
