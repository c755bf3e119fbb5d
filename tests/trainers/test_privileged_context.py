"""The column `privileged_context`, held to the prompts of TRL's own self-distillation trainer."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl.experimental.sdft.sdft_trainer import DemonstrationTeacherContextBuilder

from sleep_trl.trainers import KnowledgeSeedingConfig
from sleep_trl.trainers.knowledge_seeding.privileged_context import compose_teacher_prompt
from tests.tiny import tiny_tokenizer
from tests.trainers.seedings import OPTIONS, first_batch, logged, rows, trainer

TEMPLATE = "{prompt}\n\n{privileged_context}"
USER = {"role": "user", "content": "Who is Tolu?"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("prompt", "context", "template", "expected"),
    [
        ("Who?", "Tolu is a cat.", TEMPLATE, "Who?\n\nTolu is a cat."),
        ("Who?", "Tolu is a cat.", "{privileged_context} {prompt}", "Tolu is a cat. Who?"),
        ([SYSTEM, USER], "A cat.", TEMPLATE, [SYSTEM, {"role": "user", "content": "Who is Tolu?\n\nA cat."}]),
        ("Who?", [SYSTEM, {"role": "user", "content": ""}, USER], TEMPLATE, "Who?\n\nBe brief.\nWho is Tolu?"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "Who"}, {"type": "image"}]}],
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            TEMPLATE,
            [{"role": "user", "content": "Who\n\na b"}],
        ),
    ],
)
def test_the_teachers_prompt_is_that_of_trl(prompt, context, template, expected):
    assert compose_teacher_prompt(prompt, context, template) == expected
    theirs = DemonstrationTeacherContextBuilder(SimpleNamespace(args=SimpleNamespace(teacher_prompt_template=template)))
    assert theirs.select_generation_prompts([prompt], [context]) == [expected]


def test_a_conversation_that_does_not_end_with_the_user_is_refused():
    with pytest.raises(ValueError, match="ends with the role 'assistant'"):
        compose_teacher_prompt([USER, {"role": "assistant", "content": "A"}], "x", TEMPLATE)


def with_context(n=4):
    """Rows whose teacher prompt is the context and then the prompt, as in `rows`."""
    return [
        {"prompt": row["prompt"], "privileged_context": row["teacher_prompt"][: -len(row["prompt"]) - 1],
         "reference": row["reference"], "part": row["part"]} for row in rows(n)
    ]  # fmt: skip


def test_it_trains_like_the_teacher_prompt_that_it_makes(tmp_path):
    losses, batches = [], []
    for name, data in {"prompt": rows(4), "context": Dataset.from_list(with_context())}.items():
        options = {"data": data, "max_steps": 2, "teacher_prompt_template": "{privileged_context} {prompt}"}
        batches.append(first_batch(trainer(tmp_path / name, **options))["teacher_prompt_ids"])
        t = trainer(tmp_path / name, **options)
        t.train()
        losses.append(logged(t, "loss"))
    assert torch.equal(*batches) and losses[0] == losses[1]


def test_by_default_the_context_follows_the_prompt(tmp_path):
    row = {"prompt": "the cat", "privileged_context": "of Mira is called Tolu", "reference": "it eats"}
    batch = first_batch(trainer(tmp_path, data=Dataset.from_list([row] * 4)))
    expected = tiny_tokenizer()("the cat of Mira is called Tolu")["input_ids"]
    assert batch["teacher_prompt_ids"].tolist() == [expected] * 8


def test_rows_of_one_batch_may_have_one_or_the_other(tmp_path):
    data = [{**row, "teacher_prompt": None} for row in with_context(2)]
    data += [{**row, "privileged_context": None} for row in rows(2)]
    options = {"teacher_prompt_template": "{privileged_context} {prompt}", "per_device_train_batch_size": 16}
    batch = first_batch(trainer(tmp_path, data=Dataset.from_list(data), **options))
    found = Counter(tuple(ids) for ids in batch["teacher_prompt_ids"].tolist())
    expected = tiny_tokenizer()(list(rows(2)["teacher_prompt"]))["input_ids"]
    assert found == {tuple(ids): 8 for ids in expected}  # four rollouts, of one form and of the other


@pytest.mark.parametrize("column", ["teacher_prompt", "teacher_prompt_ids"])
def test_both_in_one_row_are_refused(tmp_path, column):
    value = "the cat" if column == "teacher_prompt" else [5, 6]
    data = Dataset.from_list([{**row, column: value} for row in with_context()])
    with pytest.raises(ValueError, match=f"both `privileged_context` and `{column}`. Give one"):
        trainer(tmp_path, data=data).train()


def test_it_needs_the_prompt_as_text(tmp_path):
    row = {"prompt_ids": [5, 6], "privileged_context": "the cat", "reference": "it eats"}
    with pytest.raises(ValueError, match="needs `prompt` as text"):
        trainer(tmp_path, data=Dataset.from_list([row] * 4)).train()


@pytest.mark.parametrize("template", ["{prompt}", "{privileged_context}"])
def test_a_template_without_a_placeholder_is_refused(tmp_path, template):
    with pytest.raises(ValueError, match=r"teacher_prompt_template must contain \{"):
        KnowledgeSeedingConfig(str(tmp_path), **OPTIONS, teacher_prompt_template=template)
