"""What the benchmarks share: common options, a table for people and, as the last line, one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

Row = tuple[str, ...]


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--json", action="store_true", help="print only the last line, one JSON object")
    return parser


def environment(threads: int | None = None) -> dict[str, str]:
    """Return the environment of a worker: this checkout importable, a fixed number of threads, no network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    if threads is not None:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return env


def rerun_with(env: dict[str, str]) -> None:
    """Start this script anew in another environment, unless it runs in it already."""
    if any(os.environ.get(name) != value for name, value in env.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], env)


def report(title: str, rows: list[Row], result: dict[str, object], only_json: bool) -> None:
    """Print the table, whose first row is its head, and the JSON object on the last line."""
    if not only_json:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print(title)
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            print("  " + "  ".join(cells))
    print(json.dumps(result), flush=True)


def progress(text: str) -> None:
    """Say on standard error what is being measured."""
    print(text, file=sys.stderr, flush=True)


def verdict(value: float, bound: float) -> str:
    """Return the bound and whether it is met."""
    return f"<= {bound} {'met' if value <= bound else 'MISSED'}"
