"""Questions of the teacher that are held out from training, if the memories have none."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sleep_trl.config.command_line import parse
from sleep_trl.data.documents import MemoryText, Question
from sleep_trl.data.samples import Sample
from sleep_trl.launch import sleep
from sleep_trl.night.teacher_questions import hold_out, hold_out_if_needed
from sleep_trl.runs.files import read_json, read_jsonl, write_jsonl
from tests.night.test_run import arguments

WORDS = [f"w{n}" for n in range(20, 60)]


def sample(memory: str, sentence: str, prompt: str, template: str = "question_answer") -> Sample:
    request = prompt if template == "question_answer" else ""
    return Sample("memory", memory, template, prompt, [1], [1, 2], "r", [3], sentence=sentence, request=request)


def test_questions_are_held_out_only_where_their_sentence_is_still_learned():
    pairs = [sample(f"m{n % 4}", f"s{n}", f"q{n} {i}") for n in range(20) for i in range(2)]
    alone = [sample("m9", f"alone {n}", f"a{n}") for n in range(5)]
    twice = [sample("m9", f"twice {n}", "the same") for n in range(2) for _ in range(2)]
    memories = {s.memory_id for s in (*pairs, *alone)}
    kept, held_out = hold_out([*pairs, *alone, *twice], memories, 0.1, seed=1)
    assert len(held_out) == 5 and len(kept) + len(held_out) == 49  # a tenth of 49 questions
    assert set(map(id, held_out)) <= set(map(id, pairs)) and not set(map(id, held_out)) & set(map(id, kept))
    learned = {(s.memory_id, s.sentence) for s in kept}
    assert all((s.memory_id, s.sentence) in learned for s in held_out)
    assert len({s.sentence for s in held_out}) == 5 and len({s.memory_id for s in held_out}) == 4  # in turn
    assert hold_out([*pairs, *alone, *twice], memories, 0.1, seed=1)[1] == held_out
    of_two = hold_out([*pairs, *alone, *twice], {"m0", "m1"}, 0.1, seed=1)[1]
    assert len(of_two) == 4 and {s.memory_id for s in of_two} == {"m0", "m1"}


@pytest.mark.parametrize(("count", "share", "expected"), [(19, 0.1, 0), (20, 0.1, 4), (20, 0.0, 0), (100, 0.1, 10)])
def test_a_few_at_least_are_held_out_and_none_of_too_few(count, share, expected):
    questions = [sample("m", f"s{n}", f"q{n}") for n in range(count)]
    given = [sample("m", f"s{n}", "", "statement") for n in range(count)]
    assert len(hold_out([*questions, *given], {"m"}, share, seed=1)[1]) == expected


@pytest.fixture(scope="module")
def night(model, tmp_path_factory) -> Path:
    """A night about 24 sentences without a question."""
    folder = tmp_path_factory.mktemp("unasked") / "run"
    options = {"dataset.templates": '["question_answer", "statement"]', "dataset.samples_per_window": 48}
    words = arguments(model, folder, **options, **{"seeding.steps": 4, "seeding.prompts_per_step": 60})
    sentences = [f"the {word} of {other} eats hats." for word, other in zip(WORDS[:24], WORDS[12:36], strict=True)]
    write_jsonl(folder.parent / "one.jsonl", [{"id": "one", "text": " ".join(sentences)}])
    assert sleep.main([word for word in words if word != "--no-report"]) == 0
    return folder


def test_a_night_without_questions_asks_those_of_the_teacher(night):
    results = read_json(night / "results.json")
    asked, written = results["teacher_questions"], read_json(night / "phases" / "write_dataset.json")["result"]
    held_out = written["teacher_questions"]
    assert asked["count"] == len(held_out) >= 4
    assert all(0 <= asked[name] <= 1 for name in ("before", "with_context", "after"))
    assert results["recall"] == {"before": None, "with_context": None, "after": None}
    prompts = {row["prompt"] for row in held_out}
    assert not prompts & {row["prompt"] for row in written["samples"]}
    assert not prompts & {row["prompt"] for row in read_jsonl(night / "adapter" / "prompts.jsonl")}
    page = (night / "report.html").read_text("utf-8")
    assert f"{len(held_out)} questions that the teacher wrote and nobody trained on" in page


def test_what_is_dropped_is_in_the_report_and_not_in_the_results(night):
    results, written = read_json(night / "results.json"), read_json(night / "phases" / "write_dataset.json")["result"]
    packed, dataset = written["dropped_texts"], results["dataset"]
    of_memories = [row for row in packed["rows"] if packed["texts"][row[0]] == "one"]
    assert len(of_memories) == len(packed["rows"]) > 0 and len(set(packed["texts"])) == len(packed["texts"])
    assert set(dataset["faithful"]) == {"samples", "faithful"} and dataset["collisions"] == 0
    assert dataset["faithful"]["samples"] == dataset["samples"]["memory"] + results["teacher_questions"]["count"]
    assert 'data-outcome="1"' in (night / "report.html").read_text("utf-8")
    assert "dropped_texts" not in json.dumps(results)


def test_questions_of_the_memories_are_asked_instead(capsys):
    config = parse(["--model", "m", "--memories", "d.jsonl"])
    samples = [sample("m", f"s{n}", f"q{n} {i}") for n in range(20) for i in range(2)]
    asked, unasked = MemoryText("a", "", "t", (Question("Who?", ("Ben",)),)), MemoryText("m", "", "t")
    about_asked = [sample("a", f"s{n}", f"about a {n} {i}") for n in range(20) for i in range(2)]
    assert hold_out_if_needed(SimpleNamespace(config=config, memories=[asked]), about_asked) == (about_asked, [])
    assert capsys.readouterr().out == ""
    both = SimpleNamespace(config=config, memories=[unasked, asked])
    assert {s.memory_id for s in hold_out_if_needed(both, [*about_asked, *samples])[1]} == {"m"}
    assert "1 of 2 memories have no questions, so 4 of the 40" in " ".join(capsys.readouterr().out.split())
    assert len(hold_out_if_needed(SimpleNamespace(config=config, memories=[unasked]), samples)[1]) == 4
    assert (
        "The memories have no questions, so 4 of the 40 that the teacher wrote about them are not trained on"
        in " ".join(capsys.readouterr().out.split())
    )
    assert hold_out_if_needed(SimpleNamespace(config=config, memories=[unasked]), samples[:9])[1] == []
    assert "an answer that passed its checks (9) to hold some out" in " ".join(capsys.readouterr().out.split())
