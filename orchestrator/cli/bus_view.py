"""The bus as tables and lines: dead letters, topics, and messages that go by."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from ipc_protocol.bus import (
    DeadLetterDetail,
    DeadLetters,
    Payload,
    PurgedLetters,
    ReplayedLetter,
    ReplayedLetters,
    Tapped,
    Topic,
    Topics,
    TopicSubscriber,
)
from orchestrator.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

# ---- Payloads -----------------------------------------------------------------------------------


def payload_words(payload: Payload) -> str:
    """Text as it is, anything else in hexadecimal."""
    return (payload.data or b"").hex(" ", 2) if payload.text is None else payload.text


def _cut_note(payload: Payload) -> str:
    return f"… cut: {payload.size_bytes} bytes in all, --full shows them" if payload.cut else ""


# ---- Dead letters -------------------------------------------------------------------------------


def dead_letters(answer: DeadLetters) -> "RenderableType":
    if not answer.letters:
        return output.text("There are no dead letters.", "green")
    table = output.table(
        "no", "died", "agent", "topic", "code", "reason", "replayed", numbers=["no"]
    )
    for letter in answer.letters:
        again = "" if letter.replayed_as is None else f"as message {letter.replayed_as}"
        table.add_row(
            output.text(letter.number),
            output.text(output.local_time(letter.died_us), "dim"),
            output.text(letter.receiver or letter.sender, "bold"),
            output.text(letter.topic, "cyan"),
            output.text(letter.code, "red"),
            output.text(output.one_line(letter.reason)),
            output.text(again, "green"),
        )
    return _with_footer(table, _footer(answer))


def _footer(answer: DeadLetters) -> str:
    if answer.below is None:
        return ""
    return f"{len(answer.letters)} of {answer.matching}; --below {answer.below} shows what is older"


def _with_footer(table: "Table", footer: str) -> "RenderableType":
    from rich.console import Group

    return Group(table, output.text(footer, "dim")) if footer else table


def dead_letter(answer: DeadLetterDetail) -> "RenderableType":
    from rich.console import Group

    return Group(*_about(answer))


def _about(answer: DeadLetterDetail) -> "Iterator[Text]":
    letter = answer.letter
    yield output.words(
        (f"dead letter {letter.number}", "bold red"),
        (letter.code, "red"),
        (output.local_time(letter.died_us), "dim"),
    )
    yield _field("reason", letter.reason)
    if answer.last_error:
        yield _field("last error", answer.last_error)
    yield _field("from", letter.sender)
    yield _field("to", letter.receiver or "nobody: an output that never became a message")
    yield _field("topic", letter.topic)
    yield _field("priority", letter.priority)
    if letter.attempts:
        yield _field("attempts", str(letter.attempts))
    yield _field("conversation", letter.correlation)
    if letter.replayed_as is not None and letter.replayed_us is not None:
        when = output.local_time(letter.replayed_us)
        yield _field("replayed", f"as message {letter.replayed_as}, {when}")
    for number, cause in enumerate(answer.causes):
        told = f"message {cause.message} on {cause.topic} from {cause.sender}"
        yield _field("causes" if number == 0 else "", told)
    kind = "hexadecimal" if answer.payload.text is None else "text"
    yield _field("payload", f"{answer.payload.size_bytes} bytes, {kind}")
    yield output.text(payload_words(answer.payload))


def _field(name: str, value: str) -> "Text":
    return output.text(f"{name:<14}", "dim").append_text(output.text(value))


def replayed(letter: ReplayedLetter) -> "Text":
    if letter.problem is not None:
        return output.words(
            (f"{letter.number}", "bold"),
            (letter.problem.code, "red"),
            (letter.problem.message, ""),
            (letter.problem.cure, "dim"),
        )
    return output.words(
        (f"{letter.number}", "bold"),
        (f"is message {letter.message} in conversation {letter.correlation}", "green"),
    )


def replayed_all(done: ReplayedLetters) -> "Text":
    refused = f"{done.refused} could not be sent again" if done.refused else ""
    return output.words((f"{done.replayed} were sent again", "green"), (refused, "red"))


def purged(done: PurgedLetters) -> "Text":
    what = "1 dead letter is" if done.purged == 1 else f"{done.purged} dead letters are"
    return output.text(f"{what} removed.")


# ---- Topics -------------------------------------------------------------------------------------


def topics(counted: Topics, table: list[Topic]) -> "RenderableType":
    drawn = output.table(
        "topic", "publishers", "subscribers", "per second", "messages", "remarks",
        numbers=["per second", "messages"],
    )  # fmt: skip
    for row in table:
        drawn.add_row(
            output.text(row.name, "cyan"),
            output.text(", ".join(row.publishers) or "operators", "" if row.publishers else "dim"),
            output.text(
                ", ".join(_subscriber(each, counted.now_us) for each in row.subscribers) or "none",
                "" if row.subscribers else "dim",
            ),
            output.text(f"{row.per_second:.1f}"),
            output.text(row.messages),
            output.text("; ".join(_remarks(row)), "yellow"),
        )
    counting = output.span(counted.now_us - counted.since_us)
    return _with_footer(drawn, f"rates over the last minute, messages counted for {counting}")


def _subscriber(each: TopicSubscriber, now_us: int) -> str:
    if not each.pending or each.oldest_us is None:
        return each.agent
    return f"{each.agent} ({each.pending} pending, {output.span(max(0, now_us - each.oldest_us))})"


def _remarks(row: Topic) -> Iterator[str]:
    if row.leads_nowhere:
        yield f"what {', '.join(row.leads_nowhere)} publishes leads nowhere"
    if row.unfed:
        yield f"no agent sends {', '.join(row.unfed)} anything"
    if row.near:
        yield f"is {row.near} meant?"
    if row.unused_by:
        yield f"never used (declared by {', '.join(row.unused_by)})"


# ---- Messages that go by ------------------------------------------------------------------------


def line(tapped: Tapped) -> "Text":
    from rich.text import Text

    drawn = Text(overflow="fold")
    if tapped.lost:
        drawn.append(f"… {tapped.lost} messages were missed", style="yellow")
        if not tapped.message:
            return drawn
        drawn.append("\n")
    receivers = ", ".join(tapped.receivers) or "nobody"
    drawn.append(output.clock(tapped.sent_us), style="dim")
    drawn.append(f"  {tapped.message}", style="bold")
    drawn.append(f"  {output.one_line(tapped.topic)}", style="cyan")
    drawn.append(f"  {output.one_line(tapped.sender)} → {output.one_line(receivers)}")
    drawn.append(f"  {tapped.priority}  [{output.one_line(tapped.correlation)}]", style="dim")
    drawn.append(f"  {output.one_line(payload_words(tapped.payload))}")
    drawn.append(_cut_note(tapped.payload), style="dim")
    return drawn


def printer() -> Callable[[Tapped], None]:
    """Prints each on standard output, at once."""
    console = output.console()
    wrap = not output.is_terminal()

    def print_one(tapped: Tapped) -> None:
        console.print(line(tapped), soft_wrap=wrap)

    return print_one


def print_json(tapped: Tapped) -> None:
    click.echo(output.json_line(tapped))
