"""The rule by which samples are judged, on cases decided by hand."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

quality = importlib.import_module("data_quality")
Written = quality.Written

TEXT = "The footbridge at Sandlow is closed until the end of May. Karel Ibbotson is mending it."
LABELS = [("Who is mending the Sandlow bridge?", ["Karel Ibbotson"]), ("How old is it?", ["5", "five"])]


def written(question: str, answer: str, sentence: str | None = None):
    return Written("notice", question, answer, TEXT, sentence)


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        ("Until when is the footbridge closed?", "Until the end of May.", True),
        ("Until when is the footbridge closed?", "Until the end of June.", False),  # "June" is not in the text
        ("Who is mending the bridge at Sandlow?", "Karel Ibbotson is mending the bridge.", True),
        ("Who is mending the bridge at Sandlow?", "The end of May.", False),  # in the text, but not what is asked
        ("Is the footbridge closed?", "Yes, it is.", None),
        ("What is closed until the end of May?", "May.", None),  # repeats the question
    ],
)
def test_an_answer_is_right_if_the_text_says_it_and_the_label_agrees(question, answer, verdict):
    assert quality.is_right(written(question, answer), LABELS) is verdict


def test_a_question_is_recognized_in_other_words_of_the_same_content():
    assert quality.asks_the_same("Who mends the bridge at Sandlow?", "Who mends the Sandlow bridge?")
    assert not quality.asks_the_same("Who mends the bridge at Sandlow?", "When does the ferry leave?")
    assert not quality.asks_the_same("Who is it?", "What is that?")  # no content words


def test_documents_collide_where_they_share_a_prompt():
    prompts = [("a", "Who runs it?"), ("b", "Who runs it?"), ("a", "Who runs it?"), ("a", "Where is Sandlow?")]
    assert quality.collisions(prompts) == 1


def test_a_sentence_is_covered_by_what_was_written_about_it():
    sentences = ["The footbridge at Sandlow is closed.", "Karel Ibbotson is mending it.", "Keep dogs away."]
    about = [written("Who is mending it?", "Somebody", sentence=sentences[1])]
    assert quality.uncovered(sentences, about) == [sentences[0], sentences[2]]
    unrecorded = [written("Who is mending it?", "Karel Ibbotson"), written("Is it?", "Yes")]
    assert quality.uncovered(sentences, unrecorded) == [sentences[0], sentences[2]]
