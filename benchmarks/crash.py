"""Kill everything that writes to disk with -9 at random moments, finish it, and look for what was lost or came back.

    python benchmarks/crash.py --kills 120                # 20 in each scenario
    python benchmarks/crash.py --scenario drop forget --kills 10

Scenarios:

- night: a chain of two short nights, resumed with `--resume`;
- life: the same with levels, which are consolidated in the second night, and dreams;
- drop: `memory drop --source` of a record of the second of two nights, while a third one lies there half done;
- forget: `wake forget` of a record that such a third night has begun to learn;
- export: of a checkpoint and of the experts;
- tail: `wake tail` on a log that is rotated by renaming and by copying and truncating.

Up to four processes are killed at random moments within the duration of an undisturbed one. The same command, for
nights with `--resume`, is given again until it ends. Then everything must be as after the undisturbed one: ledger,
experts and folded model bit for bit, every record in exactly one entry, no line of the log missing or stored twice, no
file left or missing, each file as its recorded hash, and no sentence of what was forgotten in any file, also after the
third night was resumed. Processes are forked from one that has already imported the libraries, so that kills hit the
work instead of the imports. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Protocol

from _crash_commands import Dropping, Exporting, Following, Forgetting
from _crash_nights import LEVELS_AND_DREAMS, PRELOADED, CommandFailed, Nights, Outcome
from _report import argument_parser, environment, progress, report, rerun_with

KILLS = 4  # at most, per attempt
MOST_ATTEMPTS = 3  # times as many as there are kills: a machine that became faster may end before each of them


class Scenario(Protocol):
    """What is killed."""

    def prepare(self) -> float:
        """Run it undisturbed, and return its seconds."""
        ...

    def attempt(self, moments: Sequence[float]) -> Outcome:
        """Kill it after each of these seconds, let it end, and compare it with the undisturbed one."""
        ...


SCENARIOS: dict[str, Callable[[Path, ForkServerContext], Scenario]] = {
    "night": Nights,
    "life": lambda folder, processes: Nights(folder, processes, LEVELS_AND_DREAMS),
    "drop": Dropping,
    "forget": Forgetting,
    "export": Exporting,
    "tail": Following,
}


def main() -> None:
    arguments = parse_arguments()
    rerun_with(environment(threads=1))  # one thread, so that sums have a fixed order
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    draws = random.Random(arguments.seed)
    each = -(-arguments.kills // len(arguments.scenario))
    found: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.scenario:
            scenario = SCENARIOS[name](Path(folder, name), processes)
            found[name] = kill(name, scenario, each, draws)
    rows = [("scenario", "kills", "harmless", "lost", "twice", "came back")]
    figures = {name: summary(outcomes) for name, outcomes in found.items()}
    columns = ("kills", "identical", "lost_records", "learned_twice", "came_back")
    rows += [(name, *(str(row[column]) for column in columns)) for name, row in figures.items()]
    result: dict[str, object] = {column: sum(row[column] for row in figures.values()) for column in columns}
    title = f"{result['identical']} of {result['kills']} kills had no effect"
    report(title, rows, result | {"seed": arguments.seed, "scenarios": figures}, arguments.json)


def kill(name: str, scenario: Scenario, kills: int, draws: random.Random) -> list[Outcome]:
    """Kill a scenario's commands until there are so many kills, and return what each attempt ended in."""
    seconds = scenario.prepare()
    progress(f"{name}: undisturbed {seconds:.2f} seconds")
    outcomes: list[Outcome] = []
    while (left := kills - sum(len(outcome.killed) for outcome in outcomes)) > 0 and len(outcomes) < (
        MOST_ATTEMPTS * kills
    ):
        try:
            outcomes.append(scenario.attempt([draws.uniform(0, seconds) for _ in range(min(left, KILLS))]))
        except CommandFailed as failed:
            outcomes.append(Outcome(failed.killed or ["before a kill"], difference=str(failed)))
        if not outcomes[-1].killed:
            seconds *= 0.7  # the machine is faster now
        progress(f"{name}: {json.dumps(vars(outcomes[-1]))}")
    return outcomes


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the figures of a scenario."""
    places = Counter(place for outcome in outcomes for place in outcome.killed)
    return {
        "kills": places.total(),
        "identical": sum(len(outcome.killed) for outcome in outcomes if outcome.is_harmless),
        "lost_records": sum(outcome.lost for outcome in outcomes),
        "learned_twice": sum(outcome.twice for outcome in outcomes),
        "came_back": sum(len(outcome.returned) for outcome in outcomes),
        "attempts": len(outcomes),
        "killed": dict(sorted(places.items())),
        "differences": sorted({outcome.difference for outcome in outcomes if outcome.difference}),
        "returned": sorted({text for outcome in outcomes for text in outcome.returned}),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=120, help="number of kills, in equal parts for the scenarios")
    names = [*SCENARIOS, "all"]
    parser.add_argument("--scenario", nargs="+", default=["all"], choices=names, help="what is killed")
    parser.add_argument("--seed", type=int, default=42, help="seed of the moments")
    arguments = parser.parse_args()
    if "all" in arguments.scenario:
        arguments.scenario = list(SCENARIOS)
    if arguments.quick:
        arguments.kills = 2 * len(arguments.scenario)
    return arguments


if __name__ == "__main__":
    main()
