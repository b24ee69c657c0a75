"""The end of a delivery: one transaction acknowledges it and applies all that follows from it.

First everything is decided, then written. Where a receiver's inbox is full, nothing is written but
that the delivery is parked; it comes again and replays its journal to the same completion.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from ipc_protocol.errors import Failure, Problem
from ipc_protocol.values import rank
from ipc_protocol.work import Completion, Outgoing, ReadState, StateValue
from orchestrator.bus.allowed import require_deferrable, require_limits
from orchestrator.bus.deadletters import bury_output
from orchestrator.bus.delivery import DeliveryState
from orchestrator.bus.handing import begin_anew, refill
from orchestrator.bus.inboxes import places
from orchestrator.bus.leasing import give_back_rest, may_begin_anew, park_delivery
from orchestrator.bus.limits import (
    BACKPRESSURE_RETRY_US,
    CONVERSATION_MESSAGES_MAX,
    DEFERRAL_US_MIN,
    MESSAGE_TTL_US,
    OUTPUTS_MAX,
)
from orchestrator.bus.opening import places_for
from orchestrator.bus.posting import Place, Post, post_all, receivers_of
from orchestrator.bus.registration import directory_of
from orchestrator.bus.routing import BUS, Directory, Draft, Plan, message_rank, route
from orchestrator.bus.rows import (
    ConversationRow,
    DeliveryRow,
    conversation_by_id,
    delivery_of,
    held_delivery,
    move_delivery,
    unknown_delivery,
)
from orchestrator.bus.settlement import (
    answer,
    contribute,
    conversation_full,
    delivery_closed,
)
from orchestrator.bus.tasks import change_task
from orchestrator.failpoints import reach
from orchestrator.store.memory import Remember, remember
from orchestrator.store.state import change_state, read_state, state_bytes
from orchestrator.store.transaction import Transaction


class Complete(msgspec.Struct, frozen=True, kw_only=True):
    """The completion of a delivery that `incarnation` holds. The actor is its agent.

    `vectors` are the embeddings of the completion's memories, in their order; empty without an
    embedding engine. `screened` is for a system in which nothing is screened.
    """

    delivery: int
    incarnation: str
    completion: Completion
    vectors: list[bytes | None] = []
    screened: bool = False


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """What the completion came to. `parked` with `full` agents: it will be asked for again."""

    state: DeliveryState
    repeated: bool = False
    full: list[str] = []
    until_us: int | None = None
    messages: list[int] = []
    dead_letters: list[int] = []
    memories: list[int] = []
    tasks: list[int] = []


Decided = tuple[Outgoing, Plan | Problem]


def complete(tx: Transaction, arguments: Complete) -> Completed:
    """Apply a completion, whole or not at all. Repeating it changes nothing.

    Raises `work.refused` if it is over the limits, or the agent's state would be,
    `work.unknown-delivery` if `incarnation` does not hold the delivery, `store.ownership` if it
    changes a task of another agent.
    """
    completed = _complete(tx, arguments)
    refill(tx, tx.actor)
    return completed


def _complete(tx: Transaction, arguments: Complete) -> Completed:
    row = delivery_of(tx, arguments.delivery)
    if row is None or row.agent != tx.actor:
        raise unknown_delivery(arguments.delivery)
    if _is_repeated(row, arguments):
        return Completed(state=row.state, repeated=True)
    row = held_delivery(tx, arguments.delivery, arguments.incarnation)
    completion = arguments.completion
    require_limits(completion)
    if completion.outcome == "deferred":
        require_deferrable(row, completion, tx.now_us)
    decided = _decided(tx, row, completion.outputs)
    if isinstance(decided, Failure):
        return _parked_by_backpressure(tx, row, decided)
    if completion.state and _has_read_stale_state(tx, row):
        return _begun_anew(tx, row, arguments)
    _close(tx, row, completion)
    memories = _remembered(tx, row, arguments)
    tasks = [
        change_task(tx, change, row.conversation, row.correlation) for change in completion.tasks
    ]
    _keep(tx, row, completion)
    if row.composing:
        _answer(tx, row, decided)
    messages, dead_letters = _published(tx, row, decided, arguments.screened)
    if completion.left_out:
        dead_letters.append(_bury_left_out(tx, row, completion))
    if completion.outcome != "deferred":
        delivery_closed(tx, row)
    return Completed(
        state="parked" if completion.outcome == "deferred" else "done",
        messages=messages,
        dead_letters=dead_letters,
        memories=memories,
        tasks=tasks,
    )


def _is_repeated(row: DeliveryRow, arguments: Complete) -> bool:
    deferred = row.state == "parked" and row.parked_reason == "deferred"
    return row.state == "done" or (deferred and row.incarnation == arguments.incarnation)


def _decided(
    tx: Transaction, row: DeliveryRow, outputs: Sequence[Outgoing]
) -> list[Decided] | Failure:
    """Where each output goes, or why it never will; or the backpressure that stops them all."""
    directory = directory_of(tx)
    conversation = conversation_by_id(tx, row.conversation)
    coming: Counter[str] = Counter()
    places_in = places_for(tx, row.agent, coming)
    decided: list[Decided] = []
    going = 0
    for number, output in enumerate(outputs):
        if number >= OUTPUTS_MAX:
            decided.append((output, _over_the_cap(len(outputs))))
            continue
        draft = Draft(
            topic=output.topic,
            sender=row.agent,
            payload_bytes=len(output.payload),
            hops=row.hops + 1,
            expires_us=tx.now_us + MESSAGE_TTL_US,
        )
        plan = route(draft, directory, places_in, tx.now_us)
        if isinstance(plan, Failure):
            if plan.code == "bus.backpressure" and not _is_too_many(directory, coming, plan):
                return plan
            decided.append((output, plan.problem))
        elif plan.receivers and conversation.messages + going >= CONVERSATION_MESSAGES_MAX:
            decided.append((output, conversation_full(conversation).problem))
        else:
            coming.update(plan.receivers)
            going += 1
            decided.append((output, plan))
    return decided


def _is_too_many(directory: Directory, coming: Counter[str], pressure: Failure) -> bool:
    """An inbox would not take the output if it were empty: those before it fill it alone."""
    full: list[str] = pressure.problem.details["agents"]
    return any(coming[name] >= places(0, 0, directory.members[name].inbox_max) for name in full)


def _over_the_cap(outputs: int) -> Problem:
    return Problem(
        code="bus.not-permitted",
        message=f"A completion may publish {OUTPUTS_MAX} messages; this one has {outputs}.",
    )


def _bury_left_out(tx: Transaction, row: DeliveryRow, completion: Completion) -> int:
    """One dead letter for all that were too many to be kept one by one."""
    made = len(completion.outputs) + completion.left_out
    problem = msgspec.structs.replace(
        _over_the_cap(made),
        code="work.left-out",
        message=f"A completion may publish {OUTPUTS_MAX} messages; this one made {made}, and the "
        f"last {completion.left_out} were not kept.",
    )
    topic = completion.outputs[-1].topic if completion.outputs else ""
    return bury_output(tx, row, Outgoing(topic=topic, payload=b""), problem)


def _parked_by_backpressure(tx: Transaction, row: DeliveryRow, pressure: Failure) -> Completed:
    full: list[str] = pressure.problem.details["agents"]
    until_us = tx.now_us + BACKPRESSURE_RETRY_US
    park_delivery(tx, row, "backpressure", until_us, ", ".join(full), rest=False)
    reach("completion.parked")
    return Completed(state="parked", full=full, until_us=until_us)


def _has_read_stale_state(tx: Transaction, row: DeliveryRow) -> bool:
    """What this run has read of its agent's state is no longer there: it was parked or tried again,
    and another delivery has changed it meanwhile. Its own changes would undo that one's."""
    rows = tx.rows(
        "SELECT request, result FROM journal"
        " WHERE delivery = ? AND run = ? AND kind = 'read-state'",
        (row.id, row.run),
    )
    for request, result in rows:
        key = msgspec.json.decode(request, type=ReadState).key
        if msgspec.json.decode(result, type=StateValue).value != read_state(tx, row.agent, key):
            return True
    return False


