"""Learn dreams into a LoRA for the grown model, as an alternative to its expert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ..batched_lora import LoraJob, LoraSpec, LoraTraining, export_adapter, train_adapters
from ..config import RunConfig
from ..data.samples import Sample
from ..runs.folder import RunFolder


def learn_into_adapter(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, dreams: Sequence[Sample], device: torch.device
) -> Path:
    """Train one LoRA for the folded model on all rewarded dreams, and write it in PEFT's format.

    `PeftModel.from_pretrained(model, folder).merge_and_unload()` merges it into the run's `model/`.

    Args:
        config (`RunConfig`):
            The run; its `model/` must exist.
        tokenizer (`PreTrainedTokenizerBase`):
            Saved along with the adapter.
        dreams (`Sequence[Sample]`):
            The dreams to learn, each with the student's prompt.
        device (`torch.device`):
            Where to train.

    Returns:
        `Path`: the folder `dream_adapter/` of the run.

    Raises:
        `RuntimeError`: if training diverged.
    """
    options, folder = config.dream, RunFolder(config.output_dir).dream_adapter
    model = AutoModelForCausalLM.from_pretrained(RunFolder(config.output_dir).model, dtype="auto", use_safetensors=True)
    job = LoraJob(
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
    (outcome,) = train_adapters(model.to(device), [job], spec, training)
    if outcome.adapter is None:
        raise RuntimeError(f"Training on the dreams failed: {outcome.error}. Lower dream.lora_learning_rate.")
    export_adapter(outcome.adapter, model, folder)
    tokenizer.save_pretrained(folder)
    return folder
