"""The generated parts of docs/protocol.md: its tables come from the types, so they cannot lie.

A filter from page to page: `python -m ipc_protocol.reference < docs/protocol.md` prints the page
with every part between `<!-- begin NAME -->` and `<!-- end NAME -->` written anew. Nothing else in
the package imports this module.
"""

import ast
import enum
import inspect
import re
import sys
import types
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from ipc_protocol import events, limits, methods, states
from ipc_protocol.errors import CODES, Problem
from ipc_protocol.frames import FrameType
from ipc_protocol.inference import Nothing

Struct = type[msgspec.Struct]

FRAME_USES: Final[dict[FrameType, tuple[str, str]]] = {
    FrameType.HELLO: ("0", "`Hello`"),
    FrameType.REQUEST: ("a new one", "`Request`"),
    FrameType.ITEM: ("of the request", "the method's item"),
    FrameType.RESULT: ("of the request", "the method's result"),
    FrameType.ERROR: ("of the request, or 0 for the connection", "`Problem`"),
    FrameType.CANCEL: ("of the request", "an empty map"),
    FrameType.GOODBYE: ("0", "an empty map"),
}

SERVED_BY: Final = {
    "control": "Served by the daemon, on its listening socket, for operators and their programs.",
    "gateway": "Served by the daemon, for its gateway process.",
    "engine": "Served by an engine process, for the daemon.",
    "zygote": "Served by the zygote, for the daemon.",
    "worker": "Served by a worker, for the daemon.",
    "compiler": "Served by a compiler, for the daemon.",
    "work": "Served by the daemon, for a worker that holds a delivery.",
    "egress": "Served by egress, for the daemon.",
    "dialling": "Served by the daemon on the line of an engine, which may ask one remote server.",
}

# ---- Types in words -----------------------------------------------------------------------------

_NAMES: Final[dict[Any, str]] = {
    str: "str",
    bytes: "bin",
    int: "int",
    float: "float",
    bool: "bool",
    type(None): "nil",
    Any: "any",
}


def type_in_words(type_: Any) -> str:
    """How the page names a type; a struct is a link to its own section."""
    if type_ in _NAMES:
        return _NAMES[type_]
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in arguments)
    if origin is Annotated:
        return type_in_words(arguments[0]) + "".join(map(_bound_in_words, arguments[1:]))
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(argument) for argument in arguments)
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        return f"array of {type_in_words(arguments[0])}"
    if origin is tuple:
        return f"array ({', '.join(map(type_in_words, arguments))})"
    if origin is dict:
        return f"map of {type_in_words(arguments[0])} to {type_in_words(arguments[1])}"
    assert isinstance(type_, type), type_
    assert issubclass(type_, msgspec.Struct), type_
    return f"[{type_.__name__}](#{type_.__name__.lower()})"


def _bound_in_words(meta: msgspec.Meta) -> str:
    if meta.ge is not None:
        return f", at least {meta.ge}"
    assert meta.max_length is not None
    return f", at most {meta.max_length} characters"


def structs_in(type_: Any) -> Iterator[Struct]:
    """The structs that `type_` names directly, in order."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        yield type_
    for argument in get_args(type_):
        yield from structs_in(argument)


def _hints(struct: Struct) -> dict[str, Any]:
    return get_type_hints(struct, include_extras=True)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT:
        value: Any = field.default_factory()
    else:
        value = field.default
    if isinstance(value, msgspec.Struct):
        return "its own defaults"
    words = {None: "nil", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, str):
        return f'"{value}"'
    return "empty" if isinstance(value, (list, tuple, dict, bytes)) else f"{value}"


def _field_notes(struct: Struct) -> dict[str, str]:
    """The strings below the fields of a struct, which Python itself does not keep."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    notes: dict[str, str] = {}
    field = ""
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and field:
            notes[field] = _neutral(" ".join(str(node.value.value).split()))
    return notes


