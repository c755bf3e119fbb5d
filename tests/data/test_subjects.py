import pytest

from sleep_trl.data.subjects import is_about, name_subject


@pytest.mark.parametrize(
    ("asked", "sentence", "found"),
    [
        ("The lantern walk: Who leads the way?", "Pascoe leads.", True),
        ("The lantern walk: Who is it?", "The walk is short; who is it?", False),  # words of the title, and short ones
        ("How much in 94?", "It cost 94.", True),
        ("蘭はどこですか", "蘭学の町", False),
        ("蘭学はどこですか", "蘭学の町", True),
        ("متى افتتح المتحف؟", "افتتح في مايو.", True),
        ("Who?", "", False),
    ],
)
def test_whether_a_question_is_about_a_sentence(asked, sentence, found):
    assert is_about(asked, sentence, "The lantern walk") is found


def test_a_question_that_names_nothing_gets_the_title_of_its_document():
    title = "The Harbor Canteen"
    assert name_subject("Who runs the kitchen?", title) == "The Harbor Canteen: Who runs the kitchen?"
    for named in ("Who runs the canteen?", "Who is Ben?", "What opened in 1911?"):
        assert name_subject(named, title) == named
    assert name_subject("Who runs it?", "") == "Who runs it?"
    assert name_subject("谁经营它？", "港口食堂") == "港口食堂: 谁经营它？"
