"""Planned against measured peak resident memory of each phase of a night.

    python benchmarks/phase_memory.py --json
    python benchmarks/phase_memory.py --contexts 250 2000 8000

The nights are those of `plan_accuracy.py`: a model with random weights and a document that fills its context, in a
process of its own. While one runs, the kernel's peak counter of its process is read and reset whenever a phase is done.
A phase is planned as what is held throughout and what the phase adds; of training, as the largest of rollouts, the
teacher's pass and the student's. `ratio` is what was planned divided by what was measured. The C library keeps part of
what was freed, so a phase may show what an earlier one left; with --return_freed it returns all at once. Needs Linux.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _peaks import MIB
from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with
from plan_accuracy import ALLOWED, AROUND, BRIEF, KEPT_AS_IT_IS, make_model, plan, write_document

POLL = 0.01  # seconds
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes from which memory is mapped for itself, and unmapped when freed
PHASES = {"evaluate_before": "evaluation", "write_dataset": "writing", "seed": "training", "commit": "commit"}
"""What a file of a phase's result ends; other phases, which ask again what was asked before, are left out."""
PLANNED = {"evaluation": ("evaluation",), "writing": ("writing",), "commit": ("checking the folded model",)}
"""Names in the plan; training is all the others."""


def peak_of(process: int) -> float:
    """Return the peak resident set of a process since the last reset, in MiB, and reset it."""
    folder = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    (folder / "clear_refs").write_text("5")
    return int(status["VmHWM"].split()[0]) / 1024


def watch(process: subprocess.Popen[bytes], results: Path) -> dict[str, float]:
    """Return the peaks of the phases of a night that runs, in MiB, by the name of the phase's result."""
    peaks, done = dict[str, float](), set[str]()
    while process.poll() is None:
        new = {file.stem for file in results.glob("*.json")} - done if results.is_dir() else set()
        if new:
            done |= new
            try:
                peak = peak_of(process.pid)
            except (FileNotFoundError, ProcessLookupError, KeyError):  # it has just ended
                continue
            peaks |= dict.fromkeys(new, peak)
        time.sleep(POLL)
    return peaks


def measure(options: list[str], folder: Path, return_freed: bool) -> dict[str, float]:
    """Run a night and return the peak of each phase in MiB.

    Raises:
        `RuntimeError`: if the night fails, with the end of its output.
    """
    command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *options, "--output_dir", str(folder / "night")]
    log, env = folder / "night.log", environment() | (RETURNED if return_freed else {})
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        peaks = watch(process, folder / "night" / "phases")
    if process.returncode:
        raise RuntimeError(f"The night failed:\n{log.read_text('utf-8', errors='replace')[-2000:]}")
    return {PHASES[name]: peak for name, peak in peaks.items() if name in PHASES}


def planned_phases(peak: Any) -> dict[str, float]:
    """Return what a plan says of each phase of [`PHASES`], in MiB."""
    held = sum(peak.held.values())
    elsewhere = {name for names in PLANNED.values() for name in names}
    names: Mapping[str, tuple[str, ...]] = {
        **PLANNED,
        "training": tuple(name for name in peak.phases if name not in elsewhere),
    }
    return {phase: (held + max(peak.phases[name] for name in names[phase])) / MIB for phase in PHASES.values()}


def compare(length: int, arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Return what was planned and measured of each phase, for a document and a context of so many tokens."""
    folder.mkdir()
    model = make_model(folder / "model", length + AROUND)
    document = write_document(folder / "document.jsonl", model, length, None)
    options = ["--model", str(model), "--memories", str(document), "--dtype=float32", "--no-report", *BRIEF]
    options += [*KEPT_AS_IT_IS, f"--seeding.steps={arguments.steps}"]
    planned = planned_phases(plan(options, folder).peak)
    progress(f"{length:,} tokens: " + ", ".join(f"{name} {size:,.0f} MiB" for name, size in planned.items()))
    measured = measure(options, folder, arguments.return_freed)
    return {
        phase: {
            "planned_mib": round(planned[phase]),
            "measured_mib": round(peak),
            "ratio": round(planned[phase] / peak, 3),
        }
        for phase, peak in measured.items()
    }


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[250, 2_000], help="tokens of the documents")
    parser.add_argument("--steps", type=int, default=4, help="training steps of each night")
    parser.add_argument("--return_freed", action="store_true", help="let the C library return freed memory at once")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.contexts, arguments.steps = arguments.contexts[:1], 1
    return arguments


def main() -> None:
    rerun_with(environment())
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        found = {str(n): compare(n, arguments, Path(folder) / str(n)) for n in arguments.contexts}
    table: list[Row] = [("tokens of context", "phase", "planned MiB", "measured MiB", "ratio")]
    for length, phases in found.items():
        for phase, row in phases.items():
            sizes = f"{row['planned_mib']:,}", f"{row['measured_mib']:,}", f"{row['ratio']:.2f}"
            table.append((length, phase, *sizes))
    is_met = all(abs(row["ratio"] - 1) <= ALLOWED for phases in found.values() for row in phases.values())
    result = {
        "steps": arguments.steps,
        "return_freed": arguments.return_freed,
        "allowed": ALLOWED,
        "contexts": found,
        "is_met": is_met,
    }
    report("Peak memory of a night's phases: planned and measured", table, result, arguments.json)


if __name__ == "__main__":
    main()