def _begun_anew(tx: Transaction, row: DeliveryRow, arguments: Complete) -> Completed:
    """Let it read again what is there now. Raises `work.conflict` where that is not possible."""
    if not may_begin_anew(tx, row):
        raise Failure(
            "work.conflict",
            "The state that it had read was changed by another delivery before it was done, and it "
            "cannot be repeated, since a tool has acted for it or it was begun too often.",
            "Look at the trace for what it would have done, and replay it.",
        )
    with tx.acting_as(BUS):
        state = move_delivery(tx, row, "release", last_error="What it had read has changed.")
    begin_anew(tx, row.id)
    # It keeps its place before what came later.
    give_back_rest(tx, arguments.incarnation)
    return Completed(state=state)


def _close(tx: Transaction, row: DeliveryRow, completion: Completion) -> None:
    if completion.outcome == "deferred":
        assert completion.until_us is not None
        # It may be due by now: the time counts from the beginning, however long it took since.
        until_us = max(completion.until_us, tx.now_us + DEFERRAL_US_MIN)
        park_delivery(tx, row, "deferred", until_us, completion.reason, rest=False)
        # What was decided is decided: the next run begins with a journal of its own.
        begin_anew(tx, row.id)
        with tx.acting_as(BUS):
            tx.execute("UPDATE delivery SET deferred = 1 WHERE id = ?", (row.id,))
        return
    with tx.acting_as(BUS):
        move_delivery(
            tx,
            row,
            "complete",
            outcome=completion.outcome,
            outcome_reason=completion.reason,
            finished_us=tx.now_us,
        )
    emit_done(tx, row, completion)


