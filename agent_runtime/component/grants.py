"""The host's side of `agent-net:core`: what a component may import, and what each function does.

What is asked of the world becomes an effect, which the orchestrator checks, journals and performs;
what changes it is staged with the delivery (`invocation`). Nothing here decides what an agent may:
it only spares the orchestrator what can never be, and says so in the component's own terms.
Outside of a delivery there is nobody to ask, and nothing to stage for.
"""

import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from agent_runtime.component import limits
from agent_runtime.component.invocation import Invocation, NoRoom
from agent_runtime.component.log import Log, shortened
from agent_runtime.component.permission import AGENT_NET
from agent_runtime.component.types import Case, err, ok
from ipc_protocol.errors import Problem
from ipc_protocol.inference import ChatMessage
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import (
    AgentProfile,
    Effect,
    EmitHealth,
    Infer,
    Inferred,
    ListTasks,
    MemoryEntry,
    Offer,
    Offered,
    Outgoing,
    ReadState,
    Recall,
    Recalled,
    Refused,
    StateChange,
    StateValue,
    Task,
    TaskChange,
    TaskList,
    ToolResult,
    UseTool,
)

ATTENTION_TOOL: Final = "attention.request"
AWAY: Final = "unavailable"
"""The case of `types.error` for what may be had at another time."""

Functions: TypeAlias = dict[str, Callable[..., Any]]
R = TypeVar("R")

_AWAY: Final = frozenset({"inference.unavailable", "inference.busy"})
"""Refusals that may be others in a while."""


class Denied(Exception):
    """The request is not met. `case` is one of `types.error`, `reason` its text."""

    def __init__(self, reason: str, case: str = "refused") -> None:
        super().__init__(reason)
        self.error = Case(case, reason)


