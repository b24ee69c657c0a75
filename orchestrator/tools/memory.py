"""`memory.search`: the agent's own memories. How they are found is the business of `recall`."""

from typing import Annotated, Final

from msgspec import Meta

from ipc_protocol.work import ToolResult
from orchestrator.tools import limits
from orchestrator.tools.tool import Tool, ToolArguments, ToolContext, cut, record, text


class SearchArguments(ToolArguments, frozen=True):
    query: Annotated[str, Meta(min_length=1, max_length=limits.QUERY_CHARACTERS_MAX)]


async def search(arguments: SearchArguments, context: ToolContext) -> ToolResult:
    memories = await context.recall(arguments.query, limits.MEMORIES_MAX)
    if not memories:
        return ToolResult(ok=True, output="You remember nothing about that.")
    lines = "\n".join(f"- {' '.join(memory.text.split())}" for memory in memories)
    return ToolResult(ok=True, output=cut(lines, limits.MEMORY_OUTPUT_CHARACTERS_MAX))


MEMORY_SEARCH: Final = Tool(
    "memory.search",
    "Search what you remember.",
    SearchArguments,
    lambda _: record({"query": text(limits.QUERY_CHARACTERS_MAX)}),
    search,
)
