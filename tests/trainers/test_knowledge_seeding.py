"""What KnowledgeSeedingTrainer trains, saves, resumes and refuses."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from trl import GRPOTrainer

from sleep_trl.memory import Memory, load_experts
from sleep_trl.trainers import KnowledgeSeedingConfig, KnowledgeSeedingTrainer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainers.seedings import OPTIONS, length_reward, logged, rows, student, trainer


@pytest.mark.parametrize("extra", [{}, {"gradient_checkpointing": True}, {"bf16": True}])
def test_training_changes_only_the_learning_expert(tmp_path, extra):
    model = student()
    memory = Memory.of(model)
    memory.activate()
    before = copy.deepcopy({name: p.detach() for name, p in model.named_parameters()})
    t = trainer(tmp_path, model=model, **extra)
    t.train()
    new = {id(p) for _, p in memory.expert_parameters(1)}
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in new), name
    in_optimizer = {id(p) for group in t.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == new


def test_resuming_gives_the_same_expert(tmp_path):
    whole = trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    first = trainer(tmp_path / "parts", max_steps=4, save_strategy="steps", save_steps=2)
    first.train()
    checkpoint = tmp_path / "parts" / "checkpoint-2"
    assert sorted(p.name for p in checkpoint.glob("*.safetensors")) == ["experts.safetensors"]
    second = trainer(tmp_path / "parts", max_steps=4)
    second.train(resume_from_checkpoint=str(checkpoint))
    for (name, a), (_, b) in zip(
        Memory.of(whole.model).expert_parameters(0), Memory.of(second.model).expert_parameters(0), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_plain_model_gets_a_memory_and_the_default_reward(tmp_path):
    t = trainer(tmp_path, model=tiny_model(), reward_funcs=None, expert_width=4, max_steps=1)
    assert Memory.of(t.model).count_parameters()["trainable"] == 2 * 3 * 32 * 4
    t.train()
    assert t.reward_func_names == ["imitation"] and 0 <= logged(t, "rewards/imitation/mean")[0] <= 1


def test_a_separate_teacher_teaches_all_weights(tmp_path):
    model = tiny_model()
    t = KnowledgeSeedingTrainer(
        model,
        length_reward,
        args=KnowledgeSeedingConfig(str(tmp_path), **{**OPTIONS, "max_steps": 2}),
        train_dataset=rows(),
        processing_class=tiny_tokenizer(),
        teacher_model=tiny_model(seed=1),
    )
    before = model.lm_head.weight.clone()
    t.train()
    assert Memory.of(model) is None and not torch.equal(model.lm_head.weight, before)


def test_the_best_expert_comes_back(tmp_path):
    t = trainer(
        tmp_path,
        eval_dataset=rows(2),
        max_steps=4,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    t.train()
    memory, best = Memory.of(t.model), Path(t.state.best_model_checkpoint)
    kept = memory.fingerprint(0)
    load_experts(memory, best)
    assert memory.fingerprint(0) == kept
    load_experts(memory, tmp_path / f"checkpoint-{6 - int(best.name.split('-')[1])}")
    assert memory.fingerprint(0) != kept


@pytest.mark.parametrize(
    ("options", "message"),
    [({"peft_config": LoraConfig(r=2, target_modules=["q_proj"])}, "peft_config"), ({"use_vllm": True}, "use_vllm")],
)
def test_what_experts_do_not_support_is_refused(tmp_path, options, message):
    peft_config = options.pop("peft_config", None)
    with pytest.raises(ValueError, match=message):
        KnowledgeSeedingTrainer(
            student(),
            length_reward,
            args=KnowledgeSeedingConfig(str(tmp_path), **{**OPTIONS, **options}),
            train_dataset=rows(),
            processing_class=tiny_tokenizer(),
            peft_config=peft_config,
        )


def test_a_separate_teacher_teaches_an_adapter(tmp_path):
    t = KnowledgeSeedingTrainer(
        tiny_model(),
        length_reward,
        args=KnowledgeSeedingConfig(str(tmp_path), **{**OPTIONS, "max_steps": 20}, alpha=1.0),
        teacher_model=tiny_model(),
        train_dataset=rows(2),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["down_proj"], task_type="CAUSAL_LM"),
    )
    t.train()
    losses = logged(t, "divergence/memory/reference")
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_memory_that_learns_nothing_is_refused(tmp_path):
    model = student()
    Memory.of(model).commit()
    with pytest.raises(ValueError, match="no learning expert"):
        trainer(tmp_path, model=model)


@pytest.mark.parametrize("name", ["alpha", "lmbda", "divergence_beta", "gamma"])
def test_shares_outside_zero_and_one_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be less than or equal to 1, got 1.5"):
        KnowledgeSeedingConfig(str(tmp_path), **{**OPTIONS, name: 1.5})


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_compute_loss", ["self", "model", "inputs"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_tokenize_prompts", ["self", "prompts"]),
        ("_save", ["self", "output_dir", "state_dict"]),
        ("save_model", ["self", "output_dir", "_internal_call"]),
        ("_save_optimizer_and_scheduler", ["self", "output_dir"]),
        ("_save_rng_state", ["self", "output_dir"]),
        ("_prepare_for_training", ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
    ],
)
def test_overridden_methods_have_the_signature_we_build_on(method, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters
    assert list(inspect.signature(getattr(KnowledgeSeedingTrainer, method)).parameters) == parameters


def test_the_scoring_method_starts_with_the_arguments_we_build_on():
    theirs = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    expected = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
    assert theirs[: len(expected)] == expected
