"""What the base skill is measured on."""

from collections import Counter

from sleep_trl.data.documents import MemoryText, Question
from sleep_trl.data.prompts import Prompter
from sleep_trl.data.shipped_sets import read_shipped
from sleep_trl.evaluation import probes
from sleep_trl.evaluation.probes import perplexity_probe, reading_probe
from tests.tiny import byte_tokenizer, tiny_tokenizer

OWN = [MemoryText("1", "town", "the cat of Mira", (Question("who", ("Mira",)), Question("what", ("the cat",))))]


def test_the_shipped_questions_are_of_all_passages_and_have_their_answers_in_context():
    probe = reading_probe([], "", Prompter(byte_tokenizer()), 4096, 2000, 0)
    assert probe.name == "150 shipped reading questions" and probe.left_out is None
    counts = Counter(item.context for item in probe.items)
    assert set(counts) == {m.text for m in read_shipped("reading")} and {*counts.values()} == {3, 4}
    assert all(any(a.casefold() in str(item.context).casefold() for a in item.answers) for item in probe.items)
    assert len({(item.context, item.question) for item in probe.items}) == 150


def test_passages_that_do_not_fit_are_left_out():
    probe = reading_probe([], "", Prompter(byte_tokenizer()), 500, 2000, 0)
    assert probe.items and all(len(str(item.context).encode()) <= 500 for item in probe.items)
    assert probe.name == f"{len(probe.items)} shipped reading questions"
    none = reading_probe([], "", Prompter(byte_tokenizer()), 50, 2000, 0)
    assert none.left_out == "no shipped passage fits 50 tokens of context; give evaluation.skill"


def test_the_shipped_prose_is_of_all_kinds():
    probe = perplexity_probe([], "", byte_tokenizer(), 4096)
    texts = read_shipped("prose")[::2]
    assert probe.name == f"40 shipped prose texts, {sum(len(m.text.encode()) for m in texts):,} tokens"
    kinds = {m.id.split("-")[1] for m in texts}
    assert {"narrative", "news", "code", "dialogue", "technical", "letter"} <= kinds
    assert max(map(len, probe.items)) <= 1024


def test_a_window_of_prose_is_limited(monkeypatch):
    monkeypatch.setattr(probes, "LONGEST_WINDOW", 100)
    assert max(map(len, perplexity_probe([], "", byte_tokenizer(), 4096).items)) == 100


def test_sets_that_the_tokenizer_does_not_know_are_left_out_with_the_reason():
    reading = reading_probe([], "", Prompter(tiny_tokenizer()), 4096, 2000, 0)
    prose = perplexity_probe([], "", tiny_tokenizer(), 4096)
    assert not reading.items and "of the shipped passages; give evaluation.skill" in str(reading.left_out)
    assert not prose.items and "of the shipped prose; give evaluation.perplexity" in str(prose.left_out)


def test_the_users_sets_replace_the_shipped_ones():
    reading = reading_probe(OWN, "own.jsonl", Prompter(tiny_tokenizer()), 4096, 2000, 0)
    assert reading.name == "2 questions of own.jsonl" and reading.items[1].answers == ("the cat",)
    some = reading_probe(OWN, "own.jsonl", Prompter(tiny_tokenizer()), 4096, 1, 0)
    assert some.name == "1 of 2 questions of own.jsonl" and len(some.items) == 1
    prose = perplexity_probe(OWN, "own.jsonl", tiny_tokenizer(), 4096)
    assert prose.name == "1 texts of own.jsonl, 4 tokens" and prose.items == [[4, 5, 6, 7]]
