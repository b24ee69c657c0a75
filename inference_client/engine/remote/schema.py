"""Whether a typed answer of a remote server is what was asked for. Pure.

A server may enforce a schema, only hint at it, or ignore it: none of them is believed. And a schema
may come from an agent, so that checking against it must end: keywords that can take for ever are
refused before anything is asked, references lead nowhere but into the schema itself, and the steps
of a check are counted.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from jsonschema import Draft202012Validator, SchemaError, ValidationError  # type: ignore[import-untyped]
from jsonschema.validators import extend  # type: ignore[import-untyped]
from referencing.exceptions import Unresolvable
from referencing.jsonschema import EMPTY_REGISTRY

from ipc_protocol.errors import Failure

STEPS_MAX: Final = 200_000
"""Of one check, a keyword at one place each: some 2 s. The largest answer has as many values."""

REFUSED: Final = frozenset(
    {
        *("pattern", "patternProperties"),
        *("unevaluatedItems", "unevaluatedProperties"),
        *("$dynamicRef", "$recursiveRef"),
    }
)
"""An expression can take exponential time over one string; the others walk a schema uncounted."""


class _TooLong(Exception):
    """A check has taken all its steps."""


class AnswerSchema:
    """A JSON Schema (draft 2020-12) to check answers against."""

    def __init__(self, schema: dict[str, Any]) -> None:
        """Raises `inference.schema` for what is none, or cannot be checked."""
        try:
            unchecked = next(_keywords(schema, REFUSED), None)
            if unchecked is not None:
                raise _unusable(f"has {unchecked!r}, which is not checked for a remote model")
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise _unusable(f"is none: {_short(error)}") from error
        except RecursionError as error:
            raise _unusable("is nested too deeply") from error
        self._schema = schema

    def check(self, text: str, model: str) -> None:
        """Whether the answer parses and validates. Raises `inference.schema`; it may take 2 s."""
        try:
            value = msgspec.json.decode(text)
            validator = _counting(STEPS_MAX)(self._schema, registry=EMPTY_REGISTRY)
            error = next(validator.iter_errors(value), None)
        except msgspec.DecodeError as error:
            raise _invalid(model, f"is no JSON: {error}") from error
        except (RecursionError, _TooLong) as error:
            raise _unusable("takes too long to check") from error
        except OverflowError as error:
            raise _invalid(model, "has a number that is too large to check") from error
        except (Unresolvable, ValueError, TypeError, LookupError, AttributeError) as error:
            # The library takes what a reference leads to for a schema, whatever it is.
            raise _unusable("refers to what is no schema within it") from error
        if error is not None:
            raise _invalid(model, f"does not fit: {_short(error)}")


Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


def _counting(steps: int) -> Any:
    """A validator whose keywords take `steps` steps at most, all together."""
    left = steps

    def counted(name: str, keyword: Keyword) -> Keyword:
        def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            nonlocal left
            left -= _steps(name, value, instance)
            if left < 0:
                raise _TooLong
            return keyword(validator, value, instance, schema)

        return check

    keywords = Draft202012Validator.VALIDATORS.items()
    return extend(Draft202012Validator, {name: counted(name, check) for name, check in keywords})


def _steps(name: str, value: Any, instance: Any) -> int:
    """Of one keyword at one place, without what it descends to: that is counted there. `value` is
    what the schema has behind the keyword."""
    size = len(instance) if isinstance(instance, list | dict | str) else 1
    if name == "uniqueItems":
        return size * size
    if name in ("enum", "const"):
        return _values(value)
    # Whether it descends or not, it looks at each of its names or schemas, and makes an error of
    # each choice that does not fit.
    looks = len(value) if isinstance(value, list | dict) else 0
    return 1 + size // 64 + (4 * looks if name in ("anyOf", "oneOf") else looks)


def _values(node: Any) -> int:
    """How many there are in a value, itself among them: comparing looks at each once at most."""
    if isinstance(node, dict):
        return 1 + sum(map(_values, node.values()))
    return 1 + sum(map(_values, node)) if isinstance(node, list) else 1


def _keywords(node: Any, names: frozenset[str]) -> Iterator[str]:
    """Which of the keywords a schema has; a property of such a name is a table or a truth value,
    and no expression, so only `pattern` needs a look at what it holds."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in names and (key != "pattern" or isinstance(value, str)):
                yield key
            yield from _keywords(value, names)
    elif isinstance(node, list):
        for item in node:
            yield from _keywords(item, names)


def _short(error: Any) -> str:
    """Where, and which keyword: never the value, which may be long and is not ours."""
    path = "".join(f"[{part!r}]" for part in error.absolute_path)
    return f"`{error.validator}` at ${path[:200]}"


def _unusable(fault: str) -> Failure:
    return Failure(
        "inference.schema", f"The JSON Schema {fault}.", "Use plain types, `enum`, and bounds."
    )


def _invalid(model: str, fault: str) -> Failure:
    return Failure(
        "inference.schema",
        f"The answer of {model} {fault}. Its server does not enforce the JSON Schema.",
        "Use a server that enforces `response_format`, or say in the prompt what is wanted.",
    )
