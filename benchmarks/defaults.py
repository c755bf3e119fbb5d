"""What each setting of learning does to a real model: one night's samples, learned again with one thing changed.

    python benchmarks/real_night.py --split choose --documents 12 --seeds 1
    python benchmarks/defaults.py --night runs/real_night/FOLDER/seed-42/night --output runs/defaults.json

The night gives model, documents and samples, so that all rows learn from the same. Each trains a new expert, is
asked the documents' questions without the text, also in other words, and reads the shipped prose. `lora` and `lora
replay` are fine-tuned on the same samples for as many steps, see `_rivals.py`. Settings are chosen with documents of
`--split choose` alone. `--questions given` puts the documents' own questions and answers in place of those that the
teacher wrote: what is learned from a teacher that asks well. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _report import Row, Runs, cell, environment, report_study, rerun_with, run_study, study_parser

# Options of `seeding` that differ from the defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "half divergence, half cross-entropy": {"sft_weight": 0.5},
    "divergence alone": {"sft_weight": 0.0},
    "rollouts from the first step": {"rollout_start": 0.0},
    "rollouts from half of the steps": {"rollout_start": 0.5},
    "no rollouts": {"rollout_start": 1.0},
    "no rollouts, half divergence": {"rollout_start": 1.0, "sft_weight": 0.5},
    "no rollouts, 4 prompts a step": {"rollout_start": 1.0, "prompts_per_step": 4},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "learning rate 4e-3": {"learning_rate": 4e-3},
    "twice as many passes": {"passes": 8.0},
    "replay weight 2": {"replay_weight": 2.0},
    "no rollouts, replay weight 2": {"rollout_start": 1.0, "replay_weight": 2.0},
    "no rollouts, replay weight 16": {"rollout_start": 1.0, "replay_weight": 16.0},
}
RIVALS = {"lora": "lora", "lora replay": "lora_replay"}
SHORT_STEPS = 2
FIGURES = ("after", "other_words", "answer_loss", "perplexity", "steps", "seconds")


def inputs_of(night: Path, seed: int, options: dict[str, Any], steps: int | None) -> Any:
    """Return the inputs of a night with the default options of `seeding` but for these."""
    from sleep_trl.config import RunConfig
    from sleep_trl.planning.inputs import RunInputs

    config = json.loads((night / "config.json").read_text("utf-8"))
    config["seeding"] = options | ({"steps": steps} if steps else {})
    return RunInputs(RunConfig.model_validate(config | {"seed": seed, "resume": False}))


def exam_of(inputs: Any) -> Any:
    """Return the exam of a night without its reading questions, which take most of the time."""
    from _rivals import Exam

    lines = Path(inputs.config.memories).read_text("utf-8").splitlines()
    return dataclasses.replace(Exam.of(inputs, [json.loads(line) for line in lines if line.strip()]), reading=[])


def samples_with(night: Path, inputs: Any, questions: str) -> list[Any]:
    """Return the samples of a night, with the questions that its teacher wrote or those that are given."""
    from _rivals import answer_ids, samples_of

    from sleep_trl.data.samples import Sample
    from sleep_trl.data.templates import Template
    from sleep_trl.evaluation.recall import window_with_answer

    samples = samples_of(night)
    if questions == "written":
        return samples
    template, prompter = Template.load("question_answer"), inputs.prompter
    kept = [sample for sample in samples if sample.template != template.name]
    for memory in inputs.memories:
        texts = [window.text for window in inputs.reading if window.memory_id == memory.id]
        for question, answers in ((item.question, item.answers) for item in memory.questions):
            ids, text, stop = prompter(template.respond, request=question)
            teacher = prompter.question(template, question, window_with_answer(texts, answers))
            ends = answer_ids(inputs, answers[0])
            kept.append(Sample("memory", memory.id, template.name, text, ids, teacher, answers[0], ends, list(stop)))
    return kept


def learn_again(night: Path, seed: int, options: dict[str, Any], steps: int | None, questions: str) -> dict[str, Any]:
    """Train a new expert on a night's samples and return its figures."""
    from sleep_trl.memory import MemorySpec, attach
    from sleep_trl.models.loading import load_model
    from sleep_trl.night.seed import lay_out
    from sleep_trl.rollout import TransformersEngine
    from sleep_trl.trainers.knowledge_seeding.from_config import seed_expert

    inputs = inputs_of(night, seed, options, steps)
    config, rows = lay_out(samples_with(night, inputs, questions), inputs.config, inputs.tokenizer)
    model = load_model(config)
    attach(model, MemorySpec(width=config.memory.width, max_experts=1, seed=seed)).activate()
    engine = TransformersEngine(model, inputs.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        seed_expert(config, model, inputs.tokenizer, rows, folder, engine)
        seconds = time.perf_counter() - begun
    return exam_of(inputs).grade(model) | {"steps": config.seeding.steps, "seconds": seconds}


def run_one(night: Path, name: str, seed: int, steps: int | None, questions: str) -> dict[str, Any]:
    """Return the figures of a setting or a rival."""
    if name in SETTINGS:
        return learn_again(night, seed, SETTINGS[name], steps, questions)
    from _rivals import RIVALS as RECIPES
    from _rivals import learn

    from sleep_trl.data.rows import steps_of

    inputs = inputs_of(night, seed, {}, steps)
    samples, rate = samples_with(night, inputs, questions), RECIPES[RIVALS[name]].learning_rate
    count = steps_of(samples, inputs.config)
    figures: dict[str, Any] = learn(RIVALS[name], exam_of(inputs), samples, count, rate, "mlp")
    return figures


def tabulate(runs: Runs) -> list[Row]:
    """Return the means over the seeds."""
    table: list[Row] = [("setting", *(name.replace("_", " ") for name in FIGURES))]
    for name, by_seed in runs.items():
        shares = [cell([100 * run[key] for run in by_seed.values()]) for key in FIGURES[:2]]
        others = [
            cell([run[key] for run in by_seed.values()], 0 if key in ("steps", "seconds") else 2) for key in FIGURES[2:]
        ]
        table.append((name, *shares, *others))
    return table


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = study_parser((__doc__ or "").split("\n")[0], [*SETTINGS, *RIVALS], "settings")
    parser.add_argument("--night", type=Path, help="folder of a night; --quick runs a short one")
    parser.add_argument("--questions", default="written", choices=("written", "given"), help="by the teacher, or given")
    arguments = parser.parse_args(argv)
    if arguments.night is None and not arguments.quick:
        parser.error("--night is missing: the folder of a night of real_night.py --split choose")
    if arguments.quick:
        arguments.seeds, arguments.variants = 1, ["defaults", "no rollouts", "lora"]
    return arguments


def main() -> None:
    rerun_with(environment())
    arguments = parse_arguments()
    if arguments.night is None:
        from real_night import short_night

        arguments.night = short_night()
    steps = SHORT_STEPS if arguments.quick else None
    settings = {"night": arguments.night.name, "questions": arguments.questions, "steps": steps}

    def run(name: str, seed: int) -> dict[str, Any]:
        return run_one(arguments.night, name, seed, steps, arguments.questions)

    runs = run_study(arguments, settings, run)
    report_study(tabulate(runs), settings, runs, arguments.json)


if __name__ == "__main__":
    main()
