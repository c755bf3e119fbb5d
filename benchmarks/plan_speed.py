"""Processor seconds and peak memory of planning a night over many sentences, of one long document, and of collecting
many small files.

Each side is a command in a process of its own: `launch/sleep.py --dry_run` over one sentence, over documents of 100
sentences and over one document just below the limit, and `sleep-trl wake add` of a folder of small files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with, verdict

NAMES = [first + last for first in ("Mi", "Ta", "Lo", "Ben", "Kor", "Sel", "Vin", "Pet") for last in ("ra", "na", "el")]
THINGS = "goat cat dog horse ferry boat mill garden lamp clock".split()
PLACES = "harbor market school bakery library tower bridge station".split()
PER_DOCUMENT = 100  # sentences
AT_MOST = 20.0  # processor seconds of a plan over 1,000,000 sentences


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--sentences", type=int, help="sentences of the documents (1,000,000; with --quick 10,000)")
    parser.add_argument("--mib", type=float, help="size of the one document (60; with --quick 1)")
    parser.add_argument("--files", type=int, help="small files that are collected (10,000; with --quick 100)")
    parser.add_argument("--model", help="default: the quickstart's configuration, with its model and steps")
    arguments = parser.parse_args()
    sizes = {"sentences": (1_000_000, 10_000), "mib": (60.0, 1.0), "files": (10_000, 100)}
    for name, (usual, quick) in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else usual)
    return arguments


def sentences(count: int) -> Iterator[str]:
    """Yield made-up sentences of about 58 characters, the same every time."""
    draw = random.Random(0)
    for _ in range(count):
        keeper, name, thing, place = draw.choice(NAMES), draw.choice(NAMES), draw.choice(THINGS), draw.choice(PLACES)
        yield f"{keeper} keeps a {thing} called {name} near the {place} number {draw.randrange(1000)}. "


def write_documents(path: Path, count: int) -> Path:
    """Write documents of `PER_DOCUMENT` sentences, `count` sentences together."""
    written = sentences(count)
    with path.open("w", encoding="utf-8") as file:
        for number in range(max(1, count // PER_DOCUMENT)):
            text = "".join(sentence for sentence, _ in zip(written, range(PER_DOCUMENT), strict=False))
            file.write(json.dumps({"id": f"document-{number}", "text": text}) + "\n")
    return path


def write_document(path: Path, mib: float) -> Path:
    """Write one document of `mib` MiB."""
    block = "".join(sentences(10_000))
    with path.open("w", encoding="utf-8") as file:
        left = round(mib * 2**20)
        while left > 0:
            left -= file.write(block[:left])
    return path


def write_files(folder: Path, count: int) -> Path:
    """Write a folder of files of two sentences each."""
    folder.mkdir()
    written = sentences(2 * count)
    for number in range(count):
        (folder / f"{number:05}.txt").write_text(f"{number}. {next(written)}{next(written)}", "utf-8")
    return folder


def measure(name: str, words: list[str], folder: Path) -> dict[str, float]:
    """Run a command and return its processor seconds and its peak resident memory in MiB.

    Raises:
        `RuntimeError`: if it fails, with the end of its output.
    """
    progress(f"{name}: {shlex.join(words)}")
    log = folder / "command.log"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(words)} failed:\n{log.read_text('utf-8', errors='replace')[-2000:]}")
    return {
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    arguments = parse()
    rerun_with(environment(threads=1))
    night = ["--model", arguments.model] if arguments.model else ["--config", "examples/quickstart/config.yaml"]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        plan = ["launch/sleep.py", *night, "--dry_run", "--output_dir", str(folder / "night"), "--memories"]
        one = write_documents(folder / "one.jsonl", 1)
        many = write_documents(folder / "many.jsonl", arguments.sentences)
        long = write_document(folder / "long.txt", arguments.mib)
        files = write_files(folder / "files", arguments.files)
        add = ["-m", "sleep_trl.cli", "wake", "add", str(files), "--buffer", str(folder / "wake.db")]
        sides = {
            "plan_one_sentence": [*plan, str(one)],
            "plan_sentences": [*plan, str(many)],
            "plan_document": [*plan, str(long)],
            "wake_add_files": add,
        }
        found: dict[str, Any] = {name: measure(name, words, folder) for name, words in sides.items()}
    shown = {
        "plan_one_sentence": "plan of one sentence",
        "plan_sentences": f"plan of {arguments.sentences:,} sentences",
        "plan_document": f"plan of a document of {arguments.mib:g} MiB",
        "wake_add_files": f"wake add of {arguments.files:,} files",
    }
    table: list[Row] = [("", "processor seconds", "peak MiB", "bound")]
    for name, row in found.items():
        bound = verdict(row["processor_seconds"], AT_MOST) if name == "plan_sentences" else ""
        table.append((shown[name], f"{row['processor_seconds']:.1f}", f"{row['peak_mib']:,}", bound))
    settings = {"sentences": arguments.sentences, "mib": arguments.mib, "files": arguments.files}
    model = Path(arguments.model).name if arguments.model else "quickstart"
    report("Planning large inputs", table, {"model": model, **settings, **found}, arguments.json)


if __name__ == "__main__":
    main()
