"""Numbers, outcomes and untrusted text as the report shows them."""

import math

import pytest

from sleep_trl.config.visible import visible
from sleep_trl.evaluation.retention import AGREEMENT
from sleep_trl.report.page import flatten
from sleep_trl.report.words import clip, duration, moment, percent, verdict
from tests.report.pages import make_results


def test_words() -> None:
    assert visible("a\u202eb\r\nc\td\x00\ud800") == "a⟨U+202E⟩b\nc\td⟨U+0000⟩⟨U+D800⟩"
    assert visible("نمی\u200cخواهم") == "نمی\u200cخواهم"
    assert clip("abcdef", 4) == "abcd … (2 more characters)"
    assert clip("abcd", 4) == "abcd"
    assert [percent(v).replace("\u00a0", " ") for v in (0.5, 0, None, math.nan, True)] == [
        "50.0 %", "0.0 %", "not measured", "not measured", "not measured",
    ]  # fmt: skip
    assert [duration(v).replace("\u00a0", " ") for v in (7.56, 150.75, 7_500, None)] == [
        "7.6 s", "2 min 31 s", "2 h 5 min", "not measured",
    ]  # fmt: skip
    assert moment("2026-01-02T03:04:05+02:00") == "2026-01-02 01:04 UTC" and moment("yesterday") == "yesterday"
    assert dict(flatten({"a": {"b": {"c": 1}, "d": {}}, "e": None, "f": "x", "g": [1]})) == {
        "a.b.c": "1", "a.d": "{}", "e": "null", "f": "x", "g": "[1]",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recall", "expected"),
    [
        ((0.02, 0.98, 0.96), "The model has learned the memories: without the text it answers 96.0 %"),
        ((0.0, 1.0, 0.6), "has learned most of the memories"),
        ((0.0, 1.0, 0.5), "has learned some of the memories"),
        ((0.0, 0.5, 0.5), "has learned some of the memories: without the text it answers 50.0 %"),
        ((0.0, 2 / 3, 1 / 3), "has learned some of the memories"),  # half of what it can answer, but a third of all
        ((0.8, 0.9, 0.875), "has learned most of the memories"),  # three quarters of what was left
        ((0.0, 1.0, 0.1), "has learned some of the memories"),
        ((0.1, 0.9, 0.05), "has not learned the memories"),
        ((0.0, 0.0, 0.0), "There was nothing that the teacher could teach"),
        ((0.4, 0.4, 0.4), "There was nothing to learn"),
        ((None, None, None), "recall was not measured"),
        ((math.nan, 0.9, 0.5), "recall was not measured"),
    ],
)
def test_verdict_on_recall(recall, expected) -> None:
    results = make_results(recall=dict(zip(("before", "with_context", "after"), recall, strict=True)))
    assert expected in verdict(results).replace("\u00a0", " ")


def test_few_questions_are_counted() -> None:
    recall = {"before": 0.0, "with_context": 2 / 3, "after": 1 / 3}
    few = "without the text it answers 1 of the 3 questions (0 before the night), and 2 with the text"
    assert few in verdict(make_results(recall=recall, questions=3))
    some = verdict(make_results(recall=recall, questions=3, asked_about={"memories": 1, "of": 3}))
    assert "1 of the 3 questions (about 1 of 3 memories; the others have none) (0 before" in some
    assert "The model has learned some of what it was asked about: " in some
    none = {"before": 0.0, "with_context": 0.0, "after": 0.0}
    assert "0 of the 1 question (0 before" in verdict(make_results(recall=none, questions=1))
    assert "33.3\u00a0% of the 300 questions" in verdict(make_results(recall=recall, questions=300))
    others = {"count": 4, "before": 0.0, "with_context": 1.0, "after": 0.75}
    both = verdict(make_results(recall=recall, questions=3, teacher_questions=others))
    assert "it answers 1 of the 3 questions" in both
    assert "; of the 4 questions that the teacher wrote about the other memories and nobody trained on, it ans" in both
    assert "it answers 3 (0 before the night), and 4 with the text; the base skill" in both
    assert "33.3\u00a0% of the 4 questions" in verdict(make_results(recall=recall, questions=4))  # F1


@pytest.mark.parametrize(
    ("recall", "steps", "expected"),
    [
        ((0.0, 0.9, 0.05), None, "It can answer with the text, so train more: more passes (--seeding.passes), or a "),
        ((0.0, 0.9, 0.05), 100, "more steps (--seeding.steps), or a higher --seeding.learning_rate."),
        ((0.0, 0.2, 0.0), None, "only what it can answer with the text: check that the questions are about"),
        ((0.0, 0.0, 0.0), None, "only what it can answer with the text: check that the questions are about"),
        ((0.4, 0.4, 0.4), None, ""),
        ((0.0, 0.9, 0.5), None, ""),
    ],
)
def test_a_night_that_taught_nothing_says_what_to_do(recall, steps, expected) -> None:
    said = dict(zip(("before", "with_context", "after"), recall, strict=True))
    words = verdict(make_results(recall=said, config={"seeding": {"steps": steps}}, retention={}))
    _, _, after = words.replace("\u00a0", " ").partition("after). ")
    assert expected in after and bool(after) == bool(expected)


@pytest.mark.parametrize(
    ("skill", "expected"),
    [
        ((1.0, 0.996), "the base skill was kept"),
        ((0.99, 0.90), "the base skill fell by 9.0 points to 90.0 %"),
        ((0.90, 0.92), "the base skill rose by 2.0 points to 92.0 %"),
        ((1.0, None), "the base skill was not measured"),
    ],
)
def test_verdict_on_base_skill(skill, expected) -> None:
    results = make_results(base_skill={"before": skill[0], "after": skill[1], "measure": "x"})
    assert expected in verdict(results).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("after", "count", "expected"),
    [
        (0.473, 150, "was kept, as far as 150 questions can tell (46.0 % before, 47.3 % after)"),
        (0.427, 150, "was kept, as far as 150 questions can tell"),
        (0.41, 150, "fell by 5.0 points to 41.0 %"),
        (0.427, 1500, "fell by 3.3 points to 42.7 %"),
        (0.462, 150, "was kept (46.0 % before, 46.2 % after)"),
    ],
)
def test_a_change_that_so_few_questions_cannot_tell_is_none(after, count, expected) -> None:
    skill = {"before": 0.46, "after": after, "measure": "x", "questions": count}
    assert f"the base skill {expected}" in verdict(make_results(base_skill=skill)).replace("\u00a0", " ")


@pytest.mark.parametrize(("before", "after", "count"), [(1.0, 0.98, 50), (0.0, 0.1, 10), (0.9, 0.8, 10)])
def test_one_question_is_no_change_of_the_base_skill(before, after, count) -> None:
    skill = {"before": before, "after": after, "measure": "x", "questions": count}
    assert "the base skill was kept, as far as" in verdict(make_results(base_skill=skill))


def test_a_lower_agreement_is_no_loss_of_skill() -> None:
    results = make_results(base_skill={"before": 1.0, "after": 0.963, "measure": AGREEMENT})
    assert "measured only by the agreement with the base model, now 96.3\u00a0%" in verdict(results)


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        ({}, "after)."),
        ({"entry-001": {"before": 1.0, "after": 0.98}}, "; earlier nights were kept."),
        ({"entry-001": {"before": 1.0, "after": 0.97}}, "; recall of entry-001 fell by 3.0 points."),
        ({"entry-001": {"before": None, "after": None}}, "after)."),
    ],
)
def test_verdict_on_earlier_nights(retention, expected) -> None:
    assert verdict(make_results(retention=retention)).endswith(expected)
