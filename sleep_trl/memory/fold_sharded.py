"""Folding of sharded weights, module by module, so that no process ever holds the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from transformers import PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..distributed.zero3 import gathered
from ..runs.files import write_json
from .memory import Memory
from .wide import widen

FILE_BYTES = 2 * 2**30  # size of a checkpoint file; the first process holds one in memory


def assemble(memory: Memory, config: PretrainedConfig, folder: Path) -> None:
    """Write the model with its enabled experts folded in, as a standard checkpoint. All processes have to call it.

    Args:
        memory (`Memory`):
            A memory with dense routing, of a model whose weights are sharded.
        config (`PretrainedConfig`):
            The folded model's, see [`~sleep_trl.memory.folded_config`].
        folder (`Path`):
            Where the checkpoint goes.
    """
    state = PartialState()
    files: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    held_bytes = total = 0
    folder.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        save_file(held, folder / f"{len(files)}.partial", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for tensors in _folded_modules(memory, is_read=state.is_main_process):
        held |= tensors
        added = sum(tensor.nbytes for tensor in tensors.values())
        held_bytes, total = held_bytes + added, total + added
        if held_bytes >= FILE_BYTES:
            write()
            held_bytes = 0
    if state.is_main_process:
        write()
        _name_files(folder, files, total)
        config.architectures = [type(memory.model).__name__]
        config.dtype = memory.model.dtype
        config.save_pretrained(folder)
        memory.model.generation_config.save_pretrained(folder)
    state.wait_for_everyone()


def _folded_modules(memory: Memory, is_read: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the folded model's tensors on the CPU, one module at a time. A process that does not read only gathers."""
    hosts = {host.name: host for host in memory.hosts}
    inside = tuple(f"{name}." for name in hosts)
    done: set[int] = set()
    for name, module in memory.model.named_modules():
        if name.startswith(inside):
            continue
        if host := hosts.get(name):
            experts = [expert for index in memory.active for at, expert in memory.experts(index) if at.name == name]
            maps = [getattr(module, role) for role in host.form.linears]
            with gathered(p for part in (*maps, *experts) for p in part.parameters()):
                if is_read:
                    for role, pair in widen(host, experts).items():
                        named = zip((f"{name}.{role}.weight", f"{name}.{role}.bias"), pair, strict=True)
                        yield {key: _on_cpu(tensor) for key, tensor in named if tensor is not None}
            continue
        own = {key: p for key, p in module.named_parameters(name, recurse=False) if id(p) not in done}
        done |= {id(p) for p in own.values()}  # tied weights are written once, under their first name
        with gathered(own.values()):
            if is_read:
                kept = own | {
                    key: value
                    for key, value in module.named_buffers(name, recurse=False)
                    if key.rpartition(".")[2] not in module._non_persistent_buffers_set
                }
                yield {key: _on_cpu(value) for key, value in kept.items()}


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _name_files(folder: Path, files: list[list[str]], total: int) -> None:
    """Rename the files, now that their number is known, and write the index if there are several."""
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    names = names if len(files) > 1 else [SAFE_WEIGHTS_NAME]
    for number, name in enumerate(names):
        (folder / f"{number}.partial").replace(folder / name)
    if len(files) > 1:
        weights = {key: name for name, keys in zip(names, files, strict=True) for key in keys}
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weights})
