"""From a JSON Schema to a GBNF grammar (llama.cpp's `grammars/README.md`) that keeps its promise.

Every text of the grammar parses as JSON and validates against the schema. A keyword that a grammar
cannot express is refused with its path, never ignored; docs/decisions says why the converter inside
llama-cpp-python is not used. The texts have the spacing of `json.dumps`, and the properties of an
object come in the order of the schema, so most of an answer is forced and little is left to chance.

Supported: `type` (also a list), `properties`, `required`, `additionalProperties` (only declared
properties are produced where some are), `items`, `prefixItems`, `minItems`, `maxItems`,
`minLength`, `maxLength`, `minimum` and `maximum` (and the exclusive ones), `enum`, `const`,
`anyOf`, `oneOf`, `$ref` within the document, and the empty schema. Annotations (`title`,
`description`, `default`, …) mean nothing here. Only some of the valid numbers are produced: of at
most 15 digits, and between bounds with at most three after the point.

Pure.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from inference_client.engine import numerals
from ipc_protocol.errors import Failure

REPETITIONS_MAX: Final = 2000
"""llama.cpp refuses longer repetitions, since each costs a rule."""

RULES_MAX: Final = 4096
"""A schema that needs more rules than this is an accident or an attack; ours need about 40."""

DEPTH_MAX: Final = 32

PROPERTIES_MAX: Final = 128

ANNOTATIONS: Final = frozenset(
    (
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "$defs", "definitions", "discriminator"),
    )
)

BOUNDS: Final = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))

KEYWORDS: Final[dict[str, frozenset[str]]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength")),
    "integer": BOUNDS,
    "number": BOUNDS,
    "boolean": frozenset(),
    "null": frozenset(),
}

CHARACTER: Final = r'[^"\\\x00-\x1F\x7F] | "\\" ["\\/bfnrt]'

TYPES_OF_VALUES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}

ANY: Final = {
    "any": 'any-object | any-array | any-string | any-number | "true" | "false" | "null"',
    "any-object": '"{" (any-member (", " any-member)*)? "}"',
    "any-member": 'any-string ": " any',
    "any-array": '"[" (any (", " any)*)? "]"',
    "any-string": r'"\"" character* "\""',
    "any-number": numerals.number(None, None),
}


def grammar_of(schema: dict[str, Any]) -> str:
    """The grammar; its root rule is `root`. Raises `inference.schema`."""
    return _Compiler(schema).compile()


class _Compiler:
    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._depth = 0

    def compile(self) -> str:
        root = self._visit(self._document, "#")
        rules = {"root": root, **self._rules}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items()) + "\n"

    def _visit(self, schema: Any, path: str) -> str:
        """An expression for one schema, safe to stand in a sequence."""
        if not isinstance(schema, dict):
            raise _refused(path, "a schema is an object")
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise _refused(path, f"it is nested deeper than {DEPTH_MAX} levels")
        try:
            return self._expression(schema, path)
        finally:
            self._depth -= 1

    def _expression(self, schema: dict[str, Any], path: str) -> str:
        given = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        for keyword, build in self._exclusive().items():
            if keyword in given:
                value = given.pop(keyword)
                if keyword in ("enum", "const"):
                    _check_types(value, keyword, given.pop("type", None), path)
                _refuse_others(given, path, beside=keyword)
                return build(value, f"{path}/{keyword}")
        if not given:
            return self._any(path)
        types = given.pop("type", None)
        if isinstance(types, list) and types:
            return self._types(types, given, path)
        if not isinstance(types, str) or types not in KEYWORDS:
            raise _refused(path, f"`type` is one of {', '.join(KEYWORDS)}")
        _refuse_others({key: 0 for key in given if key not in KEYWORDS[types]}, path, beside=types)
        return self._of_type(types, given, path)

    def _exclusive(self) -> dict[str, Callable[[Any, str], str]]:
        """Keywords that say everything about a value, and allow no other beside them."""
        return {
            "$ref": self._reference,
            "const": lambda value, path: _literal(_dump(value, path)),
            "enum": self._enum,
            "anyOf": self._any_of,
            "oneOf": self._any_of,
        }

    def _types(self, types: list[Any], given: dict[str, Any], path: str) -> str:
        known = set().union(*(KEYWORDS.get(str(name), frozenset()) for name in types))
        _refuse_others({key: 0 for key in given if key not in known}, path, beside="type")
        options = []
        for name in types:
            own = {key: value for key, value in given.items() if key in KEYWORDS.get(name, ())}
            options.append(self._visit({"type": name, **own}, path))
        return _either(options)

    def _of_type(self, name: str, given: dict[str, Any], path: str) -> str:
        match name:
            case "object":
                return self._object(given, path)
            case "array":
                return self._array(given, path)
            case "string":
                low, high = _bounds(given, "minLength", "maxLength", path)
                character = self._rule("character", CHARACTER, path)
                return rf'"\"" {character}{_repeat(low, high)} "\""'
            case "integer" | "number":
                return self._rule_for(_numeral(name, given, path), path)
            case "boolean":
                return '("true" | "false")'
            case _:
                return '"null"'

    def _any(self, path: str) -> str:
        """Any JSON value: a free-form argument of a tool."""
        self._rule("character", CHARACTER, path)
        for name, body in ANY.items():
            self._rule(name, body, path)
        return "any"

    def _enum(self, values: Any, path: str) -> str:
        if not isinstance(values, list) or not values:
            raise _refused(path, "`enum` is a list of at least one value")
        return _either([_literal(_dump(value, path)) for value in values])

    def _any_of(self, options: Any, path: str) -> str:
        if not isinstance(options, list) or not options:
            raise _refused(path, "it is a list of at least one schema")
        if path.endswith("/oneOf"):
            _refuse_overlap(options, path)
        return _either(
            [self._visit(option, f"{path}/{index}") for index, option in enumerate(options)]
        )

    def _reference(self, reference: Any, path: str) -> str:
        if reference in self._references:
            return self._references[reference]
        target: Any = self._document
        parts = str(reference).split("/")
        for part in parts[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, dict) else None
        if parts[0] != "#" or not isinstance(target, dict):
            raise _refused(path, f"`$ref` {reference!r} names nothing in this document")
        if set(target) - ANNOTATIONS == {"$ref"}:
            raise _refused(path, "a `$ref` may not point to another `$ref`")
        name = f"ref-{len(self._references)}"
        self._references[reference] = name
        depth, self._depth = self._depth, 0
        self._rule(name, self._visit(target, str(reference)), path)
        self._depth = depth
        return name

    def _object(self, given: dict[str, Any], path: str) -> str:
        properties = given.get("properties", {})
        required = given.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _refused(path, "`properties` is an object and `required` a list")
        if len(properties) > PROPERTIES_MAX:
            raise _refused(path, f"it has more than {PROPERTIES_MAX} properties")
        for name in required:
            if name not in properties:
                raise _refused(path, f"the required property {name!r} is not declared")
        if not properties:
            return self._map(given.get("additionalProperties", True), path)
        members = []
        for name, schema in properties.items():
            value = self._visit(schema, f"{path}/properties/{name}")
            key = _literal(json.dumps(name, ensure_ascii=False) + ": ")
            members.append((f"{key} {value}", name in required))
        return f'"{{" {self._rest(members, comma=False, path=path)} "}}"'

    def _map(self, values: Any, path: str) -> str:
        """An object of free-form members, all of one schema."""
        if values is False:
            return '"{}"'
        value = self._visit({} if values is True else values, f"{path}/additionalProperties")
        character = self._rule("character", CHARACTER, path)
        member = self._rule_for(rf'"\"" {character}* "\": " {value}', path)
        return f'"{{" ({member} (", " {member})*)? "}}"'

    def _rest(self, members: Sequence[tuple[str, bool]], *, comma: bool, path: str) -> str:
        """The members in order, each optional one there or not, with a comma between two."""
        if not members:
            return ""
        (member, required), behind = members[0], members[1:]
        separated = f'", " {member}' if comma else member
        if required:
            return f"{separated} {self._rest(behind, comma=True, path=path)}".rstrip()
        if comma:
            return f"({separated})? {self._rest(behind, comma=True, path=path)}".rstrip()
        present = f"{separated} {self._rest(behind, comma=True, path=path)}".rstrip()
        absent = self._rest(behind, comma=False, path=path) or '""'
        return self._rule_for(f"{present} | {absent}", path)

    def _array(self, given: dict[str, Any], path: str) -> str:
        if "prefixItems" in given:
            items = given["prefixItems"]
            if not isinstance(items, list) or given.get("items") is not False:
                raise _refused(path, "`prefixItems` is a list, and `items` beside it is false")
            if {given.get("minItems", 0), given.get("maxItems", len(items))} - {0, len(items)}:
                raise _refused(path, "`minItems` and `maxItems` agree with `prefixItems`")
            visited = [self._visit(item, f"{path}/{index}") for index, item in enumerate(items)]
            return '"[" ' + ' ", " '.join(visited) + ' "]"'
        low, high = _bounds(given, "minItems", "maxItems", path)
        item = self._rule_for(self._visit(given.get("items", {}), f"{path}/items"), path)
        if high == 0:
            return '"[]"'
        more = f'(", " {item}){_repeat(max(low - 1, 0), None if high is None else high - 1)}'
        inner = f"{item} {more}"
        return f'"[" {inner} "]"' if low else f'"[" ({inner})? "]"'

    def _rule_for(self, body: str, path: str) -> str:
        return self._rule(f"rule-{len(self._rules)}", body, path)

    def _rule(self, name: str, body: str, path: str) -> str:
        if len(self._rules) >= RULES_MAX:
            raise _refused(path, f"the schema needs more than {RULES_MAX} rules")
        self._rules[name] = body
        return name


def _refused(path: str, what: str) -> Failure:
    return Failure(
        "inference.schema",
        f"The JSON Schema cannot be turned into a grammar: at {path}, {what}.",
        "Use the keywords that docs/protocol.md lists for `schema`.",
        path=path,
    )


def _refuse_others(given: Any, path: str, *, beside: str) -> None:
    if given:
        names = ", ".join(f"`{key}`" for key in sorted(given))
        raise _refused(path, f"{names} cannot stand beside `{beside}`")


def _refuse_overlap(options: list[Any], path: str) -> None:
    """With `oneOf`, a value that fits two options is invalid: they must differ by type or const."""
    kinds: list[str] = []
    for option in options:
        kind = option.get("type") if isinstance(option, dict) else None
        kind = "number" if kind == "integer" else kind
        if not isinstance(kind, str) or kind in kinds:
            raise _refused(path, "the options differ by `type`; use `anyOf` where they overlap")
        kinds.append(kind)


def _check_types(value: Any, keyword: str, names: Any, path: str) -> None:
    """A `type` beside `enum` or `const` must be the type of every value."""
    if names is None:
        return
    allowed = names if isinstance(names, list) else [names]
    for one in value if keyword == "enum" and isinstance(value, list) else [value]:
        fits = [name for name in allowed if type(one) in TYPES_OF_VALUES.get(str(name), ())]
        if not fits:
            raise _refused(path, f"{one!r} is not of the type {names!r}")


def _numeral(kind: str, given: dict[str, Any], path: str) -> str:
    for name, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or abs(value) > numerals.LARGEST:
            raise _refused(path, f"`{name}` is a number of at most {numerals.DIGITS} digits")
    low = numerals.lowest(given.get("minimum"), given.get("exclusiveMinimum"))
    high = numerals.highest(given.get("maximum"), given.get("exclusiveMaximum"))
    if low is not None and high is not None and low > high:
        raise _refused(path, "no integer lies between the bounds")
    return numerals.integer(low, high) if kind == "integer" else numerals.number(low, high)


def _bounds(given: dict[str, Any], low: str, high: str, path: str) -> tuple[int, int | None]:
    least, most = given.get(low, 0), given.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and (not isinstance(value, int) or not 0 <= value <= REPETITIONS_MAX):
            raise _refused(path, f"`{name}` is an integer from 0 to {REPETITIONS_MAX}")
    if most is not None and most < least:
        raise _refused(path, f"`{low}` is more than `{high}`, so nothing is valid")
    return least, most


def _repeat(low: int, high: int | None) -> str:
    if high is None:
        return "*" if low == 0 else f"{{{low},}}"
    return f"{{{low},{high}}}"


def _either(options: Sequence[str]) -> str:
    unique = list(dict.fromkeys(options))
    return unique[0] if len(unique) == 1 else f"({' | '.join(unique)})"


def _dump(value: Any, path: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _refused(path, f"a value is not JSON ({error})") from error


def _literal(text: str) -> str:
    """A GBNF literal that stands for exactly this text."""
    escaped = "".join(
        {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(one, one)
        for one in text
    )
    return f'"{escaped}"'
