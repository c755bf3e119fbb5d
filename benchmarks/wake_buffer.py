"""The wake buffer with many records: adding them in durable batches, listing, forgetting a source, peak memory.

Records come from a JSON lines file, as `sleep-trl wake add` reads it: parsed, checked, hashed, stored, each batch
flushed to disk. One process, one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with, verdict

WORDS = "the cat of Mira is called Tolu and it eats hats while the boat of Ben sleeps in the rain".split()
SOURCES = 100
AT_LEAST = 2_000  # records per second
AT_MOST = {"list_source_seconds": 1.0, "list_seconds": 1.0, "forget_seconds": 1.0}


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--records", type=int, help="records to add (100,000; with --quick 10,000)")
    parser.add_argument("--words", type=int, default=100, help="words per record")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder that holds the buffer")
    args = parser.parse_args()
    args.records = args.records or (10_000 if args.quick else 100_000)
    return args


def write_records(path: Path, count: int, words: int) -> None:
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = f"{number} " + " ".join(draw.choices(WORDS, k=words))
            file.write(json.dumps({"source": f"source-{number % SOURCES}.pdf", "text": text}) + "\n")


def peak_mb() -> float:
    """Return the largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(folder: Path, count: int, words: int) -> dict[str, float]:
    """Add, list and forget; return the figures."""
    from sleep_trl.wake import WakeBuffer, add_path

    write_records(lines := folder / "records.jsonl", count, words)
    write_records(few := folder / "few.jsonl", count // 10, words + 1)
    result: dict[str, float] = {}
    with WakeBuffer(folder / "wake.db") as buffer:
        add_path(buffer, few)
        result["peak_mb_after_a_tenth"] = peak_mb()
        progress(f"adding {count:,} records")
        start = time.perf_counter()
        tally = add_path(buffer, lines)
        result["records_per_second"] = count / (time.perf_counter() - start)
        assert tally.added == count, tally
        start = time.perf_counter()
        listed = sum(1 for _ in buffer.records(source="source-7.pdf"))
        result["list_source_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        every = sum(1 for _ in buffer.records())
        result["list_seconds"] = time.perf_counter() - start
        assert (listed, every) == ((count + count // 10) // SOURCES, count + count // 10)
        progress("forgetting a source")
        start = time.perf_counter()
        assert buffer.forget("source-7.pdf") == listed
        result["forget_seconds"] = time.perf_counter() - start
        result["peak_mb"] = peak_mb()
    result["disk_mb"] = sum(path.stat().st_size for path in folder.glob("wake.db*")) / 1e6
    return result


def main() -> None:
    args = parse()
    rerun_with(environment(threads=1))
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure(Path(folder), args.records, args.words)
    result["peak_mb_growth"] = result["peak_mb"] - result["peak_mb_after_a_tenth"]
    table: list[Row] = [("", "", "bound")]
    for key, value in result.items():
        met = verdict(value, AT_MOST[key]) if key in AT_MOST else ""
        if key == "records_per_second":
            met = f">= {AT_LEAST} {'met' if value >= AT_LEAST else 'MISSED'}"
        table.append((key, f"{value:.3f}", met))
    title = f"Wake buffer: {args.records:,} records of {args.words} words from {SOURCES} sources"
    report(title, table, {key: round(value, 4) for key, value in result.items()}, args.json)


if __name__ == "__main__":
    main()
