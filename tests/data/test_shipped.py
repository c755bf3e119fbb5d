"""The shipped data sets and the labelled pairs: fields, counts, spread, and answers that stand in their passages."""

import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rapidfuzz import fuzz, process

SHIPPED = files("sleep_trl.data") / "shipped"
PAIRS = Path(__file__).resolve().parent.parent / "rewards" / "judge_pairs.jsonl"

# What a text in a language without Latin letters has to contain.
SCRIPTS = {
    "ar": r"[\u0600-\u06ff]",
    "bn": r"[\u0980-\u09ff]",
    "el": r"[\u0370-\u03ff]",
    "fa": r"[\u0600-\u06ff]",
    "he": r"[\u0590-\u05ff]",
    "hi": r"[\u0900-\u097f]",
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af]",
    "ru": r"[\u0400-\u04ff]",
    "th": r"[\u0e00-\u0e7f]",
    "uk": r"[\u0400-\u04ff]",
    "zh": r"[\u4e00-\u9fff]",
}
UNSPACED = {"ja", "th", "zh"}  # languages whose words no white space separates


def read(text: str) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines text; each line has to hold one object."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def shipped(name: str) -> list[dict[str, Any]]:
    """Return the rows of one shipped data set."""
    return read((SHIPPED / name).read_text("utf-8"))


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, Any]]:
    return shipped("general_prompts.jsonl")


@pytest.fixture(scope="module")
def reading() -> list[dict[str, Any]]:
    return shipped("reading.jsonl")


@pytest.fixture(scope="module")
def prose() -> list[dict[str, Any]]:
    return shipped("prose.jsonl")


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    return read(PAIRS.read_text("utf-8"))


def language(row: dict[str, Any]) -> str:
    """Return the language of a prompt, which its id names: `general-<language>-<number>`."""
    found = re.fullmatch(r"general-([a-z]{2})-\d{3}", row["id"])
    assert found, row["id"]
    return found[1]


def alike(texts: list[str], bound: float) -> list[tuple[str, str]]:
    """Return the pairs of texts whose similarity, 0 to 100, is at least the bound."""
    lowered = [text.lower() for text in texts]
    scores = process.cdist(lowered, lowered, scorer=fuzz.ratio, score_cutoff=bound, dtype=np.uint8)
    return [(texts[i], texts[j]) for i, j in zip(*np.nonzero(np.triu(scores, k=1)), strict=True)]


def test_near_duplicate_is_seen() -> None:
    texts = ["What is the capital of France?", "Boil an egg.", "what is the capital of Ghana?"]
    assert alike(texts, 75) == [(texts[0], texts[2])]


@pytest.mark.parametrize("name", ["general_prompts.jsonl", "reading.jsonl", "prose.jsonl"])
def test_ids_are_unique_and_texts_are_clean(name: str) -> None:
    rows = shipped(name)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["text"] == row["text"].strip() != "", row["id"]
        assert "\ufffd" not in row["text"] and "\r" not in row["text"] and "\t" not in row["text"], row["id"]


def test_readme_states_counts(prompts, reading, prose, pairs) -> None:
    readme = (SHIPPED / "README.md").read_text("utf-8")
    questions = sum(len(row["questions"]) for row in reading)
    for name, number, unit in (
        ("general_prompts.jsonl", len(prompts), "prompts"),
        ("reading.jsonl", len(reading), "passages"),
        ("reading.jsonl", questions, "questions"),
        ("prose.jsonl", len(prose), "texts"),
        ("judge_pairs.jsonl", len(pairs), "pairs"),
    ):
        section = readme.partition(f"## `{name}`")[2].partition("\n## ")[0]
        assert f"{number} {unit}" in section, f"{name}: the README does not say {number} {unit}"
    assert "CC0 1.0" in readme


def test_prompts_have_their_fields(prompts) -> None:
    assert len(prompts) >= 360
    for row in prompts:
        assert list(row) == ["id", "kind", "text"], row["id"]
        assert all(isinstance(value, str) for value in row.values()), row["id"]


def test_prompts_are_of_many_kinds(prompts) -> None:
    kinds = Counter(row["kind"] for row in prompts)
    assert len(kinds) == 20
    assert min(kinds.values()) >= 10
    assert max(kinds.values()) <= len(prompts) // 8


