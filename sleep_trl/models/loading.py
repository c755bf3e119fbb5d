"""Loading models and tokenizers: safetensors only, no remote code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..config import RunConfig
from ..config.model_name import MAIN
from ..distributed.zero3 import expect_no_gpu, sharding
from .dtype import choose_dtype
from .gguf import local_checkpoint, read_gguf, unconverted

transformers_logging.disable_progress_bar()  # a night has its own


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, or by its name in a cache or on the Hub.

    Args:
        name (`str`): folder or name, as `from_pretrained` takes it.
        revision (`str`, *optional*): branch, tag or commit.
    """

    name: str
    revision: str | None = None

    @staticmethod
    def of(config: RunConfig, name: str | None = None) -> Checkpoint:
        """Return the checkpoint of a run's base model, or of another one by name. Folders have absolute paths."""
        found = local_checkpoint(name or config.model)
        folder = Path(found).expanduser()
        revision = config.model_revision if name is None and config.model_revision != MAIN else None
        return Checkpoint(str(folder.absolute()) if folder.is_dir() else found, revision)

    def load(self, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
        """Load the model, whole or as this process's shards (see [`~sleep_trl.distributed.zero3.sharding`]).

        Args:
            dtype (`torch.dtype`):
                Dtype of the weights.
            **options:
                Further options of `from_pretrained`.
        """
        if self.revision is not None:
            options["revision"] = self.revision
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.name, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
        return model


def load_model(config: RunConfig, name: str | None = None) -> PreTrainedModel:
    """Load the base model, or another one by name, onto this process's device in evaluation mode. Under DeepSpeed
    ZeRO-3 each process loads its shard."""
    expect_no_gpu()
    dtype = choose_dtype(config.dtype).dtype
    options = {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
    with sharding(dtype):
        model = Checkpoint.of(config, name).load(dtype, **options)
    return model.to(PartialState().device).eval()


def load_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer, padding on the left; without a padding token it uses the end-of-sequence token."""
    if (source := unconverted(config.model)) is not None:
        tokenizer = read_gguf(source)[1]
    else:
        tokenizer = AutoTokenizer.from_pretrained(
            local_checkpoint(config.model),
            revision=config.model_revision,
            padding_side="left",
            trust_remote_code=False,
        )
    return padded_left(tokenizer)


def padded_left(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Let a tokenizer pad on the left; without a padding token it uses the end-of-sequence token."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_limit(config: PretrainedConfig, max_context: int | None = None) -> int:
    """Return the tokens of context to use: what is asked for (`max_context`), at most the model's limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2048
    return min(max_context or int(limit), int(limit))
