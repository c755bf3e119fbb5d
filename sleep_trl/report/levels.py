"""The figure of the memory's levels: how many experts each had after every night."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..runs.ledger import LedgerEntry, expert_owners
from .figures import HUES, Chart, empty_figure, label

Row = Mapping[str, Any]

MOST_TICKS = 8


def capacity_charts(capacity: Row, ledger: Sequence[Row]) -> list[Chart]:
    """Return the experts of each level after each night of a life of at least two.

    Args:
        capacity (`Mapping[str, Any]`): the part `capacity` of `results.json`, empty in old ones.
        ledger (`Sequence[Mapping]`): entries of the ledger, oldest first.
    """
    entries = [LedgerEntry.model_validate(row) for row in ledger] if capacity else []
    nights = [(place, entry) for place, entry in enumerate(entries) if not entry.holds and entry.rolled_back is None]
    if len(nights) < 2:
        return []
    counts = {entry.id: _count(entries[: place + 1], entry.date) for place, entry in nights}
    names, room = [label(name) for name in counts], capacity["max_experts"] - capacity.get("blocks", 0)
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
        y=[room] * len(names),
        name="room",
        mode="lines",
        line={"dash": "dash", "width": 2},
        hovertemplate="%{y}",
        meta={"hue": "ink"},
    )
    plot.update_layout(barmode="stack", hovermode="x unified")
    plot.update_xaxes(type="category")
    plot.update_yaxes(rangemode="tozero", dtick=math.ceil(room / MOST_TICKS))  # there is no half expert
    said = "; ".join(f"{name}: {_in_words(count)}" for name, count in counts.items())
    caption = (
        "Experts after each night, by level. Where a bar shrinks, experts of one level became a single one of the next "
        "and their slots are free again. The dashed line is the room of the memory, without the levels' own blocks."
    )
    return [Chart("capacity", "Capacity by level", caption, plot, f"{said}; room for {room}")]


def _count(entries: Sequence[LedgerEntry], date: str) -> Counter[int]:
    """Count the experts by level as they were then: what was dropped later still had its own."""
    then = [e.model_copy(update={"dropped": None}) if e.dropped and e.dropped > date else e for e in entries]
    return Counter(entry.level for entry in expert_owners(then))


def _in_words(count: Mapping[int, int]) -> str:
    return ", ".join(f"{count[level]} of level {level}" for level in sorted(count)) or "none"
