"""Check the import graph: no circle between modules or rooms, no room that imports one above it. Part of `make lint`.

A room is a folder of `sleep_trl/`; `ROOMS` lists them from the bottom up. A room may import itself and those before it.
Imports inside functions count; those under `TYPE_CHECKING` do not, since they never run.

Run with --print to list every edge between rooms.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("rewards", "trainers", "launch")
ROOMS = (
    "config",
    "runs",
    "distributed",
    "memory",
    "models",
    "rollout",
    "data",
    "evaluation",
    "batched_lora",
    "dreams",
    "wake",
    "planning",
    "night",
    "report",
    "publish",
    "rewards",
    "trainers",
    "launch",
    "doctor",
    "serving",
    "daemon",
    "cli",
)


def find_modules(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the package: dotted name -> file. Linked folders go by their name in `sleep_trl`."""
    found = {}
    for top in ("sleep_trl", *LINKED):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if top == "sleep_trl" and len(parts) > 1 and parts[1] in LINKED:
                continue  # the symbolic link
            parts = parts if top == "sleep_trl" else ("sleep_trl", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return for each module the modules of the package that it imports."""
    return {name: imports_of(name, path, modules) for name, path in modules.items()}


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a module imports."""
    found: set[str] = set()
    for node in _running(ast.parse(path.read_text("utf-8"))):
        for target in targets_of(node, name, path):
            target = target if target in modules else target.rpartition(".")[0]
            if target in modules and target != name:
                found.add(target)
    return found


def targets_of(node: ast.Import | ast.ImportFrom, name: str, path: Path) -> list[str]:
    """Return the dotted names that a statement of the module `name` imports.

    `from a import b` gives `a.b`, since b can be a module; relative names are resolved.
    """
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    base = [*base, *(node.module or "").split(".")] if node.module else base
    return [".".join([*base, alias.name]) for alias in node.names]


def _running(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements that can run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from _running(other)
        else:
            yield from _running(node)


def find_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components with more than one node, each sorted (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = []
            while component[-1:] != [node]:
                component.append(stack.pop())
            if len(component) > 1:
                circles.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return circles


def room_of(module: str) -> str | None:
    """Return the room a module is in; `None` for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def find_problems(graph: dict[str, set[str]], rooms: tuple[str, ...] = ROOMS) -> list[str]:
    """Return one line for each circle, each upward import and each room without a place in the order."""
    problems = [f"circle: {' <-> '.join(circle)}" for circle in find_circles(graph)]
    for name in sorted(graph):
        here = room_of(name)
        if here is None:
            continue
        if here not in rooms:
            problems.append(f"{name}: the room {here!r} has no place in ROOMS")
            continue
        for target in sorted(graph[name]):
            there = room_of(target)
            if there in rooms and rooms.index(there) > rooms.index(here):
                problems.append(f"upward: {name} imports {target}, but {here} stands below {there}")
    return problems


def main() -> int:
    """Print what is wrong and return the exit code."""
    modules = find_modules()
    graph = read_graph(modules)
    if "--print" in sys.argv[1:]:
        edges = sorted({(room_of(a), room_of(b)) for a in graph for b in graph[a] if room_of(a) and room_of(b)})
        for here, there in edges:
            if here != there:
                print(f"{here} -> {there}")
    problems = find_problems(graph)
    print(*problems, sep="\n") if problems else print(
        f"{len(graph)} modules, {len(ROOMS)} rooms: no circle, none upward"
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
