import copy
import inspect
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gkd import GKDTrainer

from sleep_trl.memory import Memory, MemorySpec, attach, load_experts
from sleep_trl.trainers import KnowledgeSeedingConfig, KnowledgeSeedingTrainer
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = "the cat of Mira is called Tolu and it eats hats while the boat of Ben sleeps".split()


def rows(n: int = 16) -> Dataset:
    prompts = [" ".join(WORDS[i % 9 : i % 9 + 3]) for i in range(n)]
    return Dataset.from_list(
        [
            {
                "prompt": prompt,
                "teacher_prompt": " ".join(WORDS) + " " + prompt,
                "reference": " ".join(WORDS[i % 5 : i % 5 + 4]),
                "part": ("memory", "general")[i % 2],
            }
            for i, prompt in enumerate(prompts)
        ]
    )


def length_reward(completion_ids, **kwargs):
    return [float(len(set(ids))) for ids in completion_ids]


OPTIONS = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 5,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def student(form: str = "llama"):
    model = tiny_model(form)
    attach(model, MemorySpec(width=8, max_experts=2)).activate()
    return model


def trainer(tmp_path, cls=KnowledgeSeedingTrainer, config=KnowledgeSeedingConfig, model=None, data=None, **options):
    return cls(
        model or student(),
        options.pop("reward_funcs", length_reward),
        eval_dataset=options.pop("eval_dataset", None),
        args=config(str(tmp_path), **{**OPTIONS, **options}),
        train_dataset=data or rows(),
        processing_class=tiny_tokenizer(),
    )


def logged(finished, key):
    return [entry[key] for entry in finished.state.log_history if key in entry]


