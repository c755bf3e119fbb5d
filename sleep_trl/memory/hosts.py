"""The kinds of MLP that can host experts, and where a model has them.

A form names the linear layers of an MLP by role, so that the rest of the package does not depend on the architecture.
To support another architecture, add a line to `FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..distributed.zero3 import whole_shape

Activation = Callable[[torch.Tensor], torch.Tensor]
ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")
PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class MLPForm:
    """The structure of the MLP in one family of models.

    Args:
        name (`str`):
            The form's name, shown in messages.
        inputs (`tuple[str, ...]`):
            Attribute names of the layers from the hidden size to the intermediate size, gate before up.
        output (`str`):
            Attribute name of the layer back to the hidden size.
        is_gated (`bool`):
            Whether the hidden units are `act(gate(x)) * up(x)` (else `act(up(x))`).
        is_fused (`bool`):
            Whether gate and up are the two halves of one layer.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    is_gated: bool
    is_fused: bool = False

    @property
    def linears(self) -> tuple[str, ...]:
        return (*self.inputs, self.output)


FORMS = (
    MLPForm("gated (Llama, Mistral, Qwen, Gemma)", ("gate_proj", "up_proj"), "down_proj", is_gated=True),
    MLPForm("fused gated (Phi-3)", ("gate_up_proj",), "down_proj", is_gated=True, is_fused=True),
    MLPForm("plain (GPT-NeoX, Falcon)", ("dense_h_to_4h",), "dense_4h_to_h", is_gated=False),
    MLPForm("plain (GPT-2, StarCoder2)", ("c_fc",), "c_proj", is_gated=False),
    MLPForm("plain (Phi)", ("fc1",), "fc2", is_gated=False),
    MLPForm("plain (GPT-J)", ("fc_in",), "fc_out", is_gated=False),
)


@dataclass(frozen=True)
class Host:
    """One MLP of a model, with what its experts have to know."""

    name: str
    module: nn.Module
    form: MLPForm
    activation: Activation
    hidden_size: int
    intermediate_size: int


def find_hosts(model: PreTrainedModel) -> list[Host]:
    """Find the MLP of every decoder layer.

    Args:
        model (`PreTrainedModel`):
            A causal language model.

    Returns:
        `list[Host]`: one host per layer, in the model's order.

    Raises:
        `ValueError`: if the model is quantized, or its layers do not each hold exactly one MLP of a known form.
    """
    if (quantization := getattr(model.config, "quantization_config", None)) is not None:
        method = quantization if isinstance(quantization, dict) else vars(quantization)
        _refuse_quantized(model, f"its config names quantization ({method.get('quant_method', 'unknown method')})")
    hosts = [host for name, module in model.named_modules() if (host := _as_host(name, module))]
    layers = int(model.config.get_text_config().num_hidden_layers)
    if len(hosts) != layers:
        known = "; ".join(f"{form.name}: {', '.join(form.linears)}" for form in FORMS)
        raise ValueError(
            f"{type(model).__name__} has {layers} layers, but {len(hosts)} MLPs of a known form; each layer needs one. "
            f"Looked for modules with exactly these linear layers: {known}. Use a model of one of these forms, or add "
            f"its form to sleep_trl.memory.hosts.FORMS."
        )
    for host in hosts:
        for role in host.form.linears:
            if (dtype := getattr(host.module, role).weight.dtype) not in PLAIN_DTYPES:
                _refuse_quantized(model, f"{host.name}.{role} holds {str(dtype).removeprefix('torch.')}")
    return hosts


def _refuse_quantized(model: PreTrainedModel, reason: str) -> NoReturn:
    raise ValueError(
        f"{type(model).__name__} is quantized: {reason}. Experts start from rows of the model's MLPs and are folded "
        f"into them, which needs weights, not codes. Give the checkpoint that it was quantized from (float32, bfloat16 "
        f"or float16), or load it with `from_pretrained`, call `model.dequantize()` and save it. Quantize the grown "
        f"model instead."
    )


def _as_host(name: str, module: nn.Module) -> Host | None:
    for form in FORMS:
        maps = [getattr(module, attribute, None) for attribute in form.linears]
        if not all(isinstance(linear, (nn.Linear, Conv1D)) for linear in maps):
            continue
        own = {id(p) for linear in maps if linear is not None for p in linear.parameters()}
        if any(id(p) not in own for p in module.parameters()):
            continue  # the module holds more than an MLP, so its input is not the MLP's
        activation = next((getattr(module, n) for n in ACTIVATION_NAMES if hasattr(module, n)), None)
        if activation is None:
            continue
        out_features, in_features = linear_shape(maps[0])
        return Host(name, module, form, activation, in_features, out_features // (2 if form.is_fused else 1))
    return None


def unit_weights(host: Host) -> dict[str, torch.Tensor]:
    """Return the host's own input weights by role, `gate` (if it is gated) and `up`, each `(intermediate, hidden)`."""
    linears = [getattr(host.module, name) for name in host.form.inputs]
    weights = [w.weight.detach().T if isinstance(w, Conv1D) else w.weight.detach() for w in linears]
    if host.form.is_fused:
        weights = list(weights[0].chunk(2))
    return dict(zip(("gate", "up") if host.form.is_gated else ("up",), weights, strict=True))


def linear_shape(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return `(out_features, in_features)`, also of a `Conv1D`, whose weight is transposed."""
    rows, columns = whole_shape(linear.weight)
    return (columns, rows) if isinstance(linear, Conv1D) else (rows, columns)
