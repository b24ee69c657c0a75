"""The ends of many deliveries in one transaction.

Completions from which nothing follows are written together, with few statements.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.work import Finished, Outcome
from orchestrator.bus.completion import Complete, Completed, complete, emit_done
from orchestrator.bus.credit import Credit, credits_of
from orchestrator.bus.handing import refill
from orchestrator.bus.inboxes import inboxes_of
from orchestrator.bus.routing import BUS
from orchestrator.bus.rows import delivery_of, unknown_delivery
from orchestrator.bus.settlement import close_all
from orchestrator.store.transaction import Transaction, is_fatal


class CompleteAll(msgspec.Struct, frozen=True, kw_only=True):
    """Completions of deliveries that `incarnation` holds, none with memories. The actor is its
    agent."""

    incarnation: str
    finished: Sequence[Finished]


_DONE: Final = Completed(state="done")


def complete_all(tx: Transaction, arguments: CompleteAll) -> list[Completed | Failure]:
    """Apply completions in their order, each whole or not at all."""
    answers: list[Completed | Failure] = []
    credit = credits_of(tx).holder(tx.actor, arguments.incarnation)
    # What is leased while this runs has not been handed over yet.
    theirs = set() if credit is None else set(credit.held)
    plain: dict[int, Finished] = {}
    for finished in arguments.finished:
        delivery = finished.delivery
        if delivery in plain:
            answers.append(Completed(state="done", repeated=True))
            continue
        if credit is not None and delivery in theirs and _is_plain(credit, finished):
            plain[delivery] = finished
            answers.append(_DONE)
            continue
        _close_plain(tx, credit, plain)
        if credit is not None and delivery in credit.held and delivery not in theirs:
            answers.append(unknown_delivery(delivery))
            continue
        answer = _completed_alone(tx, arguments, finished)
        answers.append(answer)
        if isinstance(answer, Completed) and answer.state == "queued":
            theirs.clear()  # what is behind one that begins anew has been given back
    _close_plain(tx, credit, plain)
    refill(tx, tx.actor)
    return answers


def _completed_alone(
    tx: Transaction, arguments: CompleteAll, finished: Finished
) -> Completed | Failure:
    one = Complete(
        delivery=finished.delivery,
        incarnation=arguments.incarnation,
        completion=finished.completion,
    )
    try:
        with tx.nested():
            return complete(tx, one)
    except Failure as failure:
        if is_fatal(failure):
            raise
        return failure


def _is_plain(credit: Credit, finished: Finished) -> bool:
    """Nothing follows from it but the end of its conversation."""
    held, completion = credit.held.get(finished.delivery), finished.completion
    return (
        held is not None
        and held.plain
        and completion.outcome in ("acted", "ignored")
        and not completion.outputs
        and not completion.tasks
        and not completion.memories
        and not completion.state
        and not completion.left_out
    )


def _close_plain(tx: Transaction, credit: Credit | None, collected: dict[int, Finished]) -> None:
    """Nothing else has happened to what a worker holds: it was leased, and is done."""
    if credit is None or not collected:
        return
    plain = list(collected.values())
    collected.clear()
    agent = tx.actor
    alike: defaultdict[tuple[Outcome, str], list[int]] = defaultdict(list)
    gone: Counter[tuple[str, str]] = Counter()
    held = {finished.delivery: credit.held[finished.delivery] for finished in plain}
    for finished in plain:
        completion = finished.completion
        alike[completion.outcome, completion.reason].append(finished.delivery)
        gone[agent, held[finished.delivery].sender] -= 1
    with tx.acting_as(BUS):
        for (outcome, reason), ids in alike.items():
            tx.execute(
                "UPDATE delivery SET state = 'done', outcome = ?, outcome_reason = ?,"
                " finished_us = ? WHERE id IN (SELECT value FROM json_each(?))",
                (outcome, reason, tx.now_us, msgspec.json.encode(ids).decode()),
            )
    credits_of(tx).give_back(tx, credit, list(held))
    inboxes_of(tx).change(tx, gone)
    tx.emit("deliveries.closed", messages=[each.message for each in held.values()])
    if tx.follows("delivery.done"):
        for finished in plain:
            row = delivery_of(tx, finished.delivery)
            assert row is not None
            emit_done(tx, row, finished.completion)
    close_all(tx, {each.conversation for each in held.values()})
