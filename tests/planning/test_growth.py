"""What cannot be folded is refused by name, with the reason, before weights are loaded."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sleep_trl.memory import Memory
from sleep_trl.memory.fold import folded_state_dict
from sleep_trl.memory.hosts import FORMS as MLP_FORMS
from sleep_trl.memory.hosts import find_hosts
from sleep_trl.planning import growth
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.preflight import preflight
from tests.planning.test_preflight import config_of
from tests.tiny import COMMON, FORMS, LLAMA, tiny_model
from tests.tiny_runs import write_model

DEEPSEEK = {
    **LLAMA,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
LINEAR = {  # Qwen3.5: layers with linear attention, and every fourth with full attention
    **LLAMA,
    "head_dim": 8,
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": LINEAR,
    "gemma3_text": {**LLAMA, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "olmo3": LLAMA,
    "granite": LLAMA,
    "granitemoeshared": {**LLAMA, "shared_intermediate_size": 40, "num_local_experts": 4, "num_experts_per_tok": 2},
    "arcee": LLAMA,
    "smollm3": LLAMA,
}
NO_PLACE = {
    "opt": (
        {**COMMON, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        r"OPTForCausalLM has 2 layers, but 0 MLPs .*OPTDecoderLayer holds fc1, fc2 next to other weights",
    ),
    "nemotron_h": (LLAMA, r"NemotronHForCausalLM has \d layers, but .*Layers without an MLP, as hybrid models have"),
    "lfm2_moe": (
        {**LLAMA, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_experts_per_tok": 2},
        r"Lfm2MoeForCausalLM has 2 layers, but 1 MLPs",
    ),
    "olmoe": (LLAMA, r"OlmoeForCausalLM .*mixtures of experts without a shared expert"),
    "mamba": ({**COMMON, "hidden_size": 32, "num_hidden_layers": 2}, r"MambaForCausalLM .*Looked for modules"),
    "gemma3": (
        {
            "text_config": {**LLAMA, "head_dim": 8},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
            },
        },
        r"\d of them are not in its language model, such as model\.vision_tower\..*; give the language model",
    ),
}
REFUSED = {
    "deepseek_v2": ({**DEEPSEEK, "first_k_dense_replace": 1}, r"differ in width \(24, 48\)"),
    "deepseek_v3": (
        {**DEEPSEEK, "first_k_dense_replace": 0, "n_shared_experts": 3},
        "no setting of .* is the width 36",
    ),
    "qwen2_moe": ({**FORMS["qwen2_moe"], "mlp_only_layers": [0]}, r"differ in width \(40, 48\)"),
    "gpt_neox_japanese": (
        {**COMMON, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128},
        "no setting of GPTNeoXJapaneseConfig is the width 128",
    ),
    "llama4_text": (
        {**LLAMA, "head_dim": 8, "num_local_experts": 4, "interleave_moe_layer_step": 1, "moe_layers": [0, 1]},
        "the folded model describes .* other tensors",
    ),
}


def write_inputs(folder: Path, form: str, settings: dict[str, object], **options: object) -> RunInputs:
    """Write a folder with header and config, as far as preflight reads it, and return a run's inputs."""
    model = write_model(folder / "model")
    config = CONFIG_MAPPING[form](**settings)
    with torch.device("meta"):
        config.architectures = [type(AutoModelForCausalLM.from_config(config)).__name__]
    config.save_pretrained(model)
    return RunInputs(config_of(model, folder, **options))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))


def test_the_tests_have_a_model_of_each_form() -> None:
    found = {host.form.name for form in FORMS for host in find_hosts(tiny_model(form))}
    assert found == {form.name for form in MLP_FORMS}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("form", FORMS | OTHERS)
@pytest.mark.parametrize("routing", ["dense", "topk"])
def test_known_forms_pass(form: str, routing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs = write_inputs(tmp_path, form, (FORMS | OTHERS)[form], memory__routing=routing)
    state = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING, "sleep_trl"):
        preflight(inputs)
    assert "was not tried" not in caplog.text
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_fold_is_refused_with_the_reason(form: str, tmp_path: Path) -> None:
    settings, reason = REFUSED[form]
    with pytest.raises(ValueError, match=f"ForCausalLM. cannot be folded into a standard checkpoint: .*{reason}"):
        preflight(write_inputs(tmp_path, form, settings))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("form", NO_PLACE)
def test_what_has_no_place_for_experts_is_refused_with_the_reason(form: str, tmp_path: Path) -> None:
    settings, reason = NO_PLACE[form]
    with pytest.raises(ValueError, match=reason):
        preflight(write_inputs(tmp_path, form, settings))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("form", ["deepseek_v2", "gpt_neox_japanese"])
def test_what_cannot_fold_can_have_routed_experts(form: str, tmp_path: Path) -> None:
    assert preflight(write_inputs(tmp_path, form, REFUSED[form][0], memory__routing="topk")).top_k == 2


def test_a_fold_that_changes_logits_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def damaged(memory: Memory) -> dict[str, torch.Tensor]:
        return {
            name: value * 1.1 if "down_proj" in name else value for name, value in folded_state_dict(memory).items()
        }

    monkeypatch.setattr(growth, "folded_state_dict", damaged)
    with pytest.raises(ValueError, match=r"logits of a small copy with an expert change by .* when it is folded"):
        growth.check_growth(RunInputs(config_of(model, tmp_path)))


def test_a_config_of_which_no_small_copy_can_be_built_is_named(caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIG_MAPPING["deepseek_v2"]()  # its default has no number of experts per token
    with caplog.at_level(logging.WARNING, "sleep_trl"):
        assert growth.tiny_copy(config) is None
    assert "Folding was not tried on a small copy of DeepseekV2Config" in caplog.text


def test_a_copy_is_small_whatever_the_model_is() -> None:
    config = CONFIG_MAPPING["llama"](hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, vocab_size=128_256)
    copied = growth.tiny_copy(config)
    assert copied is not None
    assert sum(parameter.numel() for parameter in copied.parameters()) < 1_000_000
    assert config.num_hidden_layers == 80
