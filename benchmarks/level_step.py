"""The effect of a level's step along the accumulated gradients (Eq. 2), by learning rate, before any seeding.

The gradients of new memories are accumulated for a block of level 1 of a finished run, and its boundary falls due. With
each learning rate the block takes its step, and the model is asked the questions about the new memories, those of its
earlier nights, and the skill probe, which has its text in context. The loss is per token of the new memories. If no run
is given, two nights of the quickstart run first.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with
from undo import sleep

RATES = (0.0, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0)
QUICK = (0.0, 1.0)
NEXT = ROOT / "examples" / "quickstart" / "memories_night3.jsonl"
COLUMNS = ("loss", "new", "earlier", "skill")


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run with questions")
    parser.add_argument("--memories", default=str(NEXT), help="the new memories, as for a night, with questions")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def items(run: Path, new: list[Any], skill: Path | None) -> dict[str, list[Any]]:
    """Return the questions: about the new memories, about earlier nights, and about texts in context."""
    from sleep_trl.data.sources import read_skill
    from sleep_trl.evaluation.recall import QAItem
    from sleep_trl.runs.files import read_jsonl

    rows = read_jsonl(run / "adapter" / "questions.jsonl")
    probe = read_skill(skill) if skill else []
    return {
        "new": [QAItem(q.question, q.answers) for memory in new for q in memory.questions],
        "earlier": [QAItem(row["question"], tuple(row["answers"])) for row in rows],
        "skill": [QAItem(q.question, q.answers, memory.text) for memory in probe for q in memory.questions],
    }


def measure(run: Path, memories: str, rates: tuple[float, ...]) -> dict[str, dict[str, float | None]]:
    """Return, by learning rate, the loss on the new memories and recall to each kind of question."""
    import torch

    from sleep_trl.data.prompts import Prompter
    from sleep_trl.data.sources import read_memories
    from sleep_trl.evaluation.recall import ask
    from sleep_trl.memory import load_memory
    from sleep_trl.memory.accumulated_gradients import Accumulated, summed_loss, write_updated
    from sleep_trl.models.loading import context_limit, load_model, load_tokenizer
    from sleep_trl.rollout import TransformersEngine
    from sleep_trl.runs.finished import FinishedRun

    config, new = FinishedRun.read(run).config, read_memories(memories)
    model, tokenizer = load_model(config), load_tokenizer(config)
    memory = load_memory(model, run / "adapter")
    size = context_limit(model.config, config.max_context)
    ids = [tokenizer(each.text)["input_ids"] for each in new]
    parts = [text[start : start + size] for text in ids for start in range(0, len(text) - 1, size)]
    block = memory.add_block(1)
    first = {name: parameter.detach().clone() for name, parameter in memory.expert_parameters(block)}
    accumulated = Accumulated()
    tokens = accumulated.add(memory, parts)
    asked = items(run, new, config.evaluation.skill)
    options = {"metric": config.evaluation.metric, "max_new_tokens": config.evaluation.max_new_tokens}
    engine, prompter = TransformersEngine(model, tokenizer), Prompter(tokenizer, config.chat_template_kwargs)
    result: dict[str, dict[str, float | None]] = {}
    for rate in rates:
        progress(f"learning rate {rate:g}")
        with torch.no_grad():
            for name, parameter in memory.expert_parameters(block):
                parameter.copy_(first[name])
            write_updated(memory, block, accumulated.update(1, rate, config.seeding.max_grad_norm), block)
            loss = sum(summed_loss(memory, torch.tensor([part])).item() for part in parts) / tokens
        shares = {
            name: ask(each, engine, prompter, with_context=name == "skill", **options) for name, each in asked.items()
        }
        result[f"{rate:g}"] = {"loss": loss, **shares}
    return result


def main() -> None:
    args = parse()
    rerun_with(environment(args.threads))
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(sys.stderr):  # libraries print while loading
        run = args.run or sleep(Path(work), args.quick)
        result = measure(run, args.memories, QUICK if args.quick else RATES)
    table: list[Row] = [("learning rate", *COLUMNS)]
    for rate, found in result.items():
        loss, *shares = (found[name] for name in COLUMNS)
        table.append((rate, f"{loss:.3f}", *("" if share is None else f"{100 * share:.1f} %" for share in shares)))
    report("A step of one level's block", table, dict(result), args.json)


if __name__ == "__main__":
    main()