class Grants:
    """The functions that one component may import. `invocation` is set while it has a delivery."""

    def __init__(self, profile: AgentProfile, log: Log) -> None:
        self._profile = profile
        self._log = log
        self.invocation: Invocation | None = None
        self.interruption: BaseException | None = None
        """What `ask` has raised: the delivery is over, and no fault of the component's."""
        self._interfaces: dict[str, Functions] = {
            "bus@0.1.0": {"publish": self._publish_0_1},
            "bus@0.2.0": {"publish": self._publish_0_2},
            "inference@0.2.0": {"ask": _or_error(self._ask_model)},
            "memory@0.2.0": {"search": _or_error(self._search), "note": _or_error(self._note)},
            "tools@0.2.0": {"available": self._available, "call": _or_error(self._call)},
            "tasks@0.2.0": {
                "unfinished": _or_error(self._unfinished),
                "create": _or_error(self._create_task),
                "update": _or_error(self._update_task),
            },
            "attention@0.2.0": {"request": _or_error(self._request_attention)},
            "state@0.2.0": {
                "get": _or_error(self._get),
                "put": _or_error(self._put),
                "delete": _or_error(self._delete),
            },
            "health@0.2.0": {"emit": self._emit_health},
            "logging@0.2.0": {"log": self._log.say},
        }

    def functions(self, name: str) -> Functions:
        """By the full name of an interface. One that holds types alone has none."""
        return self._interfaces.get(name.removeprefix(AGENT_NET), {})

    # -- asking

    def _delivery(self) -> Invocation:
        if self.invocation is None:
            raise Denied("This can be had while a message is handled, and at no other time.", AWAY)
        return self.invocation

    def _ask(self, effect: Effect, wanted: type[R]) -> R:
        """The result of an effect. Raises `Denied` where it was refused."""
        delivery = self._delivery()
        try:
            result = delivery.ask(effect)
        except BaseException as interruption:
            self.interruption = interruption
            raise
        if isinstance(result, Refused):
            raise Denied(result.message, AWAY if result.code in _AWAY else "refused")
        if not isinstance(result, wanted):
            raise Denied(f"The journal answered with a {type(result).__name__}.")
        return result

    # -- bus

    def _publish_0_1(self, message: dict[str, Any]) -> Case:
        problem = self._publish(message)
        if problem is None:
            return ok()
        if problem.code == "bus.payload-too-large":
            return err(Case("payload-too-large", len(message["payload"])))
        if problem.code in ("bus.backpressure", "work.budget"):
            return err(Case("backpressure"))
        # Version 0.1.0 has no other word for what will never arrive.
        return err(Case("no-subscriber", _topic(message)))

    def _publish_0_2(self, message: dict[str, Any]) -> Case:
        problem = self._publish(message)
        if problem is None:
            return ok()
        match problem.code:
            case "bus.payload-too-large":
                return err(Case("payload-too-large", len(message["payload"])))
            case "bus.backpressure":
                return err(Case("backpressure", list(problem.details.get("agents", []))))
            case "work.budget":
                return err(Case("backpressure", []))
            case "bus.expired":
                return err(Case("expired"))
            case "bus.no-subscriber" | "bus.invalid-topic":
                return err(Case("no-subscriber", _topic(message)))
            case _:
                return err(Case("not-permitted", _topic(message)))

    def _publish(self, message: dict[str, Any]) -> Problem | None:
        """Stage the message, or say why it cannot be."""
        topic, payload = message["topic"], message["payload"]
        delivery = self.invocation
        if delivery is None:
            return Problem(code="bus.backpressure", message="There is no delivery to send with.")
        if len(payload) > PAYLOAD_BYTES_MAX:
            return Problem(code="bus.payload-too-large", message="The payload is too large.")
        if len(topic) > limits.TOPIC_CHARS_MAX:
            return Problem(code="bus.invalid-topic", message="The topic is too long.")
        if not delivery.is_own(message["correlation-id"]):
            return Problem(code="bus.not-permitted", message="It would join another conversation.")
        if delivery.sent >= limits.OUTPUTS_SENT_MAX:
            return Problem(code="work.budget", message="The delivery has sent all it may.")
        offer = Offer(
            topic=topic, payload_bytes=len(payload), correlation=message["correlation-id"]
        )
        try:
            offered = self._ask(offer, Offered)
            if offered.problem is None:
                delivery.send(Outgoing(topic=topic, payload=payload))
        except (Denied, NoRoom) as none:
            return Problem(code="work.budget", message=str(none))
        return offered.problem

    # -- inference

    def _ask_model(self, request: dict[str, Any]) -> dict[str, Any]:
        messages, schema = request["messages"], request["schema"]
        if not 0 < len(messages) <= limits.PROMPT_MESSAGES_MAX:
            raise Denied(f"A request has from 1 to {limits.PROMPT_MESSAGES_MAX} messages.")
        if sum(len(one["content"].encode()) for one in messages) > limits.PROMPT_BYTES_MAX:
            raise Denied(f"The messages have over {limits.PROMPT_BYTES_MAX} bytes.")
        if request["max-tokens"] == 0:
            raise Denied("`max-tokens` is 0: there would be no answer.")
        answer = self._ask(
            Infer(
                phase=self._delivery().phase,
                messages=[
                    ChatMessage(role=one["role"], content=one["content"]) for one in messages
                ],
                tokens_max=min(request["max-tokens"], self._profile.tokens_max),
                schema=None if schema is None else _json_object(schema, "The schema"),
            ),
            Inferred,
        )
        return {"text": answer.text, "tokens": answer.generated_tokens}

    # -- memory

    def _search(self, query: str, limit: int) -> list[dict[str, Any]]:
        _bounded(len(query), limits.QUERY_CHARS_MAX, "The query")
        recalled = self._ask(
            Recall(
                phase=self._delivery().phase, query=query, limit=min(limit, limits.RECALLED_MAX)
            ),
            Recalled,
        )
        return [
            {
                "id": memory.id,
                "text": memory.text,
                "outcome": memory.outcome,
                "importance": memory.importance,
                "created": memory.created_us,
            }
            for memory in recalled.memories[:limit]
        ]

    def _note(self, text: str, lesson: str, outcome: Any, importance: float) -> None:
        _bounded(len(text) + len(lesson), limits.MEMORY_CHARS_MAX, "The memory and its lesson")
        if not text.strip():
            raise Denied("The memory has no text.")
        if not 0 <= importance <= 1:
            raise Denied("The importance is not from 0 to 1.")
        self._delivery().remember(
            MemoryEntry(text=text, outcome=outcome, lesson=lesson, importance=importance)
        )

    # -- tools

    def _available(self) -> list[dict[str, str]]:
        return [
            {
                "name": tool.name,
                "purpose": tool.purpose,
                "parameters": msgspec.json.encode(tool.parameters).decode(),
            }
            for tool in self._profile.tools
        ]

    def _call(self, name: str, arguments: str) -> str:
        if all(tool.name != name for tool in self._profile.tools):
            known = ", ".join(tool.name for tool in self._profile.tools) or "none"
            raise Denied(f"There is no tool {shortened(name, 100)!r}. There are: {known}.")
        return self._use_tool(name, _json_object(arguments, "The arguments"))

    def _use_tool(self, name: str, arguments: dict[str, Any]) -> str:
        result = self._ask(UseTool(name=name, arguments=arguments), ToolResult)
        if not result.ok:
            raise Denied(result.output)
        match result.staged:
            case Outgoing() as output:
                self._delivery().send(output)
            case TaskChange() as change:
                self._delivery().change_task(change)
        return result.output

    # -- attention

    def _request_attention(self, question: str) -> str:
        _bounded(len(question), limits.QUESTION_CHARS_MAX, "The question")
        return self._use_tool(ATTENTION_TOOL, {"question": question})

    # -- tasks

    def _known_tasks(self) -> list[Task]:
        delivery = self._delivery()
        if delivery.unfinished is None:
            delivery.unfinished = self._ask(ListTasks(), TaskList).tasks
        return delivery.unfinished

    def _unfinished(self) -> list[dict[str, Any]]:
        return [
            {"id": task.id, "title": task.title, "status": task.state, "note": task.note}
            for task in self._known_tasks()
        ]

    def _create_task(self, title: str, note: str) -> None:
        _bounded(len(title) + len(note), limits.TASK_CHARS_MAX, "The title and the note")
        if not title.strip():
            raise Denied("The task has no title.")
        self._delivery().change_task(TaskChange(id=None, title=title, state="open", note=note))

    def _update_task(self, number: int, status: Any, note: str) -> None:
        _bounded(len(note), limits.TASK_CHARS_MAX, "The note")
        # The store would refuse the whole completion, which must not come to that.
        known = [task.id for task in self._known_tasks()]
        if number not in known:
            raise Denied(f"There is no unfinished task {number}. There are: {known or 'none'}.")
        self._delivery().change_task(TaskChange(id=number, state=status, note=note))

    # -- state

    def _get(self, key: str) -> bytes | None:
        _checked_key(key)
        delivery = self._delivery()
        if key in delivery.kept:
            return delivery.kept[key]
        return self._ask(ReadState(key=key), StateValue).value

    def _put(self, key: str, value: bytes) -> None:
        _checked_key(key)
        if len(value) > limits.STATE_VALUE_BYTES_MAX:
            raise Denied(
                f"The value has {len(value)} bytes; it may have {limits.STATE_VALUE_BYTES_MAX}."
            )
        self._delivery().keep(StateChange(key=key, value=value))

    def _delete(self, key: str) -> None:
        _checked_key(key)
        self._delivery().keep(StateChange(key=key, value=None))

    # -- health

    def _emit_health(self, condition: Any, detail: str) -> None:
        detail = shortened(detail, limits.HEALTH_DETAIL_CHARS_MAX)
        self._log.say("health", f"{condition}: {detail}")
        try:
            self._ask(EmitHealth(condition=condition, detail=detail), object)
        except Denied as denied:
            self._log.say("health", f"this was told to nobody: {denied}")


