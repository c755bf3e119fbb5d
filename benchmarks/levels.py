"""More sleeps and more levels against fewer, on the same days (the question of the paper's figure 4).

    python benchmarks/levels.py --output benchmarks/results/levels.json

Six days of the quickstart's town are learned in one night, in three and in six, with the same total number of optimizer
steps; in one night with the steps of one of the six; and in six nights with two levels, where the experts of level 1
are consolidated into one of level 2 after every third day, in as many steps as a night. There are two worlds. In the
`town`, facts are about ten kinds of things. `needles` is multi-key: all facts of a page are about one kind (whose boat
is which), so the others are distracting keys. Recall is measured for all days after the last one and, because a
question may come on any evening, as a mean over the ends of the days, for everything ingested so far. Nights that are
already in the folder are kept. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from _report import ROOT, Row, Runs, cell, environment, report_study, rerun_with, run_study, study_parser
from _synthetic_world import QUICKSTART, memories_of, run_chain

DAYS = 6
FACTS = 6  # per page
WORLDS = ("town", "needles")


@dataclass(frozen=True)
class Variant:
    """How the days are divided into nights.

    Args:
        sleeps (`int`): number of nights, with the same number of days each.
        steps (`int`, *optional*, defaults to `1`): steps of a night and of a consolidation, as a multiple of `--steps`.
        chunk (`int`, *optional*): days after which level 1 is consolidated into level 2. Default: one level.
    """

    sleeps: int
    steps: int = 1
    chunk: int | None = None


VARIANTS = {
    "one short sleep": Variant(1),
    "one sleep": Variant(1, steps=6),
    "three sleeps": Variant(3, steps=2),
    "six sleeps": Variant(6),
    "six sleeps, two levels": Variant(6, chunk=3),
}


def needles(day: int, pages: int) -> list[dict[str, Any]]:
    """Return a day's pages, each about one kind of thing."""
    from world import FIRST_SYLLABLES, RELATIONS, SECOND_SYLLABLES, Fact, Passage, record

    rows = []
    for page in range(pages):
        rng = random.Random(f"needles {day} {page}")
        relation = RELATIONS[(day * pages + page) % len(RELATIONS)]
        names = [first + rng.choice(SECOND_SYLLABLES) for first in rng.sample(FIRST_SYLLABLES, 2 * FACTS)]
        pairs = zip(names[::2], names[1::2], strict=True)
        passage = Passage(tuple(Fact(s, relation, t, rng.choice(relation.quirks)) for s, t in pairs))
        rows.append(record(passage, f"day{day}-{page}", "The Town Crier"))
    return rows


def days_of(world: str, pages: int) -> list[list[dict[str, Any]]]:
    """Return the memories of each day."""
    days = range(1, DAYS + 1)
    return [memories_of(day)[:pages] if world == "town" else needles(day, pages) for day in days]


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(QUICKSTART / "model")


def tokens_of(days: list[list[dict[str, Any]]]) -> int:
    """Count the tokens of the memories of some days, as a night does."""
    texts = [row["text"] for day in days for row in day]
    return sum(map(len, _tokenizer()(texts, add_special_tokens=False)["input_ids"]))


