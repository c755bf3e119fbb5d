"""The base class of both trainers is constructed as GRPOTrainer is."""

import pytest
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import Trainer
from trl import GRPOConfig

from sleep_trl.memory import Memory, load_experts
from sleep_trl.trainers.expert_checkpoints import ExpertCheckpoints, StopIfNotFinite
from tests.tiny import tiny_tokenizer
from tests.trainers.seedings import length_reward, rows, student, trainer


def test_arguments_may_be_positional_and_args_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without args, TRL makes a folder named after the model
    args = GRPOConfig(str(tmp_path / "given"), bf16=False, use_cpu=True, report_to="none")
    given = ExpertCheckpoints(student(), length_reward, args, rows(), None, tiny_tokenizer())
    assert given.args is args and given.reward_funcs == [length_reward]
    assert any(isinstance(callback, StopIfNotFinite) for callback in given.callback_handler.callbacks)


@pytest.mark.parametrize(("name", "shown"), [("me/base", "[me/base](https://huggingface.co/me/base)"), ("", "`base`")])
def test_a_model_card_names_method_paper_and_base(tmp_path, name, shown):
    model = student()
    (tmp_path / "base").mkdir()
    model.config._name_or_path = name or str(tmp_path / "base")
    seeding = trainer(tmp_path, model=model)
    seeding.create_model_card(model_name="grown")
    card = (tmp_path / "README.md").read_text("utf-8")
    assert f"a fine-tuned version of {shown}." in card and "None" not in card
    assert "trained with Knowledge Seeding, a method introduced in [Language Models Need Sleep" in card
    assert "papers/2606.03979" in card and "@article{behrouz2026sleep" in card


@pytest.mark.parametrize("was_on", [False, True])
def test_a_released_model_checkpoints_its_gradients_only_if_it_did_before(tmp_path, was_on):
    model = student()
    if was_on:
        model.gradient_checkpointing_enable()
    t = trainer(tmp_path, model=model, gradient_checkpointing=True, max_steps=1)
    t.train()
    assert model.is_gradient_checkpointing
    t.release()
    assert model.is_gradient_checkpointing is was_on


def test_what_is_trained_beside_a_memory_is_saved(tmp_path):
    """An adapter on a model with a memory: the experts alone would leave it out."""
    args = GRPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    t = ExpertCheckpoints(student(), length_reward, args, rows(), None, tiny_tokenizer(), peft_config=lora)
    t.save_model()
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lora_A" in name for name in saved) and not (tmp_path / "experts.safetensors").exists()


def test_a_checkpoint_is_pushed_with_its_experts(tmp_path, monkeypatch):
    t = trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    t.save_model()  # whose hashes would not be those of the experts that are pushed
    t.train()
    uploaded = []

    def upload(self, checkpoint_folder):
        uploaded.extend(path.name for path in tmp_path.iterdir())

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", upload)
    t._push_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert {"experts.safetensors", "memory.json"} <= set(uploaded)
    memory = Memory.of(t.model)
    trained = memory.fingerprint(0)
    load_experts(memory, tmp_path)
    assert memory.fingerprint(0) == trained
