"""What no type checker sees: queues without a size, awaits under a lock, tasks without an owner.

Each check walks the syntax trees of all four packages, and is itself tested against a snippet that
it must object to. An exception to a rule stands either beside the code, as a comment `# bound: why`
for a queue that something else keeps short, or in `ALLOWED` with its reason.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("ipc_protocol", "inference_client", "agent_runtime", "orchestrator")

ALLOWED: Final[dict[tuple[str, str, str], str]] = {
    ("queue", "ipc_protocol/response.py", "Response.__init__"): (
        "the connection stops reading its socket at STREAM_ITEMS_MAX items"
    ),
}
"""(check, file, function) to the reason why the rule does not apply there."""

ONE_MODULE_EACH: Final = ("llama_cpp", "wasmtime", "apsw")
FORBIDDEN: Final = {
    "sqlite3": "the store's file must never be opened by a second SQLite library; use apsw",
    "requests": "HTTP is parsed in the gateway and in egress only, with aiohttp",
    "pickle": "a pickle from another process is code",
}


class Finding(NamedTuple):
    check: str
    file: str
    function: str
    line: int
    message: str


class Module:
    """One parsed file, and what its names mean."""

    def __init__(self, file: str, source: str) -> None:
        self.file = file
        self.lines = source.splitlines()
        self.tree = ast.parse(source)
        self._parents = {
            child: parent
            for parent in ast.walk(self.tree)
            for child in ast.iter_child_nodes(parent)
        }
        self._imported = dict(_imported_names(self.tree))
        self._kinds_by_name: dict[str, set[str]] = {}
        for name, kind in self._kinds():
            self._kinds_by_name.setdefault(name, set()).add(kind)

    def qualified(self, node: ast.expr) -> str:
        """`asyncio.Queue` for `Queue`, `aio.Queue` or `asyncio.Queue[int]`, as imported here."""
        if isinstance(node, ast.Subscript):
            return self.qualified(node.value)
        if isinstance(node, ast.Name):
            return self._imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self.qualified(node.value)}.{node.attr}"
        return ""

    def kinds(self, node: ast.expr) -> set[str]:
        """What a name or attribute is in this file, as far as it is said anywhere."""
        return self._kinds_by_name.get(last_name(node), set())

    def function(self, node: ast.AST) -> str:
        scopes = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        names = [above.name for above in self.above(node) if isinstance(above, scopes)]
        return ".".join(reversed(names)) or "<module>"

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        while (parent := self._parents.get(node)) is not None:
            yield parent
            node = parent

    def finding(self, check: str, node: ast.expr | ast.stmt, message: str) -> Finding:
        return Finding(check, self.file, self.function(node), node.lineno, message)

    def has_bound_comment(self, node: ast.expr) -> bool:
        end = node.end_lineno or node.lineno
        nearby = self.lines[max(0, node.lineno - 2) : end]
        return any("# bound: " in line for line in nearby)

    def _kinds(self) -> Iterator[tuple[str, str]]:
        """The class that each name or attribute is assigned or annotated with, by last name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                for target in node.targets:
                    yield last_name(target), self.qualified(node.value.func)
            elif isinstance(node, ast.AnnAssign):
                if isinstance(node.value, ast.Call):
                    yield last_name(node.target), self.qualified(node.value.func)
                else:
                    yield last_name(node.target), self.qualified(node.annotation)
            elif isinstance(node, ast.arg) and node.annotation is not None:
                yield node.arg, self.qualified(node.annotation)
            elif (
                isinstance(node, ast.withitem)
                and node.optional_vars is not None
                and isinstance(node.context_expr, ast.Call)
            ):
                yield last_name(node.optional_vars), self.qualified(node.context_expr.func)


def _imported_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.asname is not None:
                    yield name.asname, name.name
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                yield name.asname or name.name, f"{node.module}.{name.name}"


