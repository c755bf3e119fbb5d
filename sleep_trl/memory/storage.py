"""Experts on disk: `experts.safetensors` and `memory.json`, a few megabytes a night next to the base checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..distributed.zero3 import gathered, whole_shape, writes_files
from ..runs import checksums
from ..runs.files import read_json, write_json
from ..runs.finished import newest_night
from ..runs.folder import AdapterFolder, RunFolder
from .memory import Memory
from .spec import ExpertRecord, MemorySpec

FORMAT = 1
SAMPLED_VALUES = 256
HOW_TO_STAY_FINITE = (
    "What was written before is unchanged. Lower --seeding.learning_rate (or --levels.learning_rate), or use --dtype "
    "float32, and run the night again in another --output_dir."
)


class NotFinite(ValueError):
    """An expert holds values that are not finite, so it must not be used or stored."""


def check_finite(tensors: Mapping[str, torch.Tensor], where: str, advice: str) -> None:
    """Raise [`NotFinite`] if a tensor holds NaN or an infinity.

    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            The weights of experts, by name.
        where (`str`):
            What holds them, for the message.
        advice (`str`):
            What to do.
    """
    if damaged := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise NotFinite(
            f"{where}: {len(damaged)} of {len(tensors)} weights hold NaN or infinity, such as {damaged[0]}. {advice}"
        )


def base_fingerprint(memory: Memory, state: Mapping[str, torch.Tensor] | None = None) -> str:
    """Return a SHA-256 over names, shapes and evenly spaced values of the base weights, or of those in a state dict.

    Values are rounded to bfloat16 first, so that a checkpoint has one fingerprint in float32 and in bfloat16. It tells
    checkpoints apart quickly; it does not prove that no value in between has changed (ours).
    """
    digest = hashlib.sha256()
    for name, parameter in memory.base_parameters():
        with gathered([parameter] if state is None else ()):
            flat = (parameter if state is None else state[name]).detach().reshape(-1)
            step = max(1, flat.numel() // SAMPLED_VALUES)
            values = flat[::step].to(device="cpu", dtype=torch.bfloat16, copy=True)
        digest.update(f"{name}{tuple(whole_shape(parameter))}".encode())
        digest.update(values.float().numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def save_memory(memory: Memory, folder: str | Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the experts of a memory to a folder. If weights are sharded, all processes have to call it.

    Both files are on disk when this returns, with their hashes beside them. `memory.json` is written last, so that a
    folder that has one is complete.

    Args:
        memory (`Memory`):
            The memory; its model is not written.
        folder (`str` or `Path`):
            Where `experts.safetensors` and `memory.json` go; created if it is missing.
        state (`Mapping[str, torch.Tensor]`, *optional*):
            The model's whole state dict, if the weights are sharded and only this process calls it.

    Raises:
        `NotFinite`: if an expert holds NaN or an infinity. Nothing is written then.
    """
    adapter = AdapterFolder(Path(folder))
    tensors = {}
    for index in memory.records:
        for host, expert in memory.experts(index):
            with gathered(expert.parameters() if state is None else ()):
                weights = (
                    dict(expert.named_parameters()) if state is None else memory.expert_tensors(host, index, state)
                )
                for name, weight in weights.items():
                    tensors[f"experts.{index}.{host.name}.{name}"] = weight.detach().to("cpu", copy=True).contiguous()
    check_finite(tensors, "The experts are not finite and were not saved", HOW_TO_STAY_FINITE)
    description = {"format": FORMAT, "base": base_fingerprint(memory, state), **memory.describe()}
    if state is None and not writes_files(memory.model):
        return
    adapter.path.mkdir(parents=True, exist_ok=True)
    partial = adapter.experts.with_suffix(".safetensors.partial")
    save_file(tensors, partial)
    checksums.replace(partial, adapter.experts, is_checked=True)
    write_json(adapter.description, description, is_checked=True)


def load_experts(memory: Memory, folder: str | Path, records: list[ExpertRecord] | None = None) -> None:
    """Copy the weights of saved experts into an attached memory, in place.

    Args:
        memory (`Memory`):
            The memory, of the same routing.
        folder (`str` or `Path`):
            A folder written by [`save_memory`].
        records (`list[ExpertRecord]`, *optional*):
            The experts to load; by default all.

    Raises:
        `ValueError`: if a tensor is missing, has another shape or is not finite, the routing differs, or the file is
            damaged.
    """
    description = read_description(folder)
    _check_routing(memory.spec, MemorySpec(**description["spec"]), folder)
    records = records or [ExpertRecord(**record) for record in description["experts"]]
    path = AdapterFolder(Path(folder)).experts
    checksums.check(path)
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}). Restore it from a copy.") from None
    check_finite(tensors, f"{path} is damaged", "Restore it from a copy.")
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


def holds(folder: str | Path, memory: Memory) -> bool:
    """Return whether a folder written by [`save_memory`] holds just what a memory is: the same base, as far as its
    fingerprint tells, and the same experts with the same weights."""
    adapter = AdapterFolder(Path(folder))
    if not adapter.description.is_file():
        return False
    description = read_description(folder)
    if description != {"format": FORMAT, "base": base_fingerprint(memory), **memory.describe()}:
        return False
    checksums.check(adapter.experts)
    saved = load_file(adapter.experts)
    return all(
        torch.equal(saved[f"experts.{index}.{name}"], parameter.detach().cpu())
        for index in memory.records
        for name, parameter in memory.expert_parameters(index)
    )


def _check_routing(attached: MemorySpec, saved: MemorySpec, folder: str | Path) -> None:
    """Raise unless both send a token to the same experts: an expert works only under its own routing."""
    ways = [f"routing={s.routing!r}" + (f", top_k={s.top_k}" if s.is_routed else "") for s in (attached, saved)]
    if ways[0] != ways[1]:
        raise ValueError(
            f"{folder} holds experts trained with {ways[1]}, but the attached memory has {ways[0]}. Attach it with "
            f"MemorySpec({ways[1]}), or let load_memory(model, folder) do it."
        )


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read and check the `memory.json` of a folder.

    Raises:
        `ValueError`: if it is missing, damaged, or of another format. Names the folder of a run's experts, if the
            folder of the run was given.
    """
    path = AdapterFolder(Path(folder)).description
    inside = RunFolder(newest_night(Path(folder))).adapter
    if not path.exists() and inside.description.is_file():
        raise ValueError(f"{folder} is the folder of a run. Give that of its experts: {inside.path}.")
    description = read_json(path)
    missing = {"format", "base", "spec", "experts"} - set(description)
    if missing or description["format"] != FORMAT:
        found = f"lacks {sorted(missing)}" if missing else f"has format {description['format']}"
        raise ValueError(f"{path} {found}; this version reads format {FORMAT} of `sleep-trl`.")
    return description
