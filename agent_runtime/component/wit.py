"""The text of a WIT package into types, and types into WIT notation. Pure.

It reads the subset of WIT that the packages of `wit/` are written in: one package with a version,
interfaces of types and functions, `use` of a type of another interface, and worlds that import,
export and include. There are no resources, no other packages, no gates and no block comments, and a
name has to be declared above the place that uses it. Whoever builds a component reads the same text
with the tools of its language, which know the rest of WIT.

A name stands for its structure: `use bus.{envelope}` and the record written out are the same type.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import msgspec

from agent_runtime.component.types import (
    Enum,
    Flags,
    Function,
    Interface,
    ListOf,
    OptionOf,
    Primitive,
    Record,
    ResultOf,
    TupleOf,
    Type,
    Unsupported,
    Variant,
)

T = TypeVar("T")

PRIMITIVES: Final = frozenset(
    {
        "bool", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32", "f64", "char",
        "string",
    }
)  # fmt: skip
KEYWORDS: Final = PRIMITIVES | {
    "as", "async", "borrow", "constructor", "enum", "export", "flags", "from", "func", "future",
    "import", "include", "interface", "list", "option", "own", "package", "record", "resource",
    "result", "static", "stream", "tuple", "type", "use", "variant", "with", "world",
}  # fmt: skip
"""What is no name, unless `%` stands before it."""


class WitError(ValueError):
    """The text is not WIT, or not of the subset. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {message}")


class Declared(msgspec.Struct, frozen=True):
    """An interface as it was written. `types` are those that it names, `uses` says from which
    interface each name that is not its own came."""

    functions: dict[str, Function]
    types: dict[str, Type]
    uses: dict[str, str]

    @property
    def interface(self) -> Interface:
        return Interface(functions=self.functions)


class World(msgspec.Struct, frozen=True):
    """The names of interfaces, with those of the worlds that it includes."""

    imports: frozenset[str]
    exports: frozenset[str]


class Package(msgspec.Struct, frozen=True):
    """`docs` are the texts after `///`, by the path of what they stand above: *bus*,
    *bus.envelope*, *bus.send-error.expired*; the package's own is the empty path."""

    name: str
    version: str
    interfaces: dict[str, Declared]
    worlds: dict[str, World]
    docs: dict[str, str]

    def full_name(self, interface: str) -> str:
        return f"{self.name}/{interface}@{self.version}"


def parse(text: str) -> Package:
    """Read one package. Raises `WitError`."""
    return _Parser(text).package()


# ---- Notation ------------------------------------------------------------------------------------


def spell(type_: Type) -> str:
    """The type in WIT notation. Records and their like, which WIT always names, are written out."""
    match type_:
        case Primitive(name) | Unsupported(name):
            return name
        case ListOf(element):
            return f"list<{spell(element)}>"
        case OptionOf(some):
            return f"option<{spell(some)}>"
        case TupleOf(elements):
            return f"tuple<{', '.join(map(spell, elements))}>"
        case ResultOf(ok, err):
            return _spell_result(ok, err)
        case Record(fields):
            return _braced("record", (f"{_name(name)}: {spell(of)}" for name, of in fields))
        case Variant(cases):
            return _braced("variant", (_spell_case(name, of) for name, of in cases))
        case Enum(names):
            return _braced("enum", map(_name, names))
        case Flags(names):
            return _braced("flags", map(_name, names))
    return "own<resource>" if type_.owned else "borrow<resource>"


def spell_function(function: Function) -> str:
    parameters = ", ".join(f"{_name(name)}: {spell(of)}" for name, of in function.parameters)
    result = "" if function.result is None else f" -> {spell(function.result)}"
    return f"func({parameters}){result}"


def canonical(package: Package) -> str:
    """What the package means, without its comments, its layout and its order.

    Two texts of the same canonical form are the same contract. Names of types count, though no
    component shows them: the bindings that a builder generates carry them.
    """
    lines = [f"interface {name}" for name in package.interfaces]
    for name, declared in package.interfaces.items():
        lines += [f"{name}: use {source}.{used}" for used, source in declared.uses.items()]
        lines += [f"{name}: type {of} = {spell(type_)}" for of, type_ in declared.types.items()]
        lines += [
            f"{name}: {of}: {spell_function(function)}"
            for of, function in declared.functions.items()
        ]
    for name, world in package.worlds.items():
        lines.append(f"world {name}")
        lines += [f"world {name}: import {interface}" for interface in world.imports]
        lines += [f"world {name}: export {interface}" for interface in world.exports]
    return "\n".join([f"package {package.name}@{package.version}", *sorted(lines), ""])


