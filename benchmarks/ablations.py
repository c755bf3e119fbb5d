"""What each part of a night is worth: the quickstart's night with one thing changed, over several seeds.

    python benchmarks/ablations.py --seeds 3 --nights 2 --jobs 2 --output benchmarks/results/ablations.json

Every variant runs in a fresh process, on the same memories, for the same number of steps. With two nights, the second
has other memories and continues from the first. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

QUICKSTART = Path("examples/quickstart")

# What is changed, as overrides of the configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "full method": {},
    "no imitation reward (alpha = 1)": {"seeding.alpha": 1.0},
    "no distillation (alpha = 0)": {"seeding.alpha": 0.0},
    "no self-replay": {"dataset.general_share": 0.0, "dataset.earlier_share": 0.0},
    "references only (lambda = 0)": {"seeding.lmbda": 0.0},
    "rollouts only (lambda = 1)": {"seeding.lmbda": 1.0},
    "no expansion, learning rate 3e-4": {"expand": False, "seeding.learning_rate": 3e-4},
}


def run_one(overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one night in this process and return its results."""
    from sleep_trl.night import run_night
    from sleep_trl.settings import parse
    from sleep_trl.trainers.knowledge_seeding.from_config import seed_expert

    options = [f"--{key}={value}" for key, value in overrides.items() if key != "expand"]
    config = parse(["--config", str(QUICKSTART / "config.yaml"), f"--output_dir={folder}", "--no-report", *options])
    return run_night(config, seed_expert if overrides.get("expand", True) else train_existing_weights)


def train_existing_weights(config: Any, model: Any, tokenizer: Any, rows: Any, folder: Path) -> list[dict[str, Any]]:
    """Seed without expansion: the pretrained weights learn, a frozen copy teaches, the expert stays zero."""
    from sleep_trl.memory import Memory
    from sleep_trl.trainers.knowledge_seeding.from_config import make_trainer

    memory = Memory.of(model)
    assert memory is not None
    learning = memory.learning
    memory.learn(None)
    teacher = copy.deepcopy(model)
    for _, parameter in memory.base_parameters():
        parameter.requires_grad_(True)
    trainer = make_trainer(config, model, tokenizer, rows, folder, teacher_model=teacher)
    trainer.args.save_strategy = "no"
    trainer.train()
    memory.learn(learning)
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def run_variant(name: str, seed: int, nights: int, steps: int | None, folder: Path) -> dict[str, float | None]:
    """Run one variant in fresh processes, night after night."""
    for night in range(1, nights + 1):
        overrides = {**VARIANTS[name], "seed": seed}
        if steps:
            overrides["seeding.steps"] = steps
        if night > 1:
            overrides["memories"] = str(QUICKSTART / f"memories_night{night}.jsonl")
            overrides["continue_from"] = str(folder / f"night{night - 1}")
        command = [sys.executable, __file__, "--one", json.dumps(overrides), "--folder", str(folder / f"night{night}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}, seed {seed}, night {night} failed:\n{done.stderr[-2000:]}")
    results = [json.loads((folder / f"night{k}" / "results.json").read_text()) for k in range(1, nights + 1)]
    figures: dict[str, float | None] = {
        "recall_with_context": results[0]["recall"]["with_context"],
        "recall": results[0]["recall"]["after"],
        "base_skill": results[0]["base_skill"]["after"],
        "base_skill_lost": results[0]["base_skill"]["before"] - results[0]["base_skill"]["after"],
        "seconds": results[0]["seconds"]["seed"],
    }
    if nights > 1:
        figures["recall_night_2"] = results[1]["recall"]["after"]
        figures["first_night_after_second"] = results[1]["retention"]["entry-001"]["after"]
        figures["base_skill_night_2"] = results[1]["base_skill"]["after"]
    return figures


def summarize(runs: list[dict[str, float | None]]) -> dict[str, dict[str, float]]:
    """Return mean, smallest and largest value of each figure over the seeds."""
    summary = {}
    for key in runs[0]:
        values = [run[key] for run in runs if run[key] is not None]
        summary[key] = {"mean": statistics.mean(values), "min": min(values), "max": max(values)}
    return summary


def render(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return a Markdown table: means, with the range over seeds where it is not a point."""
    keys = [key for key in next(iter(results.values())) if key != "seconds"]
    lines = ["| variant | " + " | ".join(k.replace("_", " ") for k in keys) + " |", "| --- |" + " ---: |" * len(keys)]
    for name, summary in results.items():
        cells = []
        for key in keys:
            mean, low, high = (100 * summary[key][k] for k in ("mean", "min", "max"))
            cells.append(f"{mean:.1f}" if high - low < 0.05 else f"{mean:.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--nights", type=int, default=1, choices=(1, 2, 3), help="nights a run")
    parser.add_argument("--steps", type=int, help="optimizer steps a night, instead of the configuration's")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="which to run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, help="file to which the JSON object is written too")
    parser.add_argument("--quick", action="store_true", help="one seed, 5 steps, two variants: does it run?")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.one:
        run_one(json.loads(arguments.one), arguments.folder)
        return
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.variants = 1, 5, list(VARIANTS)[:1] + list(VARIANTS)[-1:]
    say: Callable[..., None] = (lambda *_: None) if arguments.json else print
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {
            (name, seed): pool.submit(
                run_variant, name, seed, arguments.nights, arguments.steps, Path(folder, str(index), str(seed))
            )
            for seed in range(42, 42 + arguments.seeds)
            for index, name in enumerate(arguments.variants)
        }
        runs: dict[str, list[dict[str, float | None]]] = {name: [] for name in arguments.variants}
        for (name, seed), future in futures.items():
            runs[name].append(future.result())
            say(f"{name}, seed {seed}: {runs[name][-1]}", flush=True)
    results = {name: summarize(done) for name, done in runs.items()}
    say("\n" + render(results) + "\n")
    line = json.dumps({"seeds": arguments.seeds, "nights": arguments.nights, "runs": runs, "summary": results})
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
