"""Knowledge Seeding from separate teachers: one or several, of other sizes than the student."""

import pytest
import torch
from datasets import Dataset

from sleep_trl.data.parts import PARTS
from sleep_trl.memory import Memory, MemorySpec, attach
from sleep_trl.models.head import Head
from sleep_trl.trainers import KnowledgeSeedingConfig, KnowledgeSeedingTrainer
from sleep_trl.trainers.knowledge_seeding.ensemble import ensemble_divergence
from sleep_trl.trainers.knowledge_seeding.loss import divergence_per_token
from sleep_trl.trainers.knowledge_seeding.teachers import assign_teachers, find_rows
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainers.seedings import DIVERGENCE, OPTIONS, length_reward, logged, rows

LARGER = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}


def heads(vocabularies=(97, 97, 97), sizes=(16, 8, 12)):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(v, s, generator=generator) for v, s in zip(vocabularies, sizes, strict=True)]
    hidden = [torch.randn(2, 5, s, generator=generator) for s in sizes]
    return [Head(weight) for weight in made], hidden


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_an_ensemble_of_one_is_that_teacher(beta):
    (student, teacher, _), (mine, teacher_states, _) = heads()
    values = []
    for divergence in (
        lambda hidden: ensemble_divergence(hidden, student, [(teacher_states, teacher)], MASK, beta),
        lambda hidden: divergence_per_token(hidden, teacher_states, student, teacher, MASK, beta),
    ):
        hidden = mine.clone().requires_grad_()
        value = divergence(hidden)
        value.sum().backward()
        values.append((value.detach(), hidden.grad))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)
    assert (values[0][0][MASK == 0] == 0).all() and values[0][0].sum() > 1


def test_several_teachers_teach_their_mean_distribution():
    (student, first, second), (mine, one, two) = heads()
    value = ensemble_divergence(mine, student, [(one, first), (two, second)], MASK, 0.0)
    p = ((one @ first.weight.T).softmax(-1) + (two @ second.weight.T).softmax(-1)) / 2
    expected = (p * (p.log() - (mine @ student.weight.T).log_softmax(-1))).sum(-1) * MASK
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_tokens_beyond_the_smaller_vocabulary_are_left_out():
    (student, teacher, _), (mine, teacher_states, _) = heads(vocabularies=(104, 97, 97))
    value = ensemble_divergence(mine, student, [(teacher_states, teacher)], MASK, 0.0)
    cut = Head(student.weight[:97])
    torch.testing.assert_close(
        value, divergence_per_token(mine, teacher_states, cut, teacher, MASK, 0.0), rtol=1e-4, atol=1e-5
    )


def test_no_group_of_rows_is_ever_empty():
    memory, general, earlier = (PARTS.index(name) for name in ("memory", "general", "earlier"))
    part = torch.tensor([memory, general, memory, earlier])
    assert [rows.tolist() for rows, _ in (find_rows(part, ["memory", "dream"]), find_rows(part, ["earlier"]))] == [
        [0, 2],
        [3],
    ]
    rows, is_present = find_rows(part, ["dream"])
    assert rows.tolist() == [0] and not is_present


def groups(student, others=()):
    return [(parts, is_base) for parts, _, is_base in assign_teachers(student, None, list(others))]


def test_the_pretrained_model_teaches_general_samples_as_soon_as_it_differs_from_last_nights():
    model = tiny_model()
    memory = attach(model, MemorySpec(width=16, max_experts=2))
    memory.activate()
    assert groups(model) == [(list(PARTS), False)]
    assert groups(model, ["another"]) == [(["memory", "dream"], False), (["general", "earlier"], False)]
    memory.activate()
    assert groups(model) == [(["memory", "dream", "earlier"], False), (["general"], True)]
    assert groups(model, ["another"]) == [(["memory", "dream"], False), (["general"], True), (["earlier"], False)]


def larger_student():
    model = tiny_model(seed=5, **LARGER)
    attach(model, MemorySpec(width=16, max_experts=1)).activate()
    return model


def seeded(tmp_path, teachers, **options):
    data = Dataset.from_list([{**row, "part": options.pop("part", "memory")} for row in rows(4)])
    trainer = KnowledgeSeedingTrainer(
        larger_student(),
        length_reward,
        args=KnowledgeSeedingConfig(
            str(tmp_path), **{**OPTIONS, **DIVERGENCE, "max_steps": 30, "alpha": 1.0, **options}
        ),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
        teacher_model=teachers,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("count", [1, 2])
def test_smaller_teachers_teach_the_expert_of_a_larger_student(tmp_path, count):
    teachers = [tiny_model(seed=seed) for seed in range(count)]
    trainer = seeded(tmp_path, teachers if count > 1 else teachers[0])
    losses = logged(trainer, "divergence/memory/reference")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    base = dict(tiny_model(seed=5, **LARGER).named_parameters())
    assert all(torch.equal(p, base[name]) for name, p in Memory.of(trainer.model).base_parameters())


def test_a_teacher_given_by_name_is_loaded_as_trl_does(tmp_path):
    tiny_model(seed=3).save_pretrained(tmp_path / "teacher")
    options = {**OPTIONS, "teacher_model_init_kwargs": '{"dtype": "bfloat16"}'}
    trainer = KnowledgeSeedingTrainer(
        larger_student(),
        length_reward,
        args=KnowledgeSeedingConfig(str(tmp_path), **options),
        train_dataset=rows(4),
        processing_class=tiny_tokenizer(),
        teacher_model=str(tmp_path / "teacher"),
    )
    [teacher] = trainer.teachers
    expected = tiny_model(seed=3).to(torch.bfloat16).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in teacher.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_loading_arguments_without_a_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="teacher_model_init_kwargs are for a teacher_model given by name"):
        seeded(tmp_path, tiny_model(), teacher_model_init_kwargs={"dtype": "bfloat16"})


def test_the_student_itself_teaches_what_it_must_not_forget(tmp_path):
    """A new expert outputs zero, so the model does not diverge from itself, but does from another teacher."""
    data = Dataset.from_list([{**row, "teacher_prompt": row["prompt"], "part": "general"} for row in rows(4)])
    options = {**OPTIONS, "max_steps": 1, "alpha": 1.0, "logging_steps": 1}
    found = {}
    for name, teacher in {"itself": None, "separate": tiny_model(seed=1)}.items():
        trainer = KnowledgeSeedingTrainer(
            larger_student(),
            length_reward,
            args=KnowledgeSeedingConfig(str(tmp_path / name), **options),
            train_dataset=data,
            processing_class=tiny_tokenizer(),
            teacher_model=teacher,
        )
        trainer.train()
        (found[name],) = logged(trainer, "divergence/general/reference")
    assert found["separate"] == found["itself"] <= 1e-6
