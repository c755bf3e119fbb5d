"""Peak memory and time of a Knowledge Seeding step against TRL's trainers, side by side in one run.

Every side is a fresh process with the same random model, float32 (bfloat16 with --cuda), AdamW, prompts of equal
length, sampled completions of equal length, and the same gradient checkpointing (off by default). Memory is the peak
resident set of the process over all steps (with --cuda, the peak allocated on the device); it includes the imports,
which are the same on every side. Time is the median over the steps of several rounds in which the sides take turns; the
first steps are not counted.

Sides (defined in `_trainers.py`):
  seeding             Knowledge Seeding on rollouts only (lambda 1), the same tokens as its peers
  seeding jsd         the same with GKD's default divergence (beta 0.5)
  seeding references  Knowledge Seeding with its defaults (lambda 0.5): also a reference for each prompt
  gkd jsd, gkd        GKDTrainer, all weights, a separate teacher of equal size, with GKD's default divergence or ours
  grpo, grpo lora     GRPOTrainer on all weights, or on a LoRA with as many parameters as the expert
  ... teacher         the same plus one forward pass of a separate teacher's backbone over the same tokens
The teachers of Knowledge Seeding and of `... teacher` read a context before the prompt; GKD's does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from _report import Row, argument_parser, environment, progress, report, verdict
from _trainers import SIDES, SIZES

# key: (our side, the peer, the bound if there is one)
MEMORY_RATIOS = {
    "peak_memory_vs_gkd": ("seeding_jsd", "gkd_jsd", 0.5),
    "peak_memory_vs_grpo": ("seeding", "grpo", 0.8),
    "peak_memory_vs_grpo_lora": ("seeding", "grpo_lora", 1.1),
    "peak_memory_vs_gkd_forward_kl": ("seeding", "gkd", None),
    "peak_memory_with_references_vs_gkd": ("seeding_references", "gkd_jsd", None),
    "peak_memory_with_references_vs_grpo": ("seeding_references", "grpo", None),
    "peak_memory_with_references_vs_grpo_lora": ("seeding_references", "grpo_lora", None),
}
TIME_RATIOS = {
    "step_time_vs_grpo_plus_teacher": ("seeding", "grpo_teacher", 1.15),
    "step_time_vs_grpo_lora_plus_teacher": ("seeding", "grpo_lora_teacher", None),
    "step_time_with_references_vs_grpo_plus_teacher": ("seeding_references", "grpo_teacher", None),
}
CUDA_SIZE = {"hidden": 1536, "intermediate": 4608, "layers": 24, "vocabulary": 64000}  # 0.8 billion parameters


class Side:
    """A worker process that holds one trainer."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        self.seconds: list[float] = []
        flags = [f"--{flag}" for flag in ("checkpointing", "cuda") if getattr(args, flag)]
        flags += ["--phases"] if args.breakdown else []
        env = environment(args.threads)
        if args.cuda:  # one device: with several, the trainers would spread the batch
            env["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        command = [sys.executable, str(Path(__file__).with_name("_trainers.py")), name, *flags]
        self.process = subprocess.Popen(
            command + [part for size in SIZES for part in (f"--{size}", str(getattr(args, size)))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if args.verbose else subprocess.DEVNULL,
            text=True,
            env=env,
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The side {self.name!r} ended early. Run again with --verbose to see why.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def step(self, count: int) -> list[float]:
        """Run some steps and return the seconds of each."""
        self._send(str(count))
        seconds: list[float] = self._read()["seconds"]
        return seconds

    def stop(self) -> dict[str, Any]:
        """End the training and return the memory that it took."""
        self._send("stop")
        answer = self._read()
        self.process.wait()
        return answer

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hidden", type=int, help="hidden size, a multiple of 64 (512; with --cuda 1536)")
    parser.add_argument("--intermediate", type=int, help="width of the MLPs (three times the hidden size)")
    parser.add_argument("--layers", type=int, help="decoder layers (8; with --cuda 24)")
    parser.add_argument("--vocabulary", type=int, help="entries of the vocabulary (32000; with --cuda 64000)")
    parser.add_argument("--batch", type=int, default=4, help="completions per step (4)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt (64)")
    parser.add_argument("--context", type=int, default=64, help="tokens that the teacher reads before the prompt (64)")
    parser.add_argument("--completion", type=int, default=64, help="tokens of a completion and of a reference (64)")
    parser.add_argument("--width", type=int, default=64, help="width of the expert (64)")
    parser.add_argument("--rounds", type=int, help="rounds in which the sides take turns (5; with --quick 2)")
    parser.add_argument("--steps", type=int, help="steps of a side per round (2; with --quick 1)")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each side before the first round (1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each side (1)")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, on all sides")
    parser.add_argument("--cuda", action="store_true", help="measure on the first CUDA device, in bfloat16")
    parser.add_argument(
        "--breakdown", action="store_true", help="report the peak of each part of a step, on every side"
    )
    parser.add_argument("--verbose", action="store_true", help="show the output of the sides")
    args = parser.parse_args()
    size = CUDA_SIZE if args.cuda else {"hidden": 512, "layers": 8, "vocabulary": 32000}
    for name, value in size.items():
        if getattr(args, name) is None and not (name == "intermediate" and args.hidden):
            setattr(args, name, value)
    args.intermediate = args.intermediate or 3 * args.hidden
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.steps = args.steps or (1 if args.quick else 2)
    if args.hidden % 64 or args.batch % 2:
        parser.error(f"--hidden must be a multiple of 64 and --batch of 2, got {args.hidden} and {args.batch}.")
    return args


def measure_memory(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run each side alone, one after another, and return the memory that it took."""
    taken = {}
    for name in SIDES:
        progress(f"memory: {name}")
        side = Side(name, args)
        side.step(args.warmup + args.steps)
        taken[name] = side.stop()
    return taken


def measure_time(args: argparse.Namespace) -> dict[str, list[float]]:
    """Run the sides in turn and return the seconds of each one's steps."""
    names = list(dict.fromkeys(name for pair in TIME_RATIOS.values() for name in pair[:2]))
    sides = [Side(name, args) for name in names]
    for side in sides:
        side.step(args.warmup)
    for turn in range(args.rounds):
        progress(f"time: round {turn + 1} of {args.rounds}")
        for side in sides if turn % 2 == 0 else reversed(sides):
            side.seconds += side.step(args.steps)
    for side in sides:
        side.stop()
    return {side.name: side.seconds for side in sides}


def main() -> None:
    args = parse()
    memory = measure_memory(args)
    if args.breakdown:
        phases = list(next(iter(memory.values()))["phases"])
        table: list[Row] = [("peak, MiB, in", *phases)]
        table += [(name, *(f"{taken['phases'][phase]:.0f}" for phase in phases)) for name, taken in memory.items()]
        report("Peak of each part of a step", table, {name: m["phases"] for name, m in memory.items()}, args.json)
        return
    seconds = measure_time(args)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    peak = {name: taken["peak_mib"] for name, taken in memory.items()}
    ratios = {key: peak[ours] / peak[peer] for key, (ours, peer, _) in MEMORY_RATIOS.items()}
    ratios |= {key: median[ours] / median[peer] for key, (ours, peer, _) in TIME_RATIOS.items()}

    head: Row = ("side", "peak MiB", "of it before the model", "seconds a step (median)")
    table = [head]
    for name, taken in memory.items():
        time = f"{median[name]:.2f}" if name in median else ""
        table.append((name.replace("_", " "), f"{peak[name]:.0f}", f"{taken['imports_mib']:.0f}", time))
    table.append(("", "", "", ""))
    for key, (ours, peer, bound) in {**MEMORY_RATIOS, **TIME_RATIOS}.items():
        met = verdict(ratios[key], bound) if bound else ""
        table.append((key, f"{ratios[key]:.3f}", f"{ours} / {peer}".replace("_", " "), met))
    size = f"hidden {args.hidden}, {args.layers} layers, vocabulary {args.vocabulary}, batch {args.batch}"
    tokens = f"prompt {args.prompt}, context {args.context}, completion {args.completion} tokens"
    threads = "CUDA" if args.cuda else f"{args.threads} thread(s)"
    result: dict[str, object] = {key: round(value, 4) for key, value in ratios.items()}
    result["peak_mib"] = {name: round(value, 1) for name, value in peak.items()}
    result["imports_mib"] = {name: round(taken["imports_mib"], 1) for name, taken in memory.items()}
    result["seconds"] = {name: round(value, 3) for name, value in median.items()}
    result["setting"] = f"{size}, {tokens}, {threads}"
    report(f"One step: {result['setting']}", table, result, args.json)


if __name__ == "__main__":
    main()
