"""Answer metrics, held to values worked out by hand."""

import pytest

from sleep_trl.evaluation import contains, exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The   Cat,\tsat. ", "cat sat"),
        ("well-known", "wellknown"),  # as in SQuAD, punctuation is deleted, not replaced
        ("theory of a thing", "theory of thing"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("ＡＢＣ", "abc"),  # full width
        ("cafe\u0301", "caf\u00e9"),  # an accent of its own
        ("«Привет!»", "привет"),
        ("¿Qué?", "qué"),
        ("A", "a"),  # ours: an article alone is an answer
        ("...", ""),
    ],
)
def test_normalize_answer(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_exact_match() -> None:
    assert exact_match("The Eiffel Tower!", "eiffel tower")
    assert exact_match("two", ["2", "Two."])
    assert not exact_match("eiffel tower in paris", "eiffel tower")
    assert not exact_match("a", "the")


def test_contains_whole_tokens_in_a_row() -> None:
    assert contains("It is the red cat.", ["dog", "red cat"])
    assert not contains("a category", "cat")
    assert not contains("red and cat", "red cat")
    assert not contains("red", "red cat")
    assert contains("答えは東京です", "東京")
    assert not contains("anything", "?")
    assert contains("!", "?")


def test_f1() -> None:
    # 2 common of 3 predicted and 4 accepted tokens: 2 * 2 / 7
    assert f1("red cat ran", "red fat cat slept") == pytest.approx(4 / 7)
    assert f1("red red", "red") == pytest.approx(2 / 3)  # a token counts as often as it is accepted
    assert f1("red cat", ["dog", "red cat"]) == 1.0
    assert f1("", "cat") == 0.0
    assert f1("", "...") == 1.0
    assert f1("東京", "東方") == 0.5


@pytest.mark.parametrize("metric", [exact_match, contains, f1])
def test_no_answer_is_an_error(metric) -> None:
    with pytest.raises(ValueError, match="at least one"):
        metric("cat", [])
