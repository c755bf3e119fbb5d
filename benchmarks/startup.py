"""Seconds of `import sleep_trl`, `launch/sleep.py --help` and `sleep-trl --help`: the median over fresh processes.

The first run of each warms the disk cache and is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from _report import ROOT, Row, argument_parser, environment, progress, report, verdict

# key: (what runs in a fresh process, the bound)
COMMANDS = {
    "python_seconds": (["-c", "pass"], None),
    "import_seconds": (["-c", "import sleep_trl"], 0.5),
    "help_seconds": ([str(ROOT / "launch" / "sleep.py"), "--help"], 2.0),
    "cli_help_seconds": (["-m", "sleep_trl.cli", "--help"], 1.0),
}


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="runs of each command (15; with --quick 5)")
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 15)
    return args


def seconds(arguments: list[str]) -> float:
    """Run Python once and return how long it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - start


def main() -> None:
    args = parse()
    taken: dict[str, list[float]] = {key: [] for key in COMMANDS}
    for turn in range(args.rounds + 1):
        progress(f"round {turn} of {args.rounds}")
        for key, (arguments, _) in COMMANDS.items():
            taken[key].append(seconds(arguments))
    median = {key: statistics.median(values[1:]) for key, values in taken.items()}
    table: list[Row] = [("", "seconds", "bound")]
    for key, (arguments, bound) in COMMANDS.items():
        met = verdict(median[key], bound) if bound else ""
        table.append((" ".join(["python", *arguments]).replace(f"{ROOT}/", ""), f"{median[key]:.3f}", met))
    report("Start, median of fresh processes", table, {k: round(v, 4) for k, v in median.items()}, args.json)


if __name__ == "__main__":
    main()