def chunks_of(days: list[list[dict[str, Any]]], every: int) -> str:
    """Return `levels.chunks` with which level 1 is full after every `every` days, and level 2, its receiver, never.

    Days differ by a few tokens, so a chunk is as large as the shortest sequence of days from the first allows.
    """
    ends = range(every, len(days) + 1, every)
    chunk = min(tokens_of(days[:end]) * every // end for end in ends)
    return f"[1,{chunk},{chunk * (len(ends) + 1)}]"


def recall_by_day(recall: Sequence[Sequence[float]]) -> float:
    """Return the recall of everything ingested so far, averaged over the ends of the days.

    Args:
        recall (`Sequence[Sequence[float]]`): recall of each night's questions after each night, over all days.
    """
    nights_until = [day * len(recall) // DAYS for day in range(1, DAYS + 1)]
    days_of_a_night = DAYS / len(recall)
    known = [days_of_a_night * sum(recall[n - 1]) / day for day, n in enumerate(nights_until, 1) if n]
    return sum(known) / DAYS


def run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the nights, and ask about all days."""
    from world import write_records

    from sleep_trl.evaluation.retention import average, describe_chain
    from sleep_trl.runs.ledger import expert_owners

    world, variant = name.split(": ")
    how, days = VARIANTS[variant], days_of(world, arguments.pages)
    here = arguments.folder / world / variant.replace(" ", "-").replace(",", "") / f"seed-{seed}"
    here.mkdir(parents=True, exist_ok=True)
    each = DAYS // how.sleeps
    memories = [here / f"{night}.jsonl" for night in range(how.sleeps)]
    for night, path in enumerate(memories):
        write_records(path, [row for day in days[night * each : (night + 1) * each] for row in day])
    steps = arguments.steps * how.steps
    options: dict[str, Any] = {
        "seed": seed,
        "seeding.steps": steps,
        "seeding.prompts_per_step": arguments.prompts,
        "seeding.drift_weight": arguments.drift_weight,
        "dataset.earlier_share": arguments.earlier_share,
        "memory.max_experts": DAYS,
        "evaluation.max_questions": 360,
    }
    if how.chunk:
        options |= {"levels.chunks": chunks_of(days, how.chunk), "levels.steps": steps}
    ledger = run_chain(here / "life", memories, options)
    chain = describe_chain(ledger)
    nights = [json.loads(path.read_text("utf-8")) for path in sorted((here / "life").glob("night-*/results.json"))]
    return {
        "steps": steps * (len(nights) + sum(len(night["consolidations"]) for night in nights)),
        "recall": average(chain["recall"]),
        "recall_by_day": recall_by_day(chain["recall"]),
        "base_skill": chain["base_skill"][-1],
        "experts": len(expert_owners(ledger)),
        "seconds": round(sum(night["seconds"]["total"] for night in nights)),
        "life": chain["recall"],
    }


def tabulate(runs: Runs) -> list[Row]:
    """Return recall and skill in percent, the number of experts at the end, steps and seconds."""
    shares, counts = ("recall", "recall_by_day", "base_skill"), ("experts", "steps", "seconds")
    table: list[Row] = [("days", "recall after the last", "recall on all evenings", "base skill", *counts)]
    for name, by_seed in runs.items():
        done = list(by_seed.values())
        percent = (cell([100 * run[key] for run in done]) for key in shares)
        table.append((name, *percent, *(cell([run[key] for run in done], 0) for key in counts)))
    return table


def parse_arguments() -> argparse.Namespace:
    names = [f"{world}: {variant}" for world in WORLDS for variant in VARIANTS]
    parser = study_parser((__doc__ or "").split("\n")[0], names)
    parser.add_argument("--pages", type=int, default=1, help="pages per day, with six facts each")
    parser.add_argument("--steps", type=int, default=90, help="optimizer steps per day and per consolidation")
    parser.add_argument("--prompts", type=int, default=24, help="prompts per step")
    parser.add_argument("--earlier-share", type=float, default=0.45, help="share of earlier nights' prompts in a step")
    parser.add_argument("--drift-weight", type=float, default=1.5, help="weight of the drift on self-replay")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "levels", help="folder for every night")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps = 1, 5
        arguments.folder = arguments.folder / "quick"
    return arguments


def main() -> None:
    arguments = parse_arguments()
    rerun_with(environment())
    names = ("pages", "steps", "prompts", "earlier_share", "drift_weight")
    settings = {name: getattr(arguments, name) for name in names}
    runs = run_study(arguments, settings, lambda variant, seed: run(variant, seed, arguments))
    report_study(tabulate(runs), settings, runs, arguments.json)


if __name__ == "__main__":
    main()
