"""`agentd ctl`: what an operator asks a running daemon."""

from pathlib import Path

import click

from ipc_protocol import control, methods
from ipc_protocol.inference import Nothing
from ipc_protocol.values import PRIORITIES, Priority
from orchestrator.cli import agents, bus, output, slots_view, trace_view, views, watch_view
from orchestrator.cli.calls import call, print_answer, socket_path
from orchestrator.cli.exits import EPILOG
from orchestrator.cli.options import Seconds, bytes_argument, daemon_options, text_argument

priority_option = click.option(
    "--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True
)
correlation_option = click.option("--correlation", help="The name of the conversation.")
timeout_option = click.option(
    "--timeout",
    type=Seconds(),
    metavar="DURATION",
    help="Give up waiting after this long, for instance 90s.",
)


@click.group(epilog=EPILOG)
def ctl() -> None:
    """Talk to a running daemon.

    It is found by --socket, AGENTD_SOCKET, --config or AGENTD_CONFIG, in this order; without any of
    them at /run/agentd/agentd.sock.
    """


ctl.add_command(agents.agents)
ctl.add_command(bus.bus)


# ---- What there is ------------------------------------------------------------------------------


@ctl.command(epilog=EPILOG)
@daemon_options
def status(socket: Path | None, config: Path | None, as_json: bool) -> None:
    """Show what runs, waits and needs a person."""
    print_answer(call(socket, config, methods.STATUS, Nothing()), views.status, as_json=as_json)


@ctl.command(epilog=EPILOG)
@daemon_options
def slots(socket: Path | None, config: Path | None, as_json: bool) -> None:
    """Show the slots of each engine, and who waits for one.

    PREFIX is what lies in the cache of a slot, in tokens; of these, SHARED also serve other slots.
    Who waits is listed in the order of its turn, with what it waits for and about how long still.
    """
    print_answer(call(socket, config, methods.SLOTS, Nothing()), slots_view.slots, as_json=as_json)


