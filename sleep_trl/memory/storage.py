"""Experts on disk: `experts.safetensors` and `memory.json`, a few megabytes a night beside the base checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ..distributed.zero3 import gathered, whole_shape, writes_files
from ..runs.files import read_json, write_json
from .memory import ExpertRecord, Memory, attach
from .spec import MemorySpec

FORMAT = 1
SAMPLED_VALUES = 256


def base_fingerprint(memory: Memory) -> str:
    """Return a SHA-256 over names, shapes and evenly spaced values of the base weights.

    Values are rounded to bfloat16 first, so that a checkpoint is the same one loaded in float32 and in bfloat16. It
    tells checkpoints apart at once; it is no proof that no value in between has changed (ours).
    """
    digest = hashlib.sha256()
    for name, parameter in memory.base_parameters():
        with gathered([parameter]):
            flat = parameter.detach().reshape(-1)
            step = max(1, flat.numel() // SAMPLED_VALUES)
            values = flat[::step].to(device="cpu", dtype=torch.bfloat16, copy=True)
        digest.update(f"{name}{tuple(whole_shape(parameter))}".encode())
        digest.update(values.float().numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def save_memory(memory: Memory, folder: Path) -> None:
    """Write the active experts of a memory to a folder. If weights are sharded, all processes have to call it.

    The weights are written first and named last, so that a folder with a `memory.json` is always complete.

    Args:
        memory (`Memory`):
            The memory; its model is not written.
        folder (`Path`):
            Where `experts.safetensors` and `memory.json` go.
    """
    tensors = {}
    for index in memory.records:
        for name, parameter in memory.expert_parameters(index):
            with gathered([parameter]):
                tensors[f"experts.{index}.{name}"] = parameter.detach().to("cpu", copy=True).contiguous()
    description = {"format": FORMAT, "base": base_fingerprint(memory), **memory.describe()}
    if not writes_files(memory.model):
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "experts.safetensors.partial"
    save_file(tensors, partial)
    partial.replace(folder / "experts.safetensors")
    write_json(folder / "memory.json", description)


def load_memory(model: PreTrainedModel, folder: Path, max_experts: int | None = None) -> Memory:
    """Attach a saved memory to the model on which it was made.

    Args:
        model (`PreTrainedModel`):
            The base model, without a memory.
        folder (`Path`):
            A folder written by [`save_memory`].
        max_experts (`int`, *optional*):
            Room for this many experts instead of the saved number.

    Returns:
        `Memory`: the handle, everything frozen; if it was saved while an expert was replacing others, without those.

    Raises:
        `ValueError`: if the folder is incomplete, damaged, of another format, or belongs to another base model.
    """
    description = read_description(folder)
    spec = MemorySpec(**{**description["spec"], **({"max_experts": max_experts} if max_experts else {})})
    records = [ExpertRecord(**record) for record in description["experts"]]
    if records and records[-1].index >= spec.max_experts:
        raise ValueError(
            f"{folder} holds expert {records[-1].index}, which needs room for {records[-1].index + 1} experts, but "
            f"max_experts is {spec.max_experts}. Raise it."
        )
    memory = attach(model, spec)
    if (found := base_fingerprint(memory)) != description["base"]:
        raise ValueError(
            f"{folder} was made on another base model: its fingerprint is {description['base'][:12]}, the given "
            f"model's is {found[:12]}. Give the model that the memory was made on."
        )
    load_experts(memory, folder, records)
    memory.replacing = tuple(description.get("replacing", ()))
    memory.commit()  # an expert that was learning when it was saved
    return memory


def load_experts(memory: Memory, folder: Path, records: list[ExpertRecord] | None = None) -> None:
    """Copy the weights of saved experts into an attached memory, in place.

    Raises:
        `ValueError`: if a tensor is missing, of another shape, the experts are routed in another way than the memory's,
            or the file is damaged.
    """
    description = read_description(folder)
    _check_routing(memory.spec, MemorySpec(**description["spec"]), folder)
    records = records or [ExpertRecord(**record) for record in description["experts"]]
    path = folder / "experts.safetensors"
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}). Restore it from a copy.") from None
    with torch.no_grad():
        for record in records:
            for name, parameter in memory.expert_parameters(record.index):
                saved = tensors.get(key := f"experts.{record.index}.{name}")
                if saved is None or saved.shape != whole_shape(parameter):
                    shape = "is missing" if saved is None else f"has shape {tuple(saved.shape)}"
                    raise ValueError(f"{path}: {key} {shape}, expected {tuple(whole_shape(parameter))}.")
                with gathered([parameter], write=True):
                    parameter.copy_(saved)
    memory.register(records)


def _check_routing(attached: MemorySpec, saved: MemorySpec, folder: Path) -> None:
    """Raise unless both send a token to the same experts: an expert is right only under the routing it learnt with."""
    ways = [f"routing={s.routing!r}" + (f", top_k={s.top_k}" if s.is_routed else "") for s in (attached, saved)]
    if ways[0] != ways[1]:
        raise ValueError(
            f"{folder} holds experts that learnt with {ways[1]}, but the attached memory has {ways[0]}. Attach it with "
            f"MemorySpec({ways[1]}), or let load_memory(model, folder) do it."
        )


def read_description(folder: Path) -> dict[str, Any]:
    """Read and check `memory.json`."""
    description = read_json(folder / "memory.json")
    missing = {"format", "base", "spec", "experts"} - set(description)
    if missing or description["format"] != FORMAT:
        found = f"lacks {sorted(missing)}" if missing else f"has format {description['format']}"
        raise ValueError(f"{folder / 'memory.json'} {found}; this version reads format {FORMAT} of `sleep-trl`.")
    return description
