"""The dream browser of the report: the dreams of each window and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .words import finite

MAX_DREAMS = 2000  # shown; a page with more is slow to open

Row = Mapping[str, Any]

SELECTED = {"top": "by gradient", "random": "at random", "all": "all", "": "not selected"}


class Measure(NamedTuple):
    """What the gain of a dream is: the change of what, and by what it is multiplied to be shown."""

    change: str
    scale: float


MEASURES = {
    "questions": Measure("the score on the window's questions, in points", 100),
    "heldout_loss": Measure("the mean log-likelihood of the memory's withheld text, in nats per token", 1),
    "custom": Measure("the mean of the scores of the run's own measure", 1),
}


def measure_of(results: Row) -> str:
    """Return the kind of measure by which a night's dreams were measured; that of 0.1 if there is none."""
    measure = ((results.get("config") or {}).get("dream") or {}).get("measure", "quiz")
    return "questions" if measure in ("quiz", "questions") else measure if measure in MEASURES else "custom"


def browse(records: Sequence[Row], tasks: Sequence[Row], scale: float = 100) -> tuple[list[dict[str, Any]], int]:
    """Group dreams by task, in the order of the tasks and rounds.

    Args:
        records (`Sequence[Mapping]`): the dreams, as in `DreamingTrainer.trials`.
        tasks (`Sequence[Mapping]`): with `task_id`, `context` and `questions`.
        scale (`float`, *optional*, defaults to `100`): what gains are multiplied by.

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
                "gain": gain(record, scale),
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


def gain(record: Row, scale: float = 100) -> str:
    """Return a dream's gain, by default in points of its task's score, with the interval."""
    places = 1 if scale == 100 else 3
    low, mean, high = (signed(record[key], scale, places) for key in ("trial_low", "trial_gain", "trial_high"))
    return f"{mean} ({low} to {high})" if mean else ""


def outcome(record: Row, is_last: bool) -> str:
    """Describe the outcome of a dream."""
    if not record["selected"]:
        return "not tested"
    if record["error"]:
        return f"could not be learned: {record['error']}"
    if record["rewarded"]:
        return "helped; learned by the new expert" if is_last else "helped; the dreamer learned to write it"
    if record["trial_reward"]:
        return "helped; not learned, since its rewards are too low"
    if record["trial_gain"] is not None and record["trial_reward"] is None:
        return "uncertain, not counted"
    return "did not help"


def signed(value: Any, scale: float = 1.0, places: int = 1) -> str:
    """Return a number with its sign, or an empty string if it was not measured."""
    number = finite(value)
    return "" if number is None else f"{scale * number:+.{places}f}"