def last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def within(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes of the statements, but not of functions that are only defined there."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


# ---- Queues without a size -----------------------------------------------------------------------

SIZES: Final = {
    "asyncio.Queue": (0, "maxsize"),
    "asyncio.LifoQueue": (0, "maxsize"),
    "asyncio.PriorityQueue": (0, "maxsize"),
    "queue.Queue": (0, "maxsize"),
    "queue.LifoQueue": (0, "maxsize"),
    "queue.PriorityQueue": (0, "maxsize"),
    "multiprocessing.Queue": (0, "maxsize"),
    "collections.deque": (1, "maxlen"),
    "asyncio.StreamReader": (0, "limit"),
}
"""Where each takes its size: the place among the arguments, and the keyword."""
NEVER_BOUNDED: Final = ("queue.SimpleQueue", "multiprocessing.SimpleQueue")


def unbounded_queues(module: Module) -> Iterator[Finding]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and not module.has_bound_comment(node):
            for message in _unbounded(module, node):
                yield module.finding("queue", node, message)


def _unbounded(module: Module, call: ast.Call) -> Iterator[str]:
    kind = module.qualified(call.func)
    if kind in NEVER_BOUNDED:
        yield f"{kind} cannot have a size"
    elif kind in SIZES and not _has_size(call, *SIZES[kind]):
        yield f"{kind} without {SIZES[kind][1]}"
    for keyword in call.keywords:
        factory = module.qualified(keyword.value)
        if keyword.arg == "default_factory" and factory in (*SIZES, *NEVER_BOUNDED):
            yield f"the default factory {factory} without a size"


def _has_size(call: ast.Call, place: int, keyword: str) -> bool:
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return False
    given = call.args[place : place + 1]
    given += [argument.value for argument in call.keywords if argument.arg == keyword]
    nothing = (0, None)
    return any(
        not (isinstance(size, ast.Constant) and size.value in nothing)
        and not (isinstance(size, ast.UnaryOp) and isinstance(size.op, ast.USub))
        for size in given
    )


# ---- Awaits under a lock -------------------------------------------------------------------------

THREAD_LOCKS: Final = ("threading.Lock", "threading.RLock", "threading.Condition")
TASK_LOCKS: Final = ("asyncio.Lock", "asyncio.Condition")
OWN_WORK: Final = ("asyncio.to_thread", "run_in_executor", "wait", "wait_for")
"""What may be awaited under an asyncio.Lock: bounded thread work, and the lock's own condition."""


def awaits_under_thread_lock(module: Module) -> Iterator[Finding]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.With) and _holds(module, node, THREAD_LOCKS):
            for inner in within(node.body):
                if isinstance(inner, ast.Await | ast.AsyncFor | ast.AsyncWith):
                    message = "awaits while it holds a thread's lock: the loop can stand still"
                    yield module.finding("thread-lock", inner, message)


def foreign_awaits_under_task_lock(module: Module) -> Iterator[Finding]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AsyncWith) and _holds(module, node, TASK_LOCKS):
            for inner in within(node.body):
                if isinstance(inner, ast.AsyncFor | ast.AsyncWith) or (
                    isinstance(inner, ast.Await) and not _is_own_work(module, inner, node)
                ):
                    message = "awaits somebody else while it holds a lock: who holds the other one?"
                    yield module.finding("task-lock", inner, message)


def _holds(module: Module, node: ast.With | ast.AsyncWith, kinds: tuple[str, ...]) -> bool:
    for item in node.items:
        expression = item.context_expr
        if isinstance(expression, ast.Call):
            expression = expression.func
            if module.qualified(expression) in kinds:
                return True
        known = module.kinds(expression)
        looks_like_one = "lock" in last_name(expression).lower().split("_")
        if known & set(kinds) or (looks_like_one and not known):
            return True
    return False


def _is_own_work(module: Module, node: ast.Await, lock: ast.AsyncWith) -> bool:
    if not isinstance(node.value, ast.Call):
        return False
    function = node.value.func
    if module.qualified(function) == "asyncio.to_thread":
        return True
    if not isinstance(function, ast.Attribute) or function.attr not in OWN_WORK:
        return False
    owner = ast.dump(function.value)
    return function.attr == "run_in_executor" or any(
        ast.dump(item.context_expr) == owner for item in lock.items
    )


# ---- Tasks without an owner ----------------------------------------------------------------------


