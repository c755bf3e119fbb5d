"""A night of a real language model on real documents, with the product's defaults, and what fine-tuning does instead.

    python benchmarks/real_night.py --documents 40 --seeds 3 --rivals --json runs/real_night.json

Each seed's night is run by its command, launch/sleep.py, in a process of its own, with nothing given but model,
memories, folder and seed. Then the questions are asked in other words and the base skill is measured, before and after:
reading questions about shipped passages and perplexity on shipped prose. With --rivals the same model is fine-tuned
on what the night's teacher wrote, see `_rivals.py`, for as many steps and as many seconds as the night's training took.
Nights and rivals that are already in the folder are kept, and an interrupted night is resumed. Prints a table; the last
line is one JSON object: means over the seeds, each seed's figures in `runs`.

Settings are chosen with --split choose, on documents that are never measured: --options passes further options to the
night, and --learning-rates tries several on each rival.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _report import FIRST_SEED, ROOT, Row, argument_parser, environment, progress, report, rerun_with

SMOLLM2 = ROOT / ".venv" / "share" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ALMANAC = ROOT / "examples" / "almanac"
SETS = {"notes": "notes_", "almanac": ""}
RIVALS = ("lora", "lora_replay", "lora_text", "sdft")  # see _rivals.py, which loads torch
FOLDER = Path("runs/real_night")
SHORT = ["--seeding.steps=3", "--seeding.prompts_per_step=2", "--dataset.samples_per_window=2", "--no-report"]
SHORT_DOCUMENTS, SHORT_PROBE = 2, 4
RECALL = ("before", "with_context", "after", "other_words", "other_words_with_context")
SKILL = ("reading", "perplexity")


# -- a night ----------------------------------------------------------------------------------------------------------


def documents_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the documents of the chosen set, the first `--documents` of them.

    Raises:
        `ValueError`: if there are fewer, or one has no questions in other words.
    """
    name = arguments.set
    file = ALMANAC / f"{SETS[name]}{arguments.split}.jsonl" if name in SETS else Path(name)
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    if arguments.documents and len(rows) < arguments.documents:
        raise ValueError(f"--documents {arguments.documents}, but {file} has {len(rows)}. Give at most that many.")
    rows = rows[: arguments.documents]
    if not all(row.get("questions") and row.get("other_words") for row in rows):
        raise ValueError(f"{file} has documents without `questions` or `other_words`, which measure what is learnt.")
    return rows


