"""Three sleeps of one model in one launch, as a script for any number of processes.

Rollouts are greedy, so that what is learned does not depend on how rows are shared out.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PrinterCallback

from sleep_trl.config import RunConfig
from sleep_trl.distributed.zero3 import is_sharded, serve, takes_part_in_saving
from sleep_trl.memory import MemorySpec, attach, base_fingerprint, fold, load_experts, save_memory
from sleep_trl.models.loading import load_model
from sleep_trl.trainers import KnowledgeSeedingConfig, KnowledgeSeedingTrainer
from tests.tiny import tiny_tokenizer
from tests.trainers.seedings import OPTIONS, length_reward, rows

IDS = torch.arange(3, 20)[None]


def sleep(model: Any, folder: Path, resume: Path | None = None, **options: Any) -> list[float]:
    """Train the learning expert for four steps, and return the losses."""
    batch = 8 // PartialState().num_processes
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None, **options}
    options = {**OPTIONS, "per_device_train_batch_size": batch, "top_k": 1, **options}
    trainer = KnowledgeSeedingTrainer(
        model,
        length_reward,
        args=KnowledgeSeedingConfig(str(folder), **options),
        train_dataset=rows(),
        processing_class=tiny_tokenizer(),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.release()
    return losses


def three_sleeps(base: Path, folder: Path, routing: str = "dense", dtype: str = "float32") -> dict[str, Any]:
    """Let a model sleep three times, resume the third sleep from the middle, and save what it has become."""
    model = load_model(RunConfig(model=str(base), memories="none", dtype=dtype))
    memory = attach(model, MemorySpec(width=8, max_experts=3, routing=routing, top_k=1))
    seen: dict[str, Any] = {"base": base_fingerprint(memory), "is_sharded": is_sharded(model)}
    seen["values_here"] = sum(getattr(p, "ds_tensor", p).numel() for _, p in memory.base_parameters())
    seen["first_weights"] = [memory.fingerprint(index) for index in range(3)]
    serve(model)
    with torch.no_grad():
        seen["logits"] = model(input_ids=IDS).logits[0, -1].tolist()
    seen["losses"] = []
    for night in range(3):
        index = memory.activate()
        gathers = {"ds3_gather_for_generation": night != 1}  # the second one puts the model together layer by layer
        seen["losses"].append(sleep(model, folder / f"night{night}", **gathers))
    seen["fingerprint"] = memory.fingerprint(index)
    memory.reset(index)
    memory.activate()
    seen["resumed_losses"] = sleep(model, folder / "night2", folder / "night2" / "checkpoint-2")
    seen["resumed_fingerprint"] = memory.fingerprint(index)
    memory.commit()
    serve(model)
    with torch.no_grad():
        seen["grown_logits"] = model(input_ids=IDS).logits[0, -1].tolist()
    if takes_part_in_saving(model):
        save_memory(memory, folder / "adapter")
        if routing == "dense":
            seen["fold_difference"] = fold(memory, folder / "model")
    PartialState().wait_for_everyone()
    load_experts(memory, folder / "adapter")
    seen["read_back"] = memory.fingerprint(index)
    return seen | {"processes": PartialState().num_processes, "parameters": memory.count_parameters()}


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
        PartialState(cpu=True)
    found = three_sleeps(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    rank = PartialState().process_index
    Path(sys.argv[2], f"seen-{rank}.json").write_text(json.dumps(found))
