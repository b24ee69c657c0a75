"""Where a path of a component leads, by its letters alone. Pure.

A path is relative to a folder and may not lead out of it, not even to come back. `..` is resolved
here, which is exact as long as nothing on the way is a symbolic link; whoever opens the names sees
to that.
"""

from agent_runtime.component import limits


class PathRefused(Exception):
    """`code` is an error code of wasi:filesystem."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def names_of(path: str) -> tuple[str, ...]:
    """The names from the folder down to what is meant; none for the folder itself.

    Raises `PathRefused`.
    """
    if not path:
        raise PathRefused("no-entry")
    if "\0" in path:
        raise PathRefused("invalid")
    if len(path.encode()) > limits.PATH_BYTES_MAX:
        raise PathRefused("name-too-long")
    if path.startswith("/"):
        raise PathRefused("not-permitted")
    names: list[str] = []
    for name in path.split("/"):
        if name == "..":
            if not names:
                raise PathRefused("not-permitted")
            names.pop()
        elif name not in ("", "."):
            names.append(name)
        if len(names) > limits.PATH_DEPTH_MAX:
            raise PathRefused("name-too-long")
    return tuple(names)
