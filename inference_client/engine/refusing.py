"""What of a JSON Schema is refused, with its place: what cannot be kept, and what is too large.

The meaning is that of draft 2020-12. A keyword that llguidance would not enforce is refused, and so
is a reference that never ends, or a value that is longer than an answer. What is left `narrowing`
makes into what is kept.

Pure.
"""

import json
import re
from typing import Any, Final
from urllib.parse import unquote

from ipc_protocol.errors import Failure

Schema = dict[str, Any]

DEPTH_MAX: Final = 32

PROPERTIES_MAX: Final = 256
"""Of one object. llguidance can have 2,000 items open at a time; an optional property opens 4."""

REFERENCES_MAX: Final = 128
"""Different targets of `$ref`. The search for endless ones visits the schema once for each."""

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


def checked(document: Schema) -> dict[str, Schema]:
    """Every schema in it, by JSON Pointer as a fragment, itself first as `#`; `true` has become an
    empty one, in place. Raises `inference.schema`."""
    return _Document(document).check()


def refused(path: str, what: str) -> Failure:
    return Failure(
        "inference.schema",
        f"The JSON Schema cannot be kept: at {path}, {what}.",
        "Use the keywords that docs/protocol.md lists for `schema`, within their limits.",
        path=path,
    )


class _Document:
    """One document, and what is known of the schemas in it."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._nodes: dict[str, Schema] = {}
        """By JSON Pointer, as a fragment."""
        self._ending: set[str] = set()
        """Targets of `$ref` that have an instance of finite size."""
        self._sizes: dict[str, int] = {}
        """Characters that a value of such a target must have."""

    def check(self) -> dict[str, Schema]:
        self._collect(self._document, "#", 0)
        for path, node in self._nodes.items():
            _check(node, path)
        self._check_references()
        return self._nodes

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
        types = types_of(node)
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


def _check(node: Schema, path: str) -> None:
    for keyword in sorted(UNENFORCED & node.keys()):
        if node[keyword] is not False or keyword != "uniqueItems":
            raise refused(path, f"`{keyword}` cannot be enforced")
    _check_shape(node, path)
    _check_values(node, path)
    _check_counts(node, path)
    for pattern in [node.get("pattern", ""), *node.get("patternProperties", ())]:
        _check_pattern(pattern, path)
    if "string" in types_of(node) and node.get("format", "date") not in FORMATS:
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


def types_of(node: Schema) -> frozenset[str]:
    """The names of the types that its `type` lets through."""
    given = node.get("type", TYPES)
    return frozenset((given,) if isinstance(given, str) else given)
