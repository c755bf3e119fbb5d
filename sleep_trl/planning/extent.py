"""How much a night has to learn: counted, or of a large set estimated from a part of it that is drawn at random.

Counting 100,000 sentences takes seconds. Of more, a plan counts only a part, and says so; the night itself counts all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.sections import DatasetConfig
from ..data.documents import MemoryText
from ..data.samples import Window
from ..data.templates import Template
from ..data.windows import split_all

if TYPE_CHECKING:
    from .inputs import RunInputs

COUNTED = 4 * 2**20  # characters of which all are counted, about 70,000 sentences; of more, a part of this size
PIECE = 2**16  # characters of a longer memory that are drawn at once


@dataclass(frozen=True)
class Extent:
    """What a night learns, as its plan says.

    Args:
        tokens (`int`): tokens of its memories.
        windows (`int`): windows into which they are split.
        samples (`int`): samples that the teacher writes about them, at most.
        reading (`list[Window]`): the windows that were counted.
        share (`float`): the share of the text that was counted; if it is less than 1, the numbers are estimates.
    """

    tokens: int
    windows: int
    samples: int
    reading: list[Window]
    share: float = 1.0


def measure(inputs: RunInputs) -> Extent:
    """Return how much a night has to learn."""
    memories = inputs.memories
    if characters(memories) <= COUNTED:
        samples = sum(map(sum, inputs.sample_counts))
        return Extent(inputs.tokens, sum(map(len, inputs.windows)), samples, inputs.reading)
    drawn = draw(memories, COUNTED)
    texts = [text for _, text in drawn]
    totals = inputs.prompter.count_all(texts)
    windows = split_all(texts, inputs.prompter.count_all, inputs.window, inputs.overlap, totals)
    reading = inputs.under_titles([memory for memory, _ in drawn], windows)
    share = sum(map(len, texts)) / characters(memories)
    samples = round(sum(map(sum, wanted_samples(inputs.config.dataset, reading))) / share)
    if inputs.config.seeding.steps is not None:
        samples = min(samples, inputs.expected_rows)
    return Extent(round(sum(totals) / share), round(len(reading) / share), samples, reading, share)


def estimate_sizes(inputs: RunInputs, memories: Sequence[MemoryText]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tokens and the windows of each memory by id, estimated by its length from a part of all of them."""
    texts = [text for _, text in draw(memories, COUNTED // 4)]
    totals = inputs.prompter.count_all(texts)
    windows = split_all(texts, inputs.prompter.count_all, inputs.window, inputs.overlap, totals)
    read = sum(map(len, texts))
    tokens, pieces = sum(totals) / read, sum(map(len, windows)) / read
    return (
        {memory.id: math.ceil(tokens * len(memory.text)) for memory in memories},
        {memory.id: max(1, round(pieces * len(memory.text))) for memory in memories},
    )


def wanted_samples(data: DatasetConfig, windows: Sequence[Window]) -> list[list[int]]:
    """Return how many samples about each window a data set asks each of its templates for."""
    wanted = []
    for template in map(Template.load, data.templates):
        per_sentence = [max(1, len(w.sentences)) if template.is_per_sentence else 1 for w in windows]
        if template.takes_cues:
            wanted.append([count * data.cues_per_sentence for count in per_sentence])
        elif template.is_given:  # a second sample would be the same
            wanted.append(per_sentence)
        else:
            wanted.append([data.samples_per_window or count * data.samples_per_sentence for count in per_sentence])
    return wanted


def characters(memories: Sequence[MemoryText]) -> int:
    """Return the length of all memories together."""
    return sum(len(memory.text) for memory in memories)


def draw(memories: Sequence[MemoryText], most: int) -> list[tuple[MemoryText, str]]:
    """Draw about `most` characters of memories at random, always the same: whole memories, and pieces of long ones."""
    pieces = [(number, start) for number, m in enumerate(memories) for start in range(0, len(m.text), PIECE)]
    drawn, size = list[tuple[MemoryText, str]](), 0
    for number, start in random.Random(0).sample(pieces, len(pieces)):
        if size >= most:
            break
        text = memories[number].text[start : start + PIECE]
        drawn.append((memories[number], text))
        size += len(text)
    return drawn
