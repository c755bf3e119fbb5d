"""Attaching a memory to a model: a new one, or a saved one."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .memory import Memory
from .saving import save_what_loads
from .spec import ExpertRecord, MemorySpec
from .storage import base_fingerprint, load_experts, read_description

warn_once = cache(logging.getLogger(__name__).warning)


def attach(model: PreTrainedModel, spec: MemorySpec | None = None) -> Memory:
    """Add a pool of inactive low-rank experts to every MLP of a causal language model, and freeze the model.

    Args:
        model (`PreTrainedModel`):
            A model whose MLPs have one of the forms in [`sleep_trl.memory.hosts.FORMS`].
        spec (`MemorySpec`, *optional*):
            Size and routing of the memory.

    Returns:
        `Memory`: the handle, also available as `Memory.of(model)`.

    Raises:
        `ValueError`: if the model has a memory already or is wrapped, such as by PEFT, its MLPs have an unknown form,
            or the width is not low-rank.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"A memory is attached to a model of transformers, and this is a {type(model).__name__}. Leave out "
            f"peft_config (--use_peft), or attach to `model.merge_and_unload()`."
        )
    if Memory.of(model) is not None:
        raise ValueError("This model has a memory already; sleep_trl.memory.Memory.of(model) returns it.")
    memory = Memory(model, spec or MemorySpec())
    model.sleep_memory = memory
    save_what_loads(model)
    model.register_forward_pre_hook(_warn_if_nothing_learns, with_kwargs=True)
    return memory


def _warn_if_nothing_learns(model: PreTrainedModel, _: object, given: dict[str, Any]) -> None:
    """Say once if a model is in training, but none of its weights are. With gradient checkpointing a Trainer runs to
    its end all the same."""
    if torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()):
        return
    memory, embedded = Memory.of(model), given.get("inputs_embeds")
    learns_outside = embedded is not None and embedded.requires_grad  # as with prompt tuning
    if memory is None or memory.learning is not None or learns_outside:
        return
    if any(weight.requires_grad for weight in model.parameters()):
        return
    warn_once(
        "This model is in training mode, but all its weights are frozen and no expert learns, so nothing is trained. "
        "Call attach(model).activate() before training, or model.eval() if it does not train."
    )


class OtherBase(ValueError):
    """A memory was made on another base model."""


def load_memory(model: PreTrainedModel, folder: str | Path, max_experts: int | None = None) -> Memory:
    """Attach a saved memory to the model on which it was made.

    Args:
        model (`PreTrainedModel`):
            The base model, without a memory.
        folder (`str` or `Path`):
            A folder written by [`save_memory`].
        max_experts (`int`, *optional*):
            Experts to allocate, in place of the saved number.

    Returns:
        `Memory`: the handle, everything frozen. If it was saved while an expert was replacing others, these are gone.

    Raises:
        `ValueError`: if the folder is incomplete, damaged, of another format, or belongs to another base model.
    """
    description = read_description(folder)
    spec = MemorySpec(**{**description["spec"], **({"max_experts": max_experts} if max_experts else {})})
    records = [ExpertRecord(**record) for record in description["experts"]]
    if records and records[-1].index >= spec.max_experts:
        raise ValueError(
            f"{folder} holds expert {records[-1].index}, which takes max_experts of at least {records[-1].index + 1}, "
            f"got {spec.max_experts}. Raise it."
        )
    memory = attach(model, spec)
    if (found := base_fingerprint(memory)) != description["base"]:
        raise OtherBase(
            f"{folder} was made on another base model: its fingerprint is {description['base'][:12]}, the given "
            f"model's is {found[:12]}. It needs the base model that it was made on."
        )
    load_experts(memory, folder, records)
    memory.replacing = tuple(description.get("replacing", ()))
    memory.commit()  # an expert that was learning when it was saved
    return memory
