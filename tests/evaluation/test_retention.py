"""The measures of a chain of nights, on matrices worked out by hand."""

from io import StringIO

import pytest
from rich.console import Console

from sleep_trl.config import RetentionConfig
from sleep_trl.evaluation.retention import (
    accuracy_matrix,
    after_own_night,
    average,
    backward_transfer,
    breach,
    describe_chain,
    forgetting,
    forward_transfer,
    render_chain,
)
from sleep_trl.runs.ledger import LedgerEntry

MATRIX = [[0.8], [0.9, 0.7], [0.5, 0.6, 1.0]]


def entry(number: int, after: dict, before: dict) -> LedgerEntry:
    return LedgerEntry(
        id=f"entry-{number:03}",
        date="2026-01-01T00:00:00+00:00",
        expert=number - 1,
        level=1,
        fingerprint="",
        base="",
        parents=(),
        sources=(),
        metrics={"before": before, "after": after},
    )


def entries() -> list[LedgerEntry]:
    """Return the entries of three nights with the recall of `MATRIX`."""
    names = [f"entry-{number:03}" for number in (1, 2, 3)]
    made = []
    for number, row in enumerate(MATRIX, start=1):
        after = {"recall": row[-1], "earlier": dict(zip(names, row[:-1], strict=False)), "skill": 1 - number / 100}
        before = {"recall": 0.1 * number, "earlier": {}, "skill": 1.0, "agreement": 0.5}
        before |= {"base": 0.05} if number > 1 else {}
        made.append(entry(number, after | {"agreement": 0.9}, before))
    return made


def test_measures() -> None:
    assert average(MATRIX) == pytest.approx(0.7)
    assert after_own_night(MATRIX) == pytest.approx((0.8 + 0.7 + 1.0) / 3)
    assert backward_transfer(MATRIX) == pytest.approx(((0.5 - 0.8) + (0.6 - 0.7)) / 2)
    assert forgetting(MATRIX) == pytest.approx(
        ((0.9 - 0.5) + (0.7 - 0.6)) / 2
    )  # from the best, not from the night's own
    assert forward_transfer([0.0, 0.25, 0.5], [None, 0.25, 0.1]) == pytest.approx(0.2)


def test_one_night_has_no_transfer() -> None:
    assert average([[0.5]]) == after_own_night([[0.5]]) == 0.5
    assert backward_transfer([[0.5]]) is forgetting([[0.5]]) is forward_transfer([0.5], [None]) is None


def test_nights_without_questions_are_left_out() -> None:
    matrix = [[None], [None, 0.8], [None, 0.6, 1.0]]
    assert average(matrix) == pytest.approx(0.8)
    assert backward_transfer(matrix) == pytest.approx(-0.2)
    assert forgetting(matrix) == pytest.approx(0.2)
    assert average([[None]]) is None


def test_the_ledger_holds_the_matrix() -> None:
    assert accuracy_matrix(entries()) == MATRIX
    chain = describe_chain(entries())
    assert chain["recall"] == MATRIX
    assert chain["base_skill"] == pytest.approx([1.0, 0.99, 0.98, 0.97])
    assert chain["forward_transfer"] == pytest.approx((0.15 + 0.25) / 2)
    assert chain["backward_transfer"] == backward_transfer(MATRIX)


def test_an_entry_without_metrics_is_unknown() -> None:
    first, second, third = entries()
    unmeasured = second.model_copy(update={"metrics": {}})
    chain = describe_chain([first, unmeasured, third])
    assert chain["recall"] == [[0.8], [None, None], [0.5, 0.6, 1.0]]
    assert chain["base_skill"][2] is None and chain["average"] == pytest.approx(0.7)


def forget_first(*, rolled_back: str | None = None) -> list[LedgerEntry]:
    """Return the ledger after a night that removed the first of three entries and relearned the others."""
    first, second, third = entries()
    metrics = {"recall": None, "earlier": {"entry-001": 0.0, "entry-002": 0.5, "entry-003": 0.9}, "skill": 0.96}
    night = entry(4, metrics, metrics | {"earlier": {"entry-001": 0.5, "entry-002": 0.6, "entry-003": 1.0}})
    night = night.model_copy(update={"holds": ("entry-002", "entry-003"), "date": "2026-01-02T00:00:00+00:00"})
    if rolled_back:
        return [first, second, third, night.model_copy(update={"dropped": night.date, "rolled_back": rolled_back})]
    return [first.model_copy(update={"dropped": night.date}), second, third, night]


def test_a_night_that_removes_entries_is_measured_on_what_is_left() -> None:
    """It has a row but no column, and the entry that it removed has none and counts as no loss."""
    chain = describe_chain(forget_first())
    assert (chain["nights"], chain["entries"]) == (
        ["entry-001", "entry-002", "entry-003", "entry-004"],
        ["entry-002", "entry-003"],
    )
    assert chain["recall"] == [[], [0.7], [0.6, 1.0], [0.5, 0.9]]
    assert chain["base_skill"] == pytest.approx([1.0, 0.99, 0.98, 0.97, 0.96])
    assert chain["average"] == pytest.approx(0.7) and chain["after_own_night"] == pytest.approx(0.85)
    assert chain["forgetting"] == pytest.approx((0.2 + 0.1) / 2) == -chain["backward_transfer"]
    assert chain["left_out"] == ["entry-001"]
    shown = StringIO()
    Console(width=100, file=shown).print(render_chain(chain))
    assert "of 2" in shown.getvalue() and "of 1" not in shown.getvalue()
    assert "left out, as dropped or rolled back: entry-001" in " ".join(shown.getvalue().split())


