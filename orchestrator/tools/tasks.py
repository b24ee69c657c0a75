"""`task.create` and `task.update`: staged changes of the agent's own list of tasks.

Whose task it is, is the store's check: its triggers refuse a change by anybody but the owner.
"""

from typing import Annotated, Final, Literal, get_args

from msgspec import Meta

from ipc_protocol.errors import Failure
from ipc_protocol.work import TaskChange, ToolResult
from orchestrator.tools import limits
from orchestrator.tools.tool import Tool, ToolArguments, ToolContext, choice, record, text

TaskState = Literal["open", "doing", "done", "dropped"]


class CreateArguments(ToolArguments, frozen=True):
    title: Annotated[str, Meta(max_length=limits.TITLE_CHARACTERS_MAX)]


class UpdateArguments(ToolArguments, frozen=True):
    id: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    state: TaskState
    note: Annotated[str, Meta(max_length=limits.NOTE_CHARACTERS_MAX)] = ""


async def create(arguments: CreateArguments, _: ToolContext) -> ToolResult:
    title = arguments.title.strip()
    if not title:
        raise Failure("tool.failed", "The task has no title.", "Say in a few words what to do.")
    return ToolResult(
        ok=True,
        output=f"The task {title!r} is opened when you are done.",
        staged=TaskChange(id=None, title=title, state="open"),
    )


async def update(arguments: UpdateArguments, context: ToolContext) -> ToolResult:
    # The store would refuse the whole completion, which must not come to that.
    unfinished = await context.unfinished_tasks()
    if arguments.id not in unfinished:
        known = ", ".join(map(str, unfinished)) or "none"
        raise Failure("tool.failed", f"You have no task {arguments.id}.", f"You have: {known}.")
    return ToolResult(
        ok=True,
        output=f"Task {arguments.id} becomes {arguments.state} when you are done.",
        staged=TaskChange(id=arguments.id, state=arguments.state, note=arguments.note.strip()),
    )


TASK_CREATE: Final = Tool(
    "task.create",
    "Note a task for later.",
    CreateArguments,
    lambda _: record({"title": text(limits.TITLE_CHARACTERS_MAX)}),
    create,
    outward=True,
)
TASK_UPDATE: Final = Tool(
    "task.update",
    "Change the state of one of your tasks.",
    UpdateArguments,
    lambda _: record(
        {
            "id": {"type": "integer"},
            "state": choice(get_args(TaskState)),
            "note": text(limits.NOTE_CHARACTERS_MAX),
        }
    ),
    update,
    outward=True,
)
