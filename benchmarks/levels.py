"""More sleeps and more levels against fewer, on the same days (the question of the paper's figure 4).

    python benchmarks/levels.py --output benchmarks/results/levels.json

Six days of the quickstart's town are slept over in one night, in three and in six, each with the same optimizer steps
in all; in one night with the steps of one of the six; and in six with two levels, where the experts of level 1 become
one of level 2 after every third day, in as many steps again as a night has. Two worlds: in the `town` facts are about
ten kinds of things; `needles` is multi-key: all facts of a page are about one kind (whose boat is whose), so that the
others are keys beside the one that is asked for. Recall is that of all days after the last one and, as one may want an
answer on any evening, the mean over the days' ends of what was heard until then. Nights that are in the folder are
kept. Prints a table; the last line is one JSON object.
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
FACTS = 6  # of a page
WORLDS = ("town", "needles")


@dataclass(frozen=True)
class Variant:
    """How the days are slept over.

    Args:
        sleeps (`int`): nights, of as many days each.
        steps (`int`, *optional*, defaults to `1`): steps of a night, and of a consolidation, in `--steps`.
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
    """Count the tokens of some days' memories, as a night does."""
    texts = [row["text"] for day in days for row in day]
    return sum(map(len, _tokenizer()(texts, add_special_tokens=False)["input_ids"]))


def chunks_of(days: list[list[dict[str, Any]]], every: int) -> str:
    """Return `levels.chunks` by which level 1 is full after every so many days, and level 2, which takes it in, never.

    Days differ by some tokens, so a chunk is as large as the shortest run of days from the first one on allows.
    """
    ends = range(every, len(days) + 1, every)
    chunk = min(tokens_of(days[:end]) * every // end for end in ends)
    return f"[1,{chunk},{chunk * (len(ends) + 1)}]"


def recall_by_day(recall: Sequence[Sequence[float]]) -> float:
    """Return what is known of all that was heard, a mean over the ends of the days.

    Args:
        recall (`Sequence[Sequence[float]]`): of each night's questions after each night, of a life over all days.
    """
    nights_until = [day * len(recall) // DAYS for day in range(1, DAYS + 1)]
    days_of_a_night = DAYS / len(recall)
    known = [days_of_a_night * sum(recall[n - 1]) / day for day, n in enumerate(nights_until, 1) if n]
    return sum(known) / DAYS


def run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sleep over the days, and ask about all of them."""
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
    """Return recall and skill in percent, the experts in use at the end, and what it took."""
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
    parser.add_argument("--pages", type=int, default=1, help="pages a day, of six facts each")
    parser.add_argument("--steps", type=int, default=90, help="optimizer steps a day, and of a consolidation")
    parser.add_argument("--prompts", type=int, default=24, help="prompts a step")
    parser.add_argument("--earlier-share", type=float, default=0.45, help="share of earlier nights' prompts in a step")
    parser.add_argument("--drift-weight", type=float, default=1.5, help="weight of the drift on self-replay")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "levels", help="keeps every night")
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
