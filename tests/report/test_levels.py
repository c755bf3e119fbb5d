"""The report tells of levels: their experts after each night, and which entry is in which."""

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
    assert counted(CHAIN) == {"level 1": [1, 2, 1], "level 2": [0, 0, 1], "room": [3, 3, 3]}
    assert counted(CHAIN[:2]) == {"level 1": [1, 2], "room": [3, 3]}
    later = [{**entry, "dropped": "2026-02-01T00:00:00+00:00"} for entry in CHAIN]
    assert counted(later) == counted(CHAIN)  # they had their experts then
    undone = {"dropped": "2026-01-03T00:00:00+00:00", "rolled_back": "it cost too much"}
    assert counted([*CHAIN[:2], {**CHAIN[2], **undone}, {**CHAIN[3], **undone}]) == counted(CHAIN[:2])
    assert capacity_charts(CAPACITY, CHAIN[:1]) == [] == capacity_charts({}, CHAIN)  # nothing to compare; an old run


def test_there_is_no_half_expert_on_the_axis() -> None:
    ticks = [
        capacity_charts({**CAPACITY, "max_experts": room}, CHAIN)[0].plot.layout.yaxis.dtick for room in (3, 8, 9, 40)
    ]
    assert ticks == [1, 1, 2, 5]


def test_an_entry_says_which_one_took_it_in() -> None:
    assert [outcome(entry, CHAIN) for entry in CHAIN] == ["consolidated in entry-003"] * 2 + ["kept"] * 2
    dropped = [{**entry, "dropped": "now"} if entry.get("holds") else entry for entry in CHAIN]
    assert outcome(CHAIN[0], dropped) == "kept"


def test_the_page_shows_room_and_consolidations() -> None:
    results = make_results(capacity=CAPACITY)
    assert ("Experts", "2 of 3", "1 of level 1 · 1 of level 2") in list(facts(results))
    page = render_page(results, [], CHAIN, "")
    assert "all of entry-001, entry-002" in " ".join(page.split()) and "Capacity by level" in page
    assert page.count("no night") == 1