def untracked_tasks(module: Module) -> Iterator[Finding]:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or not _makes_task(module, node):
            continue
        if isinstance(node.func, ast.Attribute) and _is_task_group(module, node.func.value):
            continue
        parent = next(module.above(node))
        message = "a task that nobody keeps: use a TaskGroup, or store it and end it"
        if isinstance(parent, ast.Expr | ast.Lambda):
            yield module.finding("task", node, message)
        elif isinstance(parent, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            if all(_is_forgotten(module, node, target) for target in targets):
                yield module.finding("task", node, message)


def _makes_task(module: Module, call: ast.Call) -> bool:
    name = module.qualified(call.func)
    return name in ("asyncio.ensure_future", "asyncio.Task") or name.endswith("create_task")


def _is_task_group(module: Module, owner: ast.expr) -> bool:
    return "asyncio.TaskGroup" in module.kinds(owner)


def _is_forgotten(module: Module, node: ast.AST, target: ast.expr) -> bool:
    """A local name that the rest of its function never reads."""
    if not isinstance(target, ast.Name):
        return False
    scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)
    scope = next(above for above in module.above(node) if isinstance(above, scopes))
    return not any(
        isinstance(other, ast.Name) and other.id == target.id and isinstance(other.ctx, ast.Load)
        for other in ast.walk(scope)
    )


# ---- Imports -------------------------------------------------------------------------------------


