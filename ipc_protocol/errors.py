"""Errors as values: a stable code, what was wrong, and what to do about it.

A `Problem` travels in an ERROR frame and is raised at the other end as a `Failure`. The codes are a
public interface: docs/protocol.md lists them, and a test holds the two together.
"""

from typing import Any, Final

import msgspec

CODES: Final[dict[str, str]] = {
    "protocol.version": "the peer speaks another version of the protocol",
    "protocol.frame-too-long": "a frame announces a body over the limit",
    "protocol.malformed": "a header or a body does not follow the format",
    "protocol.unknown-type": "a frame has a type that this version does not know",
    "protocol.sequence": "a frame came when the session or its stream did not allow it",
    "protocol.hello-timeout": "no hello came in time",
    "protocol.too-many-connections": "the socket serves as many connections as it can",
    "protocol.too-many-streams": "more requests are under way than the hello settled",
    "protocol.closed": "the connection ended before the answer came",
    "request.unknown-method": "there is no such method on this line",
    "request.invalid": "the parameters of the method are not of its type",
    "request.cancelled": "the caller withdrew the request",
    "request.internal": "the program that serves the request failed; its log has the details",
    "bus.no-subscriber": "nobody subscribes to the topic",
    "bus.payload-too-large": "the payload is over the limit",
    "bus.backpressure": "an inbox is full",
    "bus.not-permitted": "the sender may not publish on the topic",
    "bus.expired": "the message is past its time to live, or has made too many hops",
    "bus.invalid-topic": "the topic is not made of words and dots",
    "bus.ring": "agents waited for room in each other's inboxes, in a ring",
    "bus.busy": "too much of what the publisher sent before waits to be written",
    "agent.unknown": "there is no agent of that name",
    "agent.unfinished": "the agent is retired, and has deliveries that it cannot finish",
    "bus.conversation-full": "the conversation has had as many messages as it may",
    "conversation.unknown": "there is no conversation of that correlation id",
    "attention.unknown": "there is no open attention request of that number",
    "deadletter.unknown": "there is no dead letter of that number",
    "deadletter.replayed": "the dead letter was sent again before",
    "deadletter.unsendable": "there is nothing in the dead letter that could be sent again",
    "journal.mismatch": "a replayed request differs from its journal entry",
    "work.unknown-delivery": "the worker does not hold that delivery",
    "work.deaths": "the delivery has killed its worker too often",
    "work.refused": "the completion of the delivery can never be applied",
    "work.left-out": "the completion had more outputs than are kept one by one",
    "work.conflict": "another delivery has changed the state that the delivery had read",
    "work.budget": "the delivery has used up its steps, tokens or time",
    "tool.not-permitted": "the agent has no grant for the tool or its target",
    "tool.unknown": "there is no tool of that name",
    "tool.failed": "the tool could not do what it was asked",
    "inference.budget": "the token budget ended before the answer was complete",
    "inference.context": "the prompt does not fit into the context of the model",
    "inference.unavailable": "the engine is not running, or no model is configured",
    "inference.schema": "the JSON Schema cannot be turned into a grammar",
    "inference.busy": "the queue of the engine is full",
    "inference.deadline": "the answer cannot come before the request's deadline",
    "inference.culprit": "the request has ended its engine twice, and is not asked again",
    "serve.unauthorized": "the key is none of those that the daemon knows",
    "serve.not-permitted": "the key does not allow this model or this class",
    "egress.not-permitted": "nobody granted the caller this address",
    "egress.failed": "the remote server could not be reached, or broke off",
    "egress.refused": "the remote server answered with an error",
    "model.unknown": "there is no model of that name",
    "model.invalid": "the file is not a model that can be loaded",
    "model.unavailable": "the model cannot be fetched from where it comes from",
    "store.full": "the disk or its quota is full",
    "store.slow-reader": "a read took so long that it was ended",
    "store.unavailable": "the store cannot be read or written",
    "store.ownership": "the row belongs to somebody else",
    "component.malformed": "the file is not a WebAssembly component, or not a valid one",
    "component.feature": "the component needs a feature of WebAssembly that is switched off",
    "component.world": "the exports of the component are not those of an agent",
    "component.version": "the component was built against a version that is not offered",
    "component.import": "the component imports what no host offers, or with other types",
    "component.grant": "the component imports an interface that its agent was not granted",
    "component.strict-imports": "the component imports of WASI what `strict_imports` refuses",
    "component.compile": "the component cannot be compiled within the limits, or at all",
    "component.init": "the component's `init` failed",
    "component.refused": "the component's own code refused the message, with its reason",
    "component.trapped": "the component's code trapped; its memory is lost",
    "component.fuel": "a call of the component used up its fuel",
    "component.deadline": "a call of the component took too long",
    "component.memory": "the component reached a limit on memory, tables or stack",
    "component.output": "the component returned what cannot be sent, or too much of it",
    "component.unknown": "there is no component or version of that name or hash",
    "component.busy": "another change of the agent is under way",
    "sandbox.refused": "a required layer of the sandbox is missing",
}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One error: `code` from `CODES`, a sentence, the cure, and typed particulars."""

    code: str
    message: str
    cure: str = ""
    details: dict[str, Any] = {}


class Failure(Exception):
    """A `Problem` in flight. `str()` is the sentence and its cure."""

    def __init__(self, code: str, message: str, cure: str = "", **details: Any) -> None:
        assert code in CODES, f"{code} is not a code of the protocol"
        self.problem = Problem(code=code, message=message, cure=cure, details=details)
        super().__init__(f"{message} {cure}".rstrip())

    @classmethod
    def of(cls, problem: Problem) -> "Failure":
        """The exception for a problem that came over the wire, known code or not."""
        failure = cls.__new__(cls)
        failure.problem = problem
        Exception.__init__(failure, f"{problem.message} {problem.cure}".rstrip())
        return failure

    @property
    def code(self) -> str:
        return self.problem.code


class LocalProtocolError(Exception):
    """This program misused the protocol: a defect here, never the peer's fault."""
