"""Export of an adapter in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..runs.files import write_json
from .adapters import Adapter, find_targets


def export_adapter(adapter: Adapter, model: PreTrainedModel, folder: str | Path) -> None:
    """Write an adapter so that `peft.PeftModel.from_pretrained(model, folder)` loads it.

    `adapter_config.json` is written last, so that a folder that has one is complete.

    Args:
        adapter (`Adapter`):
            From [`train_adapters`].
        model (`PreTrainedModel`):
            The model on which it was trained; it is not written.
        folder (`str` or `Path`):
            Where the two files go; created if it is missing.

    Raises:
        `ValueError`: if the adapter's targets are not the model's.
    """
    targets = find_targets(model, adapter.spec)
    if {target.name for target in targets} != adapter.weights.keys():
        raise ValueError("This adapter was trained on a model with other targets. Give that model.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (down, up) in adapter.weights.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
    partial = folder / "adapter_model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.config.name_or_path or None,
        "r": adapter.spec.rank,
        "lora_alpha": adapter.spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(target.module, Conv1D) for target in targets),
        "target_modules": sorted(adapter.weights),
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)
