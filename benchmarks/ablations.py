"""The contribution of each part of a night: the quickstart's night with one thing changed, over several seeds.

    python benchmarks/ablations.py --seeds 3 --nights 2 --jobs 2 --output benchmarks/results/ablations.json

Every variant runs in a fresh process, on the same memories, for the same number of steps. With two nights, the second
has other memories and continues the first. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _report import ROOT, Row, Runs, cell, report_study, run_study, study_parser

sys.path.insert(0, str(ROOT))

QUICKSTART = Path("examples/quickstart")

# Overrides of the configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "full method": {},
    "no imitation reward (alpha = 1)": {"seeding.alpha": 1.0},
    "no distillation (alpha = 0)": {"seeding.alpha": 0.0},
    "no self-replay": {"dataset.general_share": 0.0, "dataset.earlier_share": 0.0},
    "references only (lambda = 0)": {"seeding.lmbda": 0.0},
    "rollouts only (lambda = 1)": {"seeding.lmbda": 1.0},
    "rollouts from the first step": {"seeding.rollout_start": 0.0},
    "no expansion, learning rate 3e-4": {"expand": False, "seeding.learning_rate": 3e-4},
}


def run_one(overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one night in this process and return its results."""
    from sleep_trl.config.command_line import parse
    from sleep_trl.night.run import run_night
    from sleep_trl.planning.inputs import RunInputs
    from sleep_trl.trainers.knowledge_seeding.from_config import seed_expert

    options = [f"--{key}={value}" for key, value in overrides.items() if key != "expand"]
    inputs = RunInputs(
        parse(["--config", str(QUICKSTART / "config.yaml"), f"--output_dir={folder}", "--no-report", *options])
    )
    return run_night(inputs, seed_expert if overrides.get("expand", True) else train_existing_weights)


def train_existing_weights(
    config: Any, model: Any, tokenizer: Any, rows: Any, folder: Path, engine: Any, teachers: Any = ()
) -> list[dict[str, Any]]:
    """Seed without expansion: the pretrained weights are trained, a frozen copy teaches, the expert stays zero."""
    from sleep_trl.memory import Memory
    from sleep_trl.trainers.knowledge_seeding.from_config import make_trainer

    memory = Memory.of(model)
    assert memory is not None
    learning = memory.learning
    memory.commit()
    teacher = copy.deepcopy(model)
    for _, parameter in memory.base_parameters():
        parameter.requires_grad_(True)
    trainer = make_trainer(config, model, tokenizer, rows, folder, teacher_model=teacher)
    trainer.args.save_strategy = "no"
    trainer.train()
    memory.train_only(learning)
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def run_variant(name: str, seed: int, nights: int, steps: int | None, folder: Path) -> dict[str, Any]:
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
    figures = {
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


def tabulate(runs: Runs) -> list[Row]:
    """Return means in percent, with the range over seeds if they differ."""
    keys = [key for key in next(iter(next(iter(runs.values())).values())) if key != "seconds"]
    table: list[Row] = [("variant", *(key.replace("_", " ") for key in keys))]
    for name, by_seed in runs.items():
        table.append((name, *(cell([100 * run[key] for run in by_seed.values()]) for key in keys)))
    return table


def parse_arguments() -> argparse.Namespace:
    parser = study_parser((__doc__ or "").split("\n")[0], VARIANTS)
    parser.add_argument("--nights", type=int, default=1, choices=(1, 2, 3), help="nights per run")
    parser.add_argument("--steps", type=int, help="optimizer steps per night; overrides the configuration")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.variants = 1, 5, list(VARIANTS)[:1] + list(VARIANTS)[-1:]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.one:
        run_one(json.loads(arguments.one), arguments.folder)
        return
    settings = {"nights": arguments.nights, "steps": arguments.steps}

    def run(name: str, seed: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return run_variant(name, seed, arguments.nights, arguments.steps, Path(folder))

    runs = run_study(arguments, settings, run, arguments.jobs)
    report_study(tabulate(runs), settings, runs, arguments.json)


if __name__ == "__main__":
    main()
