"""Does a night with dreaming teach more than the same night without? Questions are in other words than the memories'.

    python benchmarks/night_with_dreams.py --seeds 3 --output benchmarks/results/night_with_dreams.json

This is the quickstart's second night, after its first, made harder: the teacher writes one question per sentence, so
that other ways to ask are not learned. The dreams that helped are learned in `--dream-steps` steps, after those of the
night or instead of its last ones. For comparison, one variant has as many additional steps and no dreams. The steps in
which the model learns to dream are additional and are included in the seconds.

Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import ROOT, Row, Runs, cell, report_study, run_study, study_parser
from _synthetic_world import QUICKSTART, memories_of, sleep, write_memories

FIRST_NIGHT, SECOND_NIGHT = 1, 2
FORMS = ("forward", "paraphrase", "reversed")  # the first are the memories' own questions

DREAMS: dict[str, Any] = {
    "dream.rounds": 3,
    "dream.selection": "all",
    "dream.test": "sign",  # a sentence has too few questions for any other test
    "dream.em_epochs": 2,
    "dream.learning_rate": 1e-3,
    "dream.lora_learning_rate": 5e-3,
    "dream.batch_size": 96,
    "dream.max_new_tokens": 24,
}


@dataclass(frozen=True)
class Variant:
    """Differences from the quickstart's night: options, and how many times `--dream-steps` are added to its steps."""

    options: dict[str, Any]
    added: int = 0


ONE_QUESTION = {"dataset.samples_per_window": 1}
VARIANTS = {
    "no dreaming": Variant(ONE_QUESTION),
    "no dreaming, more steps": Variant(ONE_QUESTION, 1),
    "dreaming after it": Variant(ONE_QUESTION | DREAMS),
    "dreaming at its end": Variant(ONE_QUESTION | DREAMS, -1),
    "dreaming at its end, learning rate 1e-2": Variant(ONE_QUESTION | DREAMS | {"dream.learning_rate": 1e-2}, -1),
    "no dreaming, 16 questions a sentence": Variant({}),
}


def run(variant: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the second night after the first, and ask about both."""
    here = arguments.folder / f"{arguments.first}-{arguments.steps}-{arguments.dream_steps}" / str(seed)
    first, second = (write_memories(here / f"{n}.jsonl", n) for n in (FIRST_NIGHT, SECOND_NIGHT))
    before = sleep(here / "first", first, {"seed": seed, "seeding.steps": arguments.first})
    steps = {
        "seeding.steps": arguments.steps + VARIANTS[variant].added * arguments.dream_steps,
        "dream.steps": arguments.dream_steps,
    }
    options = {"seed": seed, "continue_from": before, **steps, **VARIANTS[variant].options}
    after = sleep(here / variant.replace(" ", "-").replace(",", ""), second, options)
    results = json.loads((after / "results.json").read_text("utf-8"))
    dreams = results.get("dreams", {"rounds": [], "learnt": 0})
    return {
        "known": ask_about(after, SECOND_NIGHT),
        "first_night": {"before": ask_about(before, FIRST_NIGHT), "after": ask_about(after, FIRST_NIGHT)},
        "base_skill": results["base_skill"],
        "dreams": dreams["rounds"],
        "dreams_learnt": dreams["learnt"],
        "seconds": results["seconds"],
    }


def ask_about(folder: Path, night: int) -> dict[str, float]:
    """Return the share of a night's questions, by form, that the grown model in a run's folder answers correctly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sleep_trl.data.prompts import Prompter
    from sleep_trl.evaluation.recall import QAItem, ask
    from sleep_trl.memory import load_memory
    from sleep_trl.rollout import TransformersEngine

    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model", dtype=torch.float32)
    load_memory(model, folder / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    engine, prompter = TransformersEngine(model, tokenizer, 128), Prompter(tokenizer)
    rows = [row for memory in memories_of(night) for row in memory["questions"] + memory["other_words"]]
    shares = {}
    for form in FORMS:
        items = [QAItem(row["question"], tuple(row["answers"])) for row in rows if row["form"] == form]
        score = ask(items, engine, prompter, with_context=False, metric="exact", max_new_tokens=8)
        assert score is not None
        shares[form] = round(score, 4)
    return shares


def tabulate(runs: Runs) -> list[Row]:
    """Return recall, forgetting in points, base skill, counts and seconds."""
    table: list[Row] = [
        ("variant", *FORMS, "other words", "first night lost", "base skill", "dreams that helped", "learnt", "seconds")
    ]
    for name, by_seed in runs.items():
        done = list(by_seed.values())
        recall = [cell([100 * run["known"][form] for run in done]) for form in FORMS]
        other = cell([100 * mean_of(run["known"], FORMS[1:]) for run in done])
        nights = [run["first_night"] for run in done]
        lost = cell([100 * (mean_of(n["before"], FORMS) - mean_of(n["after"], FORMS)) for n in nights])
        skill = cell([100 * run["base_skill"]["after"] for run in done])
        rounds = list(zip(*(run["dreams"] for run in done), strict=True))
        helped = " → ".join(
            f"{sum(100 * r['rewarded'] for r in made) / sum(r['tried'] for r in made):.0f}" for made in rounds
        )
        learnt = cell([run["dreams_learnt"] for run in done], 0)
        seconds = cell([run["seconds"]["total"] for run in done], 0)
        table.append((name, *recall, other, lost, skill, helped, learnt, seconds))
    return table


def mean_of(shares: dict[str, float], forms: Sequence[str]) -> float:
    """Return the mean share over some forms, which have equally many questions."""
    return sum(shares[form] for form in forms) / len(forms)


def parse_arguments() -> argparse.Namespace:
    parser = study_parser((__doc__ or "").split("\n")[0], VARIANTS)
    parser.add_argument("--first", type=int, default=90, help="steps of the first night")
    parser.add_argument("--steps", type=int, default=150, help="steps of the second night")
    parser.add_argument("--dream-steps", type=int, default=60, help="steps in which dreams are learned")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "dreamt", help="folder for the nights")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.first, arguments.steps, arguments.dream_steps = 1, 5, 10, 5
    return arguments


def main() -> None:
    arguments = parse_arguments()
    settings = {name: getattr(arguments, name) for name in ("first", "steps", "dream_steps")}
    runs = run_study(arguments, settings, lambda variant, seed: run(variant, seed, arguments))
    report_study(tabulate(runs), settings, runs, arguments.json)


if __name__ == "__main__":
    main()