def _spell_result(ok: Type | None, err: Type | None) -> str:
    if err is not None:
        return f"result<{'_' if ok is None else spell(ok)}, {spell(err)}>"
    return "result" if ok is None else f"result<{spell(ok)}>"


def _spell_case(name: str, payload: Type | None) -> str:
    return _name(name) if payload is None else f"{_name(name)}({spell(payload)})"


def _braced(kind: str, members: Iterable[str]) -> str:
    return f"{kind} {{ {', '.join(members)} }}"


def _name(name: str) -> str:
    return f"%{name}" if name in KEYWORDS else name


# ---- Tokens --------------------------------------------------------------------------------------

_WORD: Final = r"(?:[a-z][a-z0-9]*|[A-Z][A-Z0-9]*)"
_TOKEN: Final = re.compile(
    rf"""
      (?P<blank> \s+ )
    | (?P<docs> /// [^\n]* )
    | (?P<comment> // [^\n]* )
    | (?P<version> @ [0-9]+\.[0-9]+\.[0-9]+ )
    | (?P<name> %? {_WORD} (?: - {_WORD} )* )
    | (?P<sign> -> | [{{}}()<>,;:=._] )
    """,
    re.VERBOSE,
)
_END: Final = "the end of the text"


class _Token(NamedTuple):
    text: str
    kind: str
    line: int
    docs: str


def _tokens(text: str) -> Iterator[_Token]:
    place, line = 0, 1
    docs: list[str] = []
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise WitError(line, f"{text[place]!r} is not expected anywhere")
        token, kind = found[0], found.lastgroup or ""
        if kind == "docs":
            docs.append(token.removeprefix("///").strip())
        elif kind not in ("blank", "comment"):
            yield _Token(token, kind, line, "\n".join(docs))
            docs = []
        line += token.count("\n")
        place = found.end()
    yield _Token(_END, "end", line, "")


