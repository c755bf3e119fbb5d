"""What does not stop a night, but should be known before it starts."""

from __future__ import annotations

from importlib.util import find_spec

from ..config import RunConfig
from ..data.vocabulary import find_unread
from ..runs.finished import base_of
from .inputs import RunInputs
from .paths import run_that_grew


def find_warnings(inputs: RunInputs) -> tuple[str, ...]:
    """Return a sentence for each thing that a user should know before the night."""
    found = []
    if reason := find_unread(inputs.tokenizer, [window.text for window in inputs.extent.reading]):
        found.append(
            f"The model can hardly read these documents: {reason}. Take a model that was trained on such texts."
        )
    seeding = inputs.config.seeding
    if seeding.steps is not None and "passes" in seeding.model_fields_set:
        found.append("seeding.passes has no effect beside seeding.steps. Give one of them.")
    if inputs.config.report and find_spec("plotly") is None:
        found.append("No report.html will be written: plotly is not installed. Run pip install 'sleep-trl[report]'.")
    if reason := _find_left_behind(inputs.config):
        found.append(reason)
    return tuple(found)


def _find_left_behind(config: RunConfig) -> str | None:
    """Return what a night leaves behind that takes the grown model of a run as its base."""
    if config.continue_from is not None or (run := run_that_grew(config.model)) is None:
        return None
    base = base_of(run)
    return (
        f"{config.model} is the grown model of {run.path}. Taken as a base, it leaves that run's ledger behind: what "
        f"it learned is not replayed, not asked about, and cannot be dropped. To go on with that run, give "
        f"--continue_from {run.path} and its base model{f', --model {base}' if base else ''}."
    )