def imported_modules(module: Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found.update(name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            found.add(node.module.partition(".")[0])
    return found


# ---- The source itself ---------------------------------------------------------------------------

Check = Callable[[Module], Iterator[Finding]]
CHECKS: Final[tuple[Check, ...]] = (
    unbounded_queues,
    awaits_under_thread_lock,
    foreign_awaits_under_task_lock,
    untracked_tasks,
)


@functools.cache
def source() -> list[Module]:
    return [
        Module(str(path.relative_to(ROOT)), path.read_text())
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


@pytest.mark.parametrize("check", CHECKS)
def test_the_source_obeys_the_rule(check: Check) -> None:
    found = [finding for module in source() for finding in check(module)]
    unexcused = [finding for finding in found if finding[:3] not in ALLOWED]
    assert not unexcused, "\n" + "\n".join(
        f"{finding.file}:{finding.line} in {finding.function}: {finding.message}"
        for finding in unexcused
    )


def test_every_exception_is_still_needed() -> None:
    found = {finding[:3] for module in source() for check in CHECKS for finding in check(module)}
    assert set(ALLOWED) <= found


@pytest.mark.parametrize("library", ONE_MODULE_EACH)
def test_one_module_alone_imports_the_library(library: str) -> None:
    importers = [module.file for module in source() if library in imported_modules(module)]
    assert len(importers) <= 1, f"{library} is imported by {', '.join(importers)}"


@pytest.mark.parametrize("library", FORBIDDEN)
def test_nobody_imports_the_library(library: str) -> None:
    importers = [module.file for module in source() if library in imported_modules(module)]
    assert not importers, f"{', '.join(importers)}: {FORBIDDEN[library]}"


def test_http_is_parsed_only_where_the_network_ends() -> None:
    # The load generator is a program that a person starts beside a daemon, and is no part of one:
    # it stands for the clients, and drives other servers as it drives ours.
    load_generator = "orchestrator/bench/inference_http.py"
    allowed = ("orchestrator/gateway/", "orchestrator/egress/", load_generator)
    importers = [module.file for module in source() if "aiohttp" in imported_modules(module)]
    assert [file for file in importers if not file.startswith(allowed)] == []


# ---- The checks themselves -----------------------------------------------------------------------

HEAD: Final = (
    "import asyncio, collections, queue, threading\n"
    "import asyncio as aio\n"
    "from asyncio import Queue, TaskGroup, create_task\n"
    "from collections import deque\n"
)


def objections(check: Check, body: str) -> int:
    return len(list(check(Module("snippet.py", HEAD + body))))


@pytest.mark.parametrize(
    "body",
    [
        "asyncio.Queue()",
        "aio.Queue(0)",
        "Queue[int](maxsize=0)",
        "Queue(maxsize=-1)",
        "queue.Queue()",
        "queue.SimpleQueue()",
        "asyncio.PriorityQueue()",
        "deque()",
        "collections.deque([1, 2])",
        "deque([], None)",
        "deque(*stuff)",
        "field(default_factory=deque)",
        "asyncio.StreamReader()",
    ],
)
def test_a_queue_without_a_size_is_found(body: str) -> None:
    assert objections(unbounded_queues, body) == 1


@pytest.mark.parametrize(
    "body",
    [
        "asyncio.Queue(8)",
        "Queue(maxsize=LIMIT)",
        "deque([], 8)",
        "deque(maxlen=8)",
        "deque()  # bound: the inbox holds 64",
        "# bound: the inbox holds 64\ndeque()",
        "class Queue2: ...\nQueue2()",
    ],
)
def test_a_queue_with_a_size_is_fine(body: str) -> None:
    assert objections(unbounded_queues, body) == 0


@pytest.mark.parametrize(
    "body",
    [
        "async def f(self):\n  with self._lock:\n    await g()",
        "async def f(self):\n  with threading.Lock():\n    await g()",
        "gate = threading.RLock()\nasync def f():\n  with gate:\n    async for x in g(): ...",
        "async def f(lock: threading.Lock):\n  with lock:\n    if x:\n      async with g(): ...",
    ],
)
def test_an_await_under_a_thread_lock_is_found(body: str) -> None:
    assert objections(awaits_under_thread_lock, body) == 1


@pytest.mark.parametrize(
    "body",
    [
        "async def f(self):\n  with self._lock:\n    g()\n  await h()",
        "async def f(self):\n  with self._lock:\n    async def g(): await h()",
        "async def f(clock):\n  with clock.stopped():\n    await g()",
        "async def f(blocks):\n  with block:\n    await g()",
    ],
)
def test_no_await_under_a_thread_lock_is_fine(body: str) -> None:
    assert objections(awaits_under_thread_lock, body) == 0


@pytest.mark.parametrize(
    "body",
    [
        "async def f(self):\n  async with self._lock:\n    await other.call()",
        "gate = asyncio.Lock()\nasync def f():\n  async with gate:\n    await event.wait()",
        "async def f(self):\n  async with self._lock:\n    await future",
        "async def f(lock):\n  async with lock:\n    async with other: ...",
    ],
)
def test_a_foreign_await_under_a_task_lock_is_found(body: str) -> None:
    assert objections(foreign_awaits_under_task_lock, body) == 1


@pytest.mark.parametrize(
    "body",
    [
        "async def f(lock):\n  async with lock:\n    await asyncio.to_thread(g)",
        "async def f(lock):\n  async with lock:\n    await loop.run_in_executor(None, g)",
        "c = asyncio.Condition()\nasync def f():\n  async with c:\n    await c.wait()",
        "async def f(lock):\n  async with lock:\n    g()",
        "async def f(client):\n  async with client.session():\n    await g()",
    ],
)
def test_own_work_under_a_task_lock_is_fine(body: str) -> None:
    assert objections(foreign_awaits_under_task_lock, body) == 0


@pytest.mark.parametrize(
    "body",
    [
        "asyncio.create_task(f())",
        "create_task(f())",
        "aio.ensure_future(f())",
        "def g(loop): loop.create_task(f())",
        "def g():\n  _ = asyncio.create_task(f())",
        "def g():\n  task = asyncio.create_task(f())",
        "call_later(1, lambda: asyncio.create_task(f()))",
    ],
)
def test_a_task_that_nobody_keeps_is_found(body: str) -> None:
    assert objections(untracked_tasks, body) == 1


@pytest.mark.parametrize(
    "body",
    [
        "async def g():\n  async with asyncio.TaskGroup() as tasks:\n    tasks.create_task(f())",
        "async def g():\n  async with TaskGroup() as tasks:\n    tasks.create_task(f())",
        "def g(tasks: asyncio.TaskGroup): tasks.create_task(f())",
        "def g(self): self._task = asyncio.create_task(f())",
        "def g():\n  task = asyncio.create_task(f())\n  kept.add(task)",
        "def g(): kept.append(asyncio.create_task(f()))",
        "async def g(): await asyncio.create_task(f())",
        "def g(): return asyncio.create_task(f())",
    ],
)
def test_a_task_with_an_owner_is_fine(body: str) -> None:
    assert objections(untracked_tasks, body) == 0


def test_imports_are_seen_wherever_they_stand() -> None:
    body = (
        "def f():\n  import apsw.ext\nif x:\n  from llama_cpp import llama_batch\nfrom . import y"
    )
    found = imported_modules(Module("snippet.py", body))
    assert found == {"apsw", "llama_cpp"}


def test_a_finding_names_its_function() -> None:
    body = "class A:\n  def f(self):\n    deque()"
    (finding,) = unbounded_queues(Module("snippet.py", HEAD + body))
    assert (finding.function, finding.line) == ("A.f", HEAD.count("\n") + 3)
