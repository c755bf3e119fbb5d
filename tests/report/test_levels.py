"""Levels in the report: their experts after each night, and which entry is consolidated into which."""

from __future__ import annotations

from sleep_trl.report.levels import capacity_charts
from sleep_trl.report.page import facts, render_page
from sleep_trl.report.words import outcome
from tests.report.pages import make_entry, make_results

CAPACITY = {"max_experts": 3, "by_level": {"1": 1, "2": 1}}


def row(number: int, **changes: object) -> dict:
    given = {"id": f"entry-{number:03}", "date": f"2026-01-0{number}T00:00:00+00:00", "expert": number - 1, "base": ""}
    return make_entry(**(given | {"sources": [], "parents": []} | changes))


CHAIN = [row(1), row(2), row(3, level=2, holds=["entry-001", "entry-002"], metrics={}), row(4, expert=0)]


def counted(ledger: list[dict]) -> dict[str, list[int]]:
    (chart,) = capacity_charts(CAPACITY, ledger)
    return {trace.name: list(trace.y) for trace in chart.plot.data}


def test_experts_are_counted_after_each_night() -> None:
    assert counted(CHAIN) == {"level 1": [1, 2, 1], "level 2": [0, 0, 1], "capacity": [3, 3, 3]}
    assert counted(CHAIN[:2]) == {"level 1": [1, 2], "capacity": [3, 3]}
    later = [{**entry, "dropped": "2026-02-01T00:00:00+00:00"} for entry in CHAIN]
    assert counted(later) == counted(CHAIN)  # they had their experts at that time
    undone = {"dropped": "2026-01-03T00:00:00+00:00", "rolled_back": "it cost too much"}
    assert counted([*CHAIN[:2], {**CHAIN[2], **undone}, {**CHAIN[3], **undone}]) == counted(CHAIN[:2])
    assert capacity_charts(CAPACITY, CHAIN[:1]) == [] == capacity_charts({}, CHAIN)  # nothing to compare; an old run


def test_the_axis_counts_whole_experts() -> None:
    ticks = [
        capacity_charts({**CAPACITY, "max_experts": size}, CHAIN)[0].plot.layout.yaxis.dtick for size in (3, 8, 9, 40)
    ]
    assert ticks == [1, 1, 2, 5]


def test_an_entry_names_the_one_it_was_consolidated_into() -> None:
    assert [outcome(entry, CHAIN) for entry in CHAIN] == ["consolidated into entry-003"] * 2 + ["kept"] * 2
    dropped = [{**entry, "dropped": "now"} if entry.get("holds") else entry for entry in CHAIN]
    assert outcome(CHAIN[0], dropped) == "kept"


def test_the_page_shows_capacity_and_consolidations() -> None:
    results = make_results(capacity=CAPACITY)
    assert ("Experts", "2 of 3", "1 of level 1 · 1 of level 2") in list(facts(results))
    page = render_page(results, [], CHAIN, "")
    assert "all of entry-001, entry-002" in " ".join(page.split()) and "Capacity by level" in page
    assert page.count("no night") == 1