def test_prompts_are_in_many_languages(prompts) -> None:
    languages = Counter(language(row) for row in prompts)
    english = languages.pop("en")
    assert languages.total() >= 80
    assert len(languages) >= 25
    assert max(languages.values()) <= 10
    assert english > languages.total()
    assert {"ar", "de", "es", "fr", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "vi", "zh"} <= {
        *languages
    }


def test_prompts_are_in_the_script_of_their_language(prompts) -> None:
    for row in prompts:
        if script := SCRIPTS.get(language(row)):
            assert re.search(script, row["text"]), row["id"]


def test_prompts_are_neither_too_short_nor_too_long(prompts) -> None:
    for row in prompts:
        if language(row) in UNSPACED:
            assert 8 <= len(row["text"]) <= 300, row["id"]
        else:
            assert 3 <= len(row["text"].split()) <= 150, row["id"]
    lengths = [len(row["text"].split()) for row in prompts if language(row) not in UNSPACED]
    assert sum(length <= 10 for length in lengths) >= 40
    assert sum(length >= 50 for length in lengths) >= 15


def test_no_two_prompts_are_alike(prompts) -> None:
    assert alike([row["text"] for row in prompts], 70) == []


def test_reading_has_its_fields(reading) -> None:
    assert len(reading) >= 40
    assert sum(len(row["questions"]) for row in reading) >= 160
    for row in reading:
        assert list(row) == ["id", "source", "text", "questions"], row["id"]
        assert 60 <= len(row["text"].split()) <= 150, row["id"]
        assert len(row["questions"]) >= 4, row["id"]
        for question in row["questions"]:
            assert list(question) == ["question", "answers", "form"], row["id"]
            assert question["question"].endswith("?"), row["id"]
            assert question["form"] == "plain", row["id"]


def test_answers_stand_in_their_passages_and_not_in_the_question(reading) -> None:
    for row in reading:
        for question in row["questions"]:
            answers = question["answers"]
            assert answers and len({answer.lower() for answer in answers}) == len(answers), question
            for answer in answers:
                word = rf"(?<!\w){re.escape(answer.lower())}(?!\w)"
                assert re.search(word, row["text"].lower()), question
                assert not re.search(word, question["question"].lower()), question


def test_no_two_passages_or_questions_are_alike(reading) -> None:
    assert alike([row["text"] for row in reading], 60) == []
    questions = [(row["id"], question["question"]) for row in reading for question in row["questions"]]
    assert len(set(questions)) == len(questions)


def test_prose_has_its_fields(prose) -> None:
    assert len(prose) >= 60
    registers = Counter()
    words = 0
    for row in prose:
        assert list(row) == ["id", "text"], row["id"]
        found = re.fullmatch(r"prose-([a-z]+)-\d\d", row["id"])
        assert found, row["id"]
        registers[found[1]] += 1
        length = len(row["text"].split())
        if found[1] in UNSPACED:
            assert 150 <= len(row["text"]) <= 500, row["id"]
        else:
            assert 80 <= length <= 250, row["id"]
        words += length
    assert words >= 12_000
    assert len(registers) >= 20
    assert max(registers.values()) <= len(prose) // 5


def test_no_two_pieces_of_prose_are_alike(prose, reading) -> None:
    assert alike([row["text"] for row in [*prose, *reading]], 60) == []


def test_pairs_have_their_fields(pairs) -> None:
    assert len(pairs) >= 260
    for row in pairs:
        assert list(row) == ["question", "reference", "candidate", "label", "kind"], row
        assert isinstance(row["label"], bool), row
        assert row["question"].strip() and row["reference"].strip(), row
    assert len({(row["question"], row["reference"], row["candidate"]) for row in pairs}) == len(pairs)


def test_pairs_are_balanced(pairs) -> None:
    assert 0.45 <= sum(row["label"] for row in pairs) / len(pairs) <= 0.55
    kinds = Counter((row["kind"], row["label"]) for row in pairs)
    names = {kind for kind, _ in kinds}
    assert len(names) == 27
    for name in names - {"partial", "empty"}:  # those two are wrong by definition
        assert kinds[name, True] >= 3 and kinds[name, False] >= 3, name


def test_equal_pairs_are_labelled_so(pairs) -> None:
    for row in pairs:
        assert row["reference"] != row["candidate"], row
        if row["reference"].lower() == row["candidate"].lower():
            assert row["label"] or row["reference"] == "5 MW", row
