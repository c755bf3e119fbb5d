"""The dream browser of the report: the dreams of each window and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .words import finite

MAX_DREAMS = 2000  # shown; a page with more is slow to open

Row = Mapping[str, Any]

SELECTED = {"top": "by gradient", "random": "at random", "all": "all", "": "not selected"}


def browse(records: Sequence[Row], tasks: Sequence[Row]) -> tuple[list[dict[str, Any]], int]:
    """Group dreams by task, in the order of the tasks and rounds.

    Args:
        records (`Sequence[Mapping]`): the dreams, as in `DreamingTrainer.trials`.
        tasks (`Sequence[Mapping]`): with `task_id`, `context` and `questions`.

    Returns:
        `tuple[list[dict], int]`: tasks with their dreams, and the number of dreams left out.
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
                "outcome": outcome(record, is_last=record["step"] == steps[-1]),
            }
        )
    shown, left = [], MAX_DREAMS
    for task in tasks:
        dreams = by_task[task["task_id"]][:left]
        left -= len(dreams)
        if dreams:
            questions = [(q["question"], ", ".join(q["answers"])) for q in task["questions"]]
            helped = sum(dream["outcome"].startswith("helped") for dream in dreams)
            shown.append({**task, "questions": questions, "dreams": dreams, "helped": helped})
    return shown, max(0, len(records) - MAX_DREAMS)


def gain(record: Row) -> str:
    """Return a dream's gain in points of its task's score, with the interval."""
    low, high = (signed(record[key], 100) for key in ("trial_low", "trial_high"))
    mean = signed(record["trial_gain"], 100)
    return f"{mean} ({low} to {high})" if mean else ""


def outcome(record: Row, is_last: bool) -> str:
    """Describe the outcome of a dream."""
    if not record["selected"]:
        return "not tested"
    if record["error"]:
        return f"could not be learned: {record['error']}"
    if record["rewarded"]:
        return "helped; learned by the new expert" if is_last else "helped; the dreamer learned to write it"
    if record["trial_gain"] is not None and record["trial_reward"] is None:
        return "uncertain, not counted"
    return "did not help"


def signed(value: Any, scale: float = 1.0, places: int = 1) -> str:
    """Return a number with its sign, or an empty string if it was not measured."""
    number = finite(value)
    return "" if number is None else f"{scale * number:+.{places}f}"
