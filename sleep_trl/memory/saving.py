"""Saving a model with a memory in the normal way: what `save_pretrained` writes, `from_pretrained` loads.

`Trainer.save_model`, its checkpoints and `push_to_hub` all call `save_pretrained`, which folds the experts into the
MLPs. To resume, a Trainer calls `load_state_dict`, which takes them out again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..distributed.zero3 import is_sharded, whole_shape
from .fold import config_replaced, folded_config, folded_state_dict, write_checkpoint
from .hosts import Host
from .memory import Memory
from .storage import save_memory
from .wide import take_apart

logger = logging.getLogger(__name__)
ADAPTER = "adapter"  # a subfolder: vLLM reads every file of safetensors next to a config


def save_what_loads(model: PreTrainedModel) -> None:
    """Make `save_pretrained` and `load_state_dict` of a model handle its memory."""
    model.save_pretrained = partial(save_pretrained, model)
    model.register_load_state_dict_pre_hook(take_experts_out)


def save_pretrained(
    model: PreTrainedModel,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Write a model with a memory as an ordinary checkpoint with wider MLPs, and its experts to `adapter/` in it, which
    [`~sleep_trl.memory.load_memory`] attaches to the base model. The model is not changed.

    If the experts cannot be folded (`routing="topk"`), only they and other trained weights are written, without a
    `config.json`, and a warning says how to load them.

    Args:
        model (`PreTrainedModel`):
            The model.
        save_directory (`str` or `Path`):
            Where the checkpoint goes.
        is_main_process (`bool`, *optional*, defaults to `True`):
            Whether this process writes the files.
        state_dict (`Mapping[str, torch.Tensor]`, *optional*):
            The model's whole state dict, with its experts. Needed if the weights are sharded; a `Trainer` gives it.
        *args, **kwargs:
            As in `PreTrainedModel.save_pretrained`. With `push_to_hub=True`, `adapter/` is not uploaded.

    Raises:
        `ValueError`: if the weights are sharded and no `state_dict` is given.
        `NotFinite`: if an expert holds NaN or an infinity. Nothing is written then.
    """
    memory, folder = Memory.of(model), Path(save_directory)
    assert memory is not None  # attached together with this function
    others = (is_main_process, state_dict, *args)
    if state_dict is not None and not state_dict:  # of a Trainer under ZeRO-3 that does not gather the weights
        logger.warning(
            "%s gets DeepSpeed's own files, which resume but which from_pretrained does not load. Set "
            "zero3_save_16bit_model (stage3_gather_16bit_weights_on_model_save) to true, or call "
            "sleep_trl.memory.fold(Memory.of(model), folder) in all processes after training.",
            folder,
        )
        return write_checkpoint(model, folder, *others, **kwargs)
    if state_dict is None and is_sharded(model):
        raise ValueError(
            f"The weights of this {type(model).__name__} are sharded, so one process cannot save them alone. Call one "
            f"of these in all processes: sleep_trl.memory.fold(Memory.of(model), {str(folder)!r}) for a checkpoint "
            f"that from_pretrained loads, or sleep_trl.memory.save_memory(Memory.of(model), {str(folder)!r}) for the "
            f"experts alone."
        )
    state = model.state_dict() if state_dict is None else state_dict
    if is_main_process:
        save_memory(memory, folder / ADAPTER, state)
    if getattr(model, "_hf_peft_config_loaded", False):
        logger.warning("%s gets the adapter of PEFT; the experts are in its folder %s/ alone.", folder, ADAPTER)
        return write_checkpoint(model, folder, *others, **kwargs)
    try:
        config = folded_config(memory)
    except ValueError as error:
        if is_main_process:
            _save_trained_alone(memory, folder, state, str(error))
        return None
    with config_replaced(model, config):
        write_checkpoint(model, folder, is_main_process, folded_state_dict(memory, state), *args, **kwargs)


def _save_trained_alone(memory: Memory, folder: Path, state: Mapping[str, torch.Tensor], reason: str) -> None:
    """Write what a Trainer needs to resume, but no `config.json`: from_pretrained would return the base."""
    if (folder / CONFIG_NAME).exists():
        raise ValueError(
            f"{folder} holds a {CONFIG_NAME} already, and with the experts alone next to it from_pretrained would load "
            f"something else. Give an empty folder."
        )
    trained = {name for name, parameter in memory.model.named_parameters() if parameter.requires_grad}
    prefixes = tuple(f"{host.name}.memory." for host in memory.hosts)
    kept = {name: value for name, value in state.items() if name in trained or name.startswith(prefixes)}
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in kept.items()}
    save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    logger.warning(
        "%s gets the experts alone, and from_pretrained does not load it: %s To use them, load the base model and call "
        "sleep_trl.load_memory(model, %r).",
        folder,
        reason,
        str(folder / ADAPTER),
    )


def take_experts_out(model: PreTrainedModel, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """Turn a folded state dict into that of a model with a memory, in place, before `load_state_dict` reads it.

    Weights that a checkpoint leaves out, such as experts that are not active, stay as they are.

    Args:
        model (`PreTrainedModel`):
            The model that the state dict is loaded into.
        state (`dict[str, torch.Tensor]`):
            A state dict, or a part of one.
        prefix (`str`):
            What the names of the model's tensors begin with.

    Raises:
        `ValueError`: if more or fewer experts were folded than are active in the model.
    """
    memory = Memory.of(model)
    if memory is None:
        return
    dtypes = {dtype for host in memory.hosts if (dtype := _take_out_of(memory, host, state, prefix)) is not None}
    inside = tuple(f"{prefix}{host.name}.memory." for host in memory.hosts)
    if dtypes or any(name.startswith(inside) for name in state):
        for name, parameter in model.named_parameters(prefix.rstrip(".")):
            state.setdefault(name, parameter.detach())
    for dtype in dtypes - {torch.float32, torch.float64}:
        logger.warning(
            "The experts continue from weights that were folded in %s, and are rounded to it. The folder %s/ of the "
            "checkpoint holds them in float32: sleep_trl.memory.load_experts(Memory.of(model), folder).",
            str(dtype).removeprefix("torch."),
            ADAPTER,
        )


def _take_out_of(memory: Memory, host: Host, state: dict[str, torch.Tensor], prefix: str) -> torch.dtype | None:
    """Take the experts out of one MLP's weights in a state dict, and return their dtype if there are any."""
    dtype = None
    for role in host.form.linears:
        linear = getattr(host.module, role)
        for kind in ("weight", "bias"):
            wide = state.get(name := f"{prefix}{host.name}.{role}.{kind}")
            if wide is None or wide.shape == whole_shape(getattr(linear, kind)):
                continue
            own, experts = take_apart(host, role, wide, memory.spec.width)
            state[name] = own.contiguous()
            _check_count(memory, min(map(len, experts.values())))
            if kind == "weight":
                dtype = wide.dtype
                for part, values in experts.items():
                    for index, value in zip(memory.active, values, strict=True):
                        state[f"{prefix}{host.name}.memory.experts.{index}.{part}"] = value.contiguous()
    return dtype


def _check_count(memory: Memory, found: int) -> None:
    if found != len(memory.active):
        raise ValueError(
            f"The checkpoint has {found} experts of width {memory.spec.width} folded into each MLP, and this model's "
            f"memory has {len(memory.active)} active ones. Attach and activate it as in the run that wrote the "
            f"checkpoint."
        )
