"""What does not stop a night, but should be known before it starts."""

from __future__ import annotations

from importlib.util import find_spec

from ..data.vocabulary import find_unread
from .inputs import RunInputs


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
    return tuple(found)
