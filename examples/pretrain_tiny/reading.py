"""Measure a model's reading accuracy: whole answers, greedy decoding, from a passage in its context.

python examples/pretrain_tiny/reading.py --help
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from lessons import Draft, Speller, collate
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedModel
from world import COMPLETION, PROMPT, random_passage

FORMS = ("forward", "paraphrase", "reversed")
QUICKSTART = Path(__file__).parents[1] / "quickstart"


@torch.no_grad()
def answered(
    model: PreTrainedModel, speller: Speller, rows: Sequence[tuple[str, str, str]], batch: int = 64
) -> list[bool]:
    """Return for each row whether greedy decoding gives the whole answer, full stop and `<eos>` included.

    One forward pass is enough: greedy decoding gives exactly this completion if and only if each of its tokens is the
    most likely one after the tokens before it.

    Args:
        model: The model.
        speller: Gives the token ids.
        rows: Passage (may be empty), question, answer.
        batch: Rows per forward pass.
    """
    drafts = []
    for passage, question, answer in rows:
        draft = Draft()
        draft.add([speller.bos], 0.0)
        draft.add(speller.encode(PROMPT.format(passage=passage, question=question)), 0.0)
        draft.add([*speller.encode(COMPLETION.format(answer=answer)), speller.eos], 1.0)
        drafts.append(draft)
    right: list[bool] = []
    for start in range(0, len(drafts), batch):
        part = collate(drafts[start : start + batch])
        greedy = model(input_ids=part.ids, use_cache=False).logits[:, :-1].argmax(-1)
        wrong = (greedy != part.ids[:, 1:]) & (part.weights[:, 1:] > 0)
        right.extend((~wrong.any(dim=1)).tolist())
    return right


def read_accuracy(
    model: PreTrainedModel,
    speller: Speller,
    facts: int,
    passages: int,
    seed: int,
    has_passage: bool = True,
    forms: Sequence[str] = FORMS,
) -> dict[str, float]:
    """Measure the share of correct answers on fresh passages, by form."""
    rng = random.Random(f"reading {seed}")
    drawn = [random_passage(rng, facts) for _ in range(passages)]
    shares = {}
    for form in forms:
        rows = [
            (passage.text if has_passage else "", asked.question, asked.answers[0])
            for passage in drawn
            for asked in passage.questions(form)
        ]
        right = answered(model, speller, rows)
        shares[form] = sum(right) / len(right)
    return shares


def file_accuracy(model: PreTrainedModel, speller: Speller, path: Path, field: str) -> tuple[int, int]:
    """Count the right answers and the questions in one field of a memory file."""
    rows = [
        (row["text"], asked["question"], asked["answers"][0])
        for row in map(json.loads, path.read_text("utf-8").splitlines())
        for asked in row[field]
    ]
    right = answered(model, speller, rows)
    return sum(right), len(right)


def report(model: PreTrainedModel, speller: Speller, console: Console, passages: int = 100) -> None:
    """Print the accuracy by number of facts and by form, and without the passage."""
    table = Table("facts", "questions a form", *FORMS)
    for facts in range(1, 9):
        read = read_accuracy(model, speller, facts, passages, seed=10_000 + facts)
        table.add_row(str(facts), str(facts * passages), *(f"{read[form]:.3f}" for form in FORMS))
    read = read_accuracy(model, speller, 6, passages, seed=10_006, has_passage=False)
    table.add_row("no passage", str(6 * passages), *(f"{read[form]:.3f}" for form in FORMS))
    console.print(table)


def main() -> None:
    """Measure a saved model on fresh passages and on memory files."""
    parser = argparse.ArgumentParser(description="Measure how well a model reads.")
    parser.add_argument("--model", type=Path, default=QUICKSTART / "model", help="folder of the model")
    parser.add_argument("--passages", type=int, default=100, help="fresh passages of each size")
    parser.add_argument("--files", type=Path, nargs="*", default=sorted(QUICKSTART.glob("[ms]*.jsonl")))
    arguments = parser.parse_args()
    console, speller = Console(), Speller()
    model = LlamaForCausalLM.from_pretrained(arguments.model).eval()
    report(model, speller, console, arguments.passages)
    for path in arguments.files:
        for field in ("questions", "other_words"):
            right, asked = file_accuracy(model, speller, path, field)
            console.print(f"{path.name}, {field}: {right} of {asked}")


if __name__ == "__main__":
    main()
