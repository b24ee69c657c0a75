"""The daemon's own files of agents: of those that were added while it ran, in its state folder.

When such an agent is retired and has finished, its file gets another name. So it is known what
became of an agent that others still name: that is no mistake, and keeps no daemon from starting.
Where the state folder is that of the configuration, all files of agents are somebody else's.
"""

from pathlib import Path
from typing import Final

AGENTS_FOLDER: Final = "agents.d"

_THERE: Final = ".toml"
_RETIRED: Final = ".retired"


class OwnFiles:
    """Those of the instance with this main file and this state folder."""

    def __init__(self, main: Path, state: Path) -> None:
        self._folder = state / AGENTS_FOLDER
        self._shared = is_shared(main, state)

    def path(self, name: str) -> Path:
        """Where the file of an agent is, or would be."""
        return self._folder / f"{name}{_THERE}"

    def find(self, name: str) -> Path | None:
        """The file of an agent that has one."""
        path = self.path(name)
        return None if self._shared or not path.exists() else path

    def names(self) -> list[str]:
        """The agents that have one."""
        return self._stems(_THERE)

    def retired(self) -> list[str]:
        """The agents that had one until they were retired."""
        return self._stems(_RETIRED)

    def retire(self, name: str) -> None:
        """Keep the file of an agent that has gone, where no start finds it."""
        path = self.find(name)
        if path is not None:
            path.rename(path.with_suffix(_RETIRED))

    def is_back(self, name: str) -> None:
        """It is not retired any more."""
        self.path(name).with_suffix(_RETIRED).unlink(missing_ok=True)

    def _stems(self, suffix: str) -> list[str]:
        if self._shared:
            return []
        files = self._folder.glob(f"*{suffix}")
        return sorted(file.stem for file in files if not file.name.startswith("."))


def is_shared(main: Path, state: Path) -> bool:
    """Whether the files of the configuration lie in the state folder."""
    return main.parent.resolve() == state.resolve()
