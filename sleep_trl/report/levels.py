"""The figure of the memory's levels: the number of experts in each after every night."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..runs.ledger import LedgerEntry, expert_owners, measured_nights
from .figures import HUES, Chart, empty_figure, label

Row = Mapping[str, Any]

MOST_TICKS = 8


def capacity_charts(capacity: Row, ledger: Sequence[LedgerEntry]) -> list[Chart]:
    """Draw the experts of each level after each night, for a chain of at least two nights, and those there are now, if
    entries were dropped since.

    Args:
        capacity (`Mapping[str, Any]`): `capacity` of `results.json`, which is empty in old runs.
        ledger (`Sequence[LedgerEntry]`): entries of the ledger, oldest first.
    """
    nights = measured_nights(ledger)
    if not capacity or len(nights) < 2:
        return []
    counts = {entry.id: _count(ledger[: ledger.index(entry) + 1], entry.date) for entry in nights}
    if (now := count_experts(ledger)) != counts[nights[-1].id]:
        counts["now"] = now
    names, size = [label(name) for name in counts], capacity["max_experts"] - capacity.get("blocks", 0)
    plot = empty_figure(x="night", y="experts")
    for number, level in enumerate(sorted({level for count in counts.values() for level in count})):
        plot.add_bar(
            x=names,
            y=[count[level] for count in counts.values()],
            name=f"level {level}",
            hovertemplate="%{y}",
            meta={"hue": HUES[number % len(HUES)]},
        )
    plot.add_scatter(
        x=names,
        y=[size] * len(names),
        name="capacity",
        mode="lines",
        line={"dash": "dash", "width": 2},
        hovertemplate="%{y}",
        meta={"hue": "ink"},
    )
    plot.update_layout(barmode="stack", hovermode="x unified")
    plot.update_xaxes(type="category")
    plot.update_yaxes(rangemode="tozero", dtick=math.ceil(size / MOST_TICKS))  # whole experts only
    summary = "; ".join(f"{name}: {_count_text(count)}" for name, count in counts.items())
    caption = (
        "Experts after each night, by level. Where a bar shrinks, experts of one level were consolidated into one of "
        "the next or were dropped, and their slots are free again. The dashed line is the capacity, without the "
        "levels' own blocks."
    )
    return [Chart("capacity", "Capacity by level", caption, plot, f"{summary}; capacity {size}")]


def _count(entries: Sequence[LedgerEntry], date: str) -> Counter[int]:
    """Count the experts by level at that time, including those of entries that were dropped later."""
    then = [e.model_copy(update={"dropped": None}) if e.dropped and e.dropped > date else e for e in entries]
    return count_experts(then)


def count_experts(entries: Sequence[LedgerEntry]) -> Counter[int]:
    """Count the experts of entries by level."""
    return Counter(entry.level for entry in expert_owners(entries))


def _count_text(count: Mapping[int, int]) -> str:
    return ", ".join(f"{count[level]} of level {level}" for level in sorted(count)) or "none"