def run_night(folder: Path, model: str, memories: Path, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """Run a night by its command, or resume it, and return its results. Its output goes to night.log.

    Args:
        folder (`Path`):
            Where the night and its log are written.
        model (`str`):
            The model.
        memories (`Path`):
            The documents.
        seed (`int`):
            The night's seed.
        options (`Sequence[str]`):
            Further options; without any, everything has the product's default.

    Returns:
        `dict`: results.json, and `peak_mib`, the largest resident set of the night's process.

    Raises:
        `RuntimeError`: if the night fails, with the end of its output.
    """
    run, peak = folder / "night", folder / "peak.json"
    if not (run / "results.json").exists():
        words = ["--model", model, "--memories", str(memories), "--output_dir", str(run), "--seed", str(seed), *options]
        command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *words]
        command += ["--resume"] if (run / "config.json").exists() else []
        with (folder / "night.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        before = json.loads(peak.read_text()) if peak.exists() else 0
        peak.write_text(json.dumps(max(before, usage.ru_maxrss / 1024)))
        if process.returncode:
            end = (folder / "night.log").read_text("utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"The night failed: {shlex.join(command)}\n{end}")
    results: dict[str, Any] = json.loads((run / "results.json").read_text("utf-8"))
    return {**results, "peak_mib": round(json.loads(peak.read_text()))}


def once(file: Path, work: Callable[[], Any]) -> Any:
    """Return what a file holds, or do the work and write it there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        value = work()
        file.with_suffix(".partial").write_text(json.dumps(value) + "\n", "utf-8")
        file.with_suffix(".partial").rename(file)
    return json.loads(file.read_text("utf-8"))


# -- one seed ---------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace, documents: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Run the night of a seed and its rivals, and return their figures."""
    from _rivals import Exam, time_step
    from data_quality import examine

    from sleep_trl.config import RunConfig
    from sleep_trl.planning.inputs import RunInputs
    from sleep_trl.planning.preflight import make_plan

    folder = arguments.folder / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    memories = arguments.folder / "memories.jsonl"
    options = [*(SHORT if arguments.quick else ()), *shlex.split(arguments.options)]
    progress(f"seed {seed}: the night")
    night = run_night(folder, arguments.model, memories, seed, options)
    inputs = RunInputs(RunConfig.model_validate(night["config"]).model_copy(update={"resume": False}))
    exam = Exam.of(inputs, documents, SHORT_PROBE if arguments.quick else None)
    progress(f"seed {seed}: questions in other words and base skill, before and after")
    before = once(folder / "before.json", exam.grade_base)
    after = once(folder / "after.json", lambda: exam.grade_grown(folder / "night" / "adapter"))
    steps = max(row["step"] for row in night["history"] if "step" in row)
    seconds = night["seconds"]["seed"] / steps
    sft = once(folder / "sft_step.json", lambda: time_step(exam, folder / "night"))
    quality = once(folder / "quality.json", lambda: examine(folder / "night"))
    figures = {
        "recall": {
            **night["recall"],
            "other_words": after["other_words"],
            "other_words_with_context": before.get("other_words_with_context"),  # not in folders of earlier versions
        },
        "skill": {
            f"{name}_{when}": grade[name] for name in SKILL for when, grade in (("before", before), ("after", after))
        },
        "seconds": night["seconds"]["total"],
        "steps": steps,
        "seconds_per_step": seconds,
        "step_in_sft_steps": seconds / sft,
        "peak_mib": night["peak_mib"],
        "plan_mib": round(make_plan(inputs).peak_memory_mib),
        **{name: quality[name] for name in ("coverage", "faithful", "collisions", "dropped")},
    }
    if arguments.rivals:
        figures["rivals"] = fine_tune(arguments, exam, folder, steps, night["seconds"]["seed"])
    if arguments.second_night:
        figures["second_night"] = add_night(arguments, folder, seed, options)
    return figures


def fine_tune(
    arguments: argparse.Namespace, exam: Any, folder: Path, night_steps: int, night_seconds: float
) -> dict[str, Any]:
    """Return the figures of each rival after as many steps and as many seconds as the night's training took, with the
    learning rate that is best in other words."""
    from _rivals import RIVALS as RECIPES
    from _rivals import learn, samples_of, time_step

    samples = samples_of(folder / "night")
    found: dict[str, Any] = {}
    for name in arguments.compare:
        file = folder / f"{'sft' if name == 'lora' else name}_step.json"
        step = once(file, partial(time_step, exam, folder / "night", name))
        budget = {"equal_steps": night_steps, "equal_seconds": max(1, round(night_seconds / step))}
        for equal, steps in budget.items():
            tried = []
            for rate in arguments.learning_rates or [RECIPES[name].learning_rate]:
                progress(f"{folder.name}: {name}, {steps} steps, learning rate {rate:g}")
                file = folder / "rivals" / f"{name}-{arguments.targets}-{steps}-{rate:g}.json"
                work = partial(learn, name, exam, samples, steps, rate, arguments.targets)
                tried.append(once(file, work))
            best = max(tried, key=lambda grade: (grade["other_words"], grade["after"]))
            found.setdefault(name, {})[equal] = best | ({"tried": tried} if len(tried) > 1 else {})
    return found


def add_night(arguments: argparse.Namespace, folder: Path, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """Let a second night follow, about the set's other documents, and return what it keeps of the first."""
    memories = ALMANAC / f"{SETS[arguments.set]}second_night.jsonl"
    progress(f"seed {seed}: the second night")
    after = [*options, "--continue_from", str(folder / "night")]
    second = run_night(folder / "second", arguments.model, memories, seed, after)
    [kept] = second["retention"].values()
    return {**second["recall"], "kept": kept["after"] / kept["before"] if kept["before"] else None}


# -- all seeds --------------------------------------------------------------------------------------------------------


def mean_of(values: Sequence[Any], of: Callable[[Sequence[float]], float | None] = statistics.fmean) -> Any:
    """Return the mean of figures key by key; `None` where one is missing, nothing where they are no numbers.

    Args:
        values (`Sequence`):
            Figures of the seeds, numbers or nested dictionaries.
        of (`Callable`, *optional*):
            What to compute in place of the mean.
    """
    if isinstance(values[0], dict):
        means = {key: mean_of([value.get(key) for value in values], of) for key in values[0]}
        return {key: mean for key, mean in means.items() if mean != {}}
    if any(value is None for value in values):
        return None
    return of(values) if all(isinstance(value, (int, float)) for value in values) else {}


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean, or `None` of a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def tabulate(means: dict[str, Any], errors: dict[str, Any]) -> list[Row]:
    """Return the figures of the night and its rivals side by side."""
    sides = {"sleep": means["recall"] | {name: means["skill"][f"{name}_after"] for name in SKILL}}
    sides["sleep"] |= {"seconds": means["steps"] * means["seconds_per_step"], "steps": means["steps"]}
    spread = {"sleep": errors["recall"]}
    for rival, by_budget in means.get("rivals", {}).items():
        for equal, grade in by_budget.items():
            sides[f"{rival}, {equal.replace('_', ' ')}"] = grade
            spread[f"{rival}, {equal.replace('_', ' ')}"] = errors["rivals"][rival][equal]
    columns = ("after", "other_words", "reading", "perplexity", "steps", "seconds")
    table: list[Row] = [("", *(name.replace("_", " ") for name in columns))]
    start = {name: means["skill"][f"{name}_before"] for name in SKILL} | {"after": means["recall"]["before"]}
    rows: Iterator[tuple[str, dict[str, Any]]] = iter([("before", start), *sides.items()])
    table += [(name, *(_cell(side.get(c), spread.get(name, {}).get(c), c) for c in columns)) for name, side in rows]
    names = (
        "with_context",
        "other_words_with_context",
        "seconds",
        "seconds_per_step",
        "step_in_sft_steps",
        "peak_mib",
        "plan_mib",
        "coverage",
    )
    figures = means | means["recall"]
    table += [(name.replace("_", " "), _cell(figures[name], None, name), *[""] * 5) for name in names]
    table += [(name, _cell(figures[name], None, name), *[""] * 5) for name in ("faithful", "collisions")]
    return table


def _cell(value: float | None, error: float | None, name: str) -> str:
    if value is None:
        return ""
    if name in (*RECALL, "reading", "coverage", "faithful"):
        return f"{value:.1%}" + ("" if error is None else f" ± {100 * error:.1f}")
    return f"{value:,.2f}"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argument_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--documents", type=int, help="how many documents, from the first; default: all of the set")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--model", default=str(SMOLLM2), help="model, as launch/sleep.py takes it; see make smollm2")
    parser.add_argument("--set", default="notes", help="notes, almanac, or a .jsonl file with other_words")
    parser.add_argument("--split", default="measure", choices=("measure", "choose"), help="choose: to choose settings")
    parser.add_argument("--options", default="", help="further options of the night, as --options='--seeding.alpha 1'")
    parser.add_argument("--rivals", action="store_true", help="fine-tune on the same samples too")
    parser.add_argument("--compare", nargs="+", default=RIVALS, choices=RIVALS, help="which rivals")
    parser.add_argument("--learning-rates", type=float, nargs="+", help="of the rivals; default: each one's own")
    parser.add_argument("--targets", default="mlp", choices=("mlp", "all-linear"), help="where the rivals' LoRA is")
    parser.add_argument("--second-night", action="store_true", help="add a night, and measure what it keeps")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder for nights and rivals; it is resumed")
    arguments = parser.parse_args(argv)
    is_own = arguments.set not in SETS
    if arguments.split == "measure" and not is_own and (len(arguments.learning_rates or ()) > 1 or arguments.options):
        parser.error("--options and several --learning-rates choose settings: give --split choose")
    if arguments.second_night and is_own:
        parser.error("--second-night continues with the set's own documents: give --set notes or almanac")
    if arguments.quick:
        arguments.seeds, arguments.documents = 1, SHORT_DOCUMENTS
    if not Path(arguments.model).exists() and arguments.model == str(SMOLLM2):
        parser.error("SmolLM2 is not installed: run make smollm2, or give --model")
    return arguments


def begin(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Write the documents into a folder of this set, model and options, and return them."""
    settings = [arguments.set, arguments.split, str(arguments.documents or "all"), arguments.model, arguments.options]
    digest = hashlib.sha256("\n".join([*settings, str(arguments.quick)]).encode()).hexdigest()[:8]
    documents = documents_of(arguments)
    arguments.folder /= f"{Path(arguments.set).stem}-{arguments.split}-{len(documents)}-{digest}"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents)
    (arguments.folder / "memories.jsonl").write_text(lines, "utf-8")
    return documents


def short_night() -> Path:
    """Return the folder of the night that --quick runs, with its data set."""
    arguments = parse_arguments(["--quick"])
    begin(arguments)
    folder = arguments.folder / f"seed-{FIRST_SEED}"
    folder.mkdir(parents=True, exist_ok=True)
    run_night(folder, arguments.model, arguments.folder / "memories.jsonl", FIRST_SEED, SHORT)
    return folder / "night"


def main() -> None:
    rerun_with(environment())
    arguments = parse_arguments()
    documents = begin(arguments)
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    runs = {seed: measure(arguments, documents, seed) for seed in seeds}
    means, errors = mean_of(list(runs.values())), mean_of(list(runs.values()), standard_error)
    settings = {"model": Path(arguments.model).name, "set": arguments.set, "split": arguments.split}
    settings |= {"documents": len(documents), "seeds": len(runs), "options": arguments.options}
    result = {**settings, **means, "standard_error": errors, "runs": runs}
    title = f"{len(documents)} documents of {arguments.set} ({arguments.split}), {len(runs)} seed(s), {arguments.model}"
    report(title, tabulate(means, errors), result, arguments.json)


if __name__ == "__main__":
    main()