def _or_error(function: Callable[..., Any]) -> Callable[..., Case]:
    """As a function that returns `result<…, error>`."""

    def call(*arguments: Any) -> Case:
        try:
            return ok(function(*arguments))
        except Denied as denied:
            return err(denied.error)
        except NoRoom as full:
            return err(Case("refused", str(full)))

    return call


def _bounded(characters: int, characters_max: int, what: str) -> None:
    if characters > characters_max:
        raise Denied(f"{what} may have {characters_max} characters, not {characters}.")


def _checked_key(key: str) -> None:
    if not 0 < len(key.encode()) <= limits.STATE_KEY_BYTES_MAX:
        raise Denied(f"A key has from 1 to {limits.STATE_KEY_BYTES_MAX} bytes.")


def _json_object(text: str, what: str) -> dict[str, Any]:
    """Raises `Denied` for what is no JSON object, or one that a frame cannot carry."""
    if len(text.encode()) > limits.JSON_BYTES_MAX:
        raise Denied(f"{what} may have {limits.JSON_BYTES_MAX} bytes at most.")
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Denied(f"{what} must be a JSON object: {error}.") from error
    level: list[Any] = [found]
    for _ in range(limits.JSON_DEPTH_MAX):
        values = [
            value
            for container in level
            for value in (container.values() if isinstance(container, dict) else container)
        ]
        if any(_unfit(value) for value in values):
            raise Denied(f"{what} must have no number beyond 64 bits.")
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return found
    raise Denied(f"{what} may nest {limits.JSON_DEPTH_MAX} levels deep at most.")


def _unfit(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _topic(message: dict[str, Any]) -> str:
    return shortened(message["topic"], limits.TOPIC_CHARS_MAX)
