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
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from ..distributed.zero3 import whole_shape

Activation = Callable[[torch.Tensor], torch.Tensor]
ACTIVATION_NAMES = ("act_fn", "activation_fn", "act", "activation")
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
        activation (`str`, *optional*):
            Name of the activation, in families whose MLPs have no attribute for it.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    is_gated: bool
    is_fused: bool = False
    activation: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        return (*self.inputs, self.output)


FORMS = (
    MLPForm("gated (Llama, Mistral, Qwen, Gemma)", ("gate_proj", "up_proj"), "down_proj", is_gated=True),
    MLPForm("fused gated (Phi-3)", ("gate_up_proj",), "down_proj", is_gated=True, is_fused=True),
    MLPForm("fused gated (Granite 4)", ("input_linear",), "output_linear", is_gated=True, is_fused=True),
    MLPForm("gated (LFM2)", ("w1", "w3"), "w2", is_gated=True, activation="silu"),
    MLPForm("plain (GPT-NeoX, Falcon)", ("dense_h_to_4h",), "dense_4h_to_h", is_gated=False),
    MLPForm("plain (GPT-2, StarCoder2)", ("c_fc",), "c_proj", is_gated=False),
    MLPForm("plain (Phi)", ("fc1",), "fc2", is_gated=False),
    MLPForm("plain (GPT-J)", ("fc_in",), "fc_out", is_gated=False),
    MLPForm("plain (Nemotron, Arcee)", ("up_proj",), "down_proj", is_gated=False),
)
FAMILIES = ", ".join(form.name.partition("(")[2].rstrip(")") for form in FORMS)


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
        raise ValueError(
            f"{type(model).__name__} has {layers} layers, but {len(hosts)} MLPs that can host experts; each layer "
            f"needs one. {_why_not(model, hosts)}. Use a model of one of these families: {FAMILIES}; or add the form "
            f"of its MLP to sleep_trl.memory.hosts.FORMS."
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


def _why_not(model: PreTrainedModel, hosts: list[Host]) -> str:
    """Say why a model has not one MLP of a known form in each layer."""
    language = set(model.get_decoder().modules())
    if outside := [host.name for host in hosts if host.module not in language]:
        return f"{len(outside)} of them are not in its language model, such as {outside[0]}; give the language model"
    for module in model.modules():
        if (form := _form_of(module)) and not _is_alone(module, form):
            linears = ", ".join(form.linears)
            return f"{type(module).__name__} holds {linears} next to other weights, so it is not an MLP by itself"
    if hosts:
        return "Layers without an MLP, as hybrid models have, and layers with several cannot have an expert"
    if any("Experts" in type(module).__name__ for module in model.modules()):
        return "Its MLPs are mixtures of experts without a shared expert that reads every token"
    return f"Looked for modules with exactly these linear layers: {'; '.join(', '.join(f.linears) for f in FORMS)}"


def _form_of(module: nn.Module) -> MLPForm | None:
    """Return the first form whose linear layers a module has."""
    for form in FORMS:
        if all(isinstance(getattr(module, name, None), (nn.Linear, Conv1D)) for name in form.linears):
            return form
    return None


def _is_alone(module: nn.Module, form: MLPForm) -> bool:
    """Return whether a module holds the linear layers of a form and no other weight, so that its input is the MLP's."""
    own = {id(p) for name in form.linears for p in getattr(module, name).parameters()}
    return all(id(p) in own for p in module.parameters())


def _as_host(name: str, module: nn.Module) -> Host | None:
    form = _form_of(module)
    if form is None or not _is_alone(module, form):
        return None
    activation = next((a for n in ACTIVATION_NAMES if callable(a := getattr(module, n, None))), None)
    if activation is None and form.activation is not None:
        activation = ACT2FN[form.activation]
    if activation is None:
        return None
    out_features, in_features = linear_shape(getattr(module, form.inputs[0]))
    return Host(name, module, form, activation, in_features, out_features // (2 if form.is_fused else 1))


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
