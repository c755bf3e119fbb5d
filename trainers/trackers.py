"""Trackers of a night: what its trainers log, and the figures of the night itself, in one run of trackio, wandb or
tensorboard. A night that is resumed goes on in that run."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler

from sleep_trl.runs.files import read_json, write_json
from sleep_trl.runs.folder import RunFolder


@contextmanager
def one_run(arguments: TrainingArguments, night: Path) -> Iterator[None]:
    """Context manager: trackers that are started inside it go on in the night's run, unless the user has named one. All
    processes enter it together; the main one draws the name.

    Args:
        arguments (`TrainingArguments`):
            The trainer's arguments. They get the run's name.
        night (`Path`):
            Folder of the night, which keeps that name.
    """
    if not arguments.report_to:
        yield
        return
    [name] = broadcast_object_list([run_name(night) if PartialState().is_main_process else ""])
    with _named(arguments, night, name):
        yield


@contextmanager
def _named(arguments: TrainingArguments, night: Path, name: str) -> Iterator[None]:
    arguments.run_name = arguments.run_name or name
    settings = {
        "TENSORBOARD_LOGGING_DIR": str(RunFolder(night).tensorboard),
        "WANDB_RUN_ID": name,
        "WANDB_RESUME": "allow",
    }
    added = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def run_name(night: Path) -> str:
    """Return the name of a night's run, which is drawn once: other nights may have a folder of the same name."""
    if not (path := RunFolder(night).tracker).is_file():
        write_json(path, {"run": f"{night.absolute().name}-{secrets.token_hex(4)}"}, is_checked=True)
    return str(read_json(path)["run"])


def log_figures(arguments: TrainingArguments, night: Path, results: Mapping[str, Any]) -> None:
    """Send the figures of a night to its trackers. To be called on the main process.

    Args:
        arguments (`TrainingArguments`):
            Arguments of the night's trainer, whose `report_to` names the trackers.
        night (`Path`):
            Folder of the night.
        results (`dict`):
            The content of `results.json`.
    """
    if not arguments.report_to:
        return
    state, control = TrainerState(global_step=arguments.max_steps, max_steps=arguments.max_steps), TrainerControl()
    logs = {f"eval_{name}": value for name, value in figures(results).items()}  # shown as eval/NAME
    with _named(arguments, night, run_name(night)):
        for tracker in [callback() for callback in get_reporting_integration_callbacks(arguments.report_to)]:
            tracker.on_train_begin(arguments, state, control, model=None)
            tracker.on_log(arguments, state, control, model=None, logs=dict(logs))
            tracker.on_train_end(arguments, state, control, model=None)
            if hasattr(tracker, "_wandb"):  # its run would go on in the next night of this process
                tracker._wandb.finish()


def trackers_of_caller() -> list[TrainerCallback]:
    """Return the trackers of the Trainer that calls a callback, in that callback. They are found in the frames of the
    call, because transformers gives a callback no other way to them, and new ones would begin new runs."""
    frame = sys._getframe(1)
    while frame is not None and not isinstance(handler := frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back  # type: ignore[assignment]
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    return [] if frame is None else [each for each in handler.callbacks if isinstance(each, kinds)]


def log_to_run(
    trackers: list[TrainerCallback],
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    results: Mapping[str, Any],
) -> None:
    """Send the figures of a night to the trackers of the run in which it takes place, and to its log history.

    Args:
        trackers (`list[TrainerCallback]`):
            From [`trackers_of_caller`].
        args (`TrainingArguments`):
            The run's arguments.
        state (`TrainerState`):
            Its state.
        control (`TrainerControl`):
            Its control.
        results (`dict`):
            The content of the night's `results.json`.
    """
    logs = {f"eval_night_{name}": value for name, value in figures(results).items()}  # shown as eval/night_NAME
    state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
    for tracker in trackers:
        tracker.on_log(args, state, control, model=None, logs=dict(logs))


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a night by name: those of `results.json` that were measured."""
    recall, skill, perplexity = results["recall"], results["base_skill"], results.get("perplexity") or {}
    coverage, chain = (results.get("dataset") or {}).get("coverage") or {}, results.get("chain") or {}
    found = {
        "recall_before": recall["before"],
        "recall_with_context": recall["with_context"],
        "recall": recall["after"],
        "base_skill_before": skill["before"],
        "base_skill": skill["after"],
        "perplexity_before": perplexity.get("before"),
        "perplexity": perplexity.get("after"),
        "forgetting": chain.get("forgetting"),
        "coverage": coverage["covered"] / coverage["sentences"] if coverage.get("sentences") else None,
        "rolled_back": float("rolled_back" in results),
    }
    found |= {f"recall_of_{entry}": pair["after"] for entry, pair in (results.get("retention") or {}).items()}
    for number, counts in enumerate((results.get("dreams") or {}).get("rounds", ()), start=1):
        found |= {f"dreams_tried_{number}": counts["tried"], f"dreams_that_helped_{number}": counts["rewarded"]}
    return {name: float(value) for name, value in found.items() if value is not None}
