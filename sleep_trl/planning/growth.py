"""Whether a model's architecture can hold experts and be folded, tried on a tiny copy before weights are loaded."""

from __future__ import annotations

import copy
import logging
import math
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..distributed.zero3 import sharding
from ..memory import (
    Memory,
    MemorySpec,
    attach,
    folded_config,
    folded_state_dict,
    load_memory,
    logit_difference,
    save_memory,
)
from ..memory.fold import WIDTH_SETTINGS, allowed_difference, width_setting
from .inputs import RunInputs

logger = logging.getLogger(__name__)

HEADS, LAYERS, VOCABULARY, WIDTH = 2, 2, 128, 8
LARGEST_COPY = 30_000_000  # parameters: a second or two
SMALL = dict.fromkeys((*WIDTH_SETTINGS, "moe_intermediate_size", "intermediate_size_mlp"), 48) | {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
}
"""Settings of a config that only make it large, and their size in the tiny copy."""


def check_growth(inputs: RunInputs) -> None:
    """Raise if the model's architecture cannot be grown: its experts would not fold, or not survive saving.

    A copy of the model with its own config, but small sizes and random weights, gets an expert with random weights, and
    is folded (with routed experts: saved and loaded). The logits before and after have to agree. If no small copy can
    be made of a config, a warning says so, and only widths and names are checked.
    """
    is_routed = inputs.capacity.is_routed
    try:
        if not is_routed:
            width_setting(inputs.model_config, inputs.hosts)
        if (model := tiny_copy(inputs.model_config)) is not None:
            _try_growth(model, is_routed)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        kind = type(inputs.meta_model).__name__
        reason = " ".join(str(error).split())[:400].rstrip(".")
        if is_routed:
            raise ValueError(
                f"model: {inputs.config.model!r} ({kind}) cannot hold experts: {reason}. Use another model."
            ) from None
        raise ValueError(
            f"model: {inputs.config.model!r} ({kind}) cannot be folded into a standard checkpoint: {reason}. Give "
            f"--memory.routing topk, whose experts stay next to the model, or use another model."
        ) from None


def tiny_copy(config: PretrainedConfig) -> PreTrainedModel | None:
    """Return a small model with random weights of the same architecture, or `None` with a warning if none can be built.

    The size of a head is kept, since settings of rotary embeddings depend on it.
    """
    with torch.random.fork_rng(), sharding(None):
        torch.manual_seed(0)
        try:
            small = small_config(config)
            with torch.device("meta"):
                outline = AutoModelForCausalLM.from_config(small, trust_remote_code=False)
            if (parameters := sum(map(torch.numel, outline.parameters()))) > LARGEST_COPY:
                raise ValueError(f"it still has {parameters:,} parameters")
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                small, dtype=torch.float32, trust_remote_code=False
            )
            model.eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0, 1 / math.sqrt(parameter.shape[-1]))
                    else:
                        parameter.add_(torch.randn_like(parameter) * 0.05)
                ids = torch.arange(1, 9)[None]  # 0 is padding
                logits = model(input_ids=ids).logits
            if not logits.isfinite().all():
                raise ValueError("its logits are not finite")
        except Exception as error:  # whatever an architecture raises that does not go with small sizes
            logger.warning(
                "Folding was not tried on a small copy of %s: none could be built (%s: %s).",
                type(config).__name__,
                type(error).__name__,
                " ".join(str(error).split())[:200],
            )
            return None
    return model


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy of a config with small sizes: few layers, heads, experts and tokens, and narrow MLPs."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
    hidden = HEADS * (int(text.hidden_size) // heads)
    if len(set(getattr(text, "layer_types", None) or ())) > 1:
        layers_kept = min(layers, max(LAYERS, 1 + max(map(text.layer_types.index, set(text.layer_types)))))
    else:
        layers_kept = min(layers, LAYERS)
    settings: dict[str, Any] = {name: size for name, size in SMALL.items() if _is_number(text, name)}
    for name, value in vars(text).items():  # one value for each layer
        if isinstance(value, list) and len(value) == layers:
            settings[name] = value[:layers_kept]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(text, name, None) is not None:
            settings[name] = 0
    settings |= {"hidden_size": hidden, "num_attention_heads": HEADS, "num_hidden_layers": layers_kept}
    settings["vocab_size"] = VOCABULARY
    if _is_number(text, "num_key_value_heads"):
        settings["num_key_value_heads"] = HEADS if text.num_key_value_heads == heads else 1
    if _is_number(text, "num_kv_heads"):  # Falcon
        settings["num_kv_heads"] = HEADS if text.num_kv_heads == heads else 1
    if _is_number(text, "mamba_d_head") and _is_number(text, "mamba_expand"):  # Granite 4
        settings |= {"mamba_n_heads": text.mamba_expand * hidden // text.mamba_d_head, "mamba_n_groups": 1}
    for name, value in settings.items():
        setattr(text, name, value)
    return small


def _is_number(config: PretrainedConfig, name: str) -> bool:
    return isinstance(getattr(config, name, None), int)


def _try_growth(model: PreTrainedModel, is_routed: bool) -> None:
    """Raise `ValueError` unless folding an expert with random weights, or saving it if routed, keeps the logits."""
    base = copy.deepcopy(model)
    memory = attach(model, MemorySpec(width=WIDTH, max_experts=2, routing="topk" if is_routed else "dense"))
    _fill(memory, memory.activate())
    memory.commit()
    if logit_difference(base, model)[0] == 0:
        raise ValueError("an expert has no effect on the logits")
    difference, largest = logit_difference(model, _saved(memory, base) if is_routed else _folded(memory))
    if not difference <= allowed_difference(model.dtype, largest):
        raise ValueError(
            f"logits of a small copy with an expert change by {difference:.2g} (largest logit: {largest:.2g}) when it "
            f"is {'saved and loaded' if is_routed else 'folded'}"
        )


def _fill(memory: Memory, index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(index):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def _folded(memory: Memory) -> PreTrainedModel:
    with torch.random.fork_rng(), sharding(None):
        folded: PreTrainedModel = AutoModelForCausalLM.from_config(
            folded_config(memory), dtype=torch.float32, trust_remote_code=False
        )
    state = folded_state_dict(memory)
    expected = {name: value.shape for name, value in folded.state_dict().items()}
    if differing := [name for name, value in state.items() if expected.get(name) != value.shape]:
        name = differing[0]
        raise ValueError(
            f"the config of the folded model describes {len(differing)} other tensors than the experts make, such as "
            f"{name}: {tuple(expected.get(name, ()))}, not {tuple(state[name].shape)}"
        )
    folded.load_state_dict(state)
    return folded


def _saved(memory: Memory, base: PreTrainedModel) -> PreTrainedModel:
    with TemporaryDirectory() as folder:
        save_memory(memory, folder)
        load_memory(base, folder)
    return base
