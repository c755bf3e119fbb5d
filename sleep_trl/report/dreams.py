"""The dreams of a night for the report's browser: what was dreamt about each window, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .words import finite

MOST_DREAMS = 2000  # shown; a page with more is slow to open

Row = Mapping[str, Any]

SELECTED = {"top": "by its gradient", "random": "by chance", "all": "all are", "": "not selected"}


def browse(records: Sequence[Row], tasks: Sequence[Row]) -> tuple[list[dict[str, Any]], int]:
    """Group dreams by task, in the order of the tasks and rounds.

    Args:
        records (`Sequence[Mapping]`): the dreams, as `DreamingTrainer.trials` has them.
        tasks (`Sequence[Mapping]`): with `task_id`, `context` and `questions`.

    Returns:
        `tuple[list[dict], int]`: tasks with their dreams, and how many dreams are left out.
    """
    steps = sorted({record["step"] for record in records})
    rounds = {step: number for number, step in enumerate(steps, start=1)}
    by_task: dict[str, list[dict[str, Any]]] = {task["task_id"]: [] for task in tasks}
    for record in sorted(records, key=lambda record: int(record["step"])):
        by_task[record["task_id"]].append(
            {
                "round": rounds[record["step"]],
                "text": record["dream"],
                "selected": SELECTED[record["selected"]],
                "score": signed(record["score"], places=2).lstrip("+"),
                "gain": gain(record),
                "fate": fate(record, is_last=record["step"] == steps[-1]),
            }
        )
    shown, left = [], MOST_DREAMS
    for task in tasks:
        dreams = by_task[task["task_id"]][:left]
        left -= len(dreams)
        if dreams:
            questions = [(q["question"], ", ".join(q["answers"])) for q in task["questions"]]
            helped = sum(dream["fate"].startswith("helped") for dream in dreams)
            shown.append({**task, "questions": questions, "dreams": dreams, "helped": helped})
    return shown, max(0, len(records) - MOST_DREAMS)


def gain(record: Row) -> str:
    """Return a dream's gain in points of its task's score, with the interval."""
    low, high = (signed(record[key], 100) for key in ("trial_low", "trial_high"))
    mean = signed(record["trial_gain"], 100)
    return f"{mean} ({low} to {high})" if mean else ""


def fate(record: Row, is_last: bool) -> str:
    """Return in words what became of a dream, and why."""
    if not record["selected"]:
        return "not tried out"
    if record["error"]:
        return f"could not be learnt: {record['error']}"
    if record["rewarded"]:
        return "helped; learnt by the new expert" if is_last else "helped; the dreamer learnt to write it"
    if record["trial_gain"] is not None and record["trial_reward"] is None:
        return "uncertain, so it counts neither way"
    return "did not help"


def signed(value: Any, scale: float = 1.0, places: int = 1) -> str:
    """Return a number with its sign, and nothing for one that was not measured."""
    number = finite(value)
    return "" if number is None else f"{scale * number:+.{places}f}"
