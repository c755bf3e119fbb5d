"""Checkpoints that are more than a language model, or whose tokenizer knows more than the model."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sleep_trl.memory import MemorySpec, attach, fold
from sleep_trl.models.inspection import leave_out_unreadable, read_config
from sleep_trl.models.loading import load_model
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.preflight import preflight
from tests.planning.test_growth import LINEAR
from tests.planning.test_preflight import config_of
from tests.tiny import tiny_tokenizer
from tests.tiny_runs import write_model

VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 4, "out_hidden_size": 32}


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A model for texts and images, as Qwen3.5's small ones are on the Hub."""
    config = CONFIG_MAPPING["qwen3_5"](text_config=LINEAR, vision_config=VISION)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_language_model_of_one_for_images_sleeps(
    qwen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(qwen, tmp_path, dtype="float32")
    with caplog.at_level(logging.WARNING, "sleep_trl"):
        plan = preflight(RunInputs(config))
    assert plan.architecture == "Qwen3_5ForCausalLM"
    assert "is a model for texts and images. Its language model learns" in caplog.text
    assert "was not tried" not in caplog.text
    model = load_model(config)
    assert type(model).__name__ == plan.architecture and plan.base_parameters == model.num_parameters()
    whole = AutoModelForImageTextToText.from_pretrained(qwen).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (whole(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() <= 1e-5
    memory = attach(model, MemorySpec(width=8, max_experts=1))
    memory.activate()
    fold(memory, tmp_path / "grown")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "grown")) is type(model)


def gemma_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with one token more than the model has rows, as Gemma 3's has without its vision tower."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    assert len(tokenizer) == 98
    tokenizer.chat_template = chat_template
    return tokenizer


def test_a_token_without_an_embedding_is_read_as_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write_model(tmp_path / "model")  # 97 rows
    gemma_tokenizer().save_pretrained(model)
    inputs = RunInputs(config_of(model, tmp_path))
    with caplog.at_level(logging.WARNING, "sleep_trl"):
        tokenizer = inputs.tokenizer
    assert "no embedding; they are read as ordinary text: <image_soft_token>" in caplog.text
    text = "the cat <image_soft_token> sleeps"
    assert max(tokenizer(text)["input_ids"]) < 97
    assert tokenizer("the cat sleeps")["input_ids"] == tiny_tokenizer()("the cat sleeps")["input_ids"]
    assert tokenizer.eos_token_id == 2 and tokenizer.padding_side == "left"
    preflight(inputs)


def test_a_token_that_prompts_need_is_not_left_out() -> None:
    assert leave_out_unreadable(gemma_tokenizer("{{ '<image_soft_token>' }}"), 97) == []
    assert leave_out_unreadable(gemma_tokenizer(), 98) == []
    assert leave_out_unreadable(gemma_tokenizer(), 97) == ["<image_soft_token>"]


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model_revision: .* is a folder or a GGUF file"):
        _ = RunInputs(config_of(model, tmp_path, model_revision="v1.0")).model_config
    assert read_config(str(model)).model_type == "llama"


def test_a_revision_reaches_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(name: str, **options: object) -> None:
        asked.append((name, options["revision"]))
        raise OSError("no such revision")

    monkeypatch.setattr("sleep_trl.models.inspection.AutoConfig.from_pretrained", answer)
    with pytest.raises(ValueError, match="no such revision"):
        _ = RunInputs(config_of(Path("owner/name"), tmp_path, model_revision="v1.0")).model_config
    assert asked == [("owner/name", "v1.0")]


def test_attention_is_as_asked_for(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    config = config_of(model, tmp_path, attn_implementation="eager", dtype="float32")
    assert load_model(config).config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"attn_implementation: .* cannot have 'sdpaa'"):
        _ = RunInputs(config.model_copy(update={"attn_implementation": "sdpaa"})).meta_model