def _neutral(text: str) -> str:
    """What Python calls None is nil to everybody else."""
    return re.sub(r"\bNone\b", "nil", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---- The parts of the page ----------------------------------------------------------------------


def frame_types() -> str:
    rows = [
        f"| {type_.value} | {type_.name} | {FRAME_USES[type_][0]} | {FRAME_USES[type_][1]} |"
        for type_ in FrameType
    ]
    return "\n".join(["| type | name | stream | body |", "|---|---|---|---|", *rows])


def limits_table() -> str:
    rows = [
        ("length of a body", f"{limits.FRAME_BODY_BYTES_MAX} bytes, or what the hello settles"),
        ("least length that an end must accept", f"{limits.BODY_BYTES_MIN} bytes"),
        (
            "nesting of maps and arrays, the body itself being the first",
            f"{limits.BODY_DEPTH_MAX} levels",
        ),
        (
            "values in a body: every value of a map and every element of an array, at any depth",
            f"{limits.BODY_ELEMENTS_MAX}",
        ),
        (
            "requests under way in one direction",
            f"{limits.STREAMS_MAX}, or what the hello settles",
        ),
        ("time until the peer's HELLO has come", f"{limits.HELLO_SECONDS_MAX:g} s"),
        ("answers that wait for a peer that does not read", f"{limits.WRITE_BYTES_MAX} bytes"),
        ("payload of a published message", f"{limits.PAYLOAD_BYTES_MAX} bytes"),
    ]
    return "\n".join(["| what | limit |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def error_codes() -> str:
    rows = [f"| `{code}` | {meaning} |" for code, meaning in CODES.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


def diagram(table: dict[tuple[Any, FrameType], Any], initial: enum.Enum, extra: list[str]) -> str:
    """A state table as a mermaid diagram, the frames between the same two states on one arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, type_), after in table.items():
        arrows.setdefault((before.value, after.value), []).append(type_.name)
    lines = [f"    {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items()]
    start = f"    [*] --> {initial.value}"
    return "\n".join(["```mermaid", "stateDiagram-v2", start, *lines, *extra, "```"])


def session_states() -> str:
    alive = [state for state in states.SessionState if state is not states.SessionState.FAILED]
    extra = [f"    {state.value} --> failed: ERROR on stream 0, or a violation" for state in alive]
    return diagram(states.SESSION, states.SessionState.GREETING, extra)


def stream_states() -> str:
    return diagram(states.STREAM, states.StreamState.OPEN, ["    closed --> [*]"])


def struct_section(struct: Struct) -> str:
    """One type: its docstring, and a row for each field."""
    lines = [f"#### {struct.__name__}", ""]
    own = struct.__dict__.get("__doc__")  # not the one of its base
    if own:
        lines += [_neutral(inspect.cleandoc(own)), ""]
    config = struct.__struct_config__
    fields = msgspec.structs.fields(struct)
    if not fields and config.tag is None:
        return "\n".join([*lines, "An empty map."])
    hints, notes = _hints(struct), _field_notes(struct)
    lines += ["| field | type | default |", "|---|---|---|"]
    if config.tag is not None:
        lines.append(f'| `{config.tag_field}` | "{config.tag}" | required |')
    for field in fields:
        note = f". {notes[field.name]}" if field.name in notes else ""
        words = _cell(type_in_words(hints[field.name]))
        lines.append(f"| `{field.encode_name}` | {words}{_cell(note)} | {_default(field)} |")
    return "\n".join(lines)


def with_parts(roots: list[Struct]) -> list[Struct]:
    """`roots` and every struct that their fields reach, each once, in the order of first use."""
    found: list[Struct] = []
    waiting = list(roots)
    while waiting:
        struct = waiting.pop(0)
        if struct in found:
            continue
        found.append(struct)
        inner = [part for hint in _hints(struct).values() for part in structs_in(hint)]
        waiting = inner + waiting
    return found


def line_methods() -> str:
    parts: list[str] = []
    for line, served in methods.LINES.items():
        parts += [f"### Line `{line}`", "", SERVED_BY[line], ""]
        parts += ["| method | parameters | items | result |", "|---|---|---|---|"]
        for method in served:
            item = "none" if method.item is Nothing else type_in_words(method.item)
            parts.append(
                f"| `{method.name}` | {type_in_words(method.params)} | {item} "
                f"| {type_in_words(method.result)} |"
            )
        parts.append("")
    return "\n".join(parts).rstrip()


def session_types() -> str:
    roots: list[Struct] = [events.Hello, events.Request, Problem]
    return "\n\n".join(struct_section(struct) for struct in with_parts(roots))


def method_types() -> str:
    roots = [
        struct
        for served in methods.LINES.values()
        for method in served
        for type_ in (method.params, method.item, method.result)
        for struct in structs_in(type_)
    ]
    in_order = sorted(with_parts(roots), key=lambda struct: struct.__name__)
    return "\n\n".join(struct_section(struct) for struct in in_order)


PARTS: Final = {
    "frame types": frame_types,
    "limits": limits_table,
    "session states": session_states,
    "stream states": stream_states,
    "session types": session_types,
    "error codes": error_codes,
    "methods": line_methods,
    "types": method_types,
}

_PART: Final = re.compile(r"(<!-- begin (?P<name>[a-z ]+) -->\n).*?(<!-- end (?P=name) -->)", re.S)


def renewed(page: str) -> str:
    """`page` with its generated parts as the types are now."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part['name']]()}\n\n{part[3]}", page)


if __name__ == "__main__":
    sys.stdout.write(renewed(sys.stdin.read()))
