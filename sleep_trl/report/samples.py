"""The sample browser of the report: what the teacher wrote about each sentence, kept or dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_ROWS = 300  # shown; a page with more is slow to open
FEWEST_OF_REASON = 5  # rows of each reason that are shown, as far as there are any
KEPT, HELD_OUT = "kept", "kept as a question"

Row = Mapping[str, Any]
Group = list[dict[str, str]]


def browse_samples(written: Row, most: int = MAX_ROWS) -> tuple[list[dict[str, str]], int]:
    """Return samples about memories, kept and dropped ones about the same sentence next to each other.

    If there are more than `most`, a few of each reason are shown and sentences of all documents in turn.

    Args:
        written (`Mapping`): the result of `write_dataset`, with `dropped_texts` unpacked.
        most (`int`, *optional*, defaults to `300`): the maximum number.

    Returns:
        `tuple[list[dict], int]`: rows with `document`, `sentence`, `template`, `request`, `answer` and `outcome`, and
        how many there are in all.
    """
    samples = [s for s in written["samples"] if s["part"] == "memory"]
    rows = [_kept(sample, KEPT) for sample in samples]
    rows += [_kept(sample, HELD_OUT) for sample in written.get("teacher_questions", ())]
    rows += [
        {
            "document": text.memory_id,
            "sentence": text.sentence,
            "template": text.template,
            "request": text.request,
            "answer": text.answer,
            "outcome": text.reason,
        }
        for text in written.get("dropped_texts", ())
    ]
    rows = [row | {"document": name_of(row["document"], written)} for row in rows]
    groups: dict[tuple[str, str], Group] = {}
    for row in rows:
        groups.setdefault((row["document"], row["sentence"]), []).append(row)
    documents: dict[str, list[Group]] = {}
    for (document, _), group in groups.items():
        documents.setdefault(document, []).append(group)
    chosen = _choose(documents, rows, most)
    return [row for of in documents.values() for group in of for row in group if id(row) in chosen], len(rows)


def name_of(memory: str, written: Row) -> str:
    """Return how the report names a memory: by its source if no other memory shares it, or else by its id."""
    name: str = (written.get("sources") or {}).get(memory, memory)
    return name


def _kept(sample: Row, outcome: str) -> dict[str, str]:
    return {
        "document": sample["memory_id"],
        "sentence": sample.get("sentence") or "",
        "template": sample["template"],
        "request": sample.get("request") or sample["prompt"],
        "answer": sample["reference"],
        "outcome": outcome,
    }


def _choose(documents: Mapping[str, Sequence[Group]], rows: Sequence[Row], most: int) -> set[int]:
    """Return the ids of the rows to show."""
    if len(rows) <= most:
        return {id(row) for row in rows}
    by_outcome: dict[str, list[Row]] = {}
    for row in rows:
        by_outcome.setdefault(row["outcome"], []).append(row)
    chosen = {
        id(row) for of in by_outcome.values() for row in of[:: max(1, len(of) // FEWEST_OF_REASON)][:FEWEST_OF_REASON]
    }
    longest = max(map(len, documents.values()))
    in_turn = (groups[turn] for turn in range(longest) for groups in documents.values() if turn < len(groups))
    for group in in_turn:
        if len(chosen | {id(row) for row in group}) > most:
            break
        chosen |= {id(row) for row in group}
    return chosen
