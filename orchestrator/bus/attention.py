"""Questions to a person: asked, answered, and the delivery that waited for the answer woken."""

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.work import Effect, ToolResult, UseTool, effect_key
from orchestrator.bus.journal import read_journal, write_entry
from orchestrator.bus.leasing import park_delivery, wake_delivery
from orchestrator.bus.rows import delivery_of, held_delivery, summary_of
from orchestrator.store.audit import Audit, record_audit
from orchestrator.store.transaction import Transaction


class RequestAttention(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's tool call that a person has to answer. The actor is its agent."""

    delivery: int
    incarnation: str
    step: int
    effect: UseTool
    question: str


class RaiseAttention(msgspec.Struct, frozen=True, kw_only=True):
    """A question about `agent` that no delivery waits for. The actor owns it."""

    agent: str
    question: str


class AnswerAttention(msgspec.Struct, frozen=True, kw_only=True):
    attention: int
    text: str


def request_attention(tx: Transaction, arguments: RequestAttention) -> int:
    """Ask, and park the delivery until the answer is in its journal. Returns the question's id.

    Asking the same at the same step again finds the question that is already open.
    """
    row = held_delivery(tx, arguments.delivery, arguments.incarnation, tx.actor)
    request = effect_key(arguments.effect).decode()
    found = tx.row(
        "SELECT id FROM attention WHERE delivery = ? AND run = ? AND step = ? AND request = ?"
        " AND state = 'open'",
        (row.id, row.run, arguments.step, request),
    )
    if found is None:
        attention = tx.insert(
            "INSERT INTO attention (owner, agent, question, state, delivery, run, step, request,"
            " raised_us) VALUES (?, ?, ?, 'open', ?, ?, ?, ?, ?) RETURNING id",
            (
                tx.actor,
                tx.actor,
                arguments.question,
                row.id,
                row.run,
                arguments.step,
                request,
                tx.now_us,
            ),
        )
        _emit_raised(tx, attention, row.agent, arguments.question, row.id, row.correlation)
    else:
        attention = found[0]
    park_delivery(tx, row, "attention", None, _waits_for(attention), rest=True)
    return attention


def raise_attention(tx: Transaction, arguments: RaiseAttention) -> int:
    """Ask a person about an agent, such as one in quarantine. Returns the question's id."""
    attention = tx.insert(
        "INSERT INTO attention (owner, agent, question, state, raised_us)"
        " VALUES (?, ?, ?, 'open', ?) RETURNING id",
        (tx.actor, arguments.agent, arguments.question, tx.now_us),
    )
    _emit_raised(tx, attention, arguments.agent, arguments.question, None, None)
    return attention


def answer_attention(tx: Transaction, arguments: AnswerAttention) -> None:
    """Answer as the operator: the tool call has its result, and its delivery goes on.

    Raises `attention.unknown` if there is no open question of that number.
    """
    found = tx.row(
        "SELECT agent, question, delivery, run, step, request, raised_us FROM attention"
        " WHERE id = ? AND state = 'open'",
        (arguments.attention,),
    )
    if found is None:
        raise Failure(
            "attention.unknown",
            f"There is no open question {arguments.attention}.",
            "List those that are open.",
            attention=arguments.attention,
        )
    agent, question, delivery, run, step, request, raised_us = found
    tx.execute(
        "UPDATE attention SET state = 'answered', answer = ?, answered_by = ?, answered_us = ?"
        " WHERE id = ?",
        (arguments.text, tx.actor, tx.now_us, arguments.attention),
    )
    record_audit(
        tx,
        Audit(
            action="attention.answer",
            subject=str(arguments.attention),
            data={"agent": agent, "question": question, "answer": arguments.text},
        ),
    )
    tx.emit(
        "attention.answered",
        attention=arguments.attention,
        agent=agent,
        delivery=delivery,
        summary=summary_of(arguments.text.encode(errors="replace")),
    )
    if delivery is not None:
        effect: Effect = msgspec.json.decode(request, type=Effect)
        _resume(tx, arguments, delivery, run, step, effect, raised_us)


def _resume(
    tx: Transaction,
    arguments: AnswerAttention,
    delivery: int,
    run: int,
    step: int,
    effect: Effect,
    raised_us: int,
) -> None:
    row = delivery_of(tx, delivery)
    waits = row is not None and row.parked_on == _waits_for(arguments.attention)
    if row is None or not waits or row.run != run:
        return  # It was given up meanwhile; the answer stands for those who read it.
    if read_journal(tx, delivery, step, effect) is None:
        result = ToolResult(ok=True, output=arguments.text)
        write_entry(tx, row, run, step, effect, result, raised_us)
    wake_delivery(tx, row)


def _waits_for(attention: int) -> str:
    return f"attention {attention}"


def _emit_raised(
    tx: Transaction,
    attention: int,
    agent: str,
    question: str,
    delivery: int | None,
    correlation: str | None,
) -> None:
    tx.emit(
        "attention.raised",
        attention=attention,
        agent=agent,
        delivery=delivery,
        correlation=correlation,
        question=question,
    )
