"""Grids of the Abstraction and Reasoning Corpus: as text, and augmented into further tasks (arXiv 2411.07279).

A grid is a list of rows of colors, 0 to 9; a pair is `(input, output)`; a task is some known pairs and one to solve.
All of SEAL's changes are here except shifts by some cells.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations

Grid = list[list[int]]
Pair = tuple[Grid, Grid]
Task = tuple[tuple[Pair, ...], Pair]
LARGEST = 30  # maximum number of rows and columns of a grid


def rotate(grid: Grid) -> Grid:
    """Rotate by 90 degrees counterclockwise."""
    return [list(column) for column in zip(*grid, strict=True)][::-1]


def turn(grid: Grid) -> Grid:
    return [row[::-1] for row in grid[::-1]]


def flip(grid: Grid) -> Grid:
    return grid[::-1]


def mirror(grid: Grid) -> Grid:
    return [row[::-1] for row in grid]


def transpose(grid: Grid) -> Grid:
    return [list(column) for column in zip(*grid, strict=True)]


def beside(left: Grid, right: Grid) -> Grid:
    return [a + b for a, b in zip(left, right, strict=True)]


def wider(grid: Grid) -> Grid:
    return [[cell for cell in row for _ in range(2)] for row in grid]


def higher(grid: Grid) -> Grid:
    return [row for row in grid for _ in range(2)]


def larger(grid: Grid) -> Grid:
    return wider(higher(grid))


Change = Callable[[Grid], Grid]
BASIC: tuple[Change, ...] = (
    rotate,
    lambda grid: rotate(turn(grid)),
    turn,
    flip,
    mirror,
    transpose,
    lambda grid: flip(grid) + grid,
    lambda grid: grid + flip(grid),
    lambda grid: beside(mirror(grid), grid),
    lambda grid: beside(grid, mirror(grid)),
)
SIZE: tuple[Change, ...] = (larger, higher, wider)
CHAIN: tuple[Change, ...] = tuple(
    lambda grid, first=first: larger(first(grid)) for first in (BASIC[0], BASIC[1], turn, flip, mirror, transpose)
)
REPEAT: tuple[Change, ...] = (
    lambda grid: grid + grid,
    lambda grid: beside(grid, grid),
    lambda grid: beside(grid + grid, grid + grid),
)
CHANGES = {"basic": BASIC, "size": SIZE, "chain": CHAIN, "repeat": REPEAT}


def augment(pairs: list[Pair], kinds: list[str], most: int, seed: int) -> list[Task]:
    """Make tasks from known pairs alone. Each pair is to be solved in turn, given all others and given all but one of
    them; each such task is used unchanged and once for each change; all of these again with permuted colors and order.

    Args:
        pairs (`list[Pair]`):
            The known pairs of a task, at least two.
        kinds (`list[str]`):
            Kinds of changes, of `CHANGES`.
        most (`int`):
            Maximum number of tasks; they are drawn with `seed`.
        seed (`int`):
            Seed of colors, orders and draws.
    """
    rng = random.Random(seed)
    plain: list[Task] = []
    for asked, pair in enumerate(pairs):
        others = [other for place, other in enumerate(pairs) if place != asked]
        for left_out in (0, 1):
            plain += [(known, pair) for known in combinations(others, len(others) - left_out) if known]
    changes = [change for kind in kinds for change in CHANGES[kind]]
    tasks = plain + [changed for change in changes for task in plain if (changed := apply(change, task))]
    tasks += [shuffled(recolored(task, rng), rng) for task in tasks]
    return rng.sample(tasks, most) if len(tasks) > most else tasks


def apply(change: Change, task: Task) -> Task | None:
    """Apply a change to all grids of a task; `None` if one becomes too large."""
    known, asked = task
    pairs = [(change(given), change(wanted)) for given, wanted in (*known, asked)]
    if max(max(len(grid), len(grid[0])) for pair in pairs for grid in pair) > LARGEST:
        return None
    return tuple(pairs[:-1]), pairs[-1]


def recolored(task: Task, rng: random.Random) -> Task:
    """Permute the colors of a task, except 0, the background."""
    colors = [0, *rng.sample(range(1, 10), 9)]
    changed = apply(lambda grid: [[colors[cell] for cell in row] for row in grid], task)
    assert changed is not None
    return changed


def shuffled(task: Task, rng: random.Random) -> Task:
    known, asked = task
    return tuple(rng.sample(known, len(known))), asked


def write_grid(grid: Grid) -> str:
    """Write a grid as text, one row per line."""
    return "\n".join(" ".join(map(str, row)) for row in grid)


def read_grid(text: str) -> Grid | None:
    """Read a grid from a model's reply; `None` if it is not a grid."""
    rows = [line.split() for line in text.strip().splitlines()]
    if not rows or any(len(row) != len(rows[0]) for row in rows) or not set().union(*rows) <= set("0123456789"):
        return None
    return [[int(cell) for cell in row] for row in rows]


def write_task(known: tuple[Pair, ...], asked: Grid) -> str:
    """Write the prompt that asks for the output of a grid."""
    shown = "\n\n".join(f"Input:\n{write_grid(given)}\nOutput:\n{write_grid(wanted)}" for given, wanted in known)
    return f"{shown}\n\nInput:\n{write_grid(asked)}\nOutput:\n"
