"""What a GPU does with this project, in eight minutes: correctness, peak memory and speed, part by part.

    python benchmarks/gpu_check.py --out runs/gpu_check
    python benchmarks/gpu_check.py --out runs/gpu_check --only kernels seeding_1_7b
    python benchmarks/gpu_check.py --out runs/tiny --tiny        # on a machine without a GPU, on small shapes

Models have random weights in bfloat16 and the shapes of Qwen3-0.6B and 1.7B; nothing is downloaded. Each part runs in a
process of its own with a deadline, and appends its line to OUT/results.jsonl as soon as it is done, so that an
interrupted check keeps what it has. Out of memory is a result, not an error. Prints a table; the last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _gpu_parts as parts
from _gpu_scale import Figures, Scale
from _report import Row, environment, progress, report, rerun_with

OUT = Path("runs/gpu_check")


@dataclass(frozen=True)
class Part:
    """A part of the check: what it runs, and the most seconds it may take."""

    run: Callable[[Scale], Figures]
    deadline: int


PARTS = {
    "ceilings": Part(parts.ceilings, 30),
    "kernels": Part(parts.kernels, 60),
    "memory": Part(parts.memory, 75),
    "seeding_0_6b": Part(parts.seeding_0_6b, 90),
    "seeding_1_7b": Part(parts.seeding_1_7b, 90),
    "batched_lora": Part(parts.batched_lora, 90),
    "dream_scores": Part(parts.dream_scores, 60),
    "ray_engines": Part(parts.ray_engines, 90),
    "nights": Part(parts.nights, 150),
}


# -- running them -----------------------------------------------------------------------------------------------------


def machine(device: str) -> Figures:
    """Return what the figures are of: the device, its driver and the versions."""
    from importlib.metadata import version

    names = ("torch", "transformers", "trl")
    figures: Figures = {"python": platform.python_version(), **{name: version(name) for name in names}}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        figures["gpu"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return figures


def work(part: str, scale: Scale, answers: Any) -> None:
    """Run a part in this process and send its figures. What it prints goes to standard error."""
    os.dup2(2, 1)
    try:
        answers.send(PARTS[part].run(scale))
    except Exception as error:
        traceback.print_exc()
        answers.send({"error": f"{type(error).__name__}: {error}"[:600], "passed": False})


def deadline_of(part: str, scale: Scale) -> int:
    """Return the most seconds that a part may take: on small shapes, where the cores may be busy, ten times as many."""
    return PARTS[part].deadline * scale.pick(1, 10)


def run_part(part: str, scale: Scale) -> Figures:
    """Run a part in a process of its own, and return its figures or why there are none."""
    context = multiprocessing.get_context("fork")  # what is imported is there at once; no device is in use yet
    answer, answers = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(part, scale, answers))
    begun = time.perf_counter()
    process.start()
    answers.close()
    deadline = deadline_of(part, scale)
    figures: Figures
    try:
        figures = answer.recv() if answer.poll(deadline) else {"error": f"not done in {deadline} s", "passed": False}
    except EOFError:
        process.join()
        figures = {"error": f"its process ended with code {process.exitcode}", "passed": False}
    process.join(1)
    process.kill()  # a late one; else it has ended
    process.join()
    return figures | {"wall_seconds": round(time.perf_counter() - begun, 1)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for results.jsonl and the parts' files ({OUT})")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="which parts")
    parser.add_argument("--tiny", "--quick", dest="tiny", action="store_true", help="small shapes, also without a GPU")
    parser.add_argument("--json", action="store_true", help="print only the last line, one JSON object")
    return parser.parse_args()


def main() -> None:
    rerun_with(environment())
    arguments = parse_arguments()
    sys.path.insert(0, str(Path(__file__).parent))
    import torch
    import trl  # noqa: F401 - once for all parts

    device = "cuda" if torch.cuda.device_count() else "cpu"  # asks the driver, so that no part inherits a device
    if device == "cpu" and not arguments.tiny:
        sys.exit("There is no CUDA device. Give --tiny to run every part on small shapes on the CPU.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    found: Figures = {}
    for part in arguments.only:
        folder = arguments.out / part
        folder.mkdir(exist_ok=True)
        scale = Scale(device, arguments.tiny, folder.resolve())
        progress(f"{part}: at most {deadline_of(part, scale)} s")
        found[part] = run_part(part, scale)
        with results.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"part": part, **found[part]}) + os.linesep)
    rows: list[Row] = [("part", "passed", "figure", "value")]
    for part, figures in found.items():
        passed = {True: "yes", False: "NO"}.get(figures.get("passed"), "")  # type: ignore[arg-type]
        shown = {name: value for name, value in figures.items() if name != "passed"}
        for name, value in shown.items():
            rows.append((part, passed, name, f"{value:.4g}" if isinstance(value, float) else str(value)[:80]))
            part = passed = ""
    result: dict[str, object] = {"machine": machine(device), "is_tiny": arguments.tiny, "parts": found}
    report("GPU check", rows, result, arguments.json)
    sys.exit(any(figures.get("passed") is False for figures in found.values()))


if __name__ == "__main__":
    main()