# ---- Grammar -------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent, one token ahead. A method consumes what it is named after."""

    def __init__(self, text: str) -> None:
        self._rest = _tokens(text)
        self._next = next(self._rest)
        self._interfaces: dict[str, Declared] = {}
        self._worlds: dict[str, World] = {}
        self._docs: dict[str, str] = {}
        self._scope: dict[str, Type] = {}
        """The types that have a name in the interface that is being read."""

    def package(self) -> Package:
        self._document(self._next.docs, "")
        self._expect("package")
        namespace = self._new_name()
        self._expect(":")
        name = f"{namespace}:{self._new_name()}"
        version = self._version()
        self._expect(";")
        while self._next.kind != "end":
            docs = self._next.docs
            read = self._choice({"interface": self._interface, "world": self._world})
            self._document(docs, read())
        return Package(name, version, self._interfaces, self._worlds, self._docs)

    def _interface(self) -> str:
        name = self._new_name(*self._interfaces, *self._worlds)
        self._scope = {}
        declared = Declared(functions={}, types={}, uses={})
        self._expect("{")
        while not self._accept("}"):
            if self._accept("use"):
                self._use(declared)
            else:
                self._item(name, declared)
        self._interfaces[name] = declared
        return name

    def _use(self, declared: Declared) -> None:
        source = self._known("interface", self._interfaces)
        types = self._interfaces[source].types
        self._expect(".")
        self._expect("{")

        def used() -> None:
            self._refuse_twice(*self._scope, *declared.functions)
            name = self._known(f"type of {source}", types)
            self._scope[name] = types[name]
            declared.uses[name] = source

        self._some(used, "}")
        self._expect(";")

    def _item(self, interface: str, declared: Declared) -> None:
        """A type or a function."""
        docs = self._next.docs
        kinds: dict[str, Callable[[str], Type]] = {
            "record": self._record,
            "variant": self._variant,
            "enum": lambda path: Enum(self._labels(path)),
            "flags": lambda path: Flags(self._labels(path)),
            "type": lambda path: self._alias(),
        }
        kind = next(filter(self._accept, kinds), None)
        name = self._new_name(*self._scope, *declared.functions)
        path = f"{interface}.{name}"
        self._document(docs, path)
        if kind is None:
            self._expect(":")
            declared.functions[name] = self._function()
        else:
            declared.types[name] = self._scope[name] = kinds[kind](path)

    def _record(self, path: str) -> Type:
        fields: dict[str, Type] = {}

        def field() -> None:
            name = self._member(path, fields)
            self._expect(":")
            fields[name] = self._type()

        self._expect("{")
        self._some(field, "}")
        return Record(tuple(fields.items()))

    def _variant(self, path: str) -> Type:
        cases: dict[str, Type | None] = {}

        def case() -> None:
            name = self._member(path, cases)
            cases[name] = None
            if self._accept("("):
                cases[name] = self._type()
                self._expect(")")

        self._expect("{")
        self._some(case, "}")
        return Variant(tuple(cases.items()))

    def _labels(self, path: str) -> tuple[str, ...]:
        labels: list[str] = []
        self._expect("{")
        self._some(lambda: labels.append(self._member(path, labels)), "}")
        return tuple(labels)

    def _member(self, path: str, before: Collection[str]) -> str:
        docs = self._next.docs
        name = self._new_name(*before)
        self._document(docs, f"{path}.{name}")
        return name

    def _alias(self) -> Type:
        self._expect("=")
        alias = self._type()
        self._expect(";")
        return alias

    def _function(self) -> Function:
        parameters: dict[str, Type] = {}

        def parameter() -> None:
            name = self._new_name(*parameters)
            self._expect(":")
            parameters[name] = self._type()

        self._expect("func")
        self._expect("(")
        if not self._accept(")"):
            self._some(parameter, ")")
        result = self._type() if self._accept("->") else None
        self._expect(";")
        return Function(tuple(parameters.items()), result)

    def _type(self) -> Type:
        if self._next.text in PRIMITIVES:
            return Primitive(self._take())
        if self._accept("list"):
            return ListOf(self._argument())
        if self._accept("option"):
            return OptionOf(self._argument())
        if self._accept("tuple"):
            self._expect("<")
            return TupleOf(tuple(self._some(self._type, ">")))
        if self._accept("result"):
            return self._result()
        return self._scope[self._known("type", self._scope)]

    def _argument(self) -> Type:
        self._expect("<")
        argument = self._type()
        self._expect(">")
        return argument

    def _result(self) -> Type:
        ok = err = None
        if self._accept("<"):
            if self._accept("_"):
                self._expect(",")
                err = self._type()
            else:
                ok = self._type()
                err = self._type() if self._accept(",") else None
            self._expect(">")
        return ResultOf(ok, err)

    def _world(self) -> str:
        name = self._new_name(*self._interfaces, *self._worlds)
        imports: set[str] = set()
        exports: set[str] = set()

        def include() -> None:
            included = self._worlds[self._known("world", self._worlds)]
            imports.update(included.imports)
            exports.update(included.exports)

        clauses = {
            "import": lambda: imports.add(self._known("interface", self._interfaces)),
            "export": lambda: exports.add(self._known("interface", self._interfaces)),
            "include": include,
        }
        self._expect("{")
        while not self._accept("}"):
            self._choice(clauses)()
            self._expect(";")
        self._worlds[name] = World(frozenset(imports), frozenset(exports))
        return name

    def _some(self, member: Callable[[], T], end: str) -> list[T]:
        """At least one, with commas between them and perhaps after the last, and `end`."""
        members = [member()]
        while not self._accept(end):
            self._expect(",")
            if self._accept(end):
                break
            members.append(member())
        return members

    # ---- One token -------------------------------------------------------------------------------

    def _take(self) -> str:
        text = self._next.text
        self._next = next(self._rest)
        return text

    def _accept(self, text: str) -> bool:
        if self._next.text != text:
            return False
        self._take()
        return True

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._unexpected(repr(text))

    def _choice(self, choices: dict[str, T]) -> T:
        if self._next.text not in choices:
            raise self._unexpected(" or ".join(map(repr, choices)))
        return choices[self._take()]

    def _version(self) -> str:
        if self._next.kind != "version":
            raise self._unexpected("a version such as '@0.1.0'")
        return self._take().removeprefix("@")

    def _new_name(self, *taken: str) -> str:
        if self._next.kind != "name" or self._next.text in KEYWORDS:
            raise self._unexpected("a name")
        self._refuse_twice(*taken)
        return self._take().removeprefix("%")

    def _known(self, what: str, names: Collection[str]) -> str:
        if self._next.text.removeprefix("%") not in names or self._next.text in KEYWORDS:
            raise self._unexpected(f"a known {what}")
        return self._take().removeprefix("%")

    def _refuse_twice(self, *taken: str) -> None:
        if self._next.text.removeprefix("%") in taken:
            raise WitError(self._next.line, f"{self._next.text} is declared twice")

    def _unexpected(self, expected: str) -> WitError:
        return WitError(self._next.line, f"expected {expected}, found {self._next.text!r}")

    def _document(self, docs: str, path: str) -> None:
        if docs:
            self._docs[path] = docs
