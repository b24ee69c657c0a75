"""What of a JSON Schema is promised: it is refused here, or narrowed until every answer keeps it.

The meaning is that of draft 2020-12. A keyword that llguidance would not enforce is refused with
its place; one that draft 2020-12 does not know is dropped, as the draft says. What remains is
narrowed, never widened, so that answers are short, parse everywhere and are mostly forced:

- an object that declares its properties has no others (see `_composes` for the exception);
- numbers have at most 15 digits before the point and six behind it, and no exponent;
- free values are nested at most `FREE_DEPTH` deep, and long lengths are cut.

Pure.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from ipc_protocol.errors import Failure

Schema = dict[str, Any]

BYTES_MAX: Final = 64 * 1024
"""Of a schema as JSON. Compiling takes up to 1 ms per KiB; ours have about 1 KiB."""

DEPTH_MAX: Final = 32

PROPERTIES_MAX: Final = 256
"""Of one object. llguidance can have 2,000 items open at a time; an optional property opens 4."""

REFERENCES_MAX: Final = 128
"""Different targets of `$ref`. The search for endless ones visits the schema once for each."""

LENGTH_MAX: Final = 16_384
"""Characters that can be counted: each costs llguidance about 6 of its 250,000 lexer states."""

ASKED_MAX: Final = 16_384
"""Characters that a value must have. Where they are fixed they are forced at once, which takes 8 ms
to find out while all other answers wait; and no context of ours holds many times as much."""

PATTERN_CHARS_MAX: Final = 512

EXPANDED_MAX: Final = 4096
"""Characters of a pattern with its counted repetitions written out. With 10^6 of them 124,000
tokens are forced at once, which takes 0.7 s to find out."""

MULTIPLE_MAX: Final = 1000
"""llguidance can tell multiples of up to about 5,000."""

DIGITS: Final = 15
LARGEST: Final = 10**DIGITS - 1
"""A double holds every integer of as many digits, so no parser changes it."""

FRACTION: Final = 1e-6
"""Numbers are multiples of it, which ends their digits."""

FREE_DEPTH: Final = 4
"""A model that has lost its way opens brackets for ever."""

FREE: Final = "free-"
"""Names of our own definitions, of values that the schema leaves free, begin so."""

TYPES: Final = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))

FORMATS: Final = frozenset(
    (
        *("date", "time", "date-time", "duration", "uuid"),
        *("email", "hostname", "ipv4", "ipv6", "uri"),
    )
)

UNENFORCED: Final = frozenset(
    (
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
        *("propertyNames", "dependentRequired", "dependentSchemas", "dependencies"),
        *("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"),
    )
)

MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLES: Final = ("items", "additionalProperties")
DEFINITIONS: Final = frozenset(("$defs", "definitions"))
APPLICATORS: Final = frozenset(("$ref", "anyOf", "oneOf", "allOf"))
BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNTS: Final = (
    *("minLength", "maxLength", "minItems", "maxItems"),
    *("minProperties", "maxProperties"),
)
ASSERTIONS: Final = (
    frozenset(("type", "enum", "const", "pattern", "format", "multipleOf", "required"))
    | {*BOUNDS, *COUNTS, *LISTS, *SINGLES, *MAPS, "$ref"}
) - DEFINITIONS

_UNWRITABLE: Final = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
"""Characters that JSON writes as \\u only: a model is not to produce them."""

_PARTS: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL)
"""Of a pattern: an escape, a class of characters, a counted repetition, or any other character."""


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
    return _Narrowing(json.loads(text)).narrowed()


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


def refused(path: str, what: str) -> Failure:
    return Failure(
        "inference.schema",
        f"The JSON Schema cannot be kept: at {path}, {what}.",
        "Use the keywords that docs/protocol.md lists for `schema`, within their limits.",
        path=path,
    )


class _Narrowing:
    """One document, a copy of our own that is changed in place."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._nodes: dict[str, Schema] = {}
        """By JSON Pointer, as a fragment."""
        self._ending: set[str] = set()
        """Targets of `$ref` that have an instance of finite size."""
        self._sizes: dict[str, int] = {}
        """Characters that a value of such a target must have."""

    def narrowed(self) -> Schema:
        self._collect(self._document, "#", 0)
        for path, node in self._nodes.items():
            _check(node, path)
        self._check_references()
        composes = any(_composes(node) for node in self._nodes.values())
        for path, node in self._nodes.items():
            if composes and "multipleOf" in node:
                raise refused(path, "`multipleOf` cannot stand in a schema that intersects others")
            _drop(node)
        names = self._free_names()
        for node in self._nodes.values():
            _narrow(node, composes=composes, free={"$ref": f"#/$defs/{names[-1]}"})
        self._document["$defs"] = self._document.get("$defs", {}) | _free_values(names)
        return self._document

    def _collect(self, node: Schema, path: str, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise refused(path, f"it is nested deeper than {DEPTH_MAX} levels")
        self._nodes[path] = node
        for keyword in SINGLES:
            if keyword in node:
                self._collect_child(node, keyword, f"{path}/{keyword}", depth)
        for keyword in (*MAPS, *LISTS):
            expected = dict if keyword in MAPS else list
            children = node.get(keyword, expected())
            if not isinstance(children, expected):
                what = "an object" if expected is dict else "a list"
                raise refused(f"{path}/{keyword}", f"this is {what} of schemas")
            for key in children if isinstance(children, dict) else range(len(children)):
                name = str(key).replace("~", "~0").replace("/", "~1")
                self._collect_child(children, key, f"{path}/{keyword}/{name}", depth)

    def _collect_child(self, parent: Any, key: Any, path: str, depth: int) -> None:
        if parent[key] is True:
            parent[key] = {}
        child = parent[key]
        if isinstance(child, dict):
            self._collect(child, path, depth + 1)
        elif child is not False:
            raise refused(path, "a schema is an object, true or false")

    def _check_references(self) -> None:
        targets: set[str] = set()
        for path, node in self._nodes.items():
            if "$id" in node and path != "#":
                raise refused(path, "`$id` inside of a schema would change what `$ref` means")
            if "$ref" in node:
                target = unquote(str(node["$ref"]))
                if target not in self._nodes:
                    raise refused(path, f"`$ref` {target!r} names no schema in this document")
                targets.add(target)
        if len(targets) > REFERENCES_MAX:
            raise refused("#", f"it refers to more than {REFERENCES_MAX} schemas")
        waiting = targets
        while waiting:
            found = {target for target in waiting if self._ends(self._nodes[target])}
            if not found:
                raise refused(min(waiting), "every value contains another of its kind, endlessly")
            self._ending |= found
            self._sizes |= {target: self._asked(self._nodes[target]) for target in found}
            waiting = waiting - found
        for path, node in self._nodes.items():
            if self._asked(node) > ASKED_MAX:
                raise refused(path, f"it asks for more than {ASKED_MAX} characters")

    def _ends(self, node: Any) -> bool:
        """Does it have an instance, as far as is known yet, that ends?"""
        if not isinstance(node, dict):
            return False
        if "$ref" in node and unquote(node["$ref"]) not in self._ending:
            return False
        if not all(self._ends(part) for part in node.get("allOf", ())):
            return False
        for keyword in ("anyOf", "oneOf"):
            if keyword in node and not any(self._ends(option) for option in node[keyword]):
                return False
        if "enum" in node or "const" in node:
            return True
        types = _types(node)
        return (
            bool(types - {"object", "array"})
            or ("object" in types and self._object_ends(node))
            or ("array" in types and self._array_ends(node))
        )

    def _object_ends(self, node: Schema) -> bool:
        properties = node.get("properties", {})
        rest = node.get("additionalProperties", {})
        if not all(self._ends(properties.get(name, rest)) for name in node.get("required", ())):
            return False
        if not node.get("minProperties"):
            return True
        options = [*properties.values(), *node.get("patternProperties", {}).values(), rest]
        return any(self._ends(option) for option in options)

    def _array_ends(self, node: Schema) -> bool:
        least = node.get("minItems", 0)
        prefix = node.get("prefixItems", [])
        if not all(self._ends(item) for item in prefix[:least]):
            return False
        return least <= len(prefix) or self._ends(node.get("items", {}))

    def _asked(self, node: Any) -> int:
        """About how many characters a value must have; of several options, of the longest."""
        if not isinstance(node, dict):
            return 0
        values = [*node.get("enum", ()), node.get("const")]
        size: int = max(len(json.dumps(value)) for value in values) + node.get("minLength", 0)
        if "$ref" in node:
            size += self._sizes.get(unquote(node["$ref"]), 0)
        size += sum(self._asked(part) for part in node.get("allOf", ()))
        for keyword in ("anyOf", "oneOf"):
            size += max((self._asked(option) for option in node.get(keyword, ())), default=0)
        properties = node.get("properties", {})
        rest = node.get("additionalProperties", {})
        for name in node.get("required", ()):
            size += len(name) + self._asked(properties.get(name, rest))
        least = node.get("minItems", 0)
        prefix = node.get("prefixItems", [])[:least]
        size += sum(self._asked(item) for item in prefix)
        if least > len(prefix):
            size += (least - len(prefix)) * (1 + self._asked(node.get("items", {})))
        return min(size, ASKED_MAX + 1)

    def _free_names(self) -> list[str]:
        """Names for our definitions, the flattest first, that the document does not use."""
        prefix = FREE
        taken = self._document.get("$defs", {})
        while any(name.startswith(prefix) for name in taken):
            prefix = f"{FREE}{prefix}"
        return [f"{prefix}{depth}" for depth in range(FREE_DEPTH + 1)]


# ---- What is refused -----------------------------------------------------------------------------


def _check(node: Schema, path: str) -> None:
    for keyword in sorted(UNENFORCED & node.keys()):
        if node[keyword] is not False or keyword != "uniqueItems":
            raise refused(path, f"`{keyword}` cannot be enforced")
    _check_shape(node, path)
    _check_values(node, path)
    _check_counts(node, path)
    for pattern in [node.get("pattern", ""), *node.get("patternProperties", ())]:
        _check_pattern(pattern, path)
    if "string" in _types(node) and node.get("format", "date") not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise refused(path, f"`format` {node['format']!r} is none of {known}")


def _check_shape(node: Schema, path: str) -> None:
    given = node.get("type", "null")
    types = given if isinstance(given, list) else [given]
    if not types or not all(isinstance(name, str) and name in TYPES for name in types):
        raise refused(path, f"`type` is one or more of {', '.join(sorted(TYPES))}")
    for keyword in ("enum", "anyOf", "oneOf", "allOf"):
        if keyword in node and (not isinstance(node[keyword], list) or not node[keyword]):
            raise refused(path, f"`{keyword}` is a list that is not empty")
    required = node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise refused(path, "`required` is a list of names")
    if len({*node.get("properties", ()), *required}) > PROPERTIES_MAX:
        raise refused(path, f"it has more than {PROPERTIES_MAX} properties")


def _check_values(node: Schema, path: str) -> None:
    """Numbers of keywords, and the values of `enum` and `const`."""
    for keyword in BOUNDS:
        if keyword in node and not _is_number(node[keyword]):
            raise refused(path, f"`{keyword}` is a number")
    if "multipleOf" in node:
        multiple = node["multipleOf"]
        if not _is_number(multiple) or multiple % 1 or not 1 <= multiple <= MULTIPLE_MAX:
            raise refused(path, f"`multipleOf` is an integer from 1 to {MULTIPLE_MAX}")
    waiting: list[Any] = [node.get("enum"), node.get("const")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif _is_number(value) and abs(value) > LARGEST:
            raise refused(path, f"a value has more than {DIGITS} digits")
        elif isinstance(value, str) and _UNWRITABLE.search(value):
            raise refused(path, f"the value {value!r} has a control character")


def _check_counts(node: Schema, path: str) -> None:
    for keyword in COUNTS:
        count = node.get(keyword, 0)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise refused(path, f"`{keyword}` is an integer of at least 0")
    if node.get("minProperties", 0) > max(1, len(set(node.get("required", ())))):
        # A name can come twice, and a parser keeps one of the two.
        raise refused(path, "`minProperties` above 1 is more than `required` asks for")


def _check_pattern(pattern: Any, path: str) -> None:
    if not isinstance(pattern, str):
        raise refused(path, "`pattern` is a string")
    if len(pattern) > PATTERN_CHARS_MAX:
        raise refused(path, f"a pattern has more than {PATTERN_CHARS_MAX} characters")
    if _expanded(pattern) > EXPANDED_MAX:
        raise refused(path, f"a pattern repeats more than {EXPANDED_MAX} characters")


def _expanded(pattern: str) -> int:
    """About how many characters it has with its repetitions written out."""
    open_groups = [0]
    last = 0
    for part in _PARTS.finditer(pattern):
        if part[1] is not None:
            open_groups[-1] += last * (max(int(count or 1) for count in part.groups()) - 1)
            last *= max(int(count or 1) for count in part.groups())
        elif part[0] == "(":
            open_groups.append(0)
        elif part[0] == ")" and len(open_groups) > 1:
            last = open_groups.pop()
            open_groups[-1] += last
        else:
            last = 1
            open_groups[-1] += 1
    return sum(open_groups)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _types(node: Schema) -> frozenset[str]:
    given = node.get("type", TYPES)
    return frozenset((given,) if isinstance(given, str) else given)


def _composes(node: Schema) -> bool:
    """Does it intersect schemas, or exclude one by another?

    What one of them declares the other must then let through, and what fits a narrowed option of
    `oneOf` may fit the others as they were: nothing may be closed in such a document.
    """
    asserted = node.keys() & ASSERTIONS
    intersects = len(asserted) > 1 and bool(asserted & APPLICATORS)
    return intersects or "oneOf" in node or len(node.get("allOf", ())) > 1


# ---- What is narrowed ----------------------------------------------------------------------------


def _drop(node: Schema) -> None:
    """Leave nothing that llguidance could take for more than an annotation."""
    for keyword in node.keys() - ASSERTIONS - DEFINITIONS:
        del node[keyword]
    if "string" not in _types(node):
        node.pop("format", None)
    if node.get("minProperties", 0) > 1:
        del node["minProperties"]  # `required` asks for as many


def _narrow(node: Schema, *, composes: bool, free: Schema) -> None:
    asserted = node.keys() & ASSERTIONS
    if not asserted:
        node.update(free)
    if asserted <= APPLICATORS or asserted & {"enum", "const"}:
        return
    types = _types(node)
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


def _free_values(names: list[str]) -> dict[str, Schema]:
    """Definitions of any JSON value, one for each depth."""
    definitions: dict[str, Schema] = {}
    for depth, name in enumerate(names):
        scalars = ["string", "number", "boolean", "null"]
        node: Schema = {"type": scalars if depth == 0 else [*scalars, "array", "object"]}
        _narrow(node, composes=False, free={"$ref": f"#/$defs/{names[max(depth - 1, 0)]}"})
        definitions[name] = node
    return definitions