def emit_done(tx: Transaction, row: DeliveryRow, completion: Completion) -> None:
    tx.emit(
        "delivery.done",
        delivery=row.id,
        message=row.message,
        agent=row.agent,
        correlation=row.correlation,
        outcome=completion.outcome,
        reason=completion.reason,
        composing=row.composing,
    )


def _remembered(tx: Transaction, row: DeliveryRow, arguments: Complete) -> list[int]:
    entries = arguments.completion.memories
    vectors = arguments.vectors or [None] * len(entries)
    return [
        remember(
            tx,
            Remember(entry=entry, vector=vector, delivery=row.id, correlation=row.correlation),
        )
        for entry, vector in zip(entries, vectors, strict=True)
    ]


def _keep(tx: Transaction, row: DeliveryRow, completion: Completion) -> None:
    """Change the agent's state. What makes it smaller is taken even where it was too large."""
    if not completion.state:
        return
    before = state_bytes(tx, row.agent)
    change_state(tx, completion.state)
    held = state_bytes(tx, row.agent)
    member = directory_of(tx).senders.get(row.agent)
    held_max = 0 if member is None else member.state_max
    if held > max(held_max, before):
        raise Failure(
            "work.refused",
            f"The state of {row.agent} would have {held} bytes; it may have {held_max}.",
            "Delete keys that are not needed, or raise `limits.state` of the agent.",
            agent=row.agent,
            bytes=held,
        )
    tx.emit(
        "state.changed",
        agent=row.agent,
        delivery=row.id,
        correlation=row.correlation,
        changes=len(completion.state),
        bytes=held,
    )


def _answer(tx: Transaction, row: DeliveryRow, decided: Sequence[Decided]) -> None:
    """Give the caller what the conductor composed, if this is the composing that is waited for."""
    replies = [
        output.payload.decode(errors="replace")
        for output, plan in decided
        if isinstance(plan, Plan) and plan.sink
    ]
    conversation = conversation_by_id(tx, row.conversation)
    if replies and conversation.state == "composing" and conversation.composer == row.id:
        answer(tx, conversation, "\n\n".join(replies))


def _published(
    tx: Transaction, row: DeliveryRow, decided: Sequence[Decided], screened: bool
) -> tuple[list[int], list[int]]:
    directory = directory_of(tx)
    conversation = conversation_by_id(tx, row.conversation)
    posts: list[Post] = []
    dead_letters: list[int] = []
    for output, plan in decided:
        if isinstance(plan, Problem):
            dead_letters.append(bury_output(tx, row, output, plan))
            continue
        composed = row.composing and plan.sink
        if not composed:
            conversation = contribute(tx, conversation)
        asked = None if output.priority is None else rank(output.priority)
        urgency = message_rank(conversation.rank, row.rank, asked)
        posts.append(
            Post(
                place=Place(conversation.id, conversation.correlation, conversation.round),
                topic=output.topic,
                sender=row.agent,
                payload=output.payload,
                rank=urgency,
                expires_us=tx.now_us + MESSAGE_TTL_US,
                hops=row.hops + 1,
                cause=row.message,
                produced_by=row.id,
                composed=composed,
                receivers=receivers_of(plan, directory, row.agent, urgency, screened=screened),
            )
        )
    if not posts:
        return [], dead_letters
    _count(tx, conversation, len(posts))
    return post_all(tx, posts), dead_letters


def _count(tx: Transaction, conversation: ConversationRow, messages: int) -> None:
    with tx.acting_as(BUS):
        tx.execute(
            "UPDATE conversation SET messages = messages + ? WHERE id = ?",
            (messages, conversation.id),
        )