def test_a_rolled_back_removal_changes_nothing() -> None:
    assert describe_chain(forget_first(rolled_back="it cost too much")) == describe_chain(entries())


def test_a_dropped_entry_has_no_column_and_a_consolidation_no_row() -> None:
    first, second, third = entries()
    dropped = second.model_copy(update={"dropped": "2026-02-01T00:00:00+00:00"})
    held = entry(4, {}, {}).model_copy(update={"holds": ("entry-001",), "metrics": {}})
    chain = describe_chain([first, dropped, held, third])
    assert chain["entries"] == ["entry-001", "entry-003"] and chain["nights"] == ["entry-001", "entry-002", "entry-003"]
    assert chain["recall"] == [[0.8], [0.9], [0.5, 1.0]]
    assert chain["forgetting"] == pytest.approx(0.4) and chain["backward_transfer"] == pytest.approx(-0.3)


def test_the_terminal_shows_matrix_and_measures() -> None:
    shown = StringIO()
    Console(width=100, file=shown).print(render_chain(describe_chain(entries())))
    for words in (
        "Recall after each of 3 nights",
        "50.0",
        "60.0",
        "100.0",
        "97.0",
        "forgetting 25.0",
        "backward transfer -20.0",
    ):
        assert words in shown.getvalue()


def test_a_single_night_has_no_measures_that_compare_nights() -> None:
    shown = StringIO()
    Console(width=100, file=shown).print(render_chain(describe_chain(entries()[:1])))
    assert "Recall after a night" in shown.getvalue() and "after own night 80.0" in shown.getvalue()
    assert "forgetting" not in shown.getvalue() and "transfer" not in shown.getvalue()


@pytest.mark.parametrize(
    ("policy", "lost"),
    [
        ({}, None),
        ({"max_forgetting": 0.2, "max_skill_loss": 0.1}, None),
        ({"max_forgetting": 0.1}, "the mean recall of earlier nights fell from 90.0 to 75.0 %"),
        ({"max_skill_loss": 0.04}, "the base skill fell from 95.0 to 90.0 %"),
    ],
)
def test_losses_beyond_the_policy(policy: dict, lost: str | None) -> None:
    before = {"earlier": {"entry-001": 1.0, "entry-002": 0.8, "entry-003": None}, "skill": 0.95, "agreement": 1.0}
    after = {"earlier": {"entry-001": 0.6, "entry-002": 0.9, "entry-003": None}, "skill": 0.9, "agreement": 0.1}
    reason = breach(RetentionConfig(**policy), before, after)
    assert reason is None if lost is None else reason is not None and reason.startswith(lost)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ({"skill": 0.5, "perplexity": 20.0}, {"skill": 0.475, "perplexity": 21.0}, None),  # 5 % of each
        (
            {"skill": 0.5, "perplexity": 20.0},
            {"skill": 0.47, "perplexity": 20.0},
            "the base skill fell from 50.0 to 47.0",
        ),
        (
            {"skill": 0.5, "perplexity": 20.0},
            {"skill": 0.9, "perplexity": 21.1},
            "the perplexity rose from 20.00 to 21.10",
        ),
        ({"skill": 0.5, "perplexity": 20.0}, {"skill": 0.5, "perplexity": 2.0}, None),
        ({"skill": None, "perplexity": 20.0, "agreement": 1.0}, {"perplexity": 20.0, "agreement": 0.1}, None),
        ({"agreement": 0.8}, {"agreement": 0.75, "skill": 0.1}, "the agreement with the base fell from 80.0 to 75.0"),
    ],
)
def test_a_loss_of_skill_is_relative_and_of_either_measure(before: dict, after: dict, lost: str | None) -> None:
    reason = breach(RetentionConfig(max_skill_loss=0.05), before | {"earlier": {}}, after | {"earlier": {}})
    assert reason is None if lost is None else reason is not None and reason.startswith(lost)


def test_a_chain_compares_only_answers_to_the_same_questions() -> None:
    shipped, own = {"skill": "150 shipped reading questions"}, {"skill": "20 questions of own.jsonl"}
    agreement = {"skill": None, "agreement": 0.9}

    def base_skill(*nights: dict) -> list[float | None]:
        nights = tuple(night | {"earlier": {}, "recall": 1.0} for night in nights)
        return describe_chain([entry(n, night, nights[0]) for n, night in enumerate(nights, 1)])["base_skill"]

    asked = {"skill": 0.6, "probes": shipped}
    assert base_skill(agreement, asked, asked) == [None, None, 0.6, 0.6]
    assert base_skill({"skill": 0.7}, {"skill": 0.6, "probes": own}) == [0.7, 0.7, 0.6]  # 0.1 did not name them
    assert base_skill({"skill": 0.7}, asked) == [None, None, 0.6]
    assert base_skill(asked, agreement) == [None, None, 0.9]


def test_what_was_not_measured_is_not_lost() -> None:
    nothing = {"earlier": {}, "skill": None, "agreement": None}
    assert breach(RetentionConfig(max_forgetting=0, max_skill_loss=0), nothing, nothing) is None


def test_a_chain_leaves_out_nights_that_were_rolled_back() -> None:
    first, second, third = entries()
    undone = {"dropped": "2026-01-01T00:00:00+00:00", "rolled_back": "it cost too much"}
    chain = describe_chain([first, second.model_copy(update=undone), third])
    assert chain["entries"] == chain["nights"] == ["entry-001", "entry-003"] and len(chain["recall"]) == 2
    assert describe_chain([first.model_copy(update=undone)])["average"] is None
