from collections import Counter

import pytest

from sleep_trl.data.prompts import Prompter
from sleep_trl.data.rows import COLUMNS, build_rows, split_shares
from sleep_trl.data.samples import Sample, write_earlier, write_general
from sleep_trl.rollout import TransformersEngine
from tests.data.engines import FixedEngine, answer
from tests.tiny import tiny_model, tiny_tokenizer


def test_a_real_model_writes_general_samples():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer, batch_size=3)
    general = write_general(engine, Prompter(tokenizer), 7, 12, seed=1)
    assert len(general.samples) + sum(general.dropped.values()) == 7
    assert all(s.prompt_ids == [1] == s.teacher_prompt_ids for s in general.samples)
    texts = ["the cat of Mira", "the boat of Ben"]
    continued = write_general(engine, Prompter(tokenizer), 6, 12, seed=1, texts=texts)
    assert all(s.prompt_ids == [1] and s.reference.startswith(tuple(texts)) for s in continued.samples)
    assert all(any(s.reference.startswith(text) for s in continued.samples) for text in texts)


def test_earlier_prompts_keep_their_stop_strings():
    row = {"memory_id": "m", "template": "question_answer", "prompt_ids": [1, 4, 5]}
    stops = ([], ["\nQuestion:"], [], ["\nQuestion:"])
    prompts = [{**row, "prompt": f"p{i}", "stop": stop} for i, stop in enumerate(stops)]
    engine = FixedEngine(answer("a"), answer("b", "length"), answer("c", "stop"), answer("d", "stop"))
    written = write_earlier(prompts, engine, 8, 0.5, seed=1)
    assert [sampling.stop for _, sampling in engine.prompts] == [(), ("\nQuestion:",)]
    assert [(s.prompt, s.reference, s.stop) for s in written.samples] == [
        ("p0", "a", []),
        ("p1", "c", ["\nQuestion:"]),
        ("p3", "d", ["\nQuestion:"]),
    ]
    assert written.dropped == Counter(truncated=1)


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


def test_every_step_has_the_same_shares_and_samples_are_used_evenly():
    samples = [sample("memory", i) for i in range(5)] + [sample("general", 6), sample("earlier", 7)]
    rows = build_rows(samples, tiny_tokenizer(), prefix_share=0.5, **ROWS)
    assert len(rows) == 120
    for step in range(30):
        assert Counter(r["part"] for r in rows[4 * step : 4 * step + 4]) == Counter(memory=2, general=1, earlier=1)
    uses = Counter(r["memory_id"] for r in rows if r["part"] == "memory")
    assert max(uses.values()) - min(uses.values()) <= 1
    assert rows == build_rows(samples, tiny_tokenizer(), prefix_share=0.5, **ROWS)
    assert tuple(rows[0]) == COLUMNS


@pytest.mark.parametrize(("prefix_share", "expected"), [(0.0, [0]), (0.5, range(1, 90)), (1.0, [90])])
def test_prefix_and_rest_are_the_sample(prefix_share, expected):
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
    assert started_inside in expected


def test_rows_of_dreams_begin_inside_a_sample_if_it_has_more_than_one_token():
    samples = [sample("memory", 1), sample("dream", 2, length=2), sample("dream", 3, length=1)]
    options = ROWS | {"shares": {"dream": 0.5}}
    rows = build_rows(samples, tiny_tokenizer(), prefix_share=0.0, **options)
    lengths = {(row["memory_id"], len(row["reference_ids"])) for row in rows if row["part"] == "dream"}
    assert lengths == {("m2", 1), ("m3", 1)}


def test_samples_are_whole_until_rollouts_begin():
    rows = build_rows([sample("memory", 1)], tiny_tokenizer(), prefix_share=1.0, first_rollout=20, **ROWS)
    begun_inside = [any(row["prefix_text"] for row in rows[4 * step : 4 * step + 4]) for step in range(30)]
    assert not any(begun_inside[:20]) and all(begun_inside[20:])


def test_parts_without_samples_leave_their_share_to_the_memory():
    rows = build_rows([sample("memory", 1)], tiny_tokenizer(), prefix_share=0.0, **ROWS)
    assert {row["part"] for row in rows} == {"memory"}


def test_no_sample_about_the_memories_is_an_error():
    with pytest.raises(ValueError, match="no samples about the memories"):
        build_rows([sample("general", 1)], tiny_tokenizer(), prefix_share=0.0, **ROWS)
