"""A conversation as a tree: its deliveries under the message that caused them, their journals, and
what was remembered."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ipc_protocol.control import JournalStep, Trace, TracedDelivery, TracedMessage
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
    for letter in answer.dead_letters:
        parts = (("dead letter", "bold red"), (letter.agent, "bold"), (letter.reason, ""))
        tree.add(output.words(*parts))
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
        output.words((message.sender, "bold"), (f"→ {message.topic}", "cyan"), (message.text, ""))
    )
    caused = [one for one in answer.messages if one.cause == message.message]
    for delivery in answer.deliveries:
        if delivery.message == message.message:
            node = _add_delivery(branch, delivery)
            for one in [one for one in caused if one.sender == delivery.agent]:
                _add_message(node, one, answer)
    agents = {one.agent for one in answer.deliveries if one.message == message.message}
    for one in [one for one in caused if one.sender not in agents]:
        _add_message(branch, one, answer)


def _add_delivery(tree: "Tree", delivery: TracedDelivery) -> "Tree":
    outcome = delivery.outcome or delivery.state
    took = "" if delivery.done_us is None else output.span(delivery.done_us - delivery.queued_us)
    attempts = f"{delivery.attempts} attempts" if delivery.attempts > 1 else ""
    node = tree.add(
        output.words(
            (delivery.agent, "bold"),
            (outcome, OUTCOME_STYLES.get(outcome, "yellow")),
            (delivery.reason, ""),
            (took, "dim"),
            (attempts, "yellow"),
        )
    )
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


def _step(step: JournalStep) -> "Text":
    tokens = f"{step.generated_tokens} tokens" if step.generated_tokens else ""
    return output.words(
        (f"{step.step}", "dim"),
        (step.phase, "blue"),
        (step.kind, "cyan"),
        (step.summary, ""),
        (output.span(step.took_us), "dim"),
        (tokens, "dim"),
    )
