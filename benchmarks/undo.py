"""The effect of dropping an entry: recall of each night's questions before and after, by the folded model.

Each entry of a finished run is dropped in a copy of the run, keeping later ones. If later entries depend on it, a night
also drops it and relearns them (`--memories forget:ENTRY`). The folded model is loaded with plain transformers and
asked the questions of all entries, and those of the skill probe, which have their text in context. The row `before its
night` is a night's recall before it ran, from the ledger. If no run is given, two nights of the quickstart run first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with

Recall = dict[str, float | None]  # by entry, and for the skill probe
SKILL = "skill"


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run with questions")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def sleep(work: Path, is_quick: bool) -> Path:
    """Run two nights of the quickstart and return the folder of the second; quick ones have fewer steps."""
    options = ["--no-report", *(["--seeding.steps", "40"] if is_quick else [])]
    for number in (1, 2):
        progress(f"running night {number}")
        if number == 2:
            options += ["--memories", "examples/quickstart/memories_night2.jsonl", "--continue_from", str(work / "1")]
        launch("--config", "examples/quickstart/config.yaml", *options, "--output_dir", str(work / str(number)))
    return work / "2"


def launch(*options: str) -> None:
    """Run a night in a separate process."""
    command = [sys.executable, "launch/sleep.py", *options]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def recall(model: Path, questions: dict[str, list[Any]], config: Any) -> Recall:
    """Return the recall of each entry's questions, without context."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sleep_trl.data.prompts import Prompter
    from sleep_trl.evaluation.recall import ask
    from sleep_trl.rollout import TransformersEngine

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    engine = TransformersEngine(AutoModelForCausalLM.from_pretrained(model), tokenizer)
    prompter = Prompter(tokenizer, config.chat_template_kwargs)
    asking = {"metric": config.evaluation.metric, "max_new_tokens": config.evaluation.max_new_tokens}
    return {
        name: ask(asked, engine, prompter, with_context=name == SKILL, **asking) for name, asked in questions.items()
    }


def measure(folder: Path, work: Path) -> dict[str, Recall]:
    """Drop each active entry in a separate copy of the run, and ask the questions."""
    from sleep_trl.data.sources import read_skill
    from sleep_trl.evaluation.recall import QAItem
    from sleep_trl.publish.unlearn import drop
    from sleep_trl.runs.files import read_jsonl
    from sleep_trl.runs.finished import FinishedRun
    from sleep_trl.runs.ledger import active_entries

    run = FinishedRun.read(folder)
    entries = active_entries(run.entries)
    questions: dict[str, list[Any]] = {entry.id: [] for entry in entries}
    for row in read_jsonl(folder / "adapter" / "questions.jsonl"):
        questions[row["entry"]].append(QAItem(row["question"], tuple(row["answers"])))
    if run.config.evaluation.skill:
        texts = read_skill(run.config.evaluation.skill)
        questions[SKILL] = [QAItem(q.question, q.answers, m.text) for m in texts for q in m.questions]
    progress("asking the model with all entries")
    result: dict[str, Recall] = {
        "before its night": {entry.id: entry.metrics["before"]["recall"] for entry in entries},
        "whole": recall(folder / "model", questions, run.config),
    }
    for entry in entries:
        progress(f"dropping {entry.id}")
        shutil.copytree(folder, copy := work / entry.id)
        drop(FinishedRun.read(copy), [entry.id], later="keep")
        result[f"without {entry.id}"] = recall(copy / "model", questions, run.config)
        if run.dependents_of([entry.id]):
            progress(f"relearning without {entry.id}")
            relearn(run, entry.id, work / f"forgot-{entry.id}")
            relearned = recall(work / f"forgot-{entry.id}" / "model", questions, run.config)
            result[f"without {entry.id}, others relearned"] = relearned
    return result


def relearn(run: Any, name: str, folder: Path) -> None:
    """Drop an entry in a night like the run's own."""
    given = run.config.model_dump(mode="json", exclude_defaults=True)
    given |= {"memories": f"forget:{name}", "nights": [], "continue_from": str(run.folder), "output_dir": str(folder)}
    given |= {"resume": False, "report": False}
    given.pop("memory", None)  # a continued run has its own
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(given), "utf-8")
    launch("--config", str(file))


def main() -> None:
    args = parse()
    rerun_with(environment(args.threads))
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(sys.stderr):  # libraries print while loading
        result = measure(args.run or sleep(Path(work), args.quick), Path(work))
    names = list(result["whole"])
    table: list[Row] = [("recall without context", *names)]
    for key, values in result.items():
        shares = (values.get(name) for name in names)
        table.append((key.replace("_", " "), *("" if share is None else f"{100 * share:.1f} %" for share in shares)))
    report("Dropping one entry and keeping the others", table, dict(result), args.json)


if __name__ == "__main__":
    main()
