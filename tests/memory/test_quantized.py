"""Quantized models are refused: their weights are codes, from which no expert can start."""

import pytest
import torch
from torch import nn

from sleep_trl.memory import MemorySpec, attach
from sleep_trl.planning.preflight import preflight
from tests.planning.test_growth import no_weights, write_inputs  # noqa: F401
from tests.tiny import LLAMA, tiny_model


@pytest.mark.usefixtures("no_weights")
def test_a_config_that_names_quantization_is_refused_before_weights_are_loaded(tmp_path) -> None:
    settings = {**LLAMA, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is quantized: its config names .*bitsandbytes.*dequantize"):
        preflight(write_inputs(tmp_path, "llama", settings))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_codes_in_a_linear_layer_are_refused(dtype: torch.dtype) -> None:
    model = tiny_model()
    mlp = model.model.layers[1].mlp
    mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj holds (u?int8|float8)"):
        attach(model, MemorySpec(width=8, max_experts=2))
