"""Describes the tools of an agent, and runs one call of it. A failure is an answer, not an error.

The registry checks the grant and the form of a call; what the call may touch is the tool's check.
"""

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.work import ToolDescription, ToolResult
from orchestrator.tools.tool import Grants, Tool, ToolContext, ToolOutcome

log = logging.getLogger(__name__)


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

    async def run(
        self, name: str, arguments: Mapping[str, Any], context: ToolContext
    ) -> ToolOutcome:
        """Run one call. Whatever goes wrong is a `ToolResult` that says what, and what to do."""
        try:
            tool = self._find(name, context.grants)
            return await tool.run(_converted(tool, arguments), context)
        except Failure as failure:
            return ToolResult(ok=False, output=f"{failure.code}: {failure}")
        except Exception:  # a defect in one tool must not cost the delivery
            log.exception("the tool %s failed for %s", name, context.grants.agent)
            return ToolResult(
                ok=False, output=f"tool.failed: {name} broke down. Do without it; it is logged."
            )

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


def _converted(tool: Tool[Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return msgspec.convert(dict(arguments), tool.arguments)
    except msgspec.ValidationError as error:
        fields = ", ".join(field.name for field in msgspec.structs.fields(tool.arguments))
        raise Failure(
            "tool.failed", f"{tool.name}: {error}.", f"Its arguments are: {fields}."
        ) from error
