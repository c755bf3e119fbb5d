"""Planned against measured peak resident memory of each phase of a night.

    python benchmarks/phase_memory.py --json
    python benchmarks/phase_memory.py --contexts 250 2000 8000

The nights are those of `plan_accuracy.py`: a model with random weights and a document that fills its context, in a
process of its own. Before each phase the C library returns what earlier phases have freed, since it would otherwise
count in the later ones, and the kernel's peak counter is reset. A phase is planned as what is held throughout and what
the phase adds; of training, as the largest of rollouts, the teacher's pass and the student's. `ratio` is what was
planned divided by what was measured. Needs Linux with glibc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _peaks import MIB
from _report import Row, argument_parser, environment, progress, report, rerun_with
from plan_accuracy import ALLOWED, AROUND, BRIEF, KEPT_AS_IT_IS, make_model, plan, write_document

PHASES = {"evaluate_before": "evaluation", "write_dataset": "writing", "seed": "training", "commit": "commit"}
"""Phases of a night; others, which ask again what was asked before, are left out."""
PLANNED = {"evaluation": ("evaluation",), "writing": ("writing",), "commit": ("checking the folded model",)}
"""Names in the plan; training is all the others."""


def measure(options: list[str], folder: Path) -> dict[str, float]:
    """Run a night and return the peak of each phase in MiB.

    Raises:
        `RuntimeError`: if the night fails, with the end of its output.
    """
    peaks, log = folder / "peaks.json", folder / "night.log"
    night = Path(__file__).with_name("_phase_night.py")
    command = [sys.executable, str(night), str(peaks), *options, "--output_dir", str(folder / "night")]
    with log.open("w") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment()).returncode
    if status:
        raise RuntimeError(f"The night failed:\n{log.read_text('utf-8', errors='replace')[-2000:]}")
    found: dict[str, float] = json.loads(peaks.read_text("utf-8"))
    return {phase: found[name] for name, phase in PHASES.items()}


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
    measured = measure(options, folder)
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
        "allowed": ALLOWED,
        "contexts": found,
        "is_met": is_met,
    }
    report("Peak memory of a night's phases: planned and measured", table, result, arguments.json)


if __name__ == "__main__":
    main()