@ctl.command(epilog=EPILOG)
@click.argument("agent", required=False)
@click.option("--query", help="The best matches for this text; without it the newest are shown.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@daemon_options
def memory(
    agent: str | None,
    query: str | None,
    limit: int,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Show what AGENT remembers, or all of them."""
    params = control.MemoryQuery(agent=agent, query=query, limit=limit)
    print_answer(call(socket, config, methods.MEMORY, params), views.memories, as_json=as_json)


@ctl.command(epilog=EPILOG)
@click.argument("agent", required=False)
@daemon_options
def tasks(agent: str | None, socket: Path | None, config: Path | None, as_json: bool) -> None:
    """List the tasks of AGENT, or of all."""
    params = control.OfAgent(agent=agent)
    print_answer(call(socket, config, methods.TASKS, params), views.tasks, as_json=as_json)


@ctl.command(epilog=EPILOG)
@click.argument("correlation")
@daemon_options
def trace(correlation: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    """Show a conversation as a tree.

    Who did what, why, for how long, at what cost, and what was remembered.
    """
    params = control.OfConversation(correlation=correlation)
    print_answer(call(socket, config, methods.TRACE, params), trace_view.trace, as_json=as_json)


# ---- Talking to agents --------------------------------------------------------------------------


@ctl.command(epilog=EPILOG)
@click.argument("text")
@click.option("--to", metavar="AGENT", help="Ask this agent; it may pass the question on.")
@priority_option
@correlation_option
@click.option(
    "--wait/--no-wait", default=False, help="Wait for the reply, or only send the question."
)
@click.option(
    "--show/--quiet",
    default=None,
    help="While waiting, show what happens, on standard error.  [default: on a terminal]",
)
@timeout_option
@daemon_options
def ask(
    text: str,
    to: str | None,
    priority: Priority,
    correlation: str | None,
    wait: bool,
    show: bool | None,
    timeout: float | None,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Ask the agents a question.

    TEXT opens a conversation (- reads it from the standard input). With --wait, the reply is
    printed. Asking again with the same --correlation opens no second conversation.
    """
    from orchestrator.bus import correlations

    question = control.Ask(
        text=text_argument(text),
        to=to,
        priority=priority,
        correlation=correlation or correlations.fresh(),
    )
    if wait:
        from orchestrator.cli import asking

        path = socket_path(socket, config)
        on_happening = None if as_json else watch_view.progress(show=show)
        conversation = asking.ask(path, question, timeout_s=timeout, on_happening=on_happening)
        return _print_reply(conversation, as_json=as_json)
    if timeout is not None:
        raise click.UsageError("--timeout is how long to --wait.")
    receipt = call(socket, config, methods.ASK, question)
    return print_answer(receipt, views.asked, as_json=as_json)


@ctl.command(epilog=EPILOG)
@click.argument("correlation")
@timeout_option
@daemon_options
def answer(
    correlation: str,
    timeout: float | None,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Wait for the reply to an earlier question."""
    from orchestrator.cli import asking

    path = socket_path(socket, config)
    _print_reply(asking.wait(path, correlation, timeout_s=timeout), as_json=as_json)


def _print_reply(conversation: control.Conversation, *, as_json: bool) -> None:
    if as_json:
        output.echo_json(conversation)
    else:
        click.echo(output.clean(conversation.reply or ""))


@ctl.command(epilog=EPILOG)
@click.argument("topic")
@click.argument("payload")
@click.option(
    "--id",
    "message_id",
    metavar="ID",
    help="Your own name for the message. Sent again under it, it is still the same message.",
)
@priority_option
@correlation_option
@click.option(
    "--wait/--no-wait",
    default=False,
    help="Wait until every agent that receives it is done with it, or only until it is on disk.",
)
@timeout_option
@daemon_options
def send(
    topic: str,
    payload: str,
    message_id: str | None,
    priority: Priority,
    correlation: str | None,
    wait: bool,
    timeout: float | None,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Publish PAYLOAD on TOPIC as the operator.

    PAYLOAD - is read from the standard input. Who cannot bear that a message is lost or doubled
    gives it an --id and repeats the command until it succeeds.
    """
    from orchestrator.bus import correlations
    from orchestrator.cli import sending

    if timeout is not None and not wait:
        raise click.UsageError("--timeout is how long to --wait.")
    if wait and correlation is None:
        # Named here, so that whoever waits in vain knows where to look.
        correlation = correlations.fresh()
    message = control.Publish(
        topic=topic,
        payloads=[bytes_argument(payload)],
        message_ids=[] if message_id is None else [message_id],
        priority=priority,
        correlation=correlation,
        wait="handled" if wait else "accepted",
    )
    published = sending.send(socket_path(socket, config), message, timeout_s=timeout)
    if as_json:
        output.echo_json(views.receipt(published))
    else:
        output.echo(views.published(published, handled=wait))


@ctl.command(epilog=EPILOG)
@correlation_option
@click.option("--kind", "kinds", multiple=True, help="Only what is of this kind; may be repeated.")
@daemon_options
def watch(
    correlation: str | None,
    kinds: tuple[str, ...],
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Follow what happens, until interrupted.

    Each happening is a line; with --json, a line of JSON.
    """
    from orchestrator.cli import client

    print_one = watch_view.print_json if as_json else watch_view.printer(correlation)
    params = control.Watch(correlation=correlation, kinds=list(kinds))
    client.follow(socket_path(socket, config), methods.WATCH, params, print_one)


# ---- What needs a person ------------------------------------------------------------------------


@ctl.group(epilog=EPILOG)
def attention() -> None:
    """Requests that wait for a person."""


@attention.command("list", epilog=EPILOG)
@click.option("--all", "everything", is_flag=True, help="The answered ones too.")
@daemon_options
def list_attention(
    everything: bool, socket: Path | None, config: Path | None, as_json: bool
) -> None:
    """List what waits for an answer."""
    params = control.AttentionQuery(all=everything)
    answered = call(socket, config, methods.ATTENTION_LIST, params)
    print_answer(answered, views.attention, as_json=as_json)


@attention.command("answer", epilog=EPILOG)
@click.argument("number", metavar="ID", type=int)
@click.argument("text")
@daemon_options
def answer_attention(
    number: int, text: str, socket: Path | None, config: Path | None, as_json: bool
) -> None:
    """Answer request ID with TEXT, or - for stdin."""
    params = control.AttentionAnswer(id=number, text=text_argument(text))
    done = call(socket, config, methods.ATTENTION_ANSWER, params)
    print_answer(done, lambda _: output.text(f"Request {number} is answered."), as_json=as_json)
