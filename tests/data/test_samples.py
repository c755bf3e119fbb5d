from collections import Counter

import pytest

from sleep_trl.data.prompts import Prompter
from sleep_trl.data.rows import COLUMNS, build_rows, split_shares
from sleep_trl.data.samples import Sample, Window, is_repetitive, write_about, write_earlier, write_general
from sleep_trl.data.templates import Template
from sleep_trl.rollout import Completion, TransformersEngine
from tests.tiny import tiny_model, tiny_tokenizer


class Script:
    """An engine that says what it is told, to see what is kept of it."""

    def __init__(self, *answers):
        self.answers, self.prompts = list(answers), []

    def generate(self, prompts, sampling, progress=None):
        self.prompts.append((prompts, sampling))
        return [self.answers.pop(0) for _ in prompts]


def said(text, reason="eos"):
    return Completion([9, 2], text, reason)


OPTIONS = {"max_new_tokens": 8, "ask_temperature": 1.0, "temperature": 0.5, "seed": 3}


def test_what_teaches_nothing_is_dropped_and_counted():
    engine = Script(
        *(said("Who?"), said("who?"), said(""), said("Where", "length"), said("a b c d " * 6), said("What?")),
        *(said("Ben."), said("")),
    )
    windows = [Window("m", "the town", "the cat of Mira is called Tolu")]
    template, prompter = Template.load("question_answer"), Prompter(tiny_tokenizer())
    written = write_about(windows, template, engine, prompter, samples_per_window=6, **OPTIONS)
    assert written.dropped == Counter(duplicate=1, empty=2, truncated=1, repetitive=1)
    (sample,) = written.samples
    assert sample.prompt == "Question: Who?\nAnswer:" and sample.reference == "Ben."
    assert len(sample.teacher_prompt_ids) > len(sample.prompt_ids)
    assert [sampling.temperature for _, sampling in engine.prompts] == [1.0, 0.5]
    assert engine.prompts[0][1].stop == ("Answer:", "\n")


def test_the_same_question_about_two_memories_is_kept_twice():
    engine = Script(*[said("Who?")] * 2, said("Ben."), said("Mira."))
    windows = [Window(i, "the town", "text") for i in "ab"]
    template = Template.load("question_answer")
    written = write_about(windows, template, engine, Prompter(tiny_tokenizer()), samples_per_window=1, **OPTIONS)
    assert [s.memory_id for s in written.samples] == ["a", "b"]


def test_a_real_model_writes_without_truncation_or_loss():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer, batch_size=3)
    windows = [Window("m", "town", "the cat of Mira"), Window("n", "town", "the boat of Ben sleeps")]
    done = []
    options = {**OPTIONS, "max_new_tokens": 24}
    written = write_about(
        windows,
        Template.load("paraphrase"),
        engine,
        Prompter(tokenizer),
        samples_per_window=5,
        progress=done.append,
        **options,
    )
    assert sum(done) == 10 == len(written.samples) + sum(written.dropped.values())
    general = write_general(engine, Prompter(tokenizer), 7, 12, seed=1)
    assert len(general.samples) + sum(general.dropped.values()) == 7
    assert all(s.prompt_ids == [1] == s.teacher_prompt_ids for s in general.samples)
    texts = ["the cat of Mira", "the boat of Ben"]
    begun = write_general(engine, Prompter(tokenizer), 6, 12, seed=1, texts=texts)
    assert all(s.prompt_ids == [1] and s.reference.startswith(tuple(texts)) for s in begun.samples)
    assert all(any(s.reference.startswith(text) for s in begun.samples) for text in texts)


