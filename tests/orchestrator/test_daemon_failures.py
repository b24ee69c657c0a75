"""What is said when the daemon fails: every failure itself, however deep it lies."""

from ipc_protocol.errors import Failure
from orchestrator.daemon import _leaves


def test_failures_of_task_groups_within_others_are_said_one_by_one() -> None:
    failure, error = Failure("request.internal", "Broken."), OSError(28, "No space left")
    nested = ExceptionGroup("tasks", [ExceptionGroup("tasks", [failure]), error])
    assert list(_leaves(nested)) == [failure, error]
