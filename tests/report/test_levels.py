"""Levels in the report: their experts after each night, and which entry is consolidated into which."""

from __future__ import annotations

from sleep_trl.report.levels import capacity_charts
from sleep_trl.report.page import as_of, facts, render_page
from sleep_trl.report.words import outcome
from sleep_trl.runs.ledger import LedgerEntry
from tests.report.pages import make_entry, make_results

CAPACITY = {"max_experts": 3, "by_level": {"1": 1, "2": 1}}


def row(number: int, **changes: object) -> LedgerEntry:
    given = {"id": f"entry-{number:03}", "date": date(number), "expert": number - 1, "sources": [], "parents": []}
    return LedgerEntry.model_validate(make_entry(**(given | changes)))


def date(day: int) -> str:
    return f"2026-01-0{day}T00:00:00+00:00"


def changed(entry: LedgerEntry, **changes: object) -> LedgerEntry:
    return entry.model_copy(update=changes)


CHAIN = [row(1), row(2), row(3, level=2, holds=["entry-001", "entry-002"], metrics={}), row(4, expert=0)]


def counted(ledger: list[LedgerEntry]) -> dict[str, list[int]]:
    (chart,) = capacity_charts(CAPACITY, ledger)
    return {trace.name: list(trace.y) for trace in chart.plot.data}


def test_experts_are_counted_after_each_night() -> None:
    assert counted(CHAIN) == {"level 1": [1, 2, 1], "level 2": [0, 0, 1], "capacity": [3, 3, 3]}
    assert counted(CHAIN[:2]) == {"level 1": [1, 2], "capacity": [3, 3]}
    undone = {"dropped": date(3), "rolled_back": "it cost too much"}
    assert counted([*CHAIN[:2], *(changed(entry, **undone) for entry in CHAIN[2:])]) == counted(CHAIN[:2])
    assert capacity_charts(CAPACITY, CHAIN[:1]) == [] == capacity_charts({}, CHAIN)  # nothing to compare; an old run


def test_entries_that_were_dropped_had_their_experts_until_then() -> None:
    later = [changed(entry, dropped="2026-02-01T00:00:00+00:00") for entry in CHAIN]
    assert counted(later) == {"level 1": [1, 2, 1, 0], "level 2": [0, 0, 1, 0], "capacity": [3, 3, 3, 3]}
    (chart,) = capacity_charts(CAPACITY, later)
    assert chart.plot.data[0].x[-1] == "now" and chart.summary.endswith("now: none; capacity 3")


def test_a_night_that_removes_entries_has_a_bar_of_its_own() -> None:
    removal = row(4, expert=2, holds=["entry-002", "entry-003"])
    ledger = [row(1, dropped=date(4)), row(2), row(3), removal]
    assert counted(ledger) == {"level 1": [1, 2, 3, 1], "capacity": [3] * 4}
    assert [outcome(entry, ledger) for entry in ledger] == [
        "removed by entry-004 on 2026-01-04 00:00 UTC",
        *["relearned into entry-004"] * 2,
        "kept",
    ]
    back = [row(1), row(2), row(3), changed(removal, dropped=date(4), rolled_back="it cost too much")]
    assert counted(back) == {"level 1": [1, 2, 3], "capacity": [3] * 3}
    assert [outcome(entry, back) for entry in back] == ["kept"] * 3 + ["rolled back by its night: it cost too much"]


def test_the_axis_counts_whole_experts() -> None:
    ticks = [
        capacity_charts({**CAPACITY, "max_experts": size}, CHAIN)[0].plot.layout.yaxis.dtick for size in (3, 8, 9, 40)
    ]
    assert ticks == [1, 1, 2, 5]


def test_an_entry_names_the_one_it_was_consolidated_into() -> None:
    assert [outcome(entry, CHAIN) for entry in CHAIN] == ["consolidated into entry-003"] * 2 + ["kept"] * 2
    dropped = [changed(entry, dropped="now") if entry.holds else entry for entry in CHAIN]
    assert outcome(CHAIN[0], dropped) == "kept"


def test_the_page_shows_capacity_and_consolidations() -> None:
    results = make_results(capacity=CAPACITY)
    assert ("Experts", "2 of 3", "1 of level 1 · 1 of level 2") in list(facts(results))
    dropped = [changed(entry, dropped=date(5)) if entry.id == "entry-004" else entry for entry in CHAIN]
    assert ("Experts", "1 of 3", "1 of level 2") in list(facts(as_of(results, dropped)))
    page = render_page(results, {"samples": []}, CHAIN, "")
    assert "all of entry-001, entry-002" in " ".join(page.split()) and "Capacity by level" in page
    assert page.count("no night") == 1
