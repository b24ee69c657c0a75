"""Describes the tools of an agent, and makes its calls. A failure is an answer, not an error.

The registry checks the grant and the form of a call; what the call may touch is the tool's check.
"""

import dataclasses
import difflib
import logging
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.work import ToolDescription, ToolResult
from orchestrator.tools.tool import Grants, Tool, ToolArguments, ToolContext, ToolOutcome

log = logging.getLogger(__name__)

Came = TypeVar("Came")


class Call:
    """One call of a granted tool, with arguments of its type.

    Whatever goes wrong in it is a `ToolResult` that says what, and what to do. Where it acts
    outside the database, the caller writes down between `prepare` and `run` that the tool may run
    from now on; where that is written and no result is, it asks `recover`.
    """

    def __init__(self, tool: Tool[Any], arguments: ToolArguments, context: ToolContext) -> None:
        self._tool = tool
        self._arguments = arguments
        self._context = context

    @property
    def acts_outside(self) -> bool:
        return self._tool.outside is not None

    def keyed(self, key: str) -> "Call":
        """The same call, whose tool is told its idempotency key."""
        return Call(self._tool, self._arguments, dataclasses.replace(self._context, key=key))

    async def prepare(self) -> ToolResult | None:
        """None where the tool may run; else the result. The tool has done nothing yet."""
        outside = self._tool.outside
        if outside is None:
            return None
        return await self._explained(
            outside.prepare(self._arguments, self._context), self._broke_down()
        )

    async def run(self) -> ToolOutcome:
        broken = self._in_doubt() if self.acts_outside else self._broke_down()
        return await self._explained(self._tool.run(self._arguments, self._context), broken)

    async def recover(self) -> ToolResult:
        """What came of a call that may have run."""
        doubt = self._in_doubt()
        outside = self._tool.outside
        if outside is None:
            return doubt
        came = await self._explained(outside.recover(self._arguments, self._context), doubt)
        return doubt if came is None else came

    async def _explained(self, doing: Awaitable[Came], broken: ToolResult) -> Came | ToolResult:
        """What it returns, or a failure in its place; `broken` if the tool has a defect."""
        try:
            return await doing
        except Failure as failure:
            return _failed(failure)
        except Exception:  # a defect in one tool must not cost the delivery
            log.exception("the tool %s failed for %s", self._tool.name, self._context.grants.agent)
            return broken

    def _broke_down(self) -> ToolResult:
        return ToolResult(
            ok=False,
            output=f"tool.failed: {self._tool.name} broke down. Do without it; it is logged.",
        )

    def _in_doubt(self) -> ToolResult:
        outside = self._tool.outside
        return in_doubt(self._tool.name, "" if outside is None else outside.doubt)


class Registry:
    def __init__(self, tools: Iterable[Tool[Any]]) -> None:
        self._by_name: dict[str, Tool[Any]] = {}
        for tool in tools:
            assert tool.name not in self._by_name, tool.name
            self._by_name[tool.name] = tool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def describe(self, grants: Grants) -> list[ToolDescription]:
        """The granted tools that can do something for this agent, in the order of its grants."""
        return [
            ToolDescription(
                name=name, purpose=tool.purpose, parameters=parameters, outward=tool.outward
            )
            for name in grants.tools
            if (tool := self._by_name.get(name)) is not None
            and (parameters := tool.parameters(grants)) is not None
        ]

    def call(
        self, name: str, arguments: Mapping[str, Any], context: ToolContext
    ) -> Call | ToolResult:
        """The call, ready to be made; or the result that says why it is none."""
        try:
            tool = self._find(name, context.grants)
            return Call(tool, _converted(tool, arguments), context)
        except Failure as failure:
            return _failed(failure)

    def _find(self, name: str, grants: Grants) -> Tool[Any]:
        tool = self._by_name.get(name)
        granted = ", ".join(grants.tools) or "none"
        if tool is None:
            near = difflib.get_close_matches(name, grants.tools, n=1, cutoff=0.5)
            cure = f"Did you mean {near[0]}?" if near else f"Your tools are: {granted}."
            raise Failure("tool.unknown", f"There is no tool {name[:60]!r}.", cure)
        if name not in grants.tools:
            raise Failure(
                "tool.not-permitted", f"{name} is not granted.", f"Your tools are: {granted}."
            )
        return tool


def in_doubt(tool: str, doubt: str = "") -> ToolResult:
    """The result of a call that was in flight when something died, and of which the tool cannot
    tell what came. `doubt` is the tool's sentence on what there may be."""
    said = doubt or "Find out before you do it again."
    return ToolResult(
        ok=False, unknown=True, output=f"It is not known whether {tool[:60]} happened. {said}"
    )


def _failed(failure: Failure) -> ToolResult:
    return ToolResult(ok=False, output=f"{failure.code}: {failure}")


def _converted(tool: Tool[Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return msgspec.convert(dict(arguments), tool.arguments)
    except msgspec.ValidationError as error:
        fields = ", ".join(field.name for field in msgspec.structs.fields(tool.arguments))
        raise Failure(
            "tool.failed", f"{tool.name}: {error}.", f"Its arguments are: {fields}."
        ) from error