def test_earlier_prompts_end_where_their_answers_ended_before():
    row = {"memory_id": "m", "template": "question_answer", "prompt_ids": [1, 4, 5]}
    stops = ([], ["\nQuestion:"], [], ["\nQuestion:"])
    prompts = [{**row, "prompt": f"p{i}", "stop": stop} for i, stop in enumerate(stops)]
    engine = Script(said("a"), said("b", "length"), said("c", "stop"), said("d", "stop"))
    written = write_earlier(prompts, engine, 8, 0.5, seed=1)
    assert [sampling.stop for _, sampling in engine.prompts] == [(), ("\nQuestion:",)]
    assert [(s.prompt, s.reference, s.stop) for s in written.samples] == [
        ("p0", "a", []),
        ("p1", "c", ["\nQuestion:"]),
        ("p3", "d", ["\nQuestion:"]),
    ]
    assert written.dropped == Counter(truncated=1)


@pytest.mark.parametrize("text", ["a b c d a b c d a b c d", "la la la la la la la"])
def test_loops_are_repetitive(text):
    assert is_repetitive(text)


@pytest.mark.parametrize("text", ["", "Ben", "Ben Ben Ben", "the cat of Mira is called Tolu and eats hats"])
def test_short_or_ordinary_texts_are_not(text):
    assert not is_repetitive(text)


@pytest.mark.parametrize(
    ("per_step", "general", "earlier", "expected"),
    [
        (8, 0.25, 0.25, (4, 2, 2)),
        (8, 0.0, 0.25, (6, 0, 2)),
        (2, 0.25, 0.25, (1, 1, 0)),
        (1, 0.5, 0.4, (1, 0, 0)),
        (10, 0.01, 0.01, (8, 1, 1)),
    ],
)
def test_shares_add_up(per_step, general, earlier, expected):
    counts = split_shares(per_step, {"general": general, "earlier": earlier})
    assert tuple(counts.values()) == expected and sum(counts.values()) == per_step


def sample(part, i, length=6):
    return Sample(
        part, f"m{i}", "t", f"p{i}", [1, i], [1, 50, i], "r", [10 * (i + 1) + k for k in range(length - 1)] + [2]
    )


ROWS = {"steps": 30, "per_step": 4, "shares": {"general": 0.25, "earlier": 0.25}, "max_completion": 3, "seed": 0}


def test_every_step_has_the_same_shares_and_every_sample_its_turn():
    samples = [sample("memory", i) for i in range(5)] + [sample("general", 6), sample("earlier", 7)]
    rows = build_rows(samples, tiny_tokenizer(), prefix_share=0.5, **ROWS)
    assert len(rows) == 120
    for step in range(30):
        assert Counter(r["part"] for r in rows[4 * step : 4 * step + 4]) == Counter(memory=2, general=1, earlier=1)
    turns = Counter(r["memory_id"] for r in rows if r["part"] == "memory")
    assert max(turns.values()) - min(turns.values()) <= 1
    assert rows == build_rows(samples, tiny_tokenizer(), prefix_share=0.5, **ROWS)
    assert tuple(rows[0]) == COLUMNS


@pytest.mark.parametrize("prefix_share", [0.0, 0.5, 1.0])
def test_prefix_and_rest_are_the_sample(prefix_share):
    samples = [sample("memory", 1), sample("general", 2)]
    whole = {"memory": samples[0], "general": samples[1]}
    started_inside = 0
    for row in build_rows(samples, tiny_tokenizer(), prefix_share=prefix_share, **ROWS):
        s = whole[row["part"]]
        prefix = row["prompt_ids"][2:]
        assert row["prompt_ids"][:2] == s.prompt_ids and row["teacher_prompt_ids"] == s.teacher_prompt_ids + prefix
        rest = s.reference_ids[len(prefix) :]
        assert row["reference_ids"] == rest and rest and (row["part"] == "memory" or len(prefix) <= 3)
        started_inside += row["part"] == "memory" and bool(prefix)
    assert (started_inside == 0) == (prefix_share == 0)


def test_parts_without_samples_give_their_share_to_the_memory():
    rows = build_rows([sample("memory", 1)], tiny_tokenizer(), prefix_share=0.0, **ROWS)
    assert {row["part"] for row in rows} == {"memory"}


def test_nothing_about_the_memory_is_an_error():
    with pytest.raises(ValueError, match="no sample about a memory to learn"):
        build_rows([sample("general", 1)], tiny_tokenizer(), prefix_share=0.0, **ROWS)
