"""A conversation as a tree of causes: each message with its deliveries, and under each of them its
journal, what was remembered, what it published, and how it died."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ipc_protocol.control import DeadLetter, JournalStep, Trace, TracedDelivery, TracedMessage
from orchestrator.cli import output
from orchestrator.cli.views import HASH_DIGITS

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

OUTCOME_STYLES: Final = {"failed": "red", "ignored": "dim", "acted": "green", "composed": "green"}


def trace(answer: Trace) -> "Tree":
    from rich.tree import Tree

    conversation = answer.conversation
    took = ""
    if conversation.answered_us is not None:
        took = f" after {output.span(conversation.answered_us - conversation.opened_us)}"
    tree = Tree(
        output.words(
            (conversation.correlation, "bold"),
            (f"{conversation.state}{took}", "green" if conversation.reply else "yellow"),
            (output.local_time(conversation.opened_us), "dim"),
        )
    )
    tree.add(output.words(("question", "dim"), (conversation.question, "")))
    for message in _roots(answer.messages):
        _add_message(tree, message, answer)
    shown = {delivery.delivery for delivery in answer.deliveries}
    for letter in answer.dead_letters:
        if letter.delivery not in shown:
            tree.add(_dead_letter(letter))
    if conversation.reply is not None:
        tree.add(output.words(("reply", "bold green"), (conversation.reply, "")))
    if answer.cut:
        tree.add(output.words(("cut", "yellow"), (answer.cut, "dim")))
    return tree


def _roots(messages: Iterable[TracedMessage]) -> list[TracedMessage]:
    """Messages that no other message of this conversation caused."""
    listed = list(messages)
    known = {message.message for message in listed}
    return [message for message in listed if message.cause not in known]


def _add_message(tree: "Tree", message: TracedMessage, answer: Trace) -> None:
    branch = tree.add(
        output.words(
            (f"{message.message}", "dim"),
            (message.sender, "bold"),
            (f"→ {message.topic}", "cyan"),
            (message.text, ""),
            (f"hop {message.hops}" if message.hops else "", "dim"),
        )
    )
    caused = [one for one in answer.messages if one.cause == message.message]
    deliveries = [one for one in answer.deliveries if one.message == message.message]
    for delivery in deliveries:
        node = _add_delivery(branch, delivery)
        for one in [one for one in caused if _is_from(one, delivery)]:
            caused.remove(one)
            _add_message(node, one, answer)
        for letter in answer.dead_letters:
            if letter.delivery == delivery.delivery:
                node.add(_dead_letter(letter))
    for one in caused:
        _add_message(branch, one, answer)


def _is_from(message: TracedMessage, delivery: TracedDelivery) -> bool:
    """Its completion published it; what was sent again by a person is only known by its sender."""
    if message.produced_by is not None:
        return message.produced_by == delivery.delivery
    return message.sender == delivery.agent


def _dead_letter(letter: DeadLetter) -> "Text":
    again = "" if letter.replayed_as is None else f"sent again as message {letter.replayed_as}"
    return output.words(
        (f"dead letter {letter.number}" if letter.number else "dead letter", "bold red"),
        (letter.agent, "bold"),
        (f"→ {letter.topic}" if letter.message is None and letter.topic else "", "cyan"),
        (letter.code, "red"),
        (letter.reason, ""),
        (again, "green"),
    )


def _add_delivery(tree: "Tree", delivery: TracedDelivery) -> "Tree":
    outcome = delivery.outcome or delivery.state
    took = "" if delivery.done_us is None else output.span(delivery.done_us - delivery.queued_us)
    attempts = f"{delivery.attempts} attempts" if delivery.attempts > 1 else ""
    reason = "" if delivery.state == "parked" else delivery.reason
    node = tree.add(
        output.words(
            (f"{delivery.delivery}", "dim"),
            (delivery.agent, "bold"),
            (outcome, OUTCOME_STYLES.get(outcome, "yellow")),
            ("composing" if delivery.composing else "", "blue"),
            (reason, ""),
            (took, "dim"),
            (attempts, "yellow"),
            (f"run {delivery.run + 1}" if delivery.run else "", "dim"),
            (f"{delivery.deaths} workers died of it" if delivery.deaths else "", "red"),
        )
    )
    if delivery.parked_reason:
        node.add(_parked(delivery))
    if delivery.last_error and delivery.last_error != reason:
        node.add(output.words(("last error", "red"), (delivery.last_error, "")))
    for step in delivery.steps:
        node.add(_step(step))
    for trap in delivery.traps:
        lost = node.add(
            output.words(
                (trap.code, "bold red"),
                (trap.message, ""),
                (f"component {trap.component[:HASH_DIGITS]}" if trap.component else "", "dim"),
                (f"{trap.fuel} fuel" if trap.fuel is not None else "", "dim"),
            )
        )
        if trap.backtrace:
            lost.add(output.text(trap.backtrace, "dim"))
    for memory in delivery.memories:
        importance = f"importance {memory.importance:.2g}"
        node.add(
            output.words(
                ("remembered", "magenta"),
                (memory.text, ""),
                (memory.outcome, "dim"),
                (importance, "dim"),
            )
        )
    return node


def _parked(delivery: TracedDelivery) -> "Text":
    until = delivery.parked_until_us
    return output.words(
        (f"parked: {delivery.parked_reason}", "yellow"),
        (f"on {delivery.parked_on}" if delivery.parked_on else "", ""),
        (
            "until somebody wakes it" if until is None else f"until {output.local_time(until)}",
            "dim",
        ),
    )


def _step(step: JournalStep) -> "Text":
    tokens = f"{step.generated_tokens} tokens" if step.generated_tokens else ""
    return output.words(
        (f"{step.run + 1}.{step.step}" if step.run else f"{step.step}", "dim"),
        (step.phase, "blue"),
        (step.kind, "cyan"),
        (step.summary, ""),
        (output.span(step.took_us), "dim"),
        (tokens, "dim"),
    )
