"""The rows of KnowledgeSeedingTrainer: text, token ids or messages, stop strings, missing columns."""

import pytest
from datasets import Dataset

from tests.tiny import tiny_tokenizer
from tests.trainers.seedings import first_batch, logged, of_memories, rows, trainer


def test_given_token_ids_are_used_as_they_are(tmp_path):
    given = Dataset.from_list(
        [
            {
                "prompt": "x",
                "prompt_ids": [1, 5 + i, 6],
                "teacher_prompt_ids": [1, 9, 5 + i, 6],
                "reference_ids": [7, 2],
            }
            for i in range(4)
        ]
    )
    batch = first_batch(trainer(tmp_path, data=given))
    assert {tuple(row) for row in batch["prompt_ids"].tolist()} <= {(1, 5 + i, 6) for i in range(4)}
    assert all(
        t[1] == 9 and t[2] == p[1] for t, p in zip(batch["teacher_prompt_ids"], batch["prompt_ids"], strict=True)
    )


def test_rows_of_token_ids_or_messages_need_no_text(tmp_path):
    """Token ids train like the text they encode, with the default reward; a reference may be a message."""
    tokenizer = tiny_tokenizer()
    texts = rows(4).remove_columns("part")
    ids = [
        {
            "prompt_ids": tokenizer(row["prompt"])["input_ids"],
            "teacher_prompt_ids": tokenizer(row["teacher_prompt"])["input_ids"],
            "reference_ids": [*tokenizer(row["reference"], add_special_tokens=False)["input_ids"], 2],
        }
        for row in texts
    ]
    messages = texts.map(lambda row: {"message": [{"role": "assistant", "content": row["reference"]}]})
    messages = messages.remove_columns("reference").rename_column("message", "reference")
    losses = []
    for name, data in {"text": texts, "ids": Dataset.from_list(ids), "messages": messages}.items():
        t = trainer(tmp_path / name, data=data, reward_funcs=None, max_steps=2)
        t.train()
        losses.append(logged(t, "loss"))
    assert losses[0] == losses[1] == losses[2]


def test_rollouts_end_at_the_rows_stop_strings(tmp_path):
    seen = []

    def keep(completions, completion_ids, **kwargs):
        seen.extend(zip(completions, completion_ids, strict=True))
        return [0.0] * len(completions)

    data = of_memories(rows(4))
    stopping = data.map(lambda row: {"stop": ["cat", "Mira"]})
    trainer(tmp_path, data=stopping, reward_funcs=keep, max_steps=6, temperature=3.0).train()
    assert seen and all("cat" not in text and "Mira" not in text and ids for text, ids in seen)
    assert len({len(ids) for _, ids in seen}) > 1
    free, seen[:] = list(seen), []
    trainer(tmp_path, data=data, reward_funcs=keep, max_steps=6, temperature=3.0).train()
    assert any("cat" in text or "Mira" in text for text, _ in seen) and len(seen) == len(free)


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="needs a column `teacher_prompt`"):
        trainer(tmp_path, data=rows().remove_columns(["teacher_prompt"])).train()


def test_a_row_without_any_reward_leaves_no_text_in_the_log(tmp_path, caplog):
    def abstain(completion_ids, **kwargs):
        return [None] * len(completion_ids)

    trainer(tmp_path, max_steps=1, reward_funcs=abstain).train()
    assert "Mira" not in caplog.text
