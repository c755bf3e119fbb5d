"""Folding: a model with experts becomes an ordinary checkpoint with wider MLPs.

A gated MLP of width I plus a gated expert of width w equals one gated MLP of width I + w: append the expert's rows to
gate and up, and its columns to down. The result has the base's architecture and loads without this package.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..distributed.zero3 import is_sharded, serve, sharding, withdraw
from .fold_sharded import assemble
from .hosts import Host
from .memory import Memory
from .wide import widen_maps

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-8}
LOW_PRECISION_TOLERANCE = 5e-2
WIDTH_SETTINGS = (
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "n_inner",
    "ffn_hidden_size",
    "ffn_dim",
    "intermediate_size",
)
"""Names under which configs have the width of the MLPs that host experts. A mixture of experts has several widths; its
host is the shared expert, whose setting therefore comes first."""
DERIVED_WIDTH = "block_auto_adjust_ff_dim"
"""A setting of LFM2: whether the width is two thirds of `intermediate_size`, rounded. In a folded model it is not."""


def fold(memory: Memory, folder: str | Path, probe: torch.Tensor | None = None) -> float:
    """Write the model with its enabled experts folded in, as a standard checkpoint, and check it. If weights are
    sharded, all processes have to call it.

    Args:
        memory (`Memory`):
            The memory to fold; its model is not changed.
        folder (`str` or `Path`):
            Where the checkpoint goes.
        probe (`torch.Tensor` of shape `(batch, length)`, *optional*):
            Token ids on which logits are compared; by default fixed pseudo-random ones.

    Returns:
        `float`: the largest difference of logits between the model in memory and the checkpoint read back.

    Raises:
        `ValueError`: if the memory is routed (`routing="topk"`).
        `RuntimeError`: if the difference is larger than the dtype allows, or not a number. The bound is 1e-5 in
            float32 for logits up to 1, and grows with them, as rounding errors do.
    """
    model, config, folder = memory.model, folded_config(memory), Path(folder)
    if is_sharded(model):
        assemble(memory, config, folder)
    else:
        with config_replaced(model, config):
            write_checkpoint(model, folder, state_dict=folded_state_dict(memory))
    with sharding(model.dtype):
        read_back = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
    serve(read_back)
    difference, largest = logit_difference(model, read_back.to(model.device), probe)
    withdraw(read_back)
    allowed = allowed_difference(model.dtype, largest)
    if not difference <= allowed:  # also if it is not a number
        raise RuntimeError(
            f"The logits of the folded model in {folder} differ from the grown model's by {difference:.2e} (allowed: "
            f"{allowed:.2e}). Do not use it; fold in float32 (dtype), or report this with the model's name."
        )
    return difference


def folded_config(memory: Memory) -> PretrainedConfig:
    """Return the model's config with the intermediate size of the folded model.

    Raises:
        `ValueError`: if the memory is routed, or a config cannot describe the folded model.
    """
    _check_is_dense(memory)
    config = copy.deepcopy(memory.model.config)
    width = memory.hosts[0].intermediate_size + memory.spec.width * len(memory.active)
    set_width(config, memory.hosts, width)
    return config


def set_width(config: PretrainedConfig, hosts: Sequence[Host], width: int) -> None:
    """Change a model's config to one whose hosts have another width.

    Raises:
        `ValueError`: as [`width_setting`].
    """
    text = config.get_text_config()
    setattr(text, width_setting(config, hosts), width)
    if hasattr(text, DERIVED_WIDTH):
        setattr(text, DERIVED_WIDTH, False)


def width_setting(config: PretrainedConfig, hosts: Sequence[Host]) -> str:
    """Return the name of the setting in a model's config that gives the width of its hosts.

    Raises:
        `ValueError`: if the hosts differ in width, or no setting gives it. Such a model cannot be folded.
    """
    text, widths = config.get_text_config(), sorted({host.intermediate_size for host in hosts})
    if len(widths) > 1:
        raise ValueError(
            f"the MLPs that host experts differ in width ({', '.join(map(str, widths))}), and the config of a folded "
            f"model can only widen all of them to one width"
        )
    for name in WIDTH_SETTINGS:
        if hasattr(text, name) and (getattr(text, name) in (None, widths[0]) or getattr(text, DERIVED_WIDTH, False)):
            return name
    raise ValueError(
        f"no setting of {type(text).__name__} is the width {widths[0]} of the MLPs that host experts (looked for "
        f"{', '.join(WIDTH_SETTINGS)})"
    )


def allowed_difference(dtype: torch.dtype, largest: float) -> float:
    """Return by how much logits of the grown and the folded model may differ, given the largest logit."""
    return TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE) * max(1.0, largest)


def folded_state_dict(memory: Memory, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the folded model's state dict. Tensors outside the MLPs are shared with the model, not copied; those of
    the MLPs are on the CPU.

    Args:
        memory (`Memory`):
            The memory.
        state (`Mapping[str, torch.Tensor]`, *optional*):
            The model's state dict, with its experts. By default its own; if its weights are sharded, the whole ones.

    Raises:
        `ValueError`: if the memory is routed.
    """
    _check_is_dense(memory)
    state = memory.model.state_dict() if state is None else state
    prefixes = tuple(f"{host.name}.memory." for host in memory.hosts)
    folded = {name: value for name, value in state.items() if not name.startswith(prefixes)}
    for host in memory.hosts:
        names = {role: f"{host.name}.{role}" for role in host.form.linears}
        maps = {role: (state[f"{name}.weight"], state.get(f"{name}.bias")) for role, name in names.items()}
        experts = [memory.expert_tensors(host, index, state) for index in memory.active]
        for role, pair in widen_maps(host, maps, experts).items():
            named = zip((f"{names[role]}.weight", f"{names[role]}.bias"), pair, strict=True)
            folded |= {key: tensor.cpu() for key, tensor in named if tensor is not None}
    return folded


def logit_difference(
    first: PreTrainedModel, second: PreTrainedModel, probe: torch.Tensor | None = None
) -> tuple[float, float]:
    """Return the largest absolute difference of the two models' logits on `probe`, in evaluation mode, and the largest
    absolute logit of the first."""
    if probe is None:
        generator = torch.Generator().manual_seed(0)
        probe = torch.randint(first.config.get_text_config().vocab_size, (2, 32), generator=generator)
    was_training = first.training
    first.eval()
    second.eval()
    with torch.no_grad():
        ids = probe.to(first.device)
        expected, found = first(input_ids=ids).logits.float(), second(input_ids=ids).logits.float()
    first.train(was_training)
    return (expected - found).abs().max().item(), expected.abs().max().item()


def _check_is_dense(memory: Memory) -> None:
    if memory.spec.is_routed:
        raise ValueError(
            "A memory with routing 'topk' cannot be folded: in a wider MLP every unit is active for every token. Save "
            "it with save_memory(memory, folder) and serve it with transformers: load the base model, then "
            "load_memory(model, folder). For a model that folds, attach with MemorySpec(routing='dense')."
        )


def write_checkpoint(model: PreTrainedModel, folder: str | Path, *args: Any, **kwargs: Any) -> None:
    """Call the `save_pretrained` of the model's class, which knows of no memory."""
    type(model).save_pretrained(model, folder, *args, **kwargs)


@contextmanager
def config_replaced(model: PreTrainedModel, config: PretrainedConfig) -> Iterator[None]:
    """Give the model another config while it is saved."""
    before, model.config = model.config, config
    try:
        yield
    finally:
        model.config = before
