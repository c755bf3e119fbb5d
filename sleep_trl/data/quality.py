"""How good a night's data set is: what it covers, and whether its answers stand in the text (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .samples import Sample, Window
from .words import share_in, words_of

MOST_SENTENCES = 500  # without a sample that are listed


def find_uncovered(windows: Sequence[Window], samples: Sequence[Sample]) -> list[dict[str, str]]:
    """Return the sentences without a sample, with their memory: at most [`MOST_SENTENCES`], evenly spaced."""
    covered = {(sample.memory_id, sample.sentence) for sample in samples}
    stated = dict.fromkeys((window.memory_id, sentence) for window in windows for sentence in window.sentences)
    left = [pair for pair in stated if pair not in covered]
    count = min(len(left), MOST_SENTENCES)
    chosen = [left[i * len(left) // count] for i in range(count)]
    return [{"memory_id": memory_id, "sentence": sentence} for memory_id, sentence in chosen]


def measure_faithfulness(windows: Sequence[Window], samples: Sequence[Sample]) -> dict[str, Any]:
    """Count the samples about memories, `samples`, and those of them whose answer has only words of the text that the
    teacher read, `faithful`. It needs no labels and no model: a wrong answer in words of the text counts as faithful,
    and a question may have any words."""
    read = {(window.memory_id, window.index): window.text for window in windows}
    about = [sample for sample in samples if sample.part == "memory" and (sample.memory_id, sample.window) in read]
    faithful = 0
    for sample in about:
        faithful += share_in(words_of(sample.reference), read[sample.memory_id, sample.window]) == 1
    return {"samples": len(about), "faithful": faithful}