@pytest.mark.parametrize("extra", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}])
def test_alpha_zero_is_grpo_to_the_last_bit(tmp_path, extra):
    ours = trainer(tmp_path / "a", alpha=0.0, **extra)
    ours.train()
    theirs = trainer(tmp_path / "b", GRPOTrainer, GRPOConfig, **extra)  # seeds anew
    theirs.train()
    for key in ("loss", "grad_norm", "reward", "entropy"):
        assert logged(ours, key) == logged(theirs, key) and len(logged(ours, key)) == 5
    for (name, a), (_, b) in zip(ours.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def first_batch(t):
    """Make the trainer's first batch, as its training loop would."""
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    return t._prepare_inputs(next(iter(t.get_train_dataloader())))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_alpha_one_lambda_one_has_the_gradient_of_gkd(tmp_path, beta):
    t = trainer(tmp_path, alpha=1.0, lmbda=1.0, divergence_beta=beta)
    model, memory = t.model, Memory.of(t.model)
    with torch.no_grad():  # away from the zero start, where half of the gradient vanishes
        for _, p in memory.expert_parameters(0):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    batch = first_batch(t)
    t._compute_loss(model, batch).backward()
    ours = {name: p.grad.clone() for name, p in memory.expert_parameters(0)}
    model.zero_grad()

    ids, mask = batch["completion_ids"], batch["completion_mask"]

    def logits(prompt):
        joined = torch.cat([batch[f"{prompt}_ids"], ids], 1)
        attention = torch.cat([batch[f"{prompt}_mask"], mask], 1)
        return model(input_ids=joined, attention_mask=attention).logits[:, -ids.size(1) - 1 : -1]

    with torch.no_grad(), memory.as_teacher():
        teacher = logits("teacher_prompt")
    labels = ids.masked_fill(mask == 0, -100)
    GKDTrainer.generalized_jsd_loss(logits("prompt"), teacher, labels, beta=beta).backward()
    for name, p in memory.expert_parameters(0):
        assert p.grad.abs().max() > 1e-6
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("passes", [1, 3])  # of three passes over two references, one reads what counts nothing
@pytest.mark.parametrize("form", ["llama", "qwen3", "gemma2", "gpt_neox", "phi3"])
def test_divergence_is_the_plain_formula(tmp_path, form, passes):
    """KL(teacher || student) on rollout and reference by full logits, each part weighed, against the trainer's loss."""
    t = trainer(tmp_path, model=student(form), alpha=1.0, lmbda=0.25, replay_weight=0.5, reference_passes=passes)
    model, memory = t.model, Memory.of(t.model)
    with torch.no_grad():
        for _, p in memory.expert_parameters(0):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    batch = first_batch(t)
    loss = t._compute_loss(model, batch).item()

    def kl(kind):
        ids, mask = batch[f"{kind}_ids"], batch[f"{kind}_mask"]

        def log_probs(prompt):
            joined = torch.cat([batch[f"{prompt}_ids"], ids], 1)
            attention = torch.cat([batch[f"{prompt}_mask"], mask], 1)
            with torch.no_grad():
                return (
                    model(input_ids=joined, attention_mask=attention).logits[:, -ids.size(1) - 1 : -1].log_softmax(-1)
                )

        student_log = log_probs("prompt")
        with memory.as_teacher():
            teacher_log = log_probs("teacher_prompt")
        per_token = (teacher_log.exp() * (teacher_log - student_log)).sum(-1) * mask
        weight = torch.where(batch["part"] == 0, 1.0, 0.5)
        return ((per_token * weight[:, None]).sum() / mask.sum()).item()

    assert loss == pytest.approx(0.25 * kl("completion") + 0.75 * kl("reference"), rel=1e-4)
    assert {k for k in t._metrics["train"] if k.startswith("divergence/")} == {
        f"divergence/{part}/{kind}" for part in ("memory", "general") for kind in ("rollout", "reference")
    }


def test_accumulation_gives_the_same_expert(tmp_path):
    """One batch of eight rollouts and two of four, whose references are read at once, add up to the same gradient."""
    data = rows(2)
    whole = trainer(tmp_path / "a", data=data, max_steps=2, alpha=1.0, reference_passes=2)
    whole.train()
    halves = trainer(
        tmp_path / "b", data=data, max_steps=2, alpha=1.0, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    halves.train()
    for (name, a), (_, b) in zip(
        Memory.of(whole.model).expert_parameters(0), Memory.of(halves.model).expert_parameters(0), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_the_student_comes_nearer_to_the_teacher(tmp_path):
    t = trainer(tmp_path, data=rows(2), max_steps=30, alpha=1.0)
    t.train()
    losses = logged(t, "divergence/memory/reference")
    assert losses[-1] < 0.8 * losses[0]


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


def test_checkpointing_changes_no_gradient(tmp_path):
    finished = []
    for extra in ({}, {"gradient_checkpointing": True}):
        t = trainer(tmp_path / str(len(finished)), max_steps=2, **extra)
        t.train()
        finished.append(dict(Memory.of(t.model).expert_parameters(0)))
    for name, value in finished[0].items():
        torch.testing.assert_close(value, finished[1][name], rtol=1e-4, atol=1e-6)


def test_resume_goes_on_as_if_nothing_had_happened(tmp_path):
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
    """Ids alone train like the text that they were made of, with the default reward; a reference may be a message."""
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

    stopping = rows(4).map(lambda row: {"stop": ["cat", "Mira"]})
    trainer(tmp_path, data=stopping, reward_funcs=keep, max_steps=6, temperature=3.0).train()
    assert seen and all("cat" not in text and "Mira" not in text and ids for text, ids in seen)
    assert len({len(ids) for _, ids in seen}) > 1
    free, seen[:] = list(seen), []
    trainer(tmp_path, data=rows(4), reward_funcs=keep, max_steps=6, temperature=3.0).train()
    assert any("cat" in text or "Mira" in text for text, _ in seen) and len(seen) == len(free)


@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_padding_does_not_move_a_text(tmp_path, form):
    """A zero expert on a row without context diverges nowhere, though a neighbour's context pads it further."""
    mixed = rows(2).to_list()
    mixed[1]["teacher_prompt"] = mixed[1]["prompt"]
    model = tiny_model(form, **({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if form == "gpt2" else {}))
    attach(model, MemorySpec(width=8, max_experts=2)).activate()
    t = trainer(tmp_path, model=model, data=Dataset.from_list(mixed), alpha=1.0)
    t._compute_loss(t.model, first_batch(t))
    logs = t._metrics["train"]
    assert logs["divergence/memory/reference"][0] > 1e-3
    assert max(logs["divergence/general/reference"][0], logs["divergence/general/rollout"][0]) < 1e-6


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
def test_what_experts_lack_is_refused(tmp_path, options, message):
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


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="needs a column `teacher_prompt`"):
        trainer(tmp_path, data=rows().remove_columns(["teacher_prompt"])).train()


def test_a_memory_that_learns_nothing_is_refused(tmp_path):
    model = student()
    Memory.of(model).learn(None)
    with pytest.raises(ValueError, match="no learning expert"):
        trainer(tmp_path, model=model)


@pytest.mark.parametrize("name", ["alpha", "lmbda", "divergence_beta", "gamma"])
def test_shares_outside_zero_and_one_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, got 1.5"):
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


def test_a_row_without_any_reward_leaves_no_text_in_the_log(tmp_path, caplog):
    def abstain(completion_ids, **kwargs):
        return [None] * len(completion_ids)

    trainer(tmp_path, max_steps=1, reward_funcs=abstain).train()
    assert "Mira" not in caplog.text
