"""What of a JSON Schema is promised: it is narrowed until every answer keeps it.

`refusing` has let it through. A keyword that draft 2020-12 does not know is dropped, as the draft
says. What remains is narrowed, never widened, so that answers are short, parse everywhere and are
mostly forced:

- an object that declares its properties has no others (see `_composes` for the exception);
- numbers have at most 15 digits before the point and six behind it, and no exponent;
- free values are nested at most `FREE_DEPTH` deep, and long lengths are cut.

Pure.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from inference_client.engine.refusing import (
    APPLICATORS,
    ASSERTIONS,
    BOUNDS,
    DEFINITIONS,
    LARGEST,
    Schema,
    checked,
    refused,
    types_of,
)

BYTES_MAX: Final = 64 * 1024
"""Of a schema as JSON. Compiling takes up to 1 ms per KiB; ours have about 1 KiB."""

LENGTH_MAX: Final = 16_384
"""Characters that can be counted: each costs llguidance about 6 of its 250,000 lexer states."""

FRACTION: Final = 1e-6
"""Numbers are multiples of it, which ends their digits."""

FREE_DEPTH: Final = 4
"""A model that has lost its way opens brackets for ever."""

FREE: Final = "free-"
"""Names of our own definitions, of values that the schema leaves free, begin so."""


def serialised(schema: Schema) -> str:
    """The schema as JSON, in its own order. Raises `inference.schema`."""
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise refused("#", "it is not JSON") from error
    if size > BYTES_MAX:
        raise refused("#", f"it has {size} bytes, more than {BYTES_MAX}")
    return text


def narrowed(text: str) -> Schema:
    """The schema in `text`, made so that llguidance keeps all of it. Raises `inference.schema`."""
    document: Schema = json.loads(text)
    nodes = checked(document)
    composes = any(_composes(node) for node in nodes.values())
    for path, node in nodes.items():
        if composes and "multipleOf" in node:
            raise refused(path, "`multipleOf` cannot stand in a schema that intersects others")
        _drop(node)
    definitions = document.get("$defs", {})
    names = _free_names(definitions)
    for node in nodes.values():
        _narrow(node, composes=composes, free={"$ref": f"#/$defs/{names[-1]}"})
    document["$defs"] = definitions | _free_values(names)
    return document


def patterns(schema: Schema) -> Iterator[Schema]:
    """The strings with a pattern in a narrowed schema, each as a schema of its own."""
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if isinstance(node.get("pattern"), str):
                kept = ("pattern", "minLength", "maxLength", "format")
                yield {"type": "string"} | {key: node[key] for key in kept if key in node}
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _composes(node: Schema) -> bool:
    """Does it intersect schemas, or exclude one by another?

    What one of them declares the other must then let through, and what fits a narrowed option of
    `oneOf` may fit the others as they were: nothing may be closed in such a document.
    """
    asserted = node.keys() & ASSERTIONS
    intersects = len(asserted) > 1 and bool(asserted & APPLICATORS)
    return intersects or "oneOf" in node or len(node.get("allOf", ())) > 1


def _drop(node: Schema) -> None:
    """Leave nothing that llguidance could take for more than an annotation."""
    for keyword in node.keys() - ASSERTIONS - DEFINITIONS:
        del node[keyword]
    if "string" not in types_of(node):
        node.pop("format", None)
    if node.get("minProperties", 0) > 1:
        del node["minProperties"]  # `required` asks for as many


def _narrow(node: Schema, *, composes: bool, free: Schema) -> None:
    asserted = node.keys() & ASSERTIONS
    if not asserted:
        node.update(free)
    if asserted <= APPLICATORS or asserted & {"enum", "const"}:
        return
    types = types_of(node)
    if types & {"integer", "number"}:
        for keyword in asserted & {*BOUNDS}:
            node[keyword] = min(max(node[keyword], -LARGEST - 1), LARGEST + 1)
        node["minimum"] = max(node.get("minimum", -LARGEST), -LARGEST)
        node["maximum"] = min(node.get("maximum", LARGEST), LARGEST)
    if "number" in types:
        node.setdefault("multipleOf", FRACTION)
    for keyword in asserted & {"maxLength", "maxItems", "maxProperties"}:
        node[keyword] = min(node[keyword], LENGTH_MAX)
    if "array" in types:
        node.setdefault("items", free)
    if "object" in types and "additionalProperties" not in node:
        if asserted & {"properties", "required"} and not composes:
            properties = node.setdefault("properties", {})
            for name in node.get("required", ()):
                properties.setdefault(name, free)
            node["additionalProperties"] = False
        else:
            node["additionalProperties"] = free


def _free_names(taken: Schema) -> list[str]:
    """Names for our definitions, the flattest first, that the document does not use."""
    prefix = FREE
    while any(name.startswith(prefix) for name in taken):
        prefix = f"{FREE}{prefix}"
    return [f"{prefix}{depth}" for depth in range(FREE_DEPTH + 1)]


def _free_values(names: list[str]) -> dict[str, Schema]:
    """Definitions of any JSON value, one for each depth."""
    definitions: dict[str, Schema] = {}
    for depth, name in enumerate(names):
        scalars = ["string", "number", "boolean", "null"]
        node: Schema = {"type": scalars if depth == 0 else [*scalars, "array", "object"]}
        _narrow(node, composes=False, free={"$ref": f"#/$defs/{names[max(depth - 1, 0)]}"})
        definitions[name] = node
    return definitions
