"""A request to the bus, and the ways in which it fails."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ipc_protocol.errors import Failure
from orchestrator.store.transaction import Transaction


class Step(NamedTuple):
    """A request to the real bus, and what the model makes of it and of its answer."""

    reducer: Callable[[Transaction, Any], Any]
    actor: str
    arguments: Any
    follow: Callable[[Any], object]
    """Raises `Refusal` where the bus has to refuse it."""


class BrokenDown(Exception):
    """A reducer that fails after it has done all its work."""


def breaks_down(step: Step) -> Step:
    def reducer(tx: Transaction, arguments: Any) -> None:
        step.reducer(tx, arguments)
        raise BrokenDown

    return step._replace(reducer=reducer)


def breaks_down_in_part(step: Step) -> Step:
    """A part of a reducer fails, which goes on and changes nothing else."""

    def reducer(tx: Transaction, arguments: Any) -> None:
        try:
            with tx.nested():
                step.reducer(tx, arguments)
                raise Failure("request.invalid", "The part fails.")
        except Failure:
            return

    return step._replace(reducer=reducer)


def fills_the_disk(step: Step) -> Step:
    def reducer(tx: Transaction, arguments: Any) -> None:
        with contextlib.suppress(Failure):
            step.reducer(tx, arguments)
        with tx.acting_as("bus"):
            tx.execute(
                "INSERT INTO prompt_set (hash, prompts, first_us)"
                " VALUES ('large', json_quote(hex(zeroblob(4000000))), 0)"
            )

    return step._replace(reducer=reducer)
