"""Every tool there is. An agent has those that its configuration lists."""

from typing import Final

from orchestrator.tools import attention, files, host, memory, messages, tasks
from orchestrator.tools.registry import Registry

CATALOGUE: Final = Registry(
    (
        files.FS_READ,
        files.FS_LIST,
        files.FS_WRITE,
        host.HOST_READ,
        messages.MESSAGE_SEND,
        tasks.TASK_CREATE,
        tasks.TASK_UPDATE,
        memory.MEMORY_SEARCH,
        attention.ATTENTION_REQUEST,
    )
)
