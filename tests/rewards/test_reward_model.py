"""Reward models by name: the scores are TRL's, and what is no reward model is refused before weights load."""

import shutil

import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from sleep_trl.rewards import RewardError, check, resolve
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A tiny reward model with random weights, in a folder."""
    return save(tmp_path_factory.mktemp("models") / "scorer", num_labels=1)


def save(folder, num_labels):
    torch.manual_seed(7)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=num_labels,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_it_scores_as_in_trl(reward_model, tmp_path) -> None:
    """One step of GRPO with the folder given to TRL, and to `resolve`: both log the same mean and deviation."""
    ours = resolve({"name": str(reward_model), "params": {"batch_size": 3}})
    assert ours.__name__ == "scorer"
    ours.__name__ = "ours"
    arguments = GRPOConfig(
        str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    rows = {"prompt": ["the cat of Mira", "it eats", "the boat", "hats"]}
    trainer = GRPOTrainer(
        tiny_model(),
        reward_funcs=[str(reward_model), ours],
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    [logged] = [entry for entry in trainer.state.log_history if "reward" in entry]
    for figure in ("mean", "std"):
        assert logged[f"rewards/ours/{figure}"] == pytest.approx(logged[f"rewards/scorer/{figure}"], rel=1e-5)
    assert logged["rewards/scorer/std"] > 0


def test_a_text_that_is_too_long_is_not_truncated(reward_model) -> None:
    reward = resolve(str(reward_model))
    with pytest.raises(RewardError, match=r"sample 1 has \d+ tokens and the model reads 24"):
        reward(prompts=["it eats", "the cat " * 20], completions=["", ""], completion_ids=[[], []])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: save(folder, num_labels=3), "has 3 outputs, and a reward model has one"),
        (lambda folder: tiny_model().save_pretrained(folder), "cannot be read"),  # no tokenizer
        (lambda folder: tiny_tokenizer().save_pretrained(folder), "cannot be read"),
    ],
)
def test_what_is_no_reward_model_is_refused_without_its_weights(tmp_path, make, message) -> None:
    make(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        check(str(tmp_path / "model"))


def test_a_language_model_is_no_reward_model(tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="it has LlamaForCausalLM, not a sequence classifier"):
        check(str(tmp_path / "model"))


def test_a_name_on_the_hub_is_read_from_there(reward_model, tmp_path, monkeypatch) -> None:
    """From the cache of the Hub, which a download fills; by its revision."""
    repository = tmp_path / "models--org--scorer"
    for revision, commit in {"main": "0" * 40, "v2": "1" * 40}.items():
        shutil.copytree(reward_model, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").unlink()
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path) if name == "HF_HUB_CACHE" else True)
    check("org/scorer")
    call = {"prompts": ["the cat of Mira"], "completions": [" eats hats"], "completion_ids": [[1]]}
    here, there = resolve(str(reward_model)), resolve({"name": "org/scorer", "params": {"revision": "v2"}})
    assert here(**call) == there(**call)
    with pytest.raises(OSError, match="org/scorer"):
        resolve("org/scorer").load()


def test_unknown_parameters_are_named(reward_model) -> None:
    with pytest.raises(ValueError, match="no parameter 'max_length'; allowed: batch_size, device, revision"):
        resolve({"name": str(reward_model), "params": {"max_length": 3}})
