"""Output of the commands: text, or with `--json` one JSON object per line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from typing import IO, Annotated, Any

import typer

from ..config.visible import visible, visible_json

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
Row = Mapping[str, Any]
UNITS = (
    ("hours", 3600.0, 7200.0),
    ("minutes", 60.0, 120.0),
    ("s", 1.0, 1.0),
)  # name, seconds, and from when it is used


def say(message: str) -> None:
    """Print a message on standard error."""
    typer.echo(visible(message), err=True)


def warn_renamed(former: str, now: str) -> None:
    """Say that an option has another name."""
    say(f"Warning: {former} is now {now}; the old name will be removed in 0.3.")


def show(rows: Iterable[Row], as_json: bool, line: Callable[[Row], str]) -> None:
    """Print each row at once, as JSON or as formatted by `line`."""
    for row in rows:
        typer.echo(as_line(row) if as_json else visible(line(row)))


def as_line(value: Any) -> str:
    """Return a value as JSON on one line."""
    return visible_json(json.dumps(value, ensure_ascii=False))


def table(rows: Sequence[Row], as_json: bool, columns: Mapping[str, Callable[[Row], object]]) -> None:
    """Print rows as JSON, or as a table.

    Args:
        rows (`Sequence[Mapping]`):
            The rows.
        as_json (`bool`):
            Print each row as a JSON object.
        columns (`Mapping[str, Callable]`):
            Title of a column -> its cell for a row. Only the last column is wrapped.
    """
    if as_json:
        show(rows, True, str)
        return
    from rich import box
    from rich.table import Table

    from ..config.console import PlainConsole

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, head in enumerate(columns, 1):
        grid.add_column(head, no_wrap=number < len(columns), overflow="fold")
    for row in rows:
        grid.add_row(*(str(cell(row)) for cell in columns.values()))
    PlainConsole().print(grid)


def redirect_to_stderr() -> AbstractContextManager[IO[str]]:
    """Return a context in which prints go to standard error, so that standard output holds only the result."""
    return redirect_stdout(sys.stderr)


def percent(value: float | None) -> str:
    """Return a share in percent, or a dash if it was not measured."""
    return "–" if value is None else f"{100 * value:.1f} %"


def change(figures: Sequence[float | None]) -> str:
    """Return shares before and after, with an arrow in between."""
    return " → ".join(percent(value) for value in figures)


def at_least(seconds: float) -> str:
    """Return a time as a lower bound: rounded down to two significant digits, in a unit of which there are enough."""
    if not seconds:
        return "0 s"
    name, unit = next(((name, unit) for name, unit, least in UNITS if seconds >= least), ("ms", 1e-3))
    digit = 10.0 ** (math.floor(math.log10(seconds / unit)) - 1)  # worth of the second digit
    return f"at least {math.floor(seconds / unit / digit + 1e-9) * digit:,.6g} {name}"
