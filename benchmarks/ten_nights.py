"""Retention after ten nights: Sleep against fine-tuning on the same memories in the same number of steps.

    python benchmarks/ten_nights.py --output benchmarks/results/ten_nights.json --figure docs/ten_nights.svg

Each night the quickstart's town has new facts, six per page. After each night the model is asked the questions of all
nights so far, without the text, and the skill probe. Sleep is the quickstart's configuration with an expert per night
and a larger share of earlier nights; the baselines are in `_baselines.py`. Nights that are already in the folder are
kept, so an interrupted study continues where it stopped. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _report import Row, Runs, cell, environment, report_study, rerun_with, run_study, study_parser
from _synthetic_world import run_chain, words_of, write_memories

Options = dict[str, Any]  # by dotted name

METHODS = ("sleep", "sft", "replay", "lora", "ewc")
KEPT_AT_LEAST = 0.95  # of the recall after each night's own end
SKILL_LOST_AT_MOST = 0.01


def run_method(method: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all nights with one method and return its figures."""
    folder: Path = arguments.folder
    nights = range(1, arguments.nights + 1)
    memories = [write_memories(folder / "memories" / f"night-{n:03}.jsonl", n, arguments.pages) for n in nights]
    options = {
        "seed": seed,
        "seeding.steps": arguments.steps,
        "seeding.prompts_per_step": arguments.prompts,
        "seeding.drift_weight": arguments.drift_weight,
        "dataset.earlier_share": arguments.earlier_share,
    }
    here = folder / method / f"seed-{seed}"
    recall, skill = (sleep if method == "sleep" else learn)(method, memories, here, options)
    return summarize(recall, skill)


def sleep(_: str, memories: list[Path], folder: Path, options: Options) -> tuple[list[list[float]], list[float]]:
    """Run a Sleep night for each day."""
    from sleep_trl.evaluation.retention import describe_chain

    chain = describe_chain(run_chain(folder, memories, options | {"memory.max_experts": len(memories)}))
    return chain["recall"], chain["base_skill"]


def learn(method: str, memories: list[Path], folder: Path, options: Options) -> tuple[list[list[float]], list[float]]:
    """Let one model keep learning, night after night."""
    from _baselines import BASELINES, live

    from sleep_trl.config.command_line import parse

    config = parse(words_of(options))
    before, *after = live(BASELINES[method], config, memories, folder, folder.parents[1] / "written" / folder.name)
    return [night["recall"] for night in after], [night["skill"] for night in (before, *after)]


def summarize(recall: list[list[float]], skill: list[float]) -> dict[str, Any]:
    """Return the figures of a chain."""
    from sleep_trl.evaluation.retention import after_own_night, average, backward_transfer, forgetting

    own, last = after_own_night(recall), average(recall)
    assert own is not None and last is not None
    return {
        "recall": recall,
        "base_skill": skill,
        "after_own_night": own,
        "after_last_night": last,
        "kept": last / own if own else 0.0,
        "forgetting": forgetting(recall),
        "backward_transfer": backward_transfer(recall),
        "base_skill_lost": skill[0] - skill[-1],
    }


def tabulate(runs: Runs) -> list[Row]:
    """Return means in percent, with the range over seeds if they differ."""
    keys = ("after_own_night", "after_last_night", "kept", "forgetting", "base_skill_lost")
    table: list[Row] = [("method", *(key.replace("_", " ") for key in keys), "bounds")]
    for method, by_seed in runs.items():
        chains = by_seed.values()
        holds = all(r["kept"] >= KEPT_AT_LEAST and r["base_skill_lost"] <= SKILL_LOST_AT_MOST for r in chains)
        figures = (cell([100 * (run[key] or 0.0) for run in chains]) for key in keys)
        table.append((method, *figures, "met" if holds else "MISSED"))
    return table


def draw(runs: Runs, figure: Path) -> None:
    """Plot recall and base skill of each method after each night: means over seeds, and their range."""
    from matplotlib import pyplot

    from sleep_trl.evaluation.retention import average

    page, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    titles = ("recall of all nights so far, %", "base skill, %")
    for axis, title in zip(axes, titles, strict=True):
        for name, by_seed in runs.items():
            if axis is axes[0]:
                chains = [
                    [average(run["recall"][: n + 1]) for n in range(len(run["recall"]))] for run in by_seed.values()
                ]
            else:
                chains = [run["base_skill"] for run in by_seed.values()]
            first = 1 if axis is axes[0] else 0
            nights = range(first, first + len(chains[0]))
            by_night = [[100 * value for value in values] for values in zip(*chains, strict=True)]
            [line] = axis.plot(nights, [sum(values) / len(values) for values in by_night], label=name)
            axis.fill_between(
                nights, list(map(min, by_night)), list(map(max, by_night)), alpha=0.2, color=line.get_color()
            )
        axis.set(title=title, xlabel="after night", ylim=(-3, 103))
        axis.grid(alpha=0.3)
    page.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    figure.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(figure, metadata={"Date": None})


def parse_arguments() -> argparse.Namespace:
    parser = study_parser((__doc__ or "").split("\n")[0], METHODS, name="methods")
    parser.add_argument("--nights", type=int, default=10, help="nights of a chain")
    parser.add_argument(
        "--pages", type=int, default=3, help="pages of the town's newspaper per night, with six facts each"
    )
    parser.add_argument("--prompts", type=int, default=32, help="prompts per step")
    parser.add_argument("--steps", type=int, default=180, help="optimizer steps per night")
    parser.add_argument("--earlier-share", type=float, default=0.45, help="share of earlier nights' prompts in a step")
    parser.add_argument("--drift-weight", type=float, default=1.5, help="weight of the drift on self-replay")
    parser.add_argument("--figure", type=Path, help="plot to this file, such as docs/ten_nights.svg")
    parser.add_argument("--jobs", type=int, default=1, help="parallel chains")
    parser.add_argument("--folder", type=Path, default=Path("runs/ten_nights"), help="folder for every night")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.nights, arguments.steps, arguments.variants = 1, 2, 5, ["sleep", "sft"]
        arguments.folder = arguments.folder / "quick"
    return arguments


def main() -> None:
    arguments = parse_arguments()
    rerun_with(environment())
    names = ("nights", "pages", "prompts", "steps", "earlier_share", "drift_weight")
    settings = {name: getattr(arguments, name) for name in names}
    runs = run_study(arguments, settings, lambda method, seed: run_method(method, seed, arguments), arguments.jobs)
    if arguments.figure:
        draw(runs, arguments.figure)
    report_study(tabulate(runs), settings, runs, arguments.json)


if __name__ == "__main__":
    main()
