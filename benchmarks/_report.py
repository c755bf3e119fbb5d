"""Common to all benchmarks: options, a readable table and, as the last line, one JSON object.

A study is a benchmark that runs variants over several seeds, see `study_parser`, `run_study` and `report_study`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

FIRST_SEED = 42

Row = tuple[str, ...]
Runs = dict[str, dict[str, dict[str, Any]]]  # figures by variant and seed


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    json_help = "print only the last line, one JSON object; with FILE, write it there too"
    parser.add_argument("--json", nargs="?", const=True, default=False, metavar="FILE", help=json_help)
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
    """Restart this script in another environment, unless it already runs in it."""
    if any(os.environ.get(name) != value for name, value in env.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], env)


def report(title: str, rows: list[Row], result: dict[str, object], only_json: bool | str) -> None:
    """Print the table, whose first row is its header, and the JSON object on the last line. A text as `only_json` names
    a file that the object is written to."""
    if not only_json:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print(title)
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            print("  " + "  ".join(cells))
    _print_json(result, only_json)


def _print_json(result: dict[str, object], file: bool | str) -> None:
    if isinstance(file, str):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(result) + "\n", "utf-8")
    print(json.dumps(result), flush=True)


def progress(text: str) -> None:
    """Print to standard error what is being measured."""
    print(text, file=sys.stderr, flush=True)


def verdict(value: float, bound: float) -> str:
    """Return the bound and whether it is met."""
    return f"<= {bound} {'met' if value <= bound else 'MISSED'}"


def study_parser(description: str, variants: Iterable[str], name: str = "variants") -> argparse.ArgumentParser:
    """Return a parser with the options that every study takes; `name` is what the study calls its variants."""
    names = list(variants)
    parser = argument_parser(description)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    option = {"nargs": "*", "default": names, "choices": names, "metavar": "NAME", "help": "which to run"}
    parser.add_argument(f"--{name}", dest="variants", **option)
    parser.add_argument("--output", type=Path, help="results file; runs that it already contains are not repeated")
    return parser


def run_study(
    arguments: argparse.Namespace,
    settings: dict[str, Any],
    run: Callable[[str, int], dict[str, Any]],
    jobs: int = 1,
) -> Runs:
    """Run each variant with each seed. Every finished run is written to the results file at once, so an interrupted
    study continues where it stopped.

    Args:
        arguments (`argparse.Namespace`):
            From a [`study_parser`].
        settings (`dict`):
            Settings common to all runs, stored with the results.
        run (`Callable[[str, int], dict]`):
            Runs a variant with a seed and returns its figures.
        jobs (`int`, *optional*, defaults to `1`):
            Number of parallel runs.

    Raises:
        `ValueError`: if the results file was written with other settings.
    """
    runs: Runs = {}
    if arguments.output and arguments.output.exists():
        earlier = json.loads(arguments.output.read_text("utf-8"))
        if earlier["settings"] != settings:
            raise ValueError(
                f"{arguments.output} holds runs with {earlier['settings']}, these have {settings}. Give another file, "
                f"or remove it."
            )
        runs = earlier["runs"]
    wanted = [(v, str(s)) for s in range(FIRST_SEED, FIRST_SEED + arguments.seeds) for v in arguments.variants]
    missing = [(variant, seed) for variant, seed in wanted if seed not in runs.get(variant, {})]
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [(variant, seed, pool.submit(run, variant, int(seed))) for variant, seed in missing]
        for variant, seed, future in futures:
            runs.setdefault(variant, {})[seed] = figures = future.result()
            progress(f"{variant}, seed {seed}: {json.dumps(figures)}")
            if arguments.output:
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps({"settings": settings, "runs": runs}) + "\n", "utf-8")
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, no further run is started
    return {v: {s: runs[v][s] for u, s in wanted if u == v} for v in arguments.variants}


def report_study(table: list[Row], settings: dict[str, Any], runs: Runs, only_json: bool | str) -> None:
    """Print a study's table in Markdown, its first row being the header, and the JSON object on the last line."""
    if not only_json:
        head, *rows = ["| " + " | ".join(row) + " |" for row in table]
        print("\n".join([head, "| --- |" + " ---: |" * (len(table[0]) - 1), *rows]) + "\n")
    _print_json({"settings": settings, "runs": runs}, only_json)


def cell(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean of the values, and their range if they differ."""
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"
