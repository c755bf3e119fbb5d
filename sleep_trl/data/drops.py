"""What was dropped from a night's data set: how many completions by reason, and some of their texts for the report."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

MOST_EXAMPLES = 200  # texts that are kept of each reason


@dataclass(frozen=True)
class DroppedText:
    """A completion that was dropped.

    Args:
        memory_id (`str`):
            The memory that it was about.
        template (`str`):
            The template by which it was written.
        sentence (`str`):
            The sentence that it was about; empty if it was about a whole window.
        request (`str`):
            What was asked, or a request that was dropped itself.
        answer (`str`, *optional*):
            The answer; empty if there was none.
        reason (`str`, *optional*):
            Why it was dropped.
    """

    memory_id: str
    template: str
    sentence: str
    request: str
    answer: str = ""
    reason: str = ""


class Drops(Counter[str]):
    """The number of completions dropped by reason, with at most [`MOST_EXAMPLES`] `examples` of each reason, drawn at
    random with a fixed seed."""

    def __init__(self, counts: Mapping[str, int] | None = None, examples: Iterable[DroppedText] = ()) -> None:
        super().__init__(counts or {})
        self.examples = list(examples)

    def __add__(self, other: Counter[str]) -> Drops:  # type: ignore[override]
        """Return the sum, without reasons that dropped nothing."""
        texts = [*self.examples, *(other.examples if isinstance(other, Drops) else ())]
        return Drops(Counter.__add__(self, other), _few_of_each_reason(texts))

    def __iadd__(self, other: Counter[str]) -> Drops:  # type: ignore[override]
        return self + other


def _few_of_each_reason(texts: Sequence[DroppedText]) -> list[DroppedText]:
    by_reason: dict[str, list[DroppedText]] = {}
    for text in texts:
        by_reason.setdefault(text.reason, []).append(text)
    draw = random.Random(0)
    chosen: list[DroppedText] = []
    for group in by_reason.values():
        places = sorted(draw.sample(range(len(group)), min(MOST_EXAMPLES, len(group))))
        chosen += [group[place] for place in places]
    return chosen


def pack(texts: Sequence[DroppedText]) -> dict[str, list[Any]]:
    """Return dropped completions as plain data in which each text occurs once: `texts`, and `rows` of their places."""
    places: dict[str, int] = {}
    rows = [[places.setdefault(value, len(places)) for value in astuple(text)] for text in texts]
    return {"texts": list(places), "rows": rows}


def unpack(packed: Mapping[str, Any]) -> list[DroppedText]:
    """Return the dropped completions that [`pack`] packed; none of a night that kept none."""
    names = [field.name for field in fields(DroppedText)]
    texts = packed.get("texts", [])
    rows = packed.get("rows", [])
    return [DroppedText(**{n: texts[place] for n, place in zip(names, row, strict=True)}) for row in rows]
