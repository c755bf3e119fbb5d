"""Dreams beside the grown model instead of inside its expert: one LoRA, to be merged by whoever wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ..batched_lora import LoraJob, LoraSpec, LoraTraining, export_adapter, train_adapters
from ..config import RunConfig
from ..data.samples import Sample

FOLDER = "dream_adapter"


def learn_into_adapter(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, dreams: Sequence[Sample], device: torch.device
) -> Path:
    """Train one LoRA over the folded model on all rewarded dreams, and write it as PEFT reads it.

    `PeftModel.from_pretrained(model, folder).merge_and_unload()` merges it into the run's `model/`.

    Args:
        config (`RunConfig`):
            The run, whose `model/` has been written.
        tokenizer (`PreTrainedTokenizerBase`):
            Written beside the adapter.
        dreams (`Sequence[Sample]`):
            What it learns: each dream behind what stands before it in view of the student.
        device (`torch.device`):
            Where to train.

    Returns:
        `Path`: the folder `dream_adapter/` of the run.

    Raises:
        `RuntimeError`: if training diverged.
    """
    options, folder = config.dream, config.output_dir / FOLDER
    model = AutoModelForCausalLM.from_pretrained(config.output_dir / "model", dtype="auto", use_safetensors=True)
    learnt = LoraJob(
        "dreams",
        tuple((*s.prompt_ids, *s.reference_ids) for s in dreams),
        tuple((False,) * len(s.prompt_ids) + (True,) * len(s.reference_ids) for s in dreams),
    )
    training = LoraTraining(
        options.steps,
        options.lora_learning_rate,
        schedule="linear",
        batch_size=min(len(dreams), options.batch_size),
        seed=config.seed,
    )
    spec = LoraSpec(options.lora_rank, options.lora_alpha)
    (outcome,) = train_adapters(model.to(device), [learnt], spec, training)
    if outcome.adapter is None:
        raise RuntimeError(f"The dreams could not be learnt: {outcome.error}. Lower dream.lora_learning_rate.")
    export_adapter(outcome.adapter, model, folder)
    tokenizer.save_pretrained(folder)
    return folder
