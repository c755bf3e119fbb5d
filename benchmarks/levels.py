"""More sleeps and more levels against fewer, on the same days (the question of the paper's figure 4).

    python benchmarks/levels.py --output benchmarks/results/levels.json

Six days of the quickstart's town are slept over in one night, in three and in six, with one level or with two, where
the experts of level 1 become one of level 2 after every third day. All variants take the same number of optimizer steps
in all, those of consolidations included. Two worlds: `town` asks for every fact. `needles` is multi-key: all facts of a
page are about one kind of thing (whose boat is whose), one in three is asked for, and the others are keys beside it.
Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from _report import ROOT, Row, Runs, cell, report_study, run_study, study_parser
from _town import QUICKSTART, memories_of, sleep

DAYS = 6
FACTS = 6  # of a page
ASKED = 2  # of a page of needles
WORLDS = ("town", "needles")


@dataclass(frozen=True)
class Variant:
    """How the days are slept over.

    Args:
        sleeps (`int`): nights, of as many days each.
        chunk (`int`, *optional*): days after which level 1 is consolidated into level 2. Default: one level.
        seedings (`int`): nights and consolidations in all, which share the steps.
    """

    sleeps: int
    seedings: int
    chunk: int | None = None


VARIANTS = {
    "one sleep": Variant(1, 1),
    "three sleeps": Variant(3, 3),
    "six sleeps": Variant(6, 6),
    "six sleeps, two levels": Variant(6, 8, chunk=3),
}


def needles(day: int, pages: int) -> list[dict[str, Any]]:
    """Return a day's pages of one kind of thing each, with questions about some of its facts."""
    from world import FIRST_SYLLABLES, RELATIONS, SECOND_SYLLABLES, Fact, Passage, record

    rows = []
    for page in range(pages):
        rng = random.Random(f"needles {day} {page}")
        relation = RELATIONS[(day * pages + page) % len(RELATIONS)]
        names = [first + rng.choice(SECOND_SYLLABLES) for first in rng.sample(FIRST_SYLLABLES, 2 * FACTS)]
        pairs = zip(names[::2], names[1::2], strict=True)
        passage = Passage(tuple(Fact(s, relation, t, rng.choice(relation.quirks)) for s, t in pairs))
        row = record(passage, f"day{day}-{page}", "The Town Crier")
        rows.append(row | {"questions": rng.sample(row["questions"], ASKED)})
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


def run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sleep over the days, and ask about all of them."""
    from world import write_records

    from sleep_trl.ledger import owning, read_ledger

    world, variant = name.split(": ")
    how, days = VARIANTS[variant], days_of(world, arguments.pages)
    here = arguments.folder / world / variant.replace(" ", "-").replace(",", "") / f"seed-{seed}"
    here.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "seed": seed,
        "seeding.steps": arguments.steps // how.seedings,
        "seeding.prompts_per_step": arguments.prompts,
        "memory.max_experts": DAYS,
        "evaluation.max_questions": 360,
    }
    if how.chunk:
        options["levels.chunks"] = chunks_of(days, how.chunk)
    each, folder, seconds = DAYS // how.sleeps, Path(), 0.0
    for night in range(how.sleeps):
        heard = [row for day in days[night * each : (night + 1) * each] for row in day]
        write_records(here / f"{night}.jsonl", heard)
        more = {"continue_from": folder} if night else {}
        folder = sleep(here / f"night-{night}", here / f"{night}.jsonl", options | more)
        results = json.loads((folder / "results.json").read_text("utf-8"))
        seconds += results["seconds"]["total"]
    ledger = read_ledger(folder / "ledger.jsonl")
    last = {**results["retention"], "": {"after": results["recall"]["after"]}}
    return {
        "recall": sum(night["after"] for night in last.values()) / how.sleeps,
        "base_skill": results["base_skill"]["after"],
        "experts": len(owning(ledger)),
        "seconds": round(seconds),
    }


def tabulate(runs: Runs) -> list[Row]:
    """Return recall and skill in percent, the experts in use at the end, and what it took."""
    table: list[Row] = [("days", "recall of all days", "base skill", "experts", "seconds")]
    for name, by_seed in runs.items():
        done = list(by_seed.values())
        shares = [cell([100 * run[key] for run in done]) for key in ("recall", "base_skill")]
        table.append((name, *shares, *(cell([run[key] for run in done], 0) for key in ("experts", "seconds"))))
    return table


def parse_arguments() -> argparse.Namespace:
    names = [f"{world}: {variant}" for world in WORLDS for variant in VARIANTS]
    parser = study_parser((__doc__ or "").split("\n")[0], names)
    parser.add_argument("--pages", type=int, default=2, help="pages a day, of six facts each")
    parser.add_argument("--steps", type=int, default=360, help="optimizer steps of all nights together")
    parser.add_argument("--prompts", type=int, default=24, help="prompts a step")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "levels", help="keeps every night")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.pages, arguments.steps = 1, 1, 24
        arguments.folder = arguments.folder / "quick"
    return arguments


def main() -> None:
    arguments = parse_arguments()
    settings = {name: getattr(arguments, name) for name in ("pages", "steps", "prompts")}
    runs = run_study(arguments, settings, lambda variant, seed: run(variant, seed, arguments))
    report_study(tabulate(runs), settings, runs, arguments.json)


if __name__ == "__main__":
    main()
